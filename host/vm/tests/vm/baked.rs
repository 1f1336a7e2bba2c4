//! Option A: everything is in the image.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use teemark_vm::console::Line;
use teemark_vm::{Bus, Console, Enclave};

use crate::stage::Stage;
use crate::workshop::Workshop;
use crate::world::{World, logs};

pub(crate) fn an_image_with_certificates_is_ready_without_a_handshake(
    stage: &Stage,
    workshop: &Workshop,
) -> Result<()> {
    let image = workshop.baked()?;
    let world = World::boot(stage, workshop, image, 64)?;
    stage.step("with 64 MiB of memory in all the image is ready by itself", || times(stage, &world.enclave))?;
    stage.step("a file of 1 MiB is decrypted, marked and given out", || {
        world.parent.put("/tmp/text.enc", &workshop.encrypt(&b"All of a text is a mebibyte. \n".repeat(1 << 15))?)?;
        let marked = world.decrypt("/tmp/text.enc", "text-1", "alice")?.with(200)?.body;
        ensure!(workshop.mark(&marked)? == ("text-1".into(), "alice".into()), "another mark");
        Ok(())
    })?;
    drop(world);
    // Booted again, alone, so that only the enclave takes time.
    let bus = Bus::start()?;
    let enclave = Enclave::boot(&bus, &image.taken_apart(), 64, &logs()?, false)?;
    stage.watch(&enclave.console);
    stage.step("on microvm, with nobody beside it, it is ready too", || times(stage, &enclave))?;
    stage.step("there is no /dev/nsm: it says so, and /get_attestation is 503 and no document of its own", || {
        enclave.console.wait_for("no /dev/nsm: this daemon cannot attest itself", Duration::ZERO)?;
        let (status, body) = enclave.get(3000, "/get_attestation")?;
        ensure!(status == 503 && body.contains("attestation_unavailable"), "/get_attestation: {status} {body}");
        let (status, body) = enclave.get(3000, "/attestation")?;
        ensure!(status == 503 && body.contains("attestation_unavailable"), "/attestation: {status} {body}");
        Ok(())
    })?;
    drop((enclave, bus));
    let bus = Bus::start()?;
    let enclave = Enclave::boot(&bus, &workshop.baked_with_test_nsm()?.taken_apart(), 64, &logs()?, false)?;
    stage.watch(&enclave.console);
    stage.step("there the image with the stand-in for the module attests itself, by a root of its own", || {
        enclave.console.wait_for("secrets: listening on vsock:7777", teemark_vm::BOOT)?;
        let (status, body) = enclave.get(3000, "/get_attestation")?;
        ensure!(status == 200 && body.contains("test_root"), "/get_attestation: {status} {body}");
        Ok(())
    })
}

/// When each step of a boot ended, since the kernel's first line.
struct Times {
    /// The kernel's own boot: PID 1 begins.
    kernel: Duration,
    /// PID 1 has started the daemon.
    init: Duration,
    listening: Duration,
    ready: Duration,
    /// The answer 200 to the first GET /ready has been read.
    answered: Duration,
}

/// Waits until /ready answers 200, and returns where the time went.
fn times(stage: &Stage, enclave: &Enclave) -> Result<()> {
    let console = &enclave.console;
    let listening = console.wait_for("secrets: listening on vsock:7777", teemark_vm::BOOT)?;
    let (status, body) = enclave.get(3000, "/ready")?;
    let answered = Instant::now();
    ensure!(status == 200, "/ready: {status} {body}");
    let ready = console.wait_for("teemarkd::boot: ready", teemark_vm::BOOT)?;
    let (_, kernel) = told(console, "after the kernel's start: PID 1")?;
    let (started, init) = told(console, "after the kernel's start: starting /teemarkd")?;
    // From here on this machine's clock is used, since the daemon's own lines have whole seconds.
    let since = |at: Instant| init + at.saturating_duration_since(started.at);
    let (listening, ready, answered) = (since(listening.at), since(ready.at), since(answered));
    print(stage, &Times { kernel, init, listening, ready, answered });
    Ok(())
}

/// A line of init with the time since the kernel's start, and that time.
fn told(console: &Console, text: &str) -> Result<(Line, Duration)> {
    let line = console.wait_for(text, Duration::ZERO)?;
    let seconds = line.text.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    let seconds = seconds.with_context(|| format!("no time in {:?}", line.text))?;
    Ok((line, Duration::from_secs_f64(seconds)))
}

fn print(stage: &Stage, times: &Times) {
    let share = |part: Duration| 100.0 * part.as_secs_f64() / times.answered.as_secs_f64();
    let row = |at: Duration, what: &str| stage.figure(&format!("{:6.3} s  {what}", at.as_secs_f64()));
    row(times.kernel, &format!("PID 1 begins; the kernel's share: {:.1} %", share(times.kernel)));
    row(times.init, &format!("teemarkd is started; init's share: {:.1} %", share(times.init - times.kernel)));
    row(times.listening, "teemarkd listens");
    row(times.ready, "teemarkd says: ready");
    let daemon = share(times.answered - times.init);
    row(times.answered, &format!("/ready has answered 200; teemarkd's share, with that answer: {daemon:.1} %"));
}
