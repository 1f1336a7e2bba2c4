//! The two system calls of the daemon that no library wraps.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;

/// struct nsm_raw of the kernel's include/uapi/linux/nsm.h: addresses and lengths of request and answer.
#[repr(C)]
struct Raw {
    request: u64,
    request_length: u64,
    response: u64,
    response_length: u64,
}

/// Longest answer, in bytes (NSM_RESPONSE_MAX_SIZE in the same file).
const MAX_RESPONSE: usize = 0x3000;

// NSM_IOCTL_RAW: _IOWR(NSM_MAGIC, 0x0, struct nsm_raw).
nix::ioctl_readwrite!(nsm_ioctl_raw, 0x0a, 0, Raw);

/// Sends a request to the device and returns its answer.
///
/// # Errors
/// The system's error.
pub(crate) fn call(device: &File, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut response = vec![0; MAX_RESPONSE];
    let mut raw = Raw {
        request: request.as_ptr() as u64,
        request_length: request.len() as u64,
        response: response.as_mut_ptr() as u64,
        response_length: response.len() as u64,
    };
    // SAFETY: `raw` is the structure that this request of the kernel takes, and it lives until the call returns; so do
    // both buffers, whose lengths are the ones given. The kernel reads from the first and writes to the second only.
    // On a file that is not an NSM device the call only fails.
    unsafe { nsm_ioctl_raw(device.as_raw_fd(), &raw mut raw) }?;
    response.truncate(usize::try_from(raw.response_length).unwrap_or(usize::MAX));
    Ok(response)
}

/// Makes the clock run faster or slower until it shows this many milliseconds more, or less, than it would have:
/// adjtimex(2) with ADJ_OFFSET_SINGLESHOT, half a millisecond a second. It takes the place of what an earlier call has
/// left to do.
///
/// # Errors
/// The system's error.
pub(crate) fn slew(milliseconds: i64) -> io::Result<()> {
    let mut change = single_shot(milliseconds);
    // SAFETY: the structure is the one that this call takes, and lives until it returns. It only reads and writes that.
    Errno::result(unsafe { libc::adjtimex(&raw mut change) }).map(drop)?;
    Ok(())
}

/// What adjtimex(2) takes to add this many milliseconds, which it counts in microseconds.
fn single_shot(milliseconds: i64) -> libc::timex {
    // SAFETY: every field of the structure is a number, for which zero is a value.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    change.modes = libc::ADJ_OFFSET_SINGLESHOT;
    change.offset = milliseconds.saturating_mul(1000);
    change
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_an_nsm_device_is_an_error() {
        assert!(call(&File::open("/dev/null").unwrap(), b"request").is_err());
    }

    #[test]
    fn a_clock_is_slewed_by_microseconds_in_one_shot() {
        let change = single_shot(-1500);
        // ADJ_OFFSET_SINGLESHOT of the kernel's include/uapi/linux/timex.h.
        assert_eq!((change.modes, change.offset), (0x8001, -1_500_000));
    }
}
