//! One thread that carries bytes for every connection, by poll(2).
//!
//! A connection that waits costs a descriptor and a few hundred bytes here, and no thread. The pump knows nothing of
//! HTTP: a [`Session`] says what it waits for and moves its own bytes; the pump calls it when its time has come,
//! accepts new ones, and lets them end when the daemon stops.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, warn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::addr::{Listener, Stream};
use crate::metrics::METRICS;
use crate::threads;

/// Bytes read at once.
const SCRATCH: usize = 64 << 10;
/// Pause after accept(2) failed, for want of descriptors for instance: the connection stays readable meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A queued session tries again after so long even if nothing wakes the pump.
const QUEUE_RETRY: Duration = Duration::from_secs(1);
/// Connections beyond a door's limit that may be told so at once; further ones are closed.
const TURNED_AWAY: usize = 64;

/// Whether a session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    GoOn,
    Over,
}

/// One connection and where its bytes go.
pub trait Session: Send {
    /// The two ends and what they wait for. An end is called for errors and hang-ups in any case.
    fn watch(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; 2];
    /// Moves what can be moved. `ready` says what happened on each end.
    fn turn(&mut self, ready: [PollFlags; 2], scratch: &mut [u8], now: Instant) -> Turn;
    /// When [`Session::overdue`] is to be called, if nothing happens before.
    fn deadline(&self) -> Option<Instant>;
    /// The deadline has passed.
    fn overdue(&mut self, now: Instant) -> Turn;
    /// Since when nothing is under way, if so: such a session gives way to a new one.
    fn idle_since(&self) -> Option<Instant>;
    /// Whether it waits for its turn at something that others use, and wants to try whenever the pump runs.
    fn is_queued(&self) -> bool {
        false
    }
    /// The daemon stops: end after what is under way.
    fn finish(&mut self) -> Turn;
}

/// A session and the index of the door that it came by.
type Arrival = (usize, Box<dyn Session>);

/// What becomes of a new connection.
pub type Opened = io::Result<Option<Box<dyn Session>>>;

/// A listener, and what it makes of a connection.
pub struct Door {
    pub listener: Listener,
    /// Connections at once.
    pub limit: usize,
    /// Makes the session. With `full` it is to be told that there is no room.
    pub open: Box<dyn Fn(Stream, bool) -> Opened + Send>,
}

/// What is done again and again, by the pump's thread; so it takes no time.
struct Task {
    interval: Duration,
    next: Instant,
    run: Box<dyn FnMut() + Send>,
}

/// The running pump, from outside.
pub struct Handle {
    wake: UnixStream,
    thread: thread::JoinHandle<()>,
}

/// Brings sessions to the pump that were made elsewhere, because making them takes time.
#[derive(Debug)]
pub struct Entrance {
    wake: UnixStream,
    sessions: Sender<Arrival>,
}

impl Entrance {
    /// Another one of the same pump.
    pub fn try_clone(&self) -> io::Result<Entrance> {
        Ok(Entrance { wake: self.wake.try_clone()?, sessions: self.sessions.clone() })
    }

    /// Adds a session to the door of that index.
    pub fn add(&self, door: usize, session: Box<dyn Session>) {
        // This fails only when the pump has ended, and the session with it.
        let _ = self.sessions.send((door, session));
        self.wake();
    }

    /// Has the pump run, so that queued sessions try again.
    pub fn wake(&self) {
        // Where the socket is full of wakes, one more is not needed.
        let _ = (&self.wake).write(b".");
    }
}

/// A pump before it runs.
pub struct Pump {
    doors: Vec<Door>,
    wake: [UnixStream; 2],
    arrivals: (Sender<Arrival>, Receiver<Arrival>),
    sessions: Vec<Arrival>,
    tasks: Vec<Task>,
    accept_again: Option<Instant>,
    stop_by: Option<Instant>,
}

/// The byte that ends the pump.
const STOP: u8 = b'!';

impl Pump {
    /// # Errors
    /// The system has no descriptors left.
    pub fn new() -> io::Result<Pump> {
        let (inner, outer) = UnixStream::pair()?;
        inner.set_nonblocking(true)?;
        outer.set_nonblocking(true)?;
        let wake = [inner, outer];
        Ok(Pump {
            doors: Vec::new(),
            wake,
            arrivals: channel(),
            sessions: Vec::new(),
            tasks: Vec::new(),
            accept_again: None,
            stop_by: None,
        })
    }

    /// A way in for sessions made elsewhere.
    pub fn entrance(&self) -> io::Result<Entrance> {
        Ok(Entrance { wake: self.wake[1].try_clone()?, sessions: self.arrivals.0.clone() })
    }

    /// Adds a door.
    pub fn add(&mut self, door: Door) -> io::Result<()> {
        door.listener.set_nonblocking(true)?;
        self.doors.push(door);
        Ok(())
    }

    /// Has `run` called once in each interval. It must not wait for anything.
    pub fn every(&mut self, interval: Duration, run: impl FnMut() + Send + 'static) {
        self.tasks.push(Task { interval, next: Instant::now() + interval, run: Box::new(run) });
    }

    /// The index that the next door will have.
    pub fn next_door(&self) -> usize {
        self.doors.len()
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(self) -> io::Result<Handle> {
        let wake = self.wake[1].try_clone()?;
        let thread = threads::start("pump", move || {
            // A daemon that carries no bytes must not look alive.
            if catch_unwind(AssertUnwindSafe(|| self.run())).is_err() {
                std::process::exit(1);
            }
        })?;
        Ok(Handle { wake, thread })
    }

    fn run(mut self) {
        let mut scratch = vec![0; SCRATCH];
        while !self.is_done() {
            if !self.sessions.is_empty() {
                self.sessions.rotate_left(1); // so that none is always the last to try
            }
            let (doors, sessions) = self.wait();
            let now = Instant::now();
            // Wakes are taken before sessions get their turn: one that comes while they have it is for the next round.
            let stop = self.take_wakes();
            self.move_bytes(&sessions, &mut scratch, now);
            self.take_in(stop, now);
            for (door, ready) in doors.into_iter().enumerate() {
                if ready {
                    self.accept(door, now);
                }
            }
            METRICS.connections_open.set(self.sessions.len() as u64);
            for task in self.tasks.iter_mut().filter(|task| task.next <= now) {
                (task.run)();
                task.next = now + task.interval;
            }
        }
    }

    fn is_done(&self) -> bool {
        self.stop_by.is_some_and(|by| self.sessions.is_empty() || Instant::now() >= by)
    }

    /// Waits for something to happen. Says which doors have a connection and what happened to each session.
    fn wait(&self) -> (Vec<bool>, Vec<[PollFlags; 2]>) {
        let now = Instant::now();
        let accepting = self.stop_by.is_none() && self.accept_again.is_none_or(|again| again <= now);
        let mut fds = vec![PollFd::new(self.wake[0].as_fd(), PollFlags::POLLIN)];
        if accepting {
            fds.extend(self.doors.iter().map(|d| PollFd::new(d.listener.as_fd(), PollFlags::POLLIN)));
        }
        let first = fds.len();
        for (_, session) in &self.sessions {
            fds.extend(session.watch().into_iter().flatten().map(|(fd, flags)| PollFd::new(fd, flags)));
        }
        let deadlines = self.sessions.iter().filter_map(|(_, s)| s.deadline());
        let queued = self.sessions.iter().any(|(_, s)| s.is_queued()).then(|| now + QUEUE_RETRY);
        let tasks = self.tasks.iter().map(|task| task.next);
        let next = deadlines
            .chain(tasks)
            .chain(queued)
            .chain(self.stop_by)
            .chain(self.accept_again.filter(|_| !accepting))
            .min();
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
        let ready: Vec<PollFlags> = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        let doors = ready[1..first].iter().map(|flags| !flags.is_empty()).collect();
        let mut rest = ready[first..].iter().copied();
        let mut of_end = |end: Option<_>| end.and_then(|_| rest.next()).unwrap_or(PollFlags::empty());
        let sessions = self.sessions.iter().map(|(_, s)| s.watch().map(|end| of_end(end.map(drop)))).collect();
        (doors, sessions)
    }

    fn move_bytes(&mut self, ready: &[[PollFlags; 2]], scratch: &mut [u8], now: Instant) {
        let mut ready = ready.iter();
        self.sessions.retain_mut(|(_, session)| {
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

    /// Reads what woke the pump; says whether it was the order to stop.
    fn take_wakes(&self) -> bool {
        let (mut bytes, mut stop) = ([0; 64], false);
        while let Ok(n @ 1..) = (&self.wake[0]).read(&mut bytes) {
            stop |= bytes[..n].contains(&STOP);
        }
        stop
    }

    /// Takes in sessions made elsewhere, or begins to stop.
    fn take_in(&mut self, stop: bool, now: Instant) {
        if stop && self.stop_by.is_none() {
            self.stop_by = Some(now + STOP_LIMIT);
            self.doors.clear();
            self.sessions.retain_mut(|(_, session)| session.finish() == Turn::GoOn);
        }
        let arrivals = self.arrivals.1.try_iter();
        self.sessions.extend(arrivals.filter(|_| self.stop_by.is_none()));
    }

    fn accept(&mut self, door: usize, now: Instant) {
        let Some(Door { listener, limit, open }) = self.doors.get(door) else { return };
        self.accept_again = None;
        let stream = match listener.accept() {
            Ok(stream) => stream,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(e) => {
                warn!("cannot accept a connection: {e}");
                self.accept_again = Some(now + ACCEPT_PAUSE);
                return;
            }
        };
        METRICS.connections.add(1);
        let of_door = self.sessions.iter().filter(|(d, _)| *d == door).count();
        let full = of_door >= *limit && !give_way(&mut self.sessions, door);
        if full {
            METRICS.connections_refused.add(1);
            if of_door >= limit + TURNED_AWAY {
                return;
            }
        }
        match stream.set_nonblocking(true).and_then(|()| open(stream, full)) {
            Ok(session) => self.sessions.extend(session.map(|s| (door, s))),
            Err(e) => debug!("a connection could not be opened: {e}"),
        }
    }
}

/// Ends the session of this door that has been idle for longest, if one is.
fn give_way(sessions: &mut Vec<Arrival>, door: usize) -> bool {
    let idle = sessions.iter().enumerate().filter(|(_, (d, _))| *d == door);
    let oldest = idle.filter_map(|(i, (_, s))| Some((s.idle_since()?, i))).min();
    oldest.map(|(_, i)| sessions.swap_remove(i)).is_some()
}

/// Time for what is under way when the daemon stops.
const STOP_LIMIT: Duration = Duration::from_secs(10);

impl Handle {
    /// Accepts nothing more, lets what is under way end, 10 s at most, and returns then.
    pub fn stop(self) {
        let _ = (&self.wake).write(&[STOP]);
        if self.thread.join().is_err() {
            warn!("the pump ended in a panic");
        }
    }
}

/// Bytes on their way into a stream that may not take them all at once.
#[derive(Default)]
pub struct Outbox {
    pub bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes what the stream takes. The memory is given back once all is written: most connections wait.
    pub fn flush(&mut self, stream: &mut impl Write) -> io::Result<usize> {
        let before = self.sent;
        while self.sent < self.bytes.len() {
            match stream.write(&self.bytes[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(self.sent - before),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let wrote = self.sent - before;
        *self = Outbox::default();
        Ok(wrote)
    }
}

/// A peer keeps pace while its bytes come at 32 KiB a second on average, after a grace of 10 s, and never pause for as
/// long as that. So a slow line is served and a peer that only wants to hold a connection is not.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    since: Instant,
    last: Instant,
    bytes: u64,
}

impl Pace {
    const GRACE: Duration = Duration::from_secs(10);
    const BYTES_A_SECOND: u64 = 32 << 10;

    pub fn from(now: Instant) -> Pace {
        Pace { since: now, last: now, bytes: 0 }
    }

    /// So many bytes have moved.
    pub fn moved(&mut self, bytes: usize, now: Instant) {
        if bytes > 0 {
            self.last = now;
            self.bytes += bytes as u64;
        }
    }

    pub fn deadline(&self) -> Instant {
        let average = self.since + Duration::from_millis(self.bytes * 1000 / Pace::BYTES_A_SECOND);
        average.min(self.last) + Pace::GRACE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_done_again_and_again_while_nothing_else_happens() {
        let (done, is_done) = channel();
        let (mut pump, begun) = (Pump::new().unwrap(), Instant::now());
        pump.every(Duration::from_millis(1), move || {
            // It fails once the test has heard enough.
            let _ = done.send(Instant::now());
        });
        let pump = pump.start().unwrap();
        let times: Vec<Instant> = is_done.iter().take(3).collect();
        pump.stop();
        assert!(times.len() == 3 && times[0] - begun >= Duration::from_millis(1), "{times:?} from {begun:?}");
    }
}
