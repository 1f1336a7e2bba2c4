//! The enclave's clock beside the Nitro Secure Module's, which only QEMU's machine `nitro-enclave` has.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use teemark_image::arch::Arch;
use teemark_image::contents::command_line;
use teemark_vm::{Console, Shape, operator, qemu, run};

use crate::debug::script_with;
use crate::outside::{Outside, User};
use crate::stage::Stage;
use crate::workshop::Workshop;
use crate::world::{SOON, World};

/// Microseconds that the kernel adds to its clock at each of 100 ticks a second: 10 % more than a second has, the most
/// that it takes. At 1 % it would take 18 minutes until a clock that nobody sets refuses a grant.
const FAST_TICK: u32 = 11_000;
/// Seconds for which a grant is valid, besides ten of leeway.
const VALID: u64 = 1;
/// By then a clock that nobody sets is twelve seconds ahead and refuses every such grant.
const UNSET: Duration = Duration::from_secs(120);
/// How often the clock is set in that time, at least: each time that it is two seconds ahead.
const STEPS: usize = 3;
/// A grant that is older than this when it is refused may have come too late: the machine was busy.
const FRESH: Duration = Duration::from_secs(5);

/// Between two requests.
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
    let line = format!("{} {}", command_line(Arch::X86_64, true), tsc()?);
    let debug = ["--debug".into(), "--launcher".into(), launcher, "--command-line".into(), line.into()];
    let image = workshop.sealed_by("fast", "TEEMARK_CLOCK_INTERVAL=5s\n", &debug)?;
    let mut world = World::with(stage, workshop, &image, Shape { ahead: -200, ..256.into() }, &operator::OF_SERVICE)?;
    world.wait_for_listeners()?;
    operator::forward(&world.parent, 3000, "TCP:127.0.0.1:3000")?;
    stage.step("a clock that was minutes behind was set before anybody could connect", || {
        was_set(stage, &world, "behind")
    })?;
    let outside = Outside::new(workshop, &world, &image, 3000)?;
    let user = User::new(workshop)?;
    let fast = Instant::now();
    let console = &world.enclave.console;
    stage.step("a clock that runs 10 % fast is slewed and then set back, though nobody asks for anything", || {
        for done in ["ahead of the Nitro Secure Module's, and is slewed", SET] {
            stage.figure(console.wait_for(done, SOON)?.text.trim());
        }
        let drift = world.metric("teemark_clock_drift_seconds")?;
        ensure!(drift.abs() <= 3.0, "{drift} s");
        Ok(())
    })?;
    stage.step("every grant is taken, until long after a clock that nobody sets would refuse it", || {
        let answer = world.handshake(&outside.seal(1)?)?;
        ensure!(answer["ok"] == true, "{answer}");
        fs::write(outside.encrypted(), workshop.encrypt(b"A file for the whole day.\n")?)?;
        let (mut taken, mut late) = (0, 0);
        while fast.elapsed() < UNSET || steps(console) < STEPS {
            ensure!(fast.elapsed() < 5 * UNSET, "the clock was set {} times only", steps(console));
            match ask(workshop, &outside, &user)? {
                true => taken += 1,
                false => late += 1,
            }
            sleep(PAUSE);
        }
        stage.figure(&format!(
            "{taken} grants of {VALID} s taken, {late} too late; the clock was set {} times",
            steps(console)
        ));
        ensure!(taken > late, "{late} grants came too late");
        Ok(())
    })?;
    stage.step("a clock that is two hours ahead is left alone, and /ready says so", || {
        world.reboot(stage, &image, Shape { ahead: 7200, ..256.into() }, operator::answer_heartbeat)?;
        world.wait_for_listeners()?;
        let ready = world.get("/ready")?.with(503)?.json()?;
        let clock = ready["clock"].as_str().context("no clock in /ready")?;
        ensure!(clock.contains("ahead of the Nitro Secure Module's, which is too far to correct"), "{clock}");
        Ok(())
    })
}

/// Has the guest's clock run by the processor's time stamp counter, which TCG passes on. A kernel that cannot find out how fast
/// that counts goes by ticks, of which it misses some while the host is busy. In a virtual machine /proc/cpuinfo has that rate.
fn tsc() -> Result<String> {
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let mhz = processors.lines().find_map(|line| line.strip_prefix("cpu MHz")?.trim_start().strip_prefix(':'));
    let mhz: f64 = mhz.context("no cpu MHz in /proc/cpuinfo")?.trim().parse()?;
    Ok(format!("tsc_early_khz={:.0} tsc=reliable", mhz * 1000.0))
}

/// What the daemon says when it has set a clock that was ahead.
const SET: &str = "ahead of the Nitro Secure Module's, and is set";

/// How often it was.
fn steps(console: &Console) -> usize {
    console.lines().iter().filter(|line| line.text.contains(SET)).count()
}

/// Asks for the file with a new grant, and without a document, which would have the clocks compared. Whether it was given;
/// not, if the grant was no longer fresh.
fn ask(workshop: &Workshop, outside: &Outside, user: &User) -> Result<bool> {
    let issued = Instant::now();
    let grant = outside.grant_valid(VALID, "clock-1", "alice", &user.reply_key)?;
    let mut decrypt = outside.decrypt_unverified("clock-1", "alice", &grant, &workshop.path("clock.marked"));
    match run(decrypt.arg("--reply-key").arg(&user.key)) {
        Ok(_) => Ok(true),
        Err(_) if issued.elapsed() > FRESH => Ok(false),
        Err(e) => Err(e),
    }
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
