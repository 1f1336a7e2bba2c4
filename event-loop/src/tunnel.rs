//! Two streams, each forwarded into the other.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::debug;
use nix::poll::PollFlags;

use crate::scratch::BUFFER;
use crate::socket::{Listener, Stream};
use crate::target::Target;
use crate::{Acceptor, Outbox, Scratch, Session, Turn};

/// Time limit to connect. For AF_VSOCK the kernel's own is shorter: 2 s, VSOCK_DEFAULT_CONNECT_TIMEOUT in
/// net/vmw_vsock/af_vsock.c.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A tunnel through which nothing moves for this long is closed.
const IDLE_LIMIT: Duration = Duration::from_secs(300);

/// Forwards each connection of a listener to `target`, at most `limit` of them at once; more wait in its backlog.
pub fn acceptor(listener: Listener, limit: usize, target: Target) -> Acceptor {
    let target = Arc::new(target);
    Acceptor { listener, limit, open: Box::new(move |near| Ok(Some(Box::new(Tunnel::begin(near, target.clone())?)))) }
}

/// Two streams, each forwarded into the other until both have ended.
struct Tunnel {
    /// The accepted one, and the one to the target.
    ends: [Stream; 2],
    /// Bytes that are still to be written to each end.
    into: [Outbox; 2],
    /// Whether each end has sent everything.
    ended: [bool; 2],
    /// Whether the last read of each end took as much as the buffer holds, so that more is likely to come.
    much: [bool; 2],
    connecting: Option<Connecting>,
    moved: Instant,
}

/// The second end is not connected yet.
struct Connecting {
    target: Arc<Target>,
    /// The place to try next.
    next: usize,
}

impl Tunnel {
    fn begin(near: Stream, target: Arc<Target>) -> io::Result<Tunnel> {
        let mut next = 0;
        let far = target.begin(&mut next).inspect_err(|e| unreachable(&target, e))?;
        let connecting = Some(Connecting { target, next });
        let (ends, into, moved) = ([near, far], Default::default(), Instant::now());
        Ok(Tunnel { ends, into, ended: [false; 2], much: [false; 2], connecting, moved })
    }

    /// Notes that the second end is connected, or has it try the next place.
    fn connect(&mut self) -> io::Result<()> {
        let Some(Connecting { target, next }) = &mut self.connecting else { return Ok(()) };
        match self.ends[1].take_error()? {
            None => self.connecting = None,
            Some(_) if target.has(*next) => {
                self.ends[1] = target.begin(next).inspect_err(|e| unreachable(target, e))?;
            }
            Some(e) => {
                unreachable(target, &e);
                return Err(e);
            }
        }
        Ok(())
    }

    fn carry(&mut self, from: usize, scratch: &mut Scratch) -> io::Result<()> {
        let to = 1 - from;
        self.into[to].flush(&mut self.ends[to])?;
        if self.into[to].is_empty() && !self.ended[from] {
            match scratch.forward(&self.ends[from], &self.ends[to], &mut self.into[to], self.much[from]) {
                Ok(0) => self.ended[from] = true,
                Ok(read) => self.much[from] = read >= BUFFER,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        if self.ended[from] && self.into[to].is_empty() {
            // The other end may already be closed, which is what this is for.
            let _ = self.ends[to].shutdown(Shutdown::Write);
        }
        Ok(())
    }

    /// Forwards in the directions in which something has happened.
    fn step(&mut self, ready: [PollFlags; 2], scratch: &mut Scratch) -> io::Result<()> {
        if self.connecting.is_some() {
            return self.connect();
        }
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        for (from, to) in [(0, 1), (1, 0)] {
            if ready[from].intersects(PollFlags::POLLIN | gone) || ready[to].intersects(PollFlags::POLLOUT | gone) {
                self.carry(from, scratch)?;
            }
        }
        Ok(())
    }
}

fn unreachable(target: &Target, e: &io::Error) {
    debug!("{} cannot be reached: {e}", target.name());
}

impl Session for Tunnel {
    fn watch(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; 2] {
        if self.connecting.is_some() {
            return [None, Some((self.ends[1].as_fd(), PollFlags::POLLOUT))];
        }
        [0, 1].map(|end| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, !self.ended[end] && self.into[1 - end].is_empty());
            flags.set(PollFlags::POLLOUT, !self.into[end].is_empty());
            // An end that waits for nothing is not watched: it would report its hang-up again and again.
            (!flags.is_empty()).then(|| (self.ends[end].as_fd(), flags))
        })
    }

    fn turn(&mut self, ready: [PollFlags; 2], scratch: &mut Scratch, now: Instant) -> Turn {
        self.moved = now;
        let stepped = self.step(ready, scratch);
        let done = self.ended == [true; 2] && self.into.iter().all(Outbox::is_empty);
        if stepped.is_err() || done { Turn::Over } else { Turn::GoOn }
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.moved + if self.connecting.is_some() { CONNECT_LIMIT } else { IDLE_LIMIT })
    }

    fn overdue(&mut self, _: Instant) -> Turn {
        if let Some(Connecting { target, .. }) = &self.connecting {
            unreachable(target, &ErrorKind::TimedOut.into());
        }
        Turn::Over
    }

    fn finish(&mut self) -> Turn {
        Turn::Over
    }
}
