//! A program under test: where it runs, and what the kernel says of it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// The core of what is measured.
pub(crate) const SERVER_CORE: usize = 0;
/// The core of everything else: the clients, the watermark service.
pub(crate) const OTHER_CORE: usize = 1;

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Keeps the calling thread, and threads that it starts, on one core.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("two cores are needed")
}

/// Raises the limit of open files, of this program and of those that it starts, to what the system allows.
///
/// # Errors
/// That is less than `needed`, with which the daemon would turn clients away.
pub(crate) fn raise_open_files(needed: u64) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(hard >= needed, "{hard} open files are allowed and {needed} are needed: raise the hard limit (ulimit -Hn)");
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard.min(1 << 20), hard)?)
}

/// A running program. Dropping it ends it.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program on the server's core; what it says goes to `log`.
    pub(crate) fn start(command: &Command, log: &Path) -> Result<Process> {
        let output = File::create(log)?;
        // It ends when this program ends, however that comes about.
        let mut pinned = Command::new("setpriv");
        pinned.args(["--pdeathsig", "TERM", "taskset", "-c", &SERVER_CORE.to_string()]);
        pinned.arg(command.get_program()).args(command.get_args());
        pinned.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        for name in ["HOME", "PATH"] {
            pinned.env(name, std::env::var_os(name).unwrap_or_default());
        }
        let child = pinned
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        Ok(Process { child, log: log.to_owned() })
    }

    /// Waits until a line of the log has `before` in it, and gives what follows it up to the next blank.
    pub(crate) fn awaits(&mut self, before: &str) -> Result<String> {
        let begun = Instant::now();
        loop {
            let log = fs::read_to_string(&self.log)?;
            // A line that is not yet whole is read again.
            let lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            if let Some(rest) = lines.filter_map(|line| line.split_once(before)).map(|(_, rest)| rest).next() {
                return Ok(rest.split_whitespace().next().unwrap_or_default().to_owned());
            }
            if self.child.try_wait()?.is_some() || begun.elapsed() > START_LIMIT {
                bail!("it does not say {before:?}:\n{log}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Time on a processor since the start, of all threads, ended ones too, and of child processes that run.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        cpu_with_children(self.pid())
    }

    /// Resident memory now, in KiB.
    pub(crate) fn resident_kib(&self) -> Result<u64> {
        self.status("VmRSS")
    }

    /// The most resident memory since the start, or since [`Process::forget_peak`], in KiB.
    pub(crate) fn peak_kib(&self) -> Result<u64> {
        self.status("VmHWM")
    }

    pub(crate) fn threads(&self) -> Result<u64> {
        self.status("Threads")
    }

    /// Begins a new peak (proc_pid_clear_refs(5)).
    pub(crate) fn forget_peak(&self) -> Result<()> {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").context("clear_refs")
    }

    fn status(&self, name: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.split_whitespace().next()?.parse().ok()).with_context(|| name.to_owned())
    }
}

/// By the process's CPU clock, which counts nanoseconds where /proc/PID/stat counts ticks.
fn cpu_with_children(pid: i32) -> Result<Duration> {
    let mut sum: Duration = clock_getcpuclockid(Pid::from_raw(pid))?.now()?.into();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_whitespace() {
        sum += cpu_with_children(child.parse()?).unwrap_or_default();
    }
    Ok(sum)
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        let begun = Instant::now();
        while begun.elapsed() < STOP_LIMIT {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
