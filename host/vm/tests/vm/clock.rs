//! The enclave's clock beside the Nitro Secure Module's, which only QEMU's machine `nitro-enclave` has.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use teemark_vm::{Shape, operator, qemu, run};

use crate::debug::script_with;
use crate::outside::{Outside, User};
use crate::stage::Stage;
use crate::workshop::Workshop;
use crate::world::{SOON, World};

/// Microseconds that the kernel adds to its clock at each of 100 ticks a second: 10 % more than a second has, the most
/// that it takes. At 1 %, grants would pass for a quarter of an hour with a clock that nobody sets, since they have 10 s of
/// leeway; and under TCG a guest's clock is off by a per cent or two by itself, in either direction.
const FAST_TICK: u32 = 11_000;
/// How often a user asks for a file at most, until the clock has been two seconds ahead and was set back: that takes half
/// a minute.
const REQUESTS: usize = 1000;

/// Between two of them.
const PAUSE: Duration = Duration::from_secs(1);

pub(crate) fn an_enclave_whose_clock_is_behind_or_runs_fast_takes_fresh_grants_throughout(
    stage: &Stage,
    workshop: &Workshop,
) -> Result<()> {
    if qemu::nitro().is_none() {
        stage.figure("not run: stock QEMU has no Nitro Secure Module (set QEMU_NITRO)");
        return Ok(());
    }
    // A debug image has a shell, whose adjtimex makes the clock run fast before the daemon starts.
    let launcher = workshop.path("fast.sh");
    fs::write(&launcher, script_with(&format!("/bin/busybox adjtimex -t {FAST_TICK} >/dev/null"))?)?;
    let debug = ["--debug".into(), "--launcher".into(), launcher];
    let image = workshop.sealed_by("fast", "TEEMARK_CLOCK_INTERVAL=5s\n", &debug)?;
    let mut world = World::with(stage, workshop, &image, Shape { ahead: -200, ..256.into() }, &operator::OF_SERVICE)?;
    world.wait_for_listeners()?;
    operator::forward(&world.parent, 3000, "TCP:127.0.0.1:3000")?;
    stage.step("a clock that was minutes behind was set before anybody could connect", || {
        was_set(stage, &world, "behind")
    })?;
    let outside = Outside::new(workshop, &world, &image, 3000)?;
    let user = User::new(workshop)?;
    stage.step(
        "a clock that runs 10 % fast is set back when it is two seconds ahead, and every grant is taken",
        || {
            let answer = world.handshake(&outside.seal(1)?)?;
            ensure!(answer["ok"] == true, "{answer}");
            fs::write(outside.encrypted(), workshop.encrypt(b"A file for the whole day.\n")?)?;
            let set = "ahead of the Nitro Secure Module's, and is set";
            for requests in 1..=REQUESTS {
                let grant = outside.grant("clock-1", "alice", &user.reply_key)?;
                let mut decrypt = outside.decrypt("clock-1", "alice", &grant, &workshop.path("clock.marked"));
                run(decrypt.arg("--reply-key").arg(&user.key)).with_context(|| format!("request {requests}"))?;
                if let Ok(line) = world.enclave.console.wait_for(set, PAUSE) {
                    stage.figure(line.text.trim());
                    let drift = world.metric("teemark_clock_drift_seconds")?;
                    stage.figure(&format!("{requests} requests; the clocks differ by {drift} s"));
                    ensure!(drift.abs() <= 3.0, "{drift} s");
                    return Ok(());
                }
            }
            bail!("the clock was not set in {REQUESTS} requests")
        },
    )?;
    stage.step("a clock that is two hours ahead is left alone, and /ready says so", || {
        world.reboot(stage, &image, Shape { ahead: 7200, ..256.into() }, operator::answer_heartbeat)?;
        world.wait_for_listeners()?;
        let ready = world.get("/ready")?.with(503)?.json()?;
        let clock = ready["clock"].as_str().context("no clock in /ready")?;
        ensure!(clock.contains("ahead of the Nitro Secure Module's, which is too much to be set"), "{clock}");
        Ok(())
    })
}

/// The daemon set the clock before it listened, and since then it is right.
pub(crate) fn was_set(stage: &Stage, world: &World, direction: &str) -> Result<()> {
    world.enclave.console.wait_for("public: listening on", SOON)?;
    let lines = world.enclave.console.lines();
    let of = |text: &str| lines.iter().position(|line| line.text.contains(text));
    let set = of(&format!("{direction} the Nitro Secure Module's, and is set")).context("the clock was not set")?;
    stage.figure(lines[set].text.trim());
    ensure!(of("public: listening on").is_some_and(|listening| set < listening), "the clock was set too late");
    // Each document compares the clocks anew.
    world.get("/get_attestation")?.with(200)?;
    let drift = world.metric("teemark_clock_drift_seconds")?;
    ensure!(drift.abs() <= 2.0, "{drift} s");
    Ok(())
}
