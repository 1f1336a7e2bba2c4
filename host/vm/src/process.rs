//! Programs of this machine: those that are gone with their owner, and those that are waited for.

use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Runs a command that must succeed, and gives its standard output.
///
/// # Errors
/// It cannot be run; what it said on standard error where it failed.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("{command:?} cannot be run"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(output.stdout)
}

/// A running program, killed when it is dropped.
pub struct Process(Child);

impl Process {
    /// A command whose process is killed with the thread that starts it too: what ends in any other way than by
    /// `drop` leaves nothing behind. Ctrl-C does not reach it; its owner decides what ends when.
    pub fn command(program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]).process_group(0);
        command
    }

    /// Starts it.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn spawn(command: &mut Command) -> Result<Process> {
        command.spawn().map(Process).with_context(|| format!("{command:?} cannot be run"))
    }

    /// Its standard input, once, where that is a pipe.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.0.stdin.take()
    }

    /// Ends it.
    pub fn kill(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// How it ended, if it has or does within `limit`.
    pub fn ended(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return Some(status),
                _ if Instant::now() >= end => return None,
                _ => thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
