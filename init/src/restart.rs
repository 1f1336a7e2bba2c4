//! Kills the remaining processes, gives the console's reader time, and restarts the machine, which ends an enclave.

use core::time::Duration;

use rustix::process::{Pid, Signal, getpid, kill_process_group};
use rustix::system::{RebootCommand, reboot};

use crate::clock::sleep;
use crate::errno::Named;
use crate::sys;

/// Pause before the restart, so that the console's reader gets the last lines.
const PAUSE: Duration = Duration::from_secs(1);

/// The proof that this process is PID 1. Nothing here may be done without it: in another process it would kill every
/// process of the user and restart their machine.
pub struct PidOne(());

impl PidOne {
    /// Returns the proof if this process is PID 1.
    pub fn check() -> Option<Self> {
        (getpid() == Pid::INIT).then_some(Self(()))
    }

    /// Kills all other processes, waits a second, and restarts the machine. Nothing is synchronized: there is no disk.
    pub fn restart(self) -> ! {
        // kill(2) takes the group's number negated, and -1 is everyone but PID 1.
        let _ = kill_process_group(Pid::INIT, Signal::KILL);
        sleep(PAUSE);
        if let Err(errno) = reboot(RebootCommand::Restart) {
            say!("restarting: {}; ending PID 1 instead, at which the kernel panics", Named(errno));
        }
        sys::exit(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_process_gets_no_proof() {
        assert!(PidOne::check().is_none());
    }
}
