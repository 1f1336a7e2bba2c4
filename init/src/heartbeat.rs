//! Tells the parent that the enclave has booted. `nitro-cli run-enclave` waits for this heartbeat, since its version 1.3.2
//! for 180 s with an enclave of up to 100 GiB; if none arrives, it terminates the enclave and reports E36.
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

use crate::clock::{Seconds, now, sleep};
use crate::errno::Named;
use crate::sys;

/// The parent's CID and port, and the byte.
const PARENT: u32 = 3;
const PORT: u32 = 9000;
const BYTE: u8 = 0xb7;
/// Limit for all of it: as long as nitro-cli waits. A parent that listens answers within milliseconds, unless it is
/// starved.
const PATIENCE: Duration = Duration::from_secs(180);
/// Time between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

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
            Self::Timeout(step) => write!(f, "{step}: nothing within {} s", PATIENCE.as_secs()),
            Self::Closed => write!(f, "the connection was closed without an answer"),
            Self::OtherByte(byte) => write!(f, "the answer was {byte:#04x} and not {BYTE:#04x}"),
        }
    }
}

/// Starts a process that sends the heartbeat and waits for the answer, again and again for as long as nitro-cli waits, and
/// prints the result. Meanwhile this process supervises the target, and reaps that one like any other. It is not an error
/// if the parent never answers: it has the power to end the enclave anyway.
pub fn send_to_parent() {
    sys::in_child(|| {
        let start = now();
        let deadline = start + PATIENCE;
        match until_answered(|| connect_to_parent(deadline), deadline, PAUSE) {
            Ok(()) => say!("heartbeat: answered by the parent after {}", Seconds(now() - start)),
            Err(error) => {
                say!("warning: vsock {PARENT}:{PORT} did not answer the heartbeat, continuing without it: {error}")
            }
        }
    });
}

/// Connects and exchanges the byte until that succeeds; returns the last failure before the deadline.
fn until_answered(
    mut connect: impl FnMut() -> Result<OwnedFd, Error>,
    deadline: Duration,
    pause: Duration,
) -> Result<(), Error> {
    let mut told = false;
    loop {
        let Err(error) = connect().and_then(|parent| exchange(&parent, deadline)) else { return Ok(()) };
        if now() + pause >= deadline {
            return Err(error);
        }
        if !told {
            say!("heartbeat: the parent does not answer yet, trying for {} s: {error}", PATIENCE.as_secs());
            told = true;
        }
        sleep(pause);
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
        // At most PATIENCE, so the sign does not change.
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

    /// The result with a parent that receives the heartbeat and then does `then`.
    fn with_parent(milliseconds: u64, then: fn(OwnedFd)) -> Result<(), Error> {
        exchange(parent(then), now() + Duration::from_millis(milliseconds))
    }

    /// A connection to a parent that receives the heartbeat and then does `parent`.
    fn parent(then: fn(OwnedFd)) -> OwnedFd {
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::io::ioctl_fionbio(&near, true).unwrap();
        thread::spawn(move || {
            let mut byte = [0];
            assert_eq!((read(&far, &mut byte), byte), (Ok(1), [BYTE]));
            then(far);
        });
        near
    }

    #[test]
    fn a_parent_that_is_late_or_hangs_up_is_asked_again() {
        let mut attempts = 0;
        let connect = || {
            attempts += 1;
            match attempts {
                1 => Err(Error::Kernel("connecting", Errno::CONNRESET)),
                2 => Ok(parent(drop)),
                _ => Ok(parent(|far| assert_eq!(write(far, &[0xb7]), Ok(1)))),
            }
        };
        assert_eq!(until_answered(connect, now() + PATIENCE, Duration::ZERO), Ok(()));
        assert_eq!(attempts, 3);
    }

    #[test]
    fn at_the_deadline_the_last_failure_is_told() {
        let mut attempts = 0;
        let connect = || {
            attempts += 1;
            Err(Error::Closed)
        };
        let start = now();
        let outcome = until_answered(connect, start + Duration::from_millis(50), Duration::from_millis(1));
        assert_eq!(outcome, Err(Error::Closed));
        assert!(attempts > 0 && now() - start >= Duration::from_millis(49));
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
