//! The shipped image, and a parent that reads, withholds, alters and replays whatever passes through it.
//!
//! The operator and the user are on this machine, and everything between them and the enclave goes through the parent.

use std::fs;
use std::iter;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use teemark_vm::{operator, qemu, run};

use crate::clock;
use crate::outside::{Outside, User};
use crate::stage::Stage;
use crate::workshop::{KEY_ID, Workshop};
use crate::world::{World, holds};

pub(crate) fn a_hostile_parent_relays_everything_reads_nothing_and_changes_nothing(
    stage: &Stage,
    workshop: &Workshop,
) -> Result<()> {
    let image = workshop.sealed()?;
    let mut world = World::with(stage, workshop, image, 256, &operator::OF_SERVICE)?;
    world.wait_for_listeners()?;
    operator::forward(&world.parent, 3000, "TCP:127.0.0.1:3000")?;
    let outside = Outside::new(workshop, &world, image, 3000)?;

    stage.step("the operator checks the attestation document against the image's PCRs", || outside.attest(stage))?;
    if qemu::nitro().is_some() {
        stage.step("the enclave's clock, which was minutes ahead, was set before anybody could connect", || {
            clock::was_set(stage, &world, "ahead of")
        })?;
    }
    let sealed = stage.step("the operator seals two bundles to the enclave, in this order", || {
        [1, 2].into_iter().map(|counter| outside.seal(counter)).collect::<Result<Vec<_>>>()
    })?;
    let last = handshake(stage, &world, &outside, &sealed)?;
    let user = User::new(workshop)?;
    files(stage, workshop, &world, &outside, &user)?;
    stage.step("with bytes changed on the way neither the document nor an answer is believed", || {
        meddle(workshop, &world, &outside, &user)
    })?;
    stage.step("all that passed is searched: no private key, no file key, no bundle, no file", || {
        nothing_was_seen(workshop, &world, &outside)
    })?;
    stage.step("after a restart the bundle that was kept is for another boot", || {
        world.reboot(stage, image, 256, operator::answer_heartbeat)?;
        world.wait_for_listeners()?;
        refused(&world.handshake(&last)?, "sealed_bundle_v2.boot_nonce")?;
        world.get("/ready")?.with(503).map(drop)
    })
}

/// The bundle, first in forms that a hostile parent might choose, then as it is. Returns the last one that takes effect.
fn handshake(stage: &Stage, world: &World, outside: &Outside, sealed: &[Vec<u8>]) -> Result<Vec<u8>> {
    stage.step("altered, cut, unsealed and made up, no bundle takes effect", || {
        let end = sealed[1].iter().position(|byte| *byte == b'\n').context("there is no line")?;
        let (line, rest) = sealed[1].split_at(end);
        let whole: Value = serde_json::from_slice(line)?;
        for member in
            ["/boot_nonce", "/enc", "/counter", "/manifest/sha256", "/ciphertext/sha256", "/signatures/0/signature"]
        {
            let mut altered = whole.clone();
            let value = altered.pointer_mut(&format!("/sealed_bundle_v2{member}")).context("a member is missing")?;
            *value = match &*value {
                Value::String(text) => json!(text.chars().rev().collect::<String>()),
                number => json!(number.as_u64().unwrap_or_default() + 1),
            };
            let altered = [altered.to_string().as_bytes(), rest].concat();
            ensure!(world.handshake(&altered)?["ok"] == false, "{member} was altered");
        }
        let mut altered = sealed[1].clone();
        *altered.last_mut().context("it is empty")? ^= 1;
        ensure!(world.handshake(&altered)?["ok"] == false, "the ciphertext was altered");
        for length in [1, sealed[1].len() / 2, sealed[1].len() - 3] {
            ensure!(world.handshake(&sealed[1][..length])?["ok"] == false, "cut to {length} bytes");
        }
        let plain = json!({"ECS_WATERMARK_ENDPOINT": operator::ENDPOINT}).to_string();
        refused(&world.handshake(plain.as_bytes())?, "bundle")?;
        let stranger = outside.seal_as_stranger()?;
        refused(&world.handshake(&stranger)?, "sealed_bundle_v2.signatures")?;
        let ready = world.get("/ready")?.with(503)?.json()?;
        ensure!(ready["missing"] == json!(["MTLS_CLIENT_CERT_JSON", "FILE_KEYS", "GRANT_KEYS"]), "{ready}");
        Ok(())
    })?;
    stage.step("socat on the parent relays the second, and the enclave is ready", || {
        world.parent.put("/tmp/sealed.bundle", &sealed[1])?;
        let answer = world.parent.sh("cat /tmp/sealed.bundle | socat -t 30 - VSOCK-CONNECT:16:7777")?;
        ensure!(answer.contains(r#""ok":true"#), "{answer}");
        world.get("/ready")?.with(200).map(drop)
    })?;
    stage.step("sent again it is refused, and so is the older one; a newer one is taken", || {
        refused(&world.handshake(&sealed[1])?, "sealed_bundle_v2.counter")?;
        refused(&world.handshake(&sealed[0])?, "sealed_bundle_v2.counter")?;
        let newer = outside.seal(3)?;
        let answer = world.handshake(&newer)?;
        ensure!(answer["ok"] == true, "{answer}");
        refused(&world.handshake(&sealed[1])?, "sealed_bundle_v2.counter")?;
        Ok(newer)
    })
}

/// Files, for users with a grant, sealed to the user who asks.
fn files(stage: &Stage, workshop: &Workshop, world: &World, outside: &Outside, user: &User) -> Result<()> {
    let text = text();
    let encrypted = workshop.encrypt(text.as_bytes())?;
    fs::write(outside.encrypted(), &encrypted)?;
    world.parent.put("/tmp/text.enc", &encrypted)?;
    world.parent.put("/tmp/other.enc", &workshop.encrypt(b"another file of the same key")?)?;
    stage.step("without a grant the parent gets no file", || {
        let answer = world.decrypt("/tmp/text.enc", "text-1", "mallory")?.with(401)?;
        ensure!(answer.json()?["code"] == "grant_missing", "{}", answer.text());
        Ok(())
    })?;
    let grant = outside.grant("text-1", "alice", &user.reply_key)?;
    stage.step(
        "with the user's grant before the user it gets just that file, and only the user can open it",
        || {
            let bearer = format!("-H 'Authorization: Bearer {}'", fs::read_to_string(&grant)?.trim());
            let own = STANDARD.encode([9; 32]);
            let url = "'http://127.0.0.1:3000/files/text-1/decrypt?user_id=alice'";
            let ask = |more: &str| world.curl(&format!("{bearer} {more} --data-binary @/tmp/text.enc {url}"));
            let answer = ask(&format!("-H 'Teemark-Reply-Key: {own}'"))?.with(403)?;
            ensure!(answer.json()?["code"] == "grant_for_another_key", "{}", answer.text());
            let other = world.curl(&format!("{bearer} --data-binary @/tmp/other.enc {url}"))?.with(403)?;
            ensure!(other.json()?["code"] == "grant_for_another_content", "{}", other.text());
            let stolen = ask("")?.with(200)?.body;
            ensure!(!holds(&stolen, &text.as_bytes()[..40]), "the parent has read the file");
            let answer = ask("")?.with(403)?;
            ensure!(answer.json()?["code"] == "grant_used", "{}", answer.text());
            Ok(())
        },
    )?;
    let grant = outside.grant("text-1", "alice", &user.reply_key)?;
    let marked = workshop.path("text.marked");
    stage.step("the user gets the marked file, sealed to their key and signed by the attested enclave", || {
        run(outside.decrypt("text-1", "alice", &grant, &marked).arg("--reply-key").arg(&user.key))?;
        let bytes = fs::read(&marked)?;
        ensure!(bytes.len() > text.len(), "{} bytes", bytes.len());
        let mark = workshop.mark(&bytes)?;
        ensure!(mark == ("text-1".into(), "alice".into()), "the mark says {mark:?}");
        Ok(())
    })?;
    stage.step("the grant is used up, and one for another user opens nothing", || {
        let again =
            run(outside.decrypt("text-1", "alice", &grant, &workshop.path("again")).arg("--reply-key").arg(&user.key));
        let said = format!("{:#}", again.err().context("a grant was good twice")?);
        ensure!(said.contains("grant_used"), "{said}");
        let grant = outside.grant("text-1", "bob", &user.reply_key)?;
        let other =
            run(outside.decrypt("text-1", "alice", &grant, &workshop.path("again")).arg("--reply-key").arg(&user.key));
        let said = format!("{:#}", other.err().context("a grant was good for another user")?);
        ensure!(said.contains("grant_for_another_user"), "{said}");
        Ok(())
    })
}

/// A relay that changes letters, and one that changes bytes that only a sealed answer has.
fn meddle(workshop: &Workshop, world: &World, outside: &Outside, user: &User) -> Result<()> {
    let through = |port: u32, change: &str| -> Result<Outside> {
        let script = format!("socat -t 10 - TCP:127.0.0.1:3000 | tr {change}\n");
        world.parent.put(&format!("/tmp/meddle-{port}"), script.as_bytes())?;
        operator::forward(&world.parent, port, &format!("EXEC:'sh /tmp/meddle-{port}'"))?;
        outside.at(world, port)
    };
    let letters = through(3005, "c d")?;
    let mut attest = letters.teemark("attest");
    let said = run(attest.args(["--endpoint", &letters.endpoint]).args(&letters.trust));
    let said = format!("{:#}", said.err().context("an altered document was believed")?);
    ensure!(said.contains("refused: "), "{said}");

    let bytes = through(3006, r"'\201' '\202'")?;
    let document = workshop.path("document");
    let mut attest = bytes.teemark("attest");
    run(attest.args(["--endpoint", &bytes.endpoint, "--output"]).arg(&document).args(&bytes.trust))?;
    // The document that comes with the answer is altered too, one that was saved is not.
    for (saved, words) in [(false, "was not written"), (true, "not signed by the attested enclave")] {
        let (grant, output) = (outside.grant("text-1", "alice", &user.reply_key)?, workshop.path("altered"));
        let mut decrypt = bytes.decrypt("text-1", "alice", &grant, &output);
        decrypt.arg("--reply-key").arg(&user.key);
        if saved {
            decrypt.arg("--attested").arg(&document).args(["--max-age", "3600"]);
        }
        let said = format!("{:#}", run(&mut decrypt).err().context("an altered answer was believed")?);
        ensure!(said.contains(words), "{said}");
        ensure!(!output.exists(), "an altered answer was written");
    }
    Ok(())
}

/// The file's text, which occurs nowhere else.
fn text() -> String {
    (0..400).map(|i| format!("Line {i} of a file that only its user may read.\n")).collect()
}

/// Each secret in each form that it could have on the way.
pub(crate) fn nothing_was_seen(workshop: &Workshop, world: &World, outside: &Outside) -> Result<()> {
    let key = fs::read(workshop.certs()?.join("client.key"))?;
    let base64 = STANDARD.encode(&key);
    let file_keys = workshop.file_keys()?;
    let file_key = file_keys[KEY_ID].as_str().context("no file key")?;
    let line = String::from_utf8_lossy(&key).lines().nth(12).context("a short key")?.to_owned();
    let of_bundle = [
        ("the private key", &base64.as_bytes()[200..240]),
        ("the file key", file_key.as_bytes()),
        ("the bundle", br#"\"client_key\":"#),
    ];
    // They would find a bundle that is only encoded, in the way that a ciphertext is.
    let encoded = STANDARD.encode(outside.plain_bundle()?);
    for (what, secret) in of_bundle {
        ensure!(forms(secret).any(|form| holds(encoded.as_bytes(), &form)), "{what} cannot be found");
    }
    let others = [
        ("the private key's PEM", line.as_bytes()),
        ("the file key's bytes", &STANDARD.decode(file_key)?),
        ("the file", b"of a file that only its user may read"),
    ];
    for (what, secret) in of_bundle.into_iter().chain(others) {
        if forms(secret).any(|form| world.was_seen(&form)) {
            bail!("{what} was seen on its way");
        }
    }
    // The recording works: it has what passes in the clear.
    for (what, open) in [("the handshake", &b"sealed_bundle"[..]), ("an answer", b"Teemark-Signature: ")] {
        ensure!(world.was_seen(open), "{what} was not heard");
    }
    Ok(())
}

/// A secret as it is, and the base64 that anything with the secret in it has, at any of the three alignments.
fn forms(secret: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let whole_groups = |part: &[u8]| STANDARD.encode(&part[..part.len() / 3 * 3]).into_bytes();
    iter::once(secret.to_vec()).chain((0..3).map(move |skipped| whole_groups(&secret[skipped..])))
}

fn refused(answer: &Value, field: &str) -> Result<()> {
    ensure!(answer["ok"] == false && answer["field"] == field, "{answer} is not a refusal of {field}");
    Ok(())
}
