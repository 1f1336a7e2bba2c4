//! Option B: the image has no secrets, and the operator sends them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use teemark_vm::{operator, run};

use crate::checklist::checklist;
use crate::stage::Stage;
use crate::workshop::{KEY_ID, Workshop};
use crate::world::{SOON, World};

/// The heredoc of certs/README.md, unchanged (step 2, option B).
const HEREDOC: &str = r#"cat > mtls_certs.json <<EOF
{
  "MTLS_CLIENT_CERT_JSON": "{\"client_cert\":\"$(cat client.crt | base64 -w 0)\",\"client_key\":\"$(cat client.key | base64 -w 0)\",\"ca_cert\":\"$(cat ecs-ca.crt | base64 -w 0)\"}",
  "ECS_WATERMARK_ENDPOINT": "https://watermark.internal.staging.zing.you:8080"
}
EOF
"#;

/// The command that sends the bundle, unchanged.
const SEND: &str = r#"ENCLAVE_CID=$(nitro-cli describe-enclaves | jq -r ".[0].EnclaveCID")
cat mtls_certs.json | socat - VSOCK-CONNECT:$ENCLAVE_CID:7777
"#;

pub(crate) fn an_enclave_gets_its_secrets_by_handshake_and_serves_through_everything(
    stage: &Stage,
    workshop: &Workshop,
) -> Result<()> {
    // Before the machines boot: their clocks begin at a whole second, and may be nearly one second behind.
    let rotated = workshop.rotated_certs()?;
    let mut world = World::boot(stage, workshop, workshop.ordinary()?, 256)?;
    stage.step("the heartbeat arrives at the parent's port 9000 and is answered", || heartbeat(&world))?;
    stage.step(
        "a parent that listens after 20 s and takes 10 s more to answer gets it too, and holds up nothing",
        || late_heartbeat(stage, workshop, &mut world),
    )?;
    stage.step("/ready says 503 with what is missing", || {
        world.wait_for_listeners()?;
        let ready = world.get("/ready")?.with(503)?.json()?;
        ensure!(ready == json!({"ready": false, "missing": ["MTLS_CLIENT_CERT_JSON", "FILE_KEYS"]}), "{ready}");
        Ok(())
    })?;
    stage.step("the seed's commands deliver the certificates, as they stand there", || seeds_handshake(&world))?;
    stage.step("a second bundle brings the file keys by send-secrets.sh, and nothing is missing", || {
        let bundle = json!({"FILE_KEYS": workshop.file_keys()?}).to_string();
        let said = operator::send_secrets(&world.parent, bundle.as_bytes())?.success()?.text();
        ensure!(said.contains(r#""ok":true"#), "{said}");
        world.get("/ready")?.with(200).map(drop)
    })?;
    stage.step("what a plain handshake gives up: the parent has read the private key and the file keys", || {
        let key = fs::read(workshop.certs()?.join("client.key"))?;
        ensure!(world.was_seen(STANDARD.encode(key).as_bytes()), "client.key was not seen");
        let file_key = workshop.file_keys()?[KEY_ID].as_str().context("no key")?.to_owned();
        ensure!(world.was_seen(file_key.as_bytes()), "the file key was not seen");
        Ok(())
    })?;
    work(stage, workshop, &world)?;
    checklist(stage, &world)?;
    rotation(stage, &world, workshop.certs()?, &rotated)?;
    stage.step("while the proxy is down requests end with 502, and after its restart with 200", || {
        proxy_restart(stage, &world)
    })?;
    garbage(stage, workshop, &world)?;
    stage.step("the enclave's machine is ended as nitro-cli ends it, and curl is told so", || {
        world.enclave.terminate()?;
        let answer = world.curl("--max-time 30 http://127.0.0.1:3000/ready");
        ensure!(answer.is_err(), "{answer:?} from an enclave that is gone");
        Ok(())
    })
}

pub(crate) fn heartbeat(world: &World) -> Result<()> {
    world.enclave.console.wait_for("[INIT] heartbeat: answered", teemark_vm::BOOT)?;
    let byte = world.parent.get("/tmp/heartbeat")?;
    ensure!(byte == [0xb7], "{byte:02x?}");
    Ok(())
}

/// The enclave is started again. It serves long before its parent is there to be told so.
fn late_heartbeat(stage: &Stage, workshop: &Workshop, world: &mut World) -> Result<()> {
    world.parent.sh("rm /tmp/heartbeat")?;
    world.reboot(stage, workshop.ordinary()?, 256, operator::answer_heartbeat_late)?;
    heartbeat(world)?;
    let lines = world.enclave.console.lines();
    let place = |text: &str| lines.iter().position(|line| line.text.contains(text)).with_context(|| text.to_owned());
    let (asked, served) =
        (place("heartbeat: the parent does not answer yet")?, place("secrets: listening on vsock:7777")?);
    let answered = place("heartbeat: answered")?;
    ensure!(asked < answered && served < answered, "in this order: {asked} {served} {answered}");
    Ok(())
}

/// In that command socat waits half a second for the answer, and a machine under TCG may need longer. So the enclave's own
/// lines decide.
fn seeds_handshake(world: &World) -> Result<()> {
    let from = world.enclave.console.length();
    let answer = world.relay(&format!("cd {}\n{HEREDOC}{SEND}", operator::CERTS), b"")?.success()?.text();
    ensure!(answer.is_empty() || answer.contains(r#""ok":true"#), "{answer}");
    let console = &world.enclave.console;
    console.wait_since(from, "[RUN_SH] mTLS client certificates written to /opt/enclave/certs/", SOON)?;
    console.wait_since(from, "handshake accepted: MTLS_CLIENT_CERT_JSON, ECS_WATERMARK_ENDPOINT in force", SOON)?;
    Ok(())
}

/// Both routes, with a text and a picture, and each mark read back.
fn work(stage: &Stage, workshop: &Workshop, world: &World) -> Result<()> {
    let (text, picture) = (fs::read(teemark_vm::repository().join("LICENSE"))?, workshop.picture()?);
    world.parent.put("/tmp/text.enc", &workshop.encrypt(&text)?)?;
    world.parent.put("/tmp/picture.enc", &workshop.encrypt(&picture)?)?;
    stage.step("POST /files/{file_id}/decrypt gives the text marked for its user", || {
        let marked = world.decrypt("/tmp/text.enc", "text-1", "user-4711")?.with(200)?.body;
        ensure!(marked.len() > text.len(), "{} bytes of {}", marked.len(), text.len());
        marked_for(workshop, &marked, "text-1", "user-4711")
    })?;
    stage.step("POST /files/decrypt gives the picture marked for its user", || {
        let request = r#"{file_id: "picture-1", user_id: "alice", encrypted_content: .}"#;
        world.parent.sh(&format!("base64 -w 0 /tmp/picture.enc | jq -R '{request}' >/tmp/request.json"))?;
        let json = "-H 'Content-Type: application/json' --data-binary @/tmp/request.json";
        let answer = world.curl(&format!("{json} http://127.0.0.1:3000/files/decrypt"))?.with(200)?;
        ensure!(answer.json()?["watermarked"] == true, "{:?}", answer.json());
        world.parent.put("/tmp/answer.json", &answer.body)?;
        let marked = world.parent.run("jq -r .decrypted_data /tmp/answer.json | base64 -d")?.success()?.stdout;
        marked_for(workshop, &marked, "picture-1", "alice")
    })
}

fn marked_for(workshop: &Workshop, marked: &[u8], file_id: &str, user_id: &str) -> Result<()> {
    let mark = workshop.mark(marked)?;
    ensure!(mark == (file_id.into(), user_id.into()), "the mark says {mark:?}");
    Ok(())
}

fn rotation(stage: &Stage, world: &World, before: &Path, rotated: &Path) -> Result<()> {
    let serial = |folder: &Path| -> Result<String> {
        let mut command = Command::new("openssl");
        let line = run(command.args(["x509", "-noout", "-serial", "-in"]).arg(folder.join("client.crt")))?;
        Ok(String::from_utf8(line)?.trim().trim_start_matches("serial=").to_owned())
    };
    let (old, new) = (serial(before)?, serial(rotated)?);
    let shown = |serial: &str| -> Result<bool> {
        Ok(world.parent.run(&format!("grep -q 'serial={serial}' /tmp/service.log"))?.status == 0)
    };
    stage.step("the seed's commands rotate the certificate, and the service sees the new one at once", || {
        ensure!(shown(&old)? && !shown(&new)?, "the service has not seen {old}, or has seen {new} already");
        operator::bring_certs(&world.parent, rotated, &operator::OF_OPERATOR)?;
        seeds_handshake(world)?;
        world.decrypt("/tmp/text.enc", "text-2", "bob")?.with(200)?;
        ensure!(shown(&new)?, "the service has not seen {new}");
        Ok(())
    })
}

/// One request after the other, while the proxy goes and comes back.
fn proxy_restart(stage: &Stage, world: &World) -> Result<()> {
    let curl = "curl -s -o /dev/null --max-time 60 -w '%{http_code} %{time_total}\\n' --data-binary @/tmp/text.enc";
    let url = "http://127.0.0.1:3000/files/text-$i/decrypt?user_id=carol";
    let script = format!("i=0\nuntil [ -e /tmp/enough ]; do\n  {curl} \"{url}\"\n  i=$((i+1))\ndone\n");
    world.parent.put("/tmp/requests", script.as_bytes())?;
    world.parent.start("load", "sh /tmp/requests", "^200")?;
    operator::stop_proxy(&world.parent)?;
    world.parent.wait_until("[ $(grep -c '^502' /tmp/load.log) -ge 5 ]", SOON)?;
    operator::start_proxy(&world.parent)?;
    world.parent.wait_until("tail -n 1 /tmp/load.log | grep -q '^200'", SOON)?;
    world.parent.sh("touch /tmp/enough")?;

    let (mut longest, mut right, mut refused, mut late) = (0.0_f64, 0, 0, 0);
    for line in world.parent.sh("cat /tmp/load.log")?.lines() {
        let (code, time) = line.split_once(' ').with_context(|| line.to_owned())?;
        match code {
            "200" => right += 1,
            "502" => refused += 1,
            // vsock gives a connection two seconds, which may be too short for a busy machine.
            "504" | "000" if late < 2 => late += 1,
            _ => bail!("a request ended so: {line}"),
        }
        longest = longest.max(time.parse()?);
    }
    stage.figure(&format!("{right} × 200, {refused} × 502, the longest took {longest:.2} s"));
    Ok(())
}

/// Bytes that are neither a bundle nor a request, and a sender that stalls; others are served during and after that.
fn garbage(stage: &Stage, workshop: &Workshop, world: &World) -> Result<()> {
    let stall =
        "echo begins; (printf '{\"FILE_KEYS\": '; sleep 30) | socat -t 30 - VSOCK-CONNECT:16:7777 >/tmp/stalled";
    world.parent.put("/tmp/stall", stall.as_bytes())?;
    let begun = Instant::now();
    world.parent.start("stall", "sh /tmp/stall", "begins")?;

    stage.step("random bytes, half a bundle and one too large are refused on 7777, each with an answer", || {
        let bundle = world.parent.get(&format!("{}/mtls_certs.json", operator::CERTS))?;
        let random = world.parent.run("head -c 65536 /dev/urandom")?.success()?.stdout;
        let large = vec![b' '; (1 << 20) + 1];
        for (what, bytes) in [("random", &random[..]), ("half", &bundle[..bundle.len() / 2]), ("large", &large)] {
            let answer = world.handshake(bytes).context(what)?;
            ensure!(answer["ok"] == false && answer["field"] == "bundle", "{what}: {answer}");
        }
        Ok(())
    })?;
    stage.step("random bytes, an endless head and 40 silent connections on 3000 disturb nobody", || {
        world.parent.sh("head -c 65536 /dev/urandom | socat -t 2 - VSOCK-CONNECT:16:3000 | head -c 300 || true")?;
        let endless = "(printf 'GET /ready HTTP/1.1\\r\\nX: '; head -c 65536 /dev/zero | tr '\\0' x)";
        let answer = world.parent.sh(&format!("{endless} | socat -t 30 - VSOCK-CONNECT:16:3000 | head -n 1"))?;
        ensure!(answer.contains("431"), "the endless head got {answer:?}");
        let silent = "for i in $(seq 40); do sleep 90 | socat - VSOCK-CONNECT:16:3000 & done; echo open; wait";
        world.parent.put("/tmp/silence", silent.as_bytes())?;
        world.parent.start("silence", "sh /tmp/silence", "open")?;
        world.get("/ready")?.with(200)?;
        let marked = world.decrypt("/tmp/text.enc", "text-3", "dave")?.with(200)?.body;
        marked_for(workshop, &marked, "text-3", "dave")
    })?;
    stage.step("a sender that stalls is answered after 10 s", || {
        world.parent.wait_until("grep -q ok /tmp/stalled", SOON)?;
        let answer = world.parent.sh("cat /tmp/stalled")?;
        ensure!(answer.contains(r#""ok":false"#), "{answer}");
        ensure!(begun.elapsed() > Duration::from_secs(8), "{answer} after {:?}", begun.elapsed());
        Ok(())
    })?;
    stage.step("the enclave lives: no panic, nothing from the kernel, and files are served", || {
        ensure!(world.metric("teemark_panics_total")? == 0.0, "a panic");
        for bad in ["panic at", "Kernel panic", "WARNING:", "BUG:", "Out of memory"] {
            let line = world.enclave.console.find(bad);
            ensure!(line.is_none(), "{line:?}");
        }
        world.decrypt("/tmp/picture.enc", "picture-2", "erin")?.with(200).map(drop)
    })
}
