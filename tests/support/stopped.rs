//! Processes that stand still for a while.

use std::fs;
use std::path::Path;

use super::{Process, wait_for};

/// A process whose threads are all stopped until this is dropped.
pub(crate) struct Stopped<'a>(&'a Process);

impl<'a> Stopped<'a> {
    pub(crate) fn new(process: &'a Process) -> Stopped<'a> {
        process.signal("STOP");
        let stopped = Stopped(process);
        let tasks = format!("/proc/{}/task", process.child.id());
        wait_for("the threads to stop", || {
            fs::read_dir(&tasks).unwrap().all(|task| state(&task.unwrap().path()) == Some('T')).then_some(())
        });
        stopped
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.signal("CONT");
    }
}

/// The state of a thread (proc_pid_stat(5)): the letter after its name, which is in parentheses. `None` if it has ended.
fn state(task: &Path) -> Option<char> {
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    stat[stat.rfind(')').unwrap() + 1..].trim_start().chars().next()
}
