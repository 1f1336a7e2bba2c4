//! A daemon's end, and the last records of its log.
//!
//! The end waits for them two seconds. On a busy machine that may be too few, and what is lost then never comes. So whoever
//! waits for last words has them in vain where the end took that long, and starts another daemon ([`unspoilt`]).

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::{Daemon, Process, wait_for};

/// How long the end waits for the log (AT_THE_END in src/logging/mod.rs).
const LIMIT: Duration = Duration::from_secs(2);
/// How long those wait who may have to wait in vain. What was sent needs much less to be written.
const IN_VAIN: Duration = Duration::from_secs(10);

/// A daemon that has ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    took: Duration,
    at: Instant,
}

impl Process {
    /// Waits for its end, which did not begin before `since`.
    pub(crate) fn end(&mut self, since: Instant) -> Ended {
        let status = wait_for("the daemon's end", || self.child.try_wait().unwrap());
        Ended { status, took: since.elapsed(), at: Instant::now() }
    }
}

impl Daemon {
    /// Has it stop, and waits for its end.
    pub(crate) fn stop(&mut self) -> Ended {
        let since = Instant::now();
        self.process.signal("TERM");
        self.process.end(since)
    }
}

impl Ended {
    /// Whether its time for last words cannot have run out.
    pub(crate) fn in_time(&self) -> bool {
        self.took < LIMIT
    }

    /// What is found of its last words, now or soon. `None` if they may have been lost on this machine.
    pub(crate) fn leaves<T>(&self, what: &str, mut found: impl FnMut() -> Option<T>) -> Option<T> {
        wait_for(what, || {
            let found = found();
            let lost = found.is_none() && !self.in_time() && self.at.elapsed() > IN_VAIN;
            (found.is_some() || lost).then_some(found)
        })
    }
}
