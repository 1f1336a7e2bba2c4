//! Two streams, each copied into the other.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use crate::socket::Stream;
use crate::{Outbox, Session, Turn};

/// A tunnel through which nothing moves for this long is closed.
const IDLE_LIMIT: Duration = Duration::from_secs(300);

/// Two streams, each copied into the other until both have ended.
pub struct Tunnel {
    ends: [Stream; 2],
    /// Bytes that are still to be written to each end.
    into: [Outbox; 2],
    /// Whether each end has sent everything.
    ended: [bool; 2],
    moved: Instant,
    _place: Arc<()>,
}

impl Tunnel {
    /// Two connected, non-blocking streams. `place` is held until the tunnel has ended.
    pub fn new(near: Stream, far: Stream, place: Arc<()>) -> Tunnel {
        let (ends, moved) = ([near, far], Instant::now());
        Tunnel { ends, into: Default::default(), ended: [false; 2], moved, _place: place }
    }

    fn carry(&mut self, from: usize, scratch: &mut [u8]) -> io::Result<()> {
        let to = 1 - from;
        if self.into[to].is_empty() && !self.ended[from] {
            match self.ends[from].read(scratch) {
                Ok(0) => self.ended[from] = true,
                Ok(n) => self.into[to].bytes.extend_from_slice(&scratch[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        self.into[to].flush(&mut self.ends[to])?;
        if self.ended[from] && self.into[to].is_empty() {
            // The other end may already be closed, which is what this is for.
            let _ = self.ends[to].shutdown(Shutdown::Write);
        }
        Ok(())
    }
}

impl Session for Tunnel {
    fn watch(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; 2] {
        [0, 1].map(|end| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, !self.ended[end] && self.into[1 - end].is_empty());
            flags.set(PollFlags::POLLOUT, !self.into[end].is_empty());
            // An end that waits for nothing is not watched: it would report its hang-up again and again.
            (!flags.is_empty()).then(|| (self.ends[end].as_fd(), flags))
        })
    }

    fn turn(&mut self, _: [PollFlags; 2], scratch: &mut [u8], now: Instant) -> Turn {
        self.moved = now;
        let carried = self.carry(0, scratch).and_then(|()| self.carry(1, scratch));
        let done = self.ended == [true; 2] && self.into.iter().all(Outbox::is_empty);
        if carried.is_err() || done { Turn::Over } else { Turn::GoOn }
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.moved + IDLE_LIMIT)
    }

    fn overdue(&mut self, _: Instant) -> Turn {
        Turn::Over
    }

    fn finish(&mut self) -> Turn {
        Turn::Over
    }
}
