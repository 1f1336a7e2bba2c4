//! Waits until the target ends: passes signals to stop on to it, and reaps the processes that it leaves behind, as PID 1
//! has to.

use core::ffi::CStr;
use core::fmt;
use core::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};

use crate::clock::{Seconds, now};
use crate::errno::Named;
use crate::sys::HeldSignals;
use crate::target::Target;
use crate::text::Text;

/// How long the target may take to stop. The daemon gives requests in flight 10 s and then ends at once.
const GRACE: Duration = Duration::from_secs(15);

/// The signals to stop: SIGTERM from a shell in a debug image, SIGINT from the kernel for Ctrl-Alt-Del, SIGPWR from it for
/// a power failure.
const STOP: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::POWER];

/// Holds the signals that [`until_the_end`] waits for. This has to be the first step, so that no signal is missed.
pub fn hold_signals() -> HeldSignals {
    let [term, int, power] = STOP;
    HeldSignals::hold(&[Signal::CHILD, term, int, power])
}

/// How a target ended.
pub struct End<'a> {
    path: &'a CStr,
    how: How,
    after: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum How {
    Exit(i32),
    Signal(i32),
    /// wait(2) failed, so it is not known how.
    Lost(Errno),
}

impl fmt::Display for End<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} ", Text(self.path))?;
        match self.how {
            How::Exit(status) => write!(f, "ended with status {status}")?,
            How::Signal(number) => write!(f, "was killed by signal {number} ({})", name(number))?,
            How::Lost(errno) => write!(f, "has ended, but it is not known how: {}", Named(errno))?,
        }
        write!(f, " after {}", Seconds(self.after))
    }
}

/// Waits until the target ends. Any of SIGTERM, SIGINT and SIGPWR sends it SIGTERM, and SIGKILL 15 s later.
pub fn until_the_end<'a>(target: &Target<'a>, signals: &HeldSignals) -> End<'a> {
    let mut deadline = None;
    loop {
        if let Some(how) = reap(target.pid) {
            return End { path: target.path, how, after: now() - target.started };
        }
        let left = deadline.map(|deadline: Duration| deadline.saturating_sub(now()));
        let signal = signals.wait(left);
        if STOP.iter().any(|stop| stop.as_raw() == signal) {
            say!("signal {signal} ({}): sending {} SIGTERM", name(signal), Text(target.path));
            let _ = kill_process(target.pid, Signal::TERM);
            deadline.get_or_insert(now() + GRACE);
        } else if deadline.is_some_and(|deadline| deadline <= now()) {
            say!("{} has not ended within {} s: killing it", Text(target.path), GRACE.as_secs());
            let _ = kill_process(target.pid, Signal::KILL);
            deadline = None;
        }
    }
}

/// Reaps every child that has ended; returns how the target ended if it is among them.
fn reap(target: Pid) -> Option<How> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == target => return Some(how(status)),
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(errno) => return Some(How::Lost(errno)),
        }
    }
}

fn how(status: WaitStatus) -> How {
    match status.terminating_signal() {
        Some(signal) => How::Signal(signal),
        None => How::Exit(status.exit_status().unwrap_or_default()),
    }
}

/// The name of a signal without SIG, by its number from 1 on (signal(7), x86 and Arm).
fn name(signal: i32) -> &'static str {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    usize::try_from(signal - 1).ok().and_then(|index| NAMES.get(index)).unwrap_or(&"real-time")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::process::Command;

    fn end_of(script: &str) -> How {
        // Reaped by the function under test, not by std.
        #[allow(clippy::zombie_processes)]
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let (_, status) = rustix::process::waitpid(pid, WaitOptions::empty()).unwrap().unwrap();
        how(status)
    }

    fn said(how: How) -> std::string::String {
        format!("{}", End { path: c"/teemarkd", how, after: Duration::from_millis(12_345) })
    }

    #[test]
    fn a_status_and_a_signal_are_distinguished() {
        assert_eq!(end_of("exit 9"), How::Exit(9));
        assert_eq!(end_of("kill -9 $$"), How::Signal(9));
        assert_eq!(end_of("true"), How::Exit(0));
    }

    #[test]
    fn the_end_is_reported_in_one_sentence() {
        assert_eq!(said(How::Exit(0)), "/teemarkd ended with status 0 after 12.345 s");
        assert_eq!(said(How::Signal(9)), "/teemarkd was killed by signal 9 (KILL) after 12.345 s");
    }

    #[test]
    fn signals_have_the_names_of_the_manual() {
        for signal in 1..32 {
            let shell = Command::new("sh").args(["-c", &format!("kill -l {signal}")]).output().unwrap();
            let shell = std::str::from_utf8(&shell.stdout).unwrap().trim();
            // Not every shell has a name for 16, and bash's for 29 is the older one.
            assert!([name(signal), "16", "POLL"].contains(&shell), "{signal} is {shell}");
        }
        assert_eq!((name(0), name(-1), name(32)), ("real-time", "real-time", "real-time"));
    }
}
