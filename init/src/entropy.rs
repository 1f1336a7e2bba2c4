//! Seeds the kernel's random numbers from the Nitro Security Module, if there is one.

use core::ffi::CStr;
use core::fmt;

use rustix::fs::{Access, Mode, OFlags, access, open};
use rustix::io::Errno;

use crate::errno::Named;
use crate::text::{Short, Text};
use crate::{files, sys};

/// The module's device, and the name of its random source; drivers/misc/nsm.c makes both.
const NSM: &CStr = c"/dev/nsm";
const NSM_SOURCE: &str = "nsm-hwrng";
/// The file with the name of the source behind /dev/hwrng (Documentation/admin-guide/hw_random.rst).
const CURRENT_SOURCE: &CStr = c"/sys/class/misc/hw_random/rng_current";
const SOURCE: &CStr = c"/dev/hwrng";
const POOL: &CStr = c"/dev/urandom";
/// Bytes of seed: twice the 256 bits at which the kernel calls its pool full (POOL_BITS in drivers/char/random.c).
const SEED_BYTES: usize = 64;

/// Why the random numbers are not the security module's, although there is one.
#[derive(Debug)]
pub enum Error {
    /// It is not known which source the kernel uses.
    Unknown(files::Error),
    /// The kernel uses the source of that name.
    OtherSource(Short),
    /// This step, on this file, failed with this error.
    Kernel(&'static str, &'static CStr, Errno),
    /// The source ended early.
    End,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Unknown(error) => write!(f, "random numbers: {error}; the kernel is built without HW_RANDOM?"),
            Self::OtherSource(name) => write!(
                f,
                "random numbers: {} says {name} and not {NSM_SOURCE}; they would not be the security module's",
                Text(CURRENT_SOURCE)
            ),
            Self::Kernel(what, path, errno) => write!(f, "random numbers: {what} {}: {}", Text(path), Named(*errno)),
            Self::End => write!(f, "random numbers: {} gave less than {SEED_BYTES} bytes", Text(SOURCE)),
        }
    }
}

/// If /dev/nsm exists, reads 64 bytes of the module's random numbers and credits them to the kernel; otherwise prints that
/// random numbers come from the processor.
///
/// In an enclave it is an error if this fails. Every key that the daemon makes depends on these numbers, and the parent
/// controls all sources that a kernel may find except this one and the processor's: the numbers of a virtio device, for
/// example, are chosen by the host. A restart is noticed; a weak key is not.
///
/// # Errors
/// [`Error`]. The module's driver waits at most two minutes for an answer.
pub fn seed() -> Result<(), Error> {
    if access(NSM, Access::EXISTS) == Err(Errno::NOENT) {
        say!("no /dev/nsm: not a Nitro enclave; random numbers come from the processor");
        return Ok(());
    }
    check_source(files::read_text(CURRENT_SOURCE, &mut [0; 64]).map_err(Error::Unknown)?)?;

    let source = open(SOURCE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let source = source.map_err(|errno| Error::Kernel("opening", SOURCE, errno))?;
    let mut seed = [0; SEED_BYTES];
    let mut length = 0;
    while length < SEED_BYTES {
        match rustix::io::read(&source, &mut seed[length..]) {
            Ok(0) => return Err(Error::End),
            Ok(read) => length += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::Kernel("reading", SOURCE, errno)),
        }
    }
    let pool = open(POOL, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    let pool = pool.map_err(|errno| Error::Kernel("opening", POOL, errno))?;
    sys::credit_entropy(&pool, seed).map_err(|errno| Error::Kernel("seeding", POOL, errno))?;
    say!("random numbers: seeded with {SEED_BYTES} bytes of {NSM_SOURCE}");
    Ok(())
}

fn check_source(name: &[u8]) -> Result<(), Error> {
    let name = name.trim_ascii();
    if name == NSM_SOURCE.as_bytes() {
        return Ok(());
    }
    Err(Error::OtherSource(Short::new(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn the_security_module_is_the_source() {
        assert!(check_source(b"nsm-hwrng\n").is_ok());
    }

    #[test]
    fn another_source_is_refused_by_name() {
        for other in ["virtio_rng.0\n", "none\n", "\n", "nsm-hwrng2\n", "nsm\n"] {
            let error = format!("{}", check_source(other.as_bytes()).unwrap_err());
            assert!(error.contains(&format!("says {} and not nsm-hwrng", other.trim())), "{error}");
        }
    }
}
