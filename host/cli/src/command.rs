//! Runs a program within bounds of time and length.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

/// Longest output, in bytes: as large as a bundle can be.
const LARGEST: u64 = 16 << 20;
/// How often a command whose output has ended is asked whether it has ended too.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// A command and whatever it starts, which are ended together.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Its number is its own until it is waited for.
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

/// Runs the command, which messages call `program`, without standard input. Returns its standard output and how it ended.
///
/// # Errors
/// It cannot be started, takes longer than `limit`, or prints more than 16 MiB.
pub(crate) fn run(command: &mut Command, program: &str, limit: Duration) -> Result<(Vec<u8>, ExitStatus)> {
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
    let start = Instant::now();
    let mut group = Group(command.spawn().with_context(|| format!("cannot run {program}"))?);
    let stdout = group.0.stdout.take().context("no pipe")?;

    let (sender, receiver) = mpsc::channel();
    // It ends when the group has been killed, at the latest.
    thread::Builder::new().name("command".into()).spawn(move || {
        let mut bytes = Vec::new();
        let read = stdout.take(LARGEST + 1).read_to_end(&mut bytes);
        let _ = sender.send(read.map(|_| bytes));
    })?;
    let bytes = match receiver.recv_timeout(limit) {
        Ok(read) => read.with_context(|| format!("the output of {program} cannot be read"))?,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            bail!("{program} took longer than {} s, and was ended", limit.as_secs())
        }
    };
    if bytes.len() as u64 > LARGEST {
        bail!("{program} printed more than 16 MiB, and was ended");
    }
    loop {
        if let Some(status) = group.0.try_wait()? {
            return Ok((bytes, status));
        }
        if start.elapsed() > limit {
            bail!("{program} took longer than {} s, and was ended", limit.as_secs());
        }
        thread::sleep(PAUSE);
    }
}
