//! Runs programs of this machine: some until their owner is dropped, others until they end by themselves.

use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Runs a command that must succeed, and returns its standard output.
///
/// # Errors
/// It cannot be run, or it failed; the error has its standard error.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("{command:?} cannot be run"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(output.stdout)
}

/// A running program, killed when it is dropped.
pub(crate) struct Process(Child);

impl Process {
    /// A command whose process is also killed when the thread that started it ends, so that nothing is left behind if
    /// `drop` does not run. Ctrl-C does not reach it: its owner decides when it ends.
    pub(crate) fn command(program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]).process_group(0);
        command
    }

    /// Starts it.
    ///
    /// # Errors
    /// It cannot be run.
    pub(crate) fn spawn(command: &mut Command) -> Result<Process> {
        command.spawn().map(Process).with_context(|| format!("{command:?} cannot be run"))
    }

    /// Takes its standard input, if that is a pipe.
    pub(crate) fn stdin(&mut self) -> Option<ChildStdin> {
        self.0.stdin.take()
    }

    /// Takes its standard output, if that is a pipe.
    pub(crate) fn stdout(&mut self) -> Option<ChildStdout> {
        self.0.stdout.take()
    }

    /// Ends it.
    pub(crate) fn kill(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Its exit status, if it has ended or ends within `limit`.
    pub(crate) fn ended(&mut self, limit: Duration) -> Option<ExitStatus> {
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
