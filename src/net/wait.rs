//! Waiting for a non-blocking stream until a deadline: by poll(2), not by a socket's own timeouts, which start again
//! with each byte and cost a system call each time they are set.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use event_loop::socket::Stream;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Waits until `stream` is ready for one of `flags`, or has ended or failed, which a read or write then reports.
///
/// # Errors
/// `TimedOut` once the deadline has passed.
pub fn ready(stream: &Stream, flags: PollFlags, deadline: Option<Instant>) -> io::Result<PollFlags> {
    poll_until(&mut [PollFd::new(stream.as_fd(), flags)], deadline)
}

/// The same, on behalf of the client of this thread's request ([`on_behalf_of`]).
///
/// # Errors
/// [`ClientGone`] too.
pub fn ready_for_client(stream: &Stream, flags: PollFlags, deadline: Option<Instant>) -> io::Result<PollFlags> {
    CLIENT.with_borrow(|client| match client {
        None => ready(stream, flags, deadline),
        Some(client) => {
            // Hang-ups and errors are always reported. A client that has ended only its sending side still wants its
            // answer.
            let mut fds = [PollFd::new(stream.as_fd(), flags), PollFd::new(client.as_fd(), PollFlags::empty())];
            let stream = poll_until(&mut fds, deadline)?;
            if fds[1].any() == Some(true) {
                return Err(io::Error::other(ClientGone));
            }
            Ok(stream)
        }
    })
}

/// Polls until something happens, and returns what happened to the first.
fn poll_until(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<PollFlags> {
    loop {
        let timeout = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
            None => PollTimeout::NONE,
            Some(left) if left.is_zero() => return Err(ErrorKind::TimedOut.into()),
            // Rounded up, so that the deadline has passed when poll returns.
            Some(left) => PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX),
        };
        match poll(fds, timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(fds[0].revents().unwrap_or(PollFlags::POLLERR)),
            Err(e) => return Err(e.into()),
        }
    }
}

thread_local! {
    static CLIENT: RefCell<Option<Arc<Stream>>> = const { RefCell::new(None) };
}

/// While this exists, the thread works for a client.
pub struct OnBehalf(());

/// From now on this thread works for `client`, and its waits fail once that client is gone.
pub fn on_behalf_of(client: &Arc<Stream>) -> OnBehalf {
    CLIENT.set(Some(client.clone()));
    OnBehalf(())
}

impl Drop for OnBehalf {
    fn drop(&mut self) {
        CLIENT.set(None);
    }
}

/// The client of this thread's request has closed the connection.
#[derive(Debug)]
pub struct ClientGone;

impl fmt::Display for ClientGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client has gone away")
    }
}

impl std::error::Error for ClientGone {}

/// A stream on which every read and write fails with `TimedOut` once the deadline has passed, so that a peer gains
/// nothing by sending a byte now and then.
#[derive(Debug)]
pub struct Timed {
    stream: Stream,
    /// Without one, reads and writes block without a limit.
    pub deadline: Option<Instant>,
}

impl Timed {
    /// # Errors
    /// The stream cannot be made non-blocking.
    pub fn new(stream: Stream, deadline: Option<Instant>) -> io::Result<Timed> {
        stream.set_nonblocking(true)?;
        Ok(Timed { stream, deadline })
    }

    /// The stream, which is non-blocking.
    pub fn into_inner(self) -> Stream {
        self.stream
    }

    /// The stream, which is non-blocking.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Runs `io` as soon as it can be done without blocking.
    fn when(&mut self, flags: PollFlags, mut io: impl FnMut(&mut Stream) -> io::Result<usize>) -> io::Result<usize> {
        loop {
            if self.deadline.is_some_and(|at| at <= Instant::now()) {
                return Err(ErrorKind::TimedOut.into());
            }
            match io(&mut self.stream) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => drop(ready(&self.stream, flags, self.deadline)?),
                other => return other,
            }
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.when(PollFlags::POLLIN, |stream| stream.read(buf))
    }
}

impl Write for Timed {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.when(PollFlags::POLLOUT, |stream| stream.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[test]
    fn a_byte_now_and_then_does_not_move_the_deadline() {
        let (near, mut far) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            while far.write_all(b".").is_ok() {
                std::thread::sleep(Duration::from_millis(20))
            }
        });
        let deadline = Some(Instant::now() + Duration::from_millis(200));
        let mut timed = Timed::new(Stream::Unix(near), deadline).unwrap();
        let error = timed.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_client_that_is_gone_ends_the_wait_and_one_that_ended_its_sending_side_does_not() {
        let (waited_for, mut other) = UnixStream::pair().unwrap();
        let (client, user) = UnixStream::pair().unwrap();
        let (waited_for, client) = (Stream::Unix(waited_for), Arc::new(Stream::Unix(client)));
        let _on_behalf = on_behalf_of(&client);
        user.shutdown(std::net::Shutdown::Write).unwrap();
        other.write_all(b".").unwrap();
        assert_eq!(ready_for_client(&waited_for, PollFlags::POLLIN, None).unwrap(), PollFlags::POLLIN);
        drop(user);
        let gone = ready_for_client(&waited_for, PollFlags::POLLIN, None).unwrap_err();
        assert!(gone.get_ref().unwrap().is::<ClientGone>());
    }
}
