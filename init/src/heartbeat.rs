//! Tells the parent that the enclave has booted. `nitro-cli run-enclave` waits for this heartbeat, with an image of this
//! size for a minute; without it it ends the enclave and reports E36.
//!
//! The protocol, as in AWS' own init: connect to vsock CID 3 port 9000, send the byte 0xB7, receive it back.

use core::fmt;
use core::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with, sockopt,
};

use crate::clock::{Seconds, now};
use crate::errno::Named;
use crate::sys;

/// The parent's CID and port, and the byte.
const PARENT: u32 = 3;
const PORT: u32 = 9000;
const BYTE: u8 = 0xb7;
/// Limit for all of it. A parent that listens answers within milliseconds; without one, as in a test, this is how long the
/// boot is delayed at most.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why the heartbeat was not answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// This step failed with this error.
    Kernel(&'static str, Errno),
    /// This step did not end in time.
    Timeout(&'static str),
    /// The parent closed the connection.
    Closed,
    /// The parent answered with another byte.
    OtherByte(u8),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Kernel(step, errno) => write!(f, "{step}: {}", Named(*errno)),
            Self::Timeout(step) => write!(f, "{step}: nothing within {} s", TIMEOUT.as_secs()),
            Self::Closed => write!(f, "the connection was closed without an answer"),
            Self::OtherByte(byte) => write!(f, "the answer was {byte:#04x} and not {BYTE:#04x}"),
        }
    }
}

/// Sends the heartbeat, waits for the answer, for at most 5 s in all, and prints the result. It is not an error if the
/// parent does not answer: it has the power to end the enclave anyway.
pub fn send_to_parent() {
    let start = now();
    let outcome = connect_to_parent(start + TIMEOUT).and_then(|parent| exchange(&parent, start + TIMEOUT));
    match outcome {
        Ok(()) => say!("heartbeat: answered by the parent after {}", Seconds(now() - start)),
        Err(error) => say!("warning: no heartbeat with vsock {PARENT}:{PORT}, going on without: {error}"),
    }
}

fn connect_to_parent(deadline: Duration) -> Result<OwnedFd, Error> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let parent = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)
        .map_err(|errno| Error::Kernel("making a socket", errno))?;
    const STEP: &str = "connecting";
    match connect(&parent, &sys::VsockAddress::new(PARENT, PORT)) {
        Err(Errno::INPROGRESS) => {
            wait(&parent, PollFlags::OUT, deadline, STEP)?;
            sockopt::socket_error(&parent).and_then(|result| result).map_err(|errno| Error::Kernel(STEP, errno))?;
        }
        other => other.map_err(|errno| Error::Kernel(STEP, errno))?,
    }
    Ok(parent)
}

/// Sends the byte over a non-blocking connection, and waits until the deadline for the same byte.
fn exchange(parent: impl AsFd, deadline: Duration) -> Result<(), Error> {
    let sent = send(&parent, &[BYTE], SendFlags::NOSIGNAL);
    sent.map_err(|errno| Error::Kernel("sending", errno))?;
    const STEP: &str = "waiting for the answer";
    loop {
        wait(&parent, PollFlags::IN, deadline, STEP)?;
        let mut answer = [0];
        match recv(&parent, &mut answer, RecvFlags::empty()) {
            Ok((0, _)) => return Err(Error::Closed),
            Ok(_) if answer == [BYTE] => return Ok(()),
            Ok(_) => return Err(Error::OtherByte(answer[0])),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(Error::Kernel(STEP, errno)),
        }
    }
}

/// Waits until a connection is ready for `what`, or broken.
fn wait(fd: impl AsFd, what: PollFlags, deadline: Duration, step: &'static str) -> Result<(), Error> {
    loop {
        // At most TIMEOUT, so the sign does not change.
        let left = deadline.saturating_sub(now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&fd, what)], Some(&left)) {
            Ok(0) => return Err(Error::Timeout(step)),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::Kernel(step, errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{read, write};
    use rustix::net::socketpair;
    use std::format;
    use std::thread;

    /// The result with a parent that receives the heartbeat and then does `parent`.
    fn with_parent(milliseconds: u64, parent: fn(OwnedFd)) -> Result<(), Error> {
        let flags = SocketFlags::CLOEXEC;
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        rustix::io::ioctl_fionbio(&near, true).unwrap();
        let parent = thread::spawn(move || {
            let mut byte = [0];
            assert_eq!((read(&far, &mut byte), byte), (Ok(1), [0xb7]));
            parent(far);
        });
        let outcome = exchange(&near, now() + Duration::from_millis(milliseconds));
        drop(near);
        parent.join().unwrap();
        outcome
    }

    #[test]
    fn an_echo_is_the_answer() {
        assert_eq!(with_parent(5000, |far| assert_eq!(write(far, &[0xb7]), Ok(1))), Ok(()));
    }

    #[test]
    fn another_byte_is_not_an_answer() {
        let outcome = with_parent(5000, |far| assert_eq!(write(far, &[0x07]), Ok(1)));
        assert_eq!(outcome, Err(Error::OtherByte(7)));
        assert_eq!(format!("{}", Error::OtherByte(7)), "the answer was 0x07 and not 0xb7");
    }

    #[test]
    fn a_parent_that_hangs_up_is_named() {
        assert_eq!(with_parent(5000, drop), Err(Error::Closed));
    }

    #[test]
    fn a_parent_that_stays_silent_costs_no_more_than_the_time_allowed() {
        let silent = |far| assert_eq!(read(far, &mut [0]), Ok(0));
        let start = now();
        assert_eq!(with_parent(50, silent), Err(Error::Timeout("waiting for the answer")));
        assert!(now() - start >= Duration::from_millis(50));
    }
}
