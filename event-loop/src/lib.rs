//! The event loop: one thread that waits for all idle connections, by poll(2).
//!
//! A waiting connection costs a descriptor and a few hundred bytes here, and no thread. The loop knows nothing about
//! HTTP: a [`Session`] says what it waits for and moves its own bytes. The loop calls it when that has happened,
//! accepts new connections, runs periodic tasks, and ends all of it when the program stops.
//!
//! The daemon runs on it inside the enclave, and `teemark expose` on the parent. [`socket`] has their streams and
//! listeners, and [`tunnel`] the session that both need: two streams, each copied into the other.
#![forbid(unsafe_code)]

mod outbox;
mod scratch;
pub mod socket;
pub mod target;
pub mod threads;
pub mod tunnel;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, warn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub use outbox::Outbox;
pub use scratch::Scratch;
use socket::{Listener, Stream};

/// Most connections accepted from one listener before the others get their turn.
const ACCEPTED_AT_ONCE: usize = 64;
/// Pause after accept(2) failed, for lack of descriptors for instance, or if no connection gives way to a new one: the
/// listener stays readable meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time limit for what is in flight when the program stops.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Whether a session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It stays in the loop.
    GoOn,
    /// It leaves the loop.
    Over,
}

/// One waiting connection, or two.
pub trait Session: Send {
    /// The ends and what they wait for. Errors and hang-ups of an end are reported in any case.
    fn watch(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; 2];
    /// Moves what can be moved. `ready` says what happened at each end.
    fn turn(&mut self, ready: [PollFlags; 2], scratch: &mut Scratch, now: Instant) -> Turn;
    /// When [`Session::overdue`] is to be called, if nothing happens before.
    fn deadline(&self) -> Option<Instant>;
    /// The deadline has passed.
    fn overdue(&mut self, now: Instant) -> Turn;
    /// Whether it gives way to a new connection when there is no room. The lowest rank goes first, and within a rank
    /// the one that has been in it for longest.
    fn gives_way(&self, _now: Instant) -> Option<(u8, Instant)> {
        None
    }
    /// Whether it waits for something that others use, and wants to try again whenever the loop runs.
    fn is_queued(&self) -> bool {
        false
    }
    /// The program stops: end once nothing is in flight.
    fn finish(&mut self) -> Turn;
}

/// The session of a new connection, if it gets one.
pub type Opened = io::Result<Option<Box<dyn Session>>>;

/// A listener, and how its connections become sessions.
pub struct Acceptor {
    /// Where connections arrive.
    pub listener: Listener,
    /// Most connections that may wait at once. Beyond it, new ones stay in the listener's backlog until one gives way.
    pub limit: usize,
    /// Makes the session of a connection.
    pub open: Box<dyn Fn(Stream) -> Opened + Send>,
}

/// A periodic task.
struct Periodic {
    every: Duration,
    next: Instant,
    run: Box<dyn FnMut() + Send>,
}

/// What the loop tells whoever counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// So many connections are open now.
    Open(usize),
    /// A connection was cut because it gave way to a new one.
    GaveWay,
}

/// A running loop.
pub struct Handle {
    wake: UnixStream,
    thread: thread::JoinHandle<()>,
}

/// Brings sessions to the loop from other threads, and wakes it.
#[derive(Clone, Debug)]
pub struct Waker {
    wake: Arc<UnixStream>,
    sessions: Sender<Arrival>,
    /// Connections that have left the loop and may come back.
    in_flight: Arc<AtomicUsize>,
}

/// A connection that has left the loop and may come back. The loop does not end before this is dropped, or
/// 10 s have passed.
#[derive(Debug)]
pub struct InFlight(Waker);

/// A session, and the index of its acceptor.
struct Arrival {
    acceptor: usize,
    session: Box<dyn Session>,
}

impl Waker {
    /// Adds a session to those of an acceptor.
    pub fn add(&self, acceptor: usize, session: Box<dyn Session>) {
        // This fails only if the loop has ended; then the session ends too.
        let _ = self.sessions.send(Arrival { acceptor, session });
        self.wake();
    }

    /// Makes the loop run, so that queued sessions try again.
    pub fn wake(&self) {
        // If the socket is full of wakes, one more is not needed.
        let _ = (&*self.wake).write(b".");
    }

    /// Counts a connection as in flight until the value is dropped.
    pub fn in_flight(&self) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(self.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An event loop that does not run yet.
pub struct EventLoop {
    acceptors: Vec<(Acceptor, Option<Instant>)>,
    periodics: Vec<Periodic>,
    woken: UnixStream,
    waker: Waker,
    arrivals: Receiver<Arrival>,
    sessions: Vec<Arrival>,
    stop_by: Option<Instant>,
    count: fn(Event),
}

/// The byte that ends the loop.
const STOP: u8 = b'!';

impl EventLoop {
    /// Calls `count` in its thread, with [`Event::Open`] in each turn.
    ///
    /// # Errors
    /// The system has no descriptors left.
    pub fn new(count: fn(Event)) -> io::Result<EventLoop> {
        let (woken, wake) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        let (sessions, arrivals) = channel();
        let waker = Waker { wake: Arc::new(wake), sessions, in_flight: Arc::default() };
        let (acceptors, periodics, sessions) = (Vec::new(), Vec::new(), Vec::new());
        Ok(EventLoop { acceptors, periodics, woken, waker, arrivals, sessions, stop_by: None, count })
    }

    /// Adds sessions and wakes the loop from other threads.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Adds a listener.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn add(&mut self, acceptor: Acceptor) -> io::Result<()> {
        acceptor.listener.set_nonblocking(true)?;
        self.acceptors.push((acceptor, None));
        Ok(())
    }

    /// The index that the next acceptor will have.
    pub fn next_acceptor(&self) -> usize {
        self.acceptors.len()
    }

    /// Calls `run` once in each interval. It must not block.
    pub fn every(&mut self, every: Duration, run: impl FnMut() + Send + 'static) {
        self.periodics.push(Periodic { every, next: Instant::now() + every, run: Box::new(run) });
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no threads left.
    pub fn start(self) -> io::Result<Handle> {
        let wake = self.waker.wake.try_clone()?;
        let thread = threads::start("event loop", move || {
            // A program that accepts nothing must not look alive.
            if catch_unwind(AssertUnwindSafe(|| self.run())).is_err() {
                std::process::exit(1);
            }
        })?;
        Ok(Handle { wake, thread })
    }

    fn run(mut self) {
        let mut scratch = Scratch::new();
        while !self.is_done() {
            if !self.sessions.is_empty() {
                self.sessions.rotate_left(1); // so that no session is always the last to try
            }
            let (acceptors, sessions) = self.wait();
            let now = Instant::now();
            // Wakes are read before the sessions get their turn, so that a wake during their turn causes another round.
            let stop = self.take_wakes();
            // New arrivals get their turn at once: what they wait for may already be there, and then nothing wakes the
            // loop.
            let arrivals = self.arrivals.try_iter();
            self.sessions.extend(arrivals);
            self.move_bytes(&sessions, &mut scratch, now);
            self.begin_to_stop(stop, now);
            for acceptor in acceptors {
                // Several at once, so that a flood of connections does not cost a round each.
                let _ = (0..ACCEPTED_AT_ONCE).try_for_each(|n| self.accept(acceptor, n == 0, now).then_some(()));
            }
            self.run_periodics(now);
            let in_flight = self.waker.in_flight.load(Ordering::Acquire);
            (self.count)(Event::Open(self.sessions.len() + in_flight));
        }
        if self.stop_by.is_some_and(|by| Instant::now() >= by) {
            let cut = self.sessions.len() + self.waker.in_flight.load(Ordering::Acquire);
            warn!("connections cut because they did not finish within {} s: {cut}", STOP_LIMIT.as_secs());
        }
    }

    fn is_done(&mut self) -> bool {
        let nothing_in_flight = self.waker.in_flight.load(Ordering::Acquire) == 0;
        // A thread returns its connection before it stops counting, so that by now it is here.
        self.sessions.extend(self.arrivals.try_iter());
        let idle = nothing_in_flight && self.sessions.is_empty();
        self.stop_by.is_some_and(|by| idle || Instant::now() >= by)
    }

    /// Waits for something to happen. Returns which acceptors have a connection, and what happened to each session.
    fn wait(&self) -> (Vec<usize>, Vec<[PollFlags; 2]>) {
        let now = Instant::now();
        let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        let accepting: Vec<usize> = (0..self.acceptors.len())
            .filter(|&i| self.stop_by.is_none() && self.acceptors[i].1.is_none_or(|again| again <= now))
            .collect();
        fds.extend(accepting.iter().map(|&i| PollFd::new(self.acceptors[i].0.listener.as_fd(), PollFlags::POLLIN)));
        let first = fds.len();
        let mut ends = Vec::with_capacity(self.sessions.len());
        for Arrival { session, .. } in &self.sessions {
            ends.push(session.watch().map(|end| {
                let (fd, flags) = end?;
                fds.push(PollFd::new(fd, flags));
                Some(fds.len() - 1)
            }));
        }
        let deadlines = self.sessions.iter().filter_map(|arrival| arrival.session.deadline());
        let paused = self.acceptors.iter().filter_map(|(_, again)| *again).filter(|again| *again > now);
        // While the program stops, nothing wakes the loop when the last request in flight has ended.
        let stopping = self.stop_by.map(|by| by.min(now + ACCEPT_PAUSE));
        let next =
            deadlines.chain(paused).chain(stopping).chain(self.periodics.iter().map(|periodic| periodic.next)).min();
        let timeout = next.map_or(PollTimeout::NONE, |at| {
            // Rounded up, so that the deadline has passed when poll returns.
            let ms = at.saturating_duration_since(now).as_millis() + 1;
            PollTimeout::try_from(ms.min(60_000)).unwrap_or(PollTimeout::MAX)
        });
        if let Err(e) = poll(&mut fds, timeout)
            && e != nix::errno::Errno::EINTR
        {
            warn!("poll: {e}");
            thread::sleep(ACCEPT_PAUSE);
        }
        let flags = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        let ready = accepting.iter().zip(&fds[1..first]).filter(|(_, fd)| !flags(fd).is_empty()).map(|(&i, _)| i);
        let sessions = ends.iter().map(|ends| ends.map(|at| at.map_or(PollFlags::empty(), |at| flags(&fds[at]))));
        (ready.collect(), sessions.collect())
    }

    fn move_bytes(&mut self, ready: &[[PollFlags; 2]], scratch: &mut Scratch, now: Instant) {
        let mut ready = ready.iter();
        self.sessions.retain_mut(|Arrival { session, .. }| {
            // Nothing is known yet about sessions that have just arrived.
            let flags = ready.next().copied().unwrap_or([PollFlags::empty(); 2]);
            let mut turn = Turn::GoOn;
            if session.is_queued() || flags.iter().any(|f| !f.is_empty()) {
                turn = session.turn(flags, scratch, now);
            }
            if turn == Turn::GoOn && session.deadline().is_some_and(|at| at <= now) {
                turn = session.overdue(now);
            }
            turn == Turn::GoOn
        });
    }

    /// Reads what woke the loop; returns whether it was the order to stop.
    fn take_wakes(&self) -> bool {
        let (mut bytes, mut stop) = ([0; 64], false);
        while let Ok(n @ 1..) = (&self.woken).read(&mut bytes) {
            stop |= bytes[..n].contains(&STOP);
            if n < bytes.len() {
                break;
            }
        }
        stop
    }

    /// After the order to stop, nothing new is accepted and each session is told to end.
    fn begin_to_stop(&mut self, stop: bool, now: Instant) {
        if stop && self.stop_by.is_none() {
            self.stop_by = Some(now + STOP_LIMIT);
            self.acceptors.clear();
            self.periodics.clear();
        }
        if self.stop_by.is_some() {
            self.sessions.retain_mut(|arrival| arrival.session.finish() == Turn::GoOn);
        }
    }

    /// Accepts a connection, if there is one and a place for it; returns whether it did. Another gives way only to the
    /// first of a round, so that what the others have sent is read first.
    fn accept(&mut self, index: usize, is_first: bool, now: Instant) -> bool {
        let waiting = self.sessions.iter().filter(|arrival| arrival.acceptor == index && !arrival.session.is_queued());
        let full = waiting.count() >= self.acceptors.get(index).map_or(0, |(acceptor, _)| acceptor.limit);
        if full {
            // Nothing gives way if no connection is there.
            if !is_first || !self.is_pending(index) {
                return false;
            }
            if !self.give_way(index, now) {
                self.pause(index, now);
                return false;
            }
        }
        let Some((Acceptor { listener, open, .. }, _)) = self.acceptors.get(index) else { return false };
        let opened = match listener.accept() {
            Ok(stream) => stream.set_nonblocking(true).and_then(|()| open(stream)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
            Err(e) => {
                warn!("cannot accept a connection: {e}");
                self.pause(index, now);
                return false;
            }
        };
        match opened {
            Ok(session) => self.sessions.extend(session.map(|session| Arrival { acceptor: index, session })),
            Err(e) => debug!("a connection could not be opened: {e}"),
        }
        true
    }

    /// Whether a connection is there to be accepted.
    fn is_pending(&self, index: usize) -> bool {
        self.acceptors.get(index).is_some_and(|(acceptor, _)| {
            let mut listener = [PollFd::new(acceptor.listener.as_fd(), PollFlags::POLLIN)];
            poll(&mut listener, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        })
    }

    fn pause(&mut self, index: usize, now: Instant) {
        if let Some((_, again)) = self.acceptors.get_mut(index) {
            *again = Some(now + ACCEPT_PAUSE);
        }
    }

    /// Ends the session of this acceptor that gives way first, if one does.
    fn give_way(&mut self, index: usize, now: Instant) -> bool {
        let of_acceptor = self.sessions.iter().enumerate().filter(|(_, arrival)| arrival.acceptor == index);
        let first = of_acceptor.filter_map(|(i, arrival)| Some((arrival.session.gives_way(now)?, i))).min();
        first.map(|(_, i)| self.sessions.swap_remove(i)).is_some_and(|_| {
            (self.count)(Event::GaveWay);
            true
        })
    }

    fn run_periodics(&mut self, now: Instant) {
        for periodic in self.periodics.iter_mut().filter(|periodic| periodic.next <= now) {
            (periodic.run)();
            periodic.next = now + periodic.every;
        }
    }
}

impl Handle {
    /// Accepts nothing more, lets what is in flight end, 10 s at most, and returns.
    pub fn stop(self) {
        let _ = (&self.wake).write(&[STOP]);
        if self.thread.join().is_err() {
            warn!("the event loop ended in a panic");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_periodic_is_done_again_and_again_while_nothing_else_happens() {
        let (done, is_done) = channel();
        let (mut event_loop, begun) = (EventLoop::new(|_| {}).unwrap(), Instant::now());
        event_loop.every(Duration::from_millis(1), move || {
            // This fails once the test has heard enough.
            let _ = done.send(Instant::now());
        });
        let handle = event_loop.start().unwrap();
        let times: Vec<Instant> = is_done.iter().take(3).collect();
        handle.stop();
        assert!(times.len() == 3 && times[0] - begun >= Duration::from_millis(1), "{times:?} from {begun:?}");
    }
}
