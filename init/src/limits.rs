//! Resource limits of this process, which every other inherits.

use core::fmt;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::errno::Named;

/// Open files a process may have. The kernel allows PID 1 no more than 4,096, and at five a connection (`DESCRIPTORS`
/// of src/boot.rs) that is less than what the daemon's listeners and forwarders may have together by default. 65,536
/// are enough for 13,000 connections, and a leak still ends in an error before it ends in all of the memory.
const OPEN_FILES: u64 = 65_536;

/// A limit that the kernel refused to set.
#[derive(Debug)]
pub struct Error {
    what: &'static str,
    errno: Errno,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}", self.what, Named(self.errno))
    }
}

/// Forbids core dumps, which would write keys into a file, and raises the limit of open files to 65,536.
///
/// # Errors
/// What setrlimit(2) answers; it needs CAP_SYS_RESOURCE.
pub fn set() -> Result<(), Error> {
    limit(Resource::Core, 0).map_err(|errno| Error { what: "forbidding core dumps", errno })?;
    limit(Resource::Nofile, OPEN_FILES).map_err(|errno| Error { what: "raising the limit of open files", errno })
}

fn limit(resource: Resource, value: u64) -> Result<(), Errno> {
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
}
