//! Starts the target; one that cannot be started is an error, unlike one that ends.

use core::ffi::CStr;
use core::fmt;
use core::time::Duration;

use rustix::io::Errno;
use rustix::process::Pid;

use crate::clock::{Seconds, now};
use crate::environment::Environment;
use crate::errno::Named;
use crate::sys;
use crate::text::Text;

/// A program that has been started, as a child of this process.
pub struct Target<'a> {
    /// The file that was executed.
    pub path: &'a CStr,
    /// The child's process ID, to wait for and to signal.
    pub pid: Pid,
    /// When it was started, since the kernel's start.
    pub started: Duration,
}

/// Why a program was not started.
#[derive(Debug)]
pub struct Error<'a> {
    path: &'a CStr,
    errno: Errno,
}

impl fmt::Display for Error<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "starting {}: {}", Text(self.path), Named(self.errno))?;
        match self.errno {
            Errno::NOENT => write!(f, "; the file, or the interpreter that it asks for, is not in the image"),
            Errno::ACCESS => write!(f, "; it has to be a file of mode 755"),
            Errno::NOEXEC => write!(f, "; it is neither a program for this processor nor a script with #! in front"),
            _ => Ok(()),
        }
    }
}

/// Starts the target in a session of its own, without arguments and with this environment only.
///
/// # Errors
/// The kernel does not execute the file.
pub fn start<'a>(path: &'a CStr, environment: &Environment) -> Result<Target<'a>, Error<'a>> {
    let started = now();
    say!("{} after the kernel's start: starting {}", Seconds(started), Text(path));
    match sys::spawn(path, environment.variables()) {
        Ok(pid) => Ok(Target { path, pid, started }),
        Err(errno) => Err(Error { path, errno }),
    }
}
