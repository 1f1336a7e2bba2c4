//! Sets resource limits of this process, which every other inherits.

use core::fmt;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::errno::Named;

/// Most open files of a process. The kernel's limit for PID 1 is 4,096. At five per connection (`DESCRIPTORS` in
/// src/boot.rs) that is less than the daemon's listeners and forwarders may need together by default. 65,536 are enough
/// for 13,000 connections, and a leak still causes an error before it uses all memory.
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

/// Forbids core dumps, which would write keys into a file, and raises the limit on open files to 65,536.
///
/// # Errors
/// That of setrlimit(2), which needs CAP_SYS_RESOURCE.
pub fn set() -> Result<(), Error> {
    limit(Resource::Core, 0).map_err(|errno| Error { what: "forbidding core dumps", errno })?;
    limit(Resource::Nofile, OPEN_FILES).map_err(|errno| Error { what: "raising the limit of open files", errno })
}

fn limit(resource: Resource, value: u64) -> Result<(), Errno> {
    setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
}
