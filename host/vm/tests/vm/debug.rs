//! The image for debugging: run.sh starts the daemon, and there is a shell.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use teemark_vm::console::Line;
use teemark_vm::{Bus, Enclave, Entry, Image};

use crate::stage::Stage;
use crate::workshop::Workshop;
use crate::world::{SOON, logs};

pub(crate) fn a_debug_image_starts_run_sh_has_a_shell_and_stops_on_sigterm(
    stage: &Stage,
    workshop: &Workshop,
) -> Result<()> {
    let image = workshop.debug()?;
    {
        let bus = Bus::start()?;
        let enclave = Enclave::boot(&bus, image, 256, &logs()?, false)?;
        stage.watch(&enclave.console);
        stage.step("the image starts run.sh, and that teemarkd, which is ready", || {
            enclave.console.wait_for("starting /run.sh", teemark_vm::BOOT)?;
            enclave.console.wait_for("[RUN_SH] starting /teemarkd", SOON)?;
            enclave.console.wait_for("teemarkd::boot: ready", SOON).map(drop)
        })?;
    }
    let bus = Bus::start()?;
    let mut enclave = Enclave::boot(&bus, &with_shell(image)?, 256, &logs()?, false)?;
    stage.watch(&enclave.console);
    stage.step("with a shell on the console it is ready too", || {
        enclave.console.wait_for("teemarkd::boot: ready", teemark_vm::BOOT).map(drop)
    })?;
    stage.step("ls -la /opt/enclave/certs/ shows the modes 644, 600 and 644", || {
        let lines = type_in(&mut enclave, "ls -la /opt/enclave/certs/")?;
        for (name, mode) in [("client.crt", "-rw-r--r--"), ("client.key", "-rw-------"), ("ecs-ca.crt", "-rw-r--r--")] {
            let line = lines.iter().find(|line| line.text.ends_with(name)).with_context(|| name.to_owned())?;
            ensure!(line.text.starts_with(mode), "{}", line.text);
        }
        Ok(())
    })?;
    stage.step("PID 1 reaps a process whose parent has ended, while the heartbeat still waits", || {
        // The subshell ends at once, so `sleep` becomes PID 1's child, and stays in /proc until that reaps it. What is
        // typed also has the words looked for, but with the quotes.
        let orphan = "p=$(sleep 1 >/dev/null & echo $!); n=0";
        let gone = "while [ -e /proc/$p ] && [ $n -lt 30 ]; do sleep 1; n=$((n+1)); done";
        let tell = "[ -e /proc/1 ] && [ ! -e /proc/$p ] && echo it is 'reaped'";
        let lines = type_in(&mut enclave, &format!("{orphan}; {gone}; {tell}"))?;
        ensure!(lines.iter().any(|line| line.text == "it is reaped"), "{lines:?}");
        Ok(())
    })?;
    stage.step("/etc/hosts names the host, as the daemon wrote it", || {
        let lines = type_in(&mut enclave, "cat /etc/hosts")?;
        let line = "127.0.0.64 watermark.internal.staging.zing.you";
        ensure!(lines.iter().any(|said| said.text == line), "{lines:?}");
        Ok(())
    })?;
    stage.step("SIGTERM to PID 1 stops the daemon cleanly, and the machine ends", || {
        enclave.type_line("kill -TERM 1")?;
        for text in ["sending /run.sh SIGTERM", "teemarkd::boot: stopped", "/run.sh ended with status 0"] {
            enclave.console.wait_for(text, SOON)?;
        }
        enclave.ended(SOON).context("the machine still runs").map(drop)
    })
}

/// The image with one more line in run.sh, as a user may add it for debugging: a shell that reads the console. (Init gives
/// its target no standard input.) On a Nitro enclave's console nobody can type.
pub(crate) fn with_shell(image: &Image) -> Result<Image> {
    image.with_files(&[launcher_with("sh </dev/console >/dev/console 2>&1 &")?])
}

/// [`script_with`], as the file of an image.
pub(crate) fn launcher_with(line: &str) -> Result<Entry> {
    Ok(Entry::file("/run.sh", 0o755, script_with(line)?))
}

/// run.sh with one more line, before it starts the daemon.
pub(crate) fn script_with(line: &str) -> Result<String> {
    const BEFORE: &str = "echo \"[RUN_SH] starting $TEEMARKD\" >&2\n";
    let launcher = fs::read_to_string(teemark_vm::repository().join("run.sh"))?;
    ensure!(launcher.contains(BEFORE), "run.sh has no line {BEFORE}");
    Ok(launcher.replace(BEFORE, &format!("{line}\n{BEFORE}")))
}

/// Types a command into the shell of [`with_shell`] and returns what it prints.
pub(crate) fn type_in(enclave: &mut Enclave, command: &str) -> Result<Vec<Line>> {
    let from = enclave.console.length();
    // The console also shows what is typed, so the end is spelled differently there.
    enclave.type_line(&format!("{command}; echo the 'end' of it"))?;
    enclave.console.wait_since(from, "the end of it", Duration::from_secs(60))?;
    Ok(enclave.console.lines().split_off(from))
}
