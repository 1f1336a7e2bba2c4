//! Starts a virtual machine: its process, its console, and its keyboard, which is the serial line's other direction.

use std::io::pipe;
use std::path::Path;
use std::process::{ChildStdin, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::console::Console;
use crate::process::Process;
use crate::qemu::{self, Machine};
use crate::shape::Shape;

/// Longest wait for a machine to boot, which takes some seconds under TCG on an idle machine.
pub const BOOT: Duration = Duration::from_secs(180);

/// Starts the machine. What QEMU itself prints goes to the console too.
pub(crate) fn boot(
    name: &'static str,
    machine: &Machine,
    shape: Shape,
    device: &Path,
    log: &Path,
    shown: bool,
) -> Result<(Process, Console, ChildStdin)> {
    let (near, far) = pipe()?;
    let mut command = qemu::command(machine, shape, device);
    command.stdin(Stdio::piped()).stdout(far.try_clone()?).stderr(far);
    let mut process = Process::spawn(&mut command)?;
    let keyboard = process.stdin().context("no standard input")?;
    // The command holds the pipe's other end, which would keep the console from ending.
    drop(command);
    Ok((process, Console::listen(name, near, log, shown)?, keyboard))
}
