//! The log's way out: over vsock port 9001 to the relay on the parent, and on to a collector.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use teemark_vm::{Image, Parent, qemu};

use crate::stage::Stage;
use crate::workshop::Workshop;
use crate::world::World;

/// Requests whose decisions are to be in the collector's files; every tenth is given its file.
const REQUESTS: usize = 2000;
const TENTH: usize = 10;
/// Longest wait for the last of them, on a loaded machine.
const SOON: Duration = Duration::from_secs(120);

pub(crate) fn every_record_comes_out_over_vsock_and_verifies(stage: &Stage, workshop: &Workshop) -> Result<()> {
    // Stock QEMU has no module that makes a document.
    let image = match qemu::nitro() {
        Some(_) => workshop.baked()?,
        None => &workshop.baked_with_test_nsm()?.taken_apart(),
    };
    let world = World::boot(stage, workshop, image, 128)?;
    world.enclave.console.wait_for("teemarkd::boot: ready", teemark_vm::BOOT)?;
    let parent = &world.parent;
    stage.step("what the enclave wrote before there was a relay comes out once there is one", || {
        collect(parent)?;
        parent.wait_until("grep -qs 'teemarkd::boot: ready' /tmp/logs/*/*.log", SOON)?;
        // The lines of PID 1 too, which in production no console shows.
        parent.sh("grep -q ' init \\[INIT\\] .*starting /teemarkd' /tmp/logs/*/*.log").map(drop)
    })?;
    stage.step(&format!("of {REQUESTS} requests every tenth is given, and the others are refused"), || {
        parent.put("/tmp/file.enc", &workshop.encrypt(b"A file that is given.\n")?)?;
        parent.put("/tmp/broken", b"x")?;
        parent.put("/tmp/requests", requests().as_bytes())?;
        let answers = parent.sh("curl -sS --config /tmp/requests")?;
        ensure!(answers.lines().count() == REQUESTS, "{} answers", answers.lines().count());
        for (n, answer) in (1..).zip(answers.lines()) {
            ensure!(answer == format!("f-{n} {}", if is_given(n) { 200 } else { 422 }), "{answer}");
        }
        Ok(())
    })?;
    stage.step("each of these decisions is in the collector's files", || {
        for (event, status, last_digit, number) in
            [("given", 200, "0", REQUESTS / TENTH), ("refused", 422, "[1-9]", REQUESTS - REQUESTS / TENTH)]
        {
            let of_event =
                format!("grep -h '\"event\":\"{event}\"' /tmp/logs/*/*.log | grep '\"status\":{status}[,}}]'");
            let found = format!("{of_event} | grep -o '\"file_id\":\"f-[0-9]*{last_digit}\"' | sort -u | wc -l");
            parent.wait_until(&format!("[ $({found}) = {number} ]"), SOON)?;
        }
        ensure!(world.metric("teemark_log_lines_dropped_total")? == 0.0, "records were dropped");
        Ok(())
    })?;
    stage
        .step("and all of it verifies by the attestation document that is in it, up to its last checkpoint", || {
            verifies(parent, &trust(parent, image)?)
        })?;
    stage.step("a relay that was away for a while loses nothing", || {
        parent.stop("relay")?;
        world.decrypt("/tmp/broken", "late", "alice")?.with(422)?;
        parent.start("relay", "teemark log relay --to tcp:127.0.0.1:9002", "leads to")?;
        parent.wait_until("grep -qs '\"file_id\":\"late\"' /tmp/logs/*/*.log", SOON)?;
        verifies(parent, &trust(parent, image)?)
    })
}

/// Starts a collector and a relay to it. Here the collector is on the parent too, where it must not be; that is not what
/// this is about.
fn collect(parent: &Parent) -> Result<()> {
    parent.sh("teemark keygen --for collector --output /tmp/collector.key >/tmp/collector.pub")?;
    let collect = "teemark log collect --listen tcp:127.0.0.1:9002 --into /tmp/logs --key /tmp/collector.key";
    parent.start("collect", collect, "keeps records in")?;
    parent.start("relay", "teemark log relay --to tcp:127.0.0.1:9002", "leads to")
}

fn is_given(n: usize) -> bool {
    n.is_multiple_of(TENTH)
}

/// curl's configuration for these requests: the file that opens for every tenth, for the others one that does not.
fn requests() -> String {
    let one = |n: usize| {
        let file = if is_given(n) { "/tmp/file.enc" } else { "/tmp/broken" };
        format!(
            "url = \"http://127.0.0.1:3000/files/f-{n}/decrypt?user_id=alice\"\ndata-binary = \"@{file}\"\n\
             output = \"/dev/null\"\nwrite-out = \"f-{n} %{{http_code}}\\n\"\n"
        )
    };
    (1..=REQUESTS).map(one).collect::<Vec<_>>().join("next\n")
}

/// What the log's attestation document is checked with, on the parent.
fn trust(parent: &Parent, image: &Image) -> Result<String> {
    let Some(eif) = image.path().filter(|_| qemu::nitro().is_some()) else { return Ok("--development".into()) };
    parent.put("/tmp/image.pcrs", &fs::read(eif.with_extension("pcrs"))?)?;
    Ok("--unsigned --pcrs /tmp/image.pcrs".into())
}

fn verifies(parent: &Parent, trust: &str) -> Result<()> {
    let told = parent.sh(&format!("teemark log verify /tmp/logs {trust}"))?;
    ensure!(told.contains(" up to record ") && !told.contains("dropped"), "{told}");
    ensure!(told.contains("identity known by the attestation document in it"), "{told}");
    Ok(())
}

/// What a request is about, and the file that it is given; none of it may be seen.
const FILE_ID: &str = "file-of-case-7781";
const USER_ID: &str = "carol-5523";
const REQUEST_ID: &str = "request-9917";
const TEXT: &str = "A sentence that only its user may read, 4471.";

pub(crate) fn a_sealed_log_shows_nothing_of_a_request_on_the_console_neither(
    stage: &Stage,
    workshop: &Workshop,
) -> Result<()> {
    let key = workshop.key_pair("log.key", "log", "log.pub")?;
    let public = fs::read_to_string(key.with_extension("pub"))?;
    let settings = format!("TEEMARK_LOG_KEYS={}\nRUST_LOG=trace\n", public.trim());
    let world = World::boot(stage, workshop, &workshop.baked_with("sealed-log", &settings)?, 128)?;
    let parent = &world.parent;
    let ready = "curl -sf -o /dev/null http://127.0.0.1:3000/ready";
    parent.wait_until(ready, teemark_vm::BOOT)?;
    collect(parent)?;
    stage.step("a file is given and another refused, at the most talkative level", || {
        parent.put("/tmp/file.enc", &workshop.encrypt(TEXT.repeat(40).as_bytes())?)?;
        parent.put("/tmp/broken", TEXT.as_bytes())?;
        let ask = |file: &str| {
            let url = format!("http://127.0.0.1:3000/files/{FILE_ID}/decrypt?user_id={USER_ID}");
            world.curl(&format!("-H 'X-Request-Id: {REQUEST_ID}' --data-binary @{file} '{url}'"))
        };
        let given = ask("/tmp/file.enc")?.with(200)?;
        ensure!(given.text().contains("only its user"), "it is not the file: {}", given.text());
        ask("/tmp/broken")?.with(422).map(drop)
    })?;
    stage.step("neither the console, nor /admin/log, nor the collector's files show anything of it", || {
        let status = || world.curl("http://127.0.0.1:3001/admin/status")?.with(200)?.json();
        let last = status()?["log"]["last"].as_u64().context("no last record")?;
        parent.wait_until(&format!("grep -qs '^{last} ' /tmp/logs/*/*.log"), SOON)?;
        parent.sh("curl -sf 'http://127.0.0.1:3001/admin/log?lines=10000' >/tmp/admin.log")?;
        let shown = [
            ("the console", console(&world, last)?),
            ("/admin/log", parent.sh("cat /tmp/admin.log")?),
            ("the files", parent.sh("cat /tmp/logs/*/*.log")?),
        ];
        for (place, text) in shown {
            ensure!(text.contains(" sealed "), "{place} has no sealed record: {text}");
            for word in [FILE_ID, USER_ID, REQUEST_ID, &TEXT[..30], "decrypt_raw"] {
                ensure!(!text.contains(word), "{place} shows {word:?}");
            }
        }
        Ok(())
    })?;
    stage.step("and the log key opens all of it, but for what no log has", || {
        parent.put("/tmp/log.key", &fs::read(&key)?)?;
        for place in ["/tmp/logs", "/tmp/admin.log"] {
            let opened = parent.sh(&format!("teemark log open {place} --key /tmp/log.key"))?;
            for event in ["given", "refused"] {
                let is_it = |line: &&str| line.contains(" audit ") && line.contains(&format!("\"event\":\"{event}\""));
                let record = opened.lines().find(is_it).with_context(|| format!("{place}: {event} is not recorded"))?;
                ensure!([FILE_ID, USER_ID, REQUEST_ID].iter().all(|id| record.contains(id)), "{record}");
            }
            ensure!(opened.contains("DEBUG teemarkd") || opened.contains("TRACE teemarkd"), "{place}: not talkative");
            ensure!(!opened.contains(&TEXT[..30]), "{place} has the file");
        }
        Ok(())
    })
}

/// All that the console has shown, once the line of this record is there, which begins with its number.
fn console(world: &World, last: u64) -> Result<String> {
    let (number, end) = (format!("{last} "), Instant::now() + SOON);
    loop {
        let lines = world.enclave.console.lines();
        if lines.iter().any(|line| line.text.starts_with(&number)) {
            return Ok(lines.into_iter().map(|line| line.text + "\n").collect());
        }
        ensure!(Instant::now() < end, "the console does not show record {last}");
        thread::sleep(Duration::from_millis(100));
    }
}
