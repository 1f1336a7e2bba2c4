//! The ingress: connections that wait for a request, and requests in flight.
//!
//! A connection without a complete request waits in the event loop, where it costs a descriptor. Once a request's head
//! is complete and correct, the connection leaves the loop for a thread of [`Workers`], which reads the body, answers,
//! and returns the connection to the loop. So a client that sends nothing, sends slowly or sends nonsense gets no
//! thread, and complete requests have places of their own, which waiting connections cannot take.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use event_loop::socket::{Listener, Stream};
use event_loop::{Acceptor, EventLoop, InFlight, Outbox, Scratch, Session, Turn, Waker};
use log::{debug, error};
use nix::poll::PollFlags;

use super::answer::Answer;
use super::http::{HttpError, MAX_HEAD, RequestHead, request_head};
use super::pace::Pace;
use super::request::{Connection, Request};
use super::request_id::{self, RequestId};
use super::wait;
use super::workers::Workers;
use crate::metrics::{ByState, ConnectionState, METRICS, OneMore};

/// Time limit for the first byte, and for a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for a complete head to wait for a thread.
const QUEUE_LIMIT: Duration = Duration::from_secs(5);
/// Time for a client to take the last answer and close. What it still sends is discarded: closing with unread bytes
/// would reset the connection and could destroy the answer (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_secs(5);
/// A connection whose first byte or head takes longer gives way to new connections when there is no room.
const YOUNG: Duration = Duration::from_secs(1);
/// How long a thread stays with a connection that it has answered, so that a client that continues at once costs no
/// handover.
const FOLLOW_UP_LIMIT: Duration = Duration::from_millis(2);
/// Extra places for requests without a body, so that health checks are answered however many files are in flight.
const PLACES_WITHOUT_BODY: usize = 16;

/// Answers requests.
pub trait Service: Send + Sync {
    /// Answers a request.
    fn answer(&self, request: &mut Request<'_>) -> Answer;
    /// Answers input that never became a request. `head` has the lines of its head, as far as they have come.
    fn refuse(&self, error: HttpError, head: &[u8]) -> Answer;
    /// An answer has been sent, of this many bytes, after this time.
    fn answered(&self, route: &'static str, status: u16, bytes: usize, took: Duration);
    /// Whether a connection may carry another request after this answer.
    fn keeps_connections(&self) -> bool;
}

/// One listener's ingress.
pub struct Ingress {
    service: Arc<dyn Service>,
    workers: Workers,
    waker: Waker,
    /// The index of its acceptor in the event loop.
    acceptor: usize,
    limit: usize,
    max_body: u64,
    idle: Duration,
    /// Connections that have sent nothing yet.
    unused: AtomicUsize,
    /// Requests with a complete head that wait for a thread.
    queued: Arc<AtomicUsize>,
    /// Set when the daemon stops: each answer is then the last on its connection.
    stopping: Arc<AtomicBool>,
    by_state: &'static ByState,
}

/// The options of an ingress.
pub struct Options {
    /// Most connections that may wait for a head, most requests that may wait for a thread, and most requests in
    /// flight.
    pub limit: usize,
    /// Largest body in bytes.
    pub max_body: u64,
    /// Time limit for the next request on a kept-alive connection.
    pub idle: Duration,
    /// Counts the requests that wait for a thread.
    pub queued: Arc<AtomicUsize>,
    /// Set when the daemon stops.
    pub stopping: Arc<AtomicBool>,
    /// Counts the connections by state.
    pub by_state: &'static ByState,
}

/// Makes the event loop serve a listener's connections.
///
/// # Errors
/// The system's error.
pub fn add(
    event_loop: &mut EventLoop,
    listener: Listener,
    service: Arc<dyn Service>,
    with: Options,
) -> io::Result<Arc<Ingress>> {
    let Options { limit, max_body, idle, queued, stopping, by_state } = with;
    let (waker, acceptor) = (event_loop.waker(), event_loop.next_acceptor());
    let (wake, waiting, stops) = (waker.clone(), queued.clone(), stopping.clone());
    let workers = Workers::new(limit, move || {
        if waiting.load(Ordering::Acquire) > 0 || stops.load(Ordering::Acquire) {
            wake.wake();
        }
    });
    let unused = AtomicUsize::new(0);
    let ingress = Arc::new(Ingress {
        service,
        workers,
        waker,
        acceptor,
        limit,
        max_body,
        idle,
        unused,
        queued,
        stopping,
        by_state,
    });
    let of_new = ingress.clone();
    let open = move |stream| -> event_loop::Opened {
        METRICS.connections.add(1);
        let (stream, state) = (Arc::new(stream), State::Idle { used: false });
        Ok(Some(Box::new(Waiting::new(stream, Vec::new(), state, of_new.clone()))))
    };
    event_loop.add(Acceptor { listener, limit, open: Box::new(open) })?;
    Ok(ingress)
}

/// A waiting connection.
struct Waiting {
    ingress: Arc<Ingress>,
    stream: Arc<Stream>,
    /// Bytes from the client that have not been looked at yet.
    inbox: Vec<u8>,
    state: State,
    /// When it entered its state.
    since: Instant,
    /// Counts it in the metrics, by its state.
    counted: OneMore,
}

enum State {
    /// Nothing of a request has come; `used` if an earlier one was answered.
    Idle { used: bool },
    /// A head has begun.
    Head,
    /// The connection comes back from a request with bytes of the next one.
    Unread,
    /// A head is complete and waits for a thread.
    Queued(RequestHead),
    /// The last answer is being sent; `ended` once the client has stopped sending.
    Closing { outbox: Outbox, ended: bool },
}

impl State {
    fn closing(bytes: Vec<u8>) -> State {
        State::Closing { outbox: Outbox::new(bytes), ended: false }
    }

    /// What it is called in the metrics.
    fn counted_as(&self) -> ConnectionState {
        match self {
            State::Idle { .. } => ConnectionState::Idle,
            State::Head | State::Unread => ConnectionState::Head,
            State::Queued(_) => ConnectionState::Queued,
            State::Closing { .. } => ConnectionState::Closing,
        }
    }
}

impl Waiting {
    fn new(stream: Arc<Stream>, inbox: Vec<u8>, state: State, ingress: Arc<Ingress>) -> Waiting {
        let counted = ingress.by_state.at(state.counted_as()).one_more();
        let waiting = Waiting { ingress, stream, inbox, state, since: Instant::now(), counted };
        waiting.count_in();
        waiting
    }

    /// The counter of connections in this state.
    fn counted(&self) -> Option<&AtomicUsize> {
        match self.state {
            State::Idle { used: false } => Some(&self.ingress.unused),
            State::Queued(_) => Some(&self.ingress.queued),
            _ => None,
        }
    }

    fn count_in(&self) {
        if let Some(count) = self.counted() {
            count.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn count_out(&self) {
        if let Some(count) = self.counted() {
            count.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Enters a state, and returns the previous one.
    fn enter(&mut self, state: State, now: Instant) -> State {
        self.count_out();
        self.since = now;
        self.counted = self.ingress.by_state.at(state.counted_as()).one_more();
        let before = std::mem::replace(&mut self.state, state);
        self.count_in();
        before
    }

    /// Answers input that never became a request, and closes.
    fn refuse(&mut self, error: HttpError, now: Instant) {
        self.refuse_for(error, None, now);
    }

    /// The same, where this may be the reason.
    fn refuse_for(&mut self, error: HttpError, no_thread: Option<&io::Error>, now: Instant) {
        let head_only = matches!(&self.state, State::Queued(head) if head.head_only());
        let head = if let State::Queued(head) = &self.state { head.lines() } else { &self.inbox };
        let id = RequestId::next(head);
        let _in_log = id.enter();
        if let Some(e) = no_thread {
            error!("cannot start a thread for this request: {e}");
        }
        let mut answer = self.ingress.service.refuse(error, head);
        answer.headers.push((request_id::FIELD, id.into_name()));
        let mut bytes = answer.head(true);
        if !head_only {
            // A Vec takes everything.
            let _ = answer.body.send_behind(Vec::new(), |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            });
        }
        self.ingress.service.answered(answer.route, answer.status, answer.body.len(), now - self.since);
        self.inbox = Vec::new();
        self.enter(State::closing(bytes), now);
    }

    /// Reads what has come of a head.
    fn read_head(&mut self, scratch: &mut [u8], now: Instant) -> io::Result<Turn> {
        let room = MAX_HEAD.saturating_sub(self.inbox.len());
        match (&*self.stream).read(&mut scratch[..room]) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Turn::GoOn),
            Ok(0) if room > 0 => return Ok(Turn::Over),
            n => self.inbox.extend_from_slice(&scratch[..n?]),
        }
        if matches!(self.state, State::Idle { .. }) {
            self.enter(State::Head, now);
        }
        Ok(self.look_for_head(true, now))
    }

    /// Checks whether a head is complete. Only a new connection is refused if too many others wait for a thread; one
    /// that comes back from a request may wait.
    fn look_for_head(&mut self, is_new: bool, now: Instant) -> Turn {
        match request_head(&self.inbox, self.ingress.max_body) {
            Ok(None) => Turn::GoOn,
            Ok(Some((head, length))) => {
                self.inbox.drain(..length);
                if self.has_place_for(&head) {
                    return self.hand_over(head, now);
                }
                // It counts as waiting before it looks again: a place that becomes free wakes the loop only if a request
                // waits. One that finds a place at once never counts, since silent uploads give way to those that wait.
                self.enter(State::Queued(head), now);
                let turn = self.dispatch(now);
                let waits = is_new && matches!(self.state, State::Queued(_));
                if waits && self.ingress.queued.load(Ordering::Acquire) > self.ingress.limit {
                    self.refuse(HttpError::Overloaded, now);
                }
                turn
            }
            Err(error) => {
                self.refuse(error, now);
                Turn::GoOn
            }
        }
    }

    /// Hands a request that waits to a thread, if one is free.
    fn dispatch(&mut self, now: Instant) -> Turn {
        match &self.state {
            State::Queued(head) if self.has_place_for(head) => match self.enter(State::Unread, now) {
                State::Queued(head) => self.hand_over(head, now),
                _ => Turn::GoOn,
            },
            _ => Turn::GoOn,
        }
    }

    fn has_place_for(&self, head: &RequestHead) -> bool {
        self.ingress.workers.has_place(if head.body.is_done() { PLACES_WITHOUT_BODY } else { 0 })
    }

    /// Hands a complete request to a thread; the connection leaves the loop.
    fn hand_over(&mut self, head: RequestHead, now: Instant) -> Turn {
        self.enter(State::Unread, now);
        let (ingress, mut head) = (self.ingress.clone(), Some(head));
        let started = ingress.workers.run(|| {
            let connection = Connection { stream: self.stream.clone(), inbox: std::mem::take(&mut self.inbox) };
            let (ingress, head, in_flight) = (ingress.clone(), head.take(), ingress.waker.in_flight());
            let counted = ingress.by_state.at(ConnectionState::InFlight).one_more();
            Box::new(move || {
                let _counted = counted;
                if let Some(head) = head {
                    ingress.serve(connection, head, in_flight);
                }
            })
        });
        let Err(e) = started else { return Turn::Over };
        // Its answer depends on the head.
        if let Some(head) = head {
            self.enter(State::Queued(head), now);
        }
        self.refuse_for(HttpError::Overloaded, Some(&e), now);
        Turn::GoOn
    }

    /// Sends the last answer, and reads until the client has closed.
    fn close(&mut self, scratch: &mut [u8]) -> io::Result<Turn> {
        let State::Closing { outbox, ended } = &mut self.state else { return Ok(Turn::GoOn) };
        let was_empty = outbox.is_empty();
        outbox.flush(&mut &*self.stream)?;
        if outbox.is_empty() && !was_empty {
            self.stream.shutdown(Shutdown::Write)?;
        }
        // Once per turn, so that a client that sends as fast as this reads does not keep others from their turn.
        if !*ended {
            match (&*self.stream).read(scratch) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                n => *ended = n? == 0,
            }
        }
        Ok(if *ended && outbox.is_empty() { Turn::Over } else { Turn::GoOn })
    }

    fn step(&mut self, ready: PollFlags, scratch: &mut [u8], now: Instant) -> io::Result<Turn> {
        let turn = match &self.state {
            State::Idle { .. } | State::Head => self.read_head(scratch, now)?,
            State::Unread => {
                self.enter(State::Head, now);
                self.look_for_head(false, now)
            }
            State::Queued(_) if ready.is_empty() => self.dispatch(now),
            // The client closed before its request had a thread.
            State::Queued(_) => Turn::Over,
            State::Closing { .. } => return self.close(scratch),
        };
        // A refusal goes out without another round.
        if matches!(self.state, State::Closing { .. }) { self.close(scratch) } else { Ok(turn) }
    }
}

impl Session for Waiting {
    fn watch(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; 2] {
        let mut flags = PollFlags::empty();
        match &self.state {
            State::Idle { .. } | State::Head => flags.insert(PollFlags::POLLIN),
            State::Closing { outbox, ended } => {
                flags.set(PollFlags::POLLIN, !ended);
                flags.set(PollFlags::POLLOUT, !outbox.is_empty());
            }
            State::Queued(_) | State::Unread => {}
        }
        [Some((self.stream.as_fd(), flags)), None]
    }

    fn turn(&mut self, [ready, _]: [PollFlags; 2], scratch: &mut Scratch, now: Instant) -> Turn {
        self.step(ready, &mut scratch.bytes, now).unwrap_or(Turn::Over)
    }

    fn deadline(&self) -> Option<Instant> {
        let limit = match self.state {
            State::Idle { used: true } => self.ingress.idle,
            State::Idle { used: false } | State::Head | State::Unread => HEAD_LIMIT,
            State::Queued(_) => QUEUE_LIMIT,
            State::Closing { .. } => LINGER,
        };
        Some(self.since + limit)
    }

    fn overdue(&mut self, now: Instant) -> Turn {
        match self.state {
            State::Head => self.refuse(HttpError::TooSlow, now),
            State::Queued(_) => self.refuse(HttpError::Overloaded, now),
            State::Idle { .. } | State::Unread | State::Closing { .. } => return Turn::Over,
        }
        Turn::GoOn
    }

    fn gives_way(&self, now: Instant) -> Option<(u8, Instant)> {
        let is_old = now.duration_since(self.since) >= YOUNG;
        // A client whose first bytes may be on their way keeps its place, unless silent ones hold most of the places.
        let are_many = |unused: &AtomicUsize| unused.load(Ordering::Acquire) > self.ingress.limit.div_ceil(2);
        let rank = match self.state {
            State::Closing { .. } => 0,
            State::Idle { used: false } if is_old || are_many(&self.ingress.unused) => 1,
            State::Head if is_old => 2,
            State::Idle { used: true } => 3,
            State::Idle { used: false } | State::Head | State::Unread | State::Queued(_) => return None,
        };
        Some((rank, self.since))
    }

    fn is_queued(&self) -> bool {
        matches!(self.state, State::Queued(_) | State::Unread)
    }

    fn finish(&mut self) -> Turn {
        match &self.state {
            // A complete request is answered; a client that is still sending would lose its answer otherwise.
            State::Queued(_) | State::Closing { .. } => Turn::GoOn,
            State::Idle { .. } | State::Head | State::Unread => Turn::Over,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.count_out();
    }
}

impl Ingress {
    /// Serves a request, and those that follow at once on the same connection, in this thread.
    fn serve(self: Arc<Ingress>, mut connection: Connection, head: RequestHead, in_flight: InFlight) {
        let mut next = Some(head);
        while let Some(head) = next {
            match self.exchange(&mut connection, head) {
                After::Keep => next = self.next(&mut connection),
                After::Close if connection.stream.shutdown(Shutdown::Write).is_ok() => {
                    return self.return_to_loop(connection.stream, Vec::new(), State::closing(Vec::new()), in_flight);
                }
                After::Close | After::Broken => return,
            }
        }
        let Connection { stream, mut inbox } = connection;
        // While it waits, it holds no more than what has come.
        inbox.shrink_to_fit();
        let state = if inbox.is_empty() { State::Idle { used: true } } else { State::Unread };
        self.return_to_loop(stream, inbox, state, in_flight);
    }

    /// One request and its answer.
    fn exchange(&self, connection: &mut Connection, head: RequestHead) -> After {
        let start = Instant::now();
        let (head_only, keep_alive) = (head.head_only(), head.keep_alive);
        let id = RequestId::next(head.lines());
        let _in_log = id.enter();
        let stream = connection.stream.clone();
        let mut request = Request::new(head, connection);
        let mut answer = {
            let _on_behalf = wait::on_behalf_of(&stream);
            self.service.answer(&mut request)
        };
        let goes_on = !self.stopping.load(Ordering::Acquire) && self.service.keeps_connections();
        let keep = keep_alive && request.is_complete() && goes_on;
        answer.headers.push((request_id::FIELD, id.into_name()));
        let Answer { route, status, .. } = answer;
        let mut pace = Pace::from(Instant::now());
        let (head, send) = (answer.head(!keep), |bytes: &[u8]| connection.send(bytes, &mut pace));
        let sent = if head_only { connection.send(&head, &mut pace) } else { answer.body.send_behind(head, send) };
        self.service.answered(route, status, answer.body.len(), start.elapsed());
        match sent {
            Ok(()) if keep => After::Keep,
            Ok(()) => After::Close,
            Err(e) => {
                debug!("an answer could not be sent: {e}");
                After::Broken
            }
        }
    }

    /// The next request of a connection, if it comes at once and no other waits for this thread. What is not a complete
    /// head stays in the inbox: the loop waits for the rest of it, or refuses it.
    fn next(&self, connection: &mut Connection) -> Option<RequestHead> {
        if self.queued.load(Ordering::Acquire) > 0 || self.stopping.load(Ordering::Acquire) {
            return None;
        }
        if connection.inbox.is_empty() {
            wait::ready(&connection.stream, PollFlags::POLLIN, Some(Instant::now() + FOLLOW_UP_LIMIT)).ok()?;
            connection.inbox = vec![0; MAX_HEAD];
            // If the client has closed, the loop will notice.
            let came = (&*connection.stream).read(&mut connection.inbox).unwrap_or(0);
            connection.inbox.truncate(came);
        }
        let (head, length) = request_head(&connection.inbox, self.max_body).ok()??;
        connection.inbox.drain(..length);
        Some(head)
    }

    /// Returns a connection to the loop.
    fn return_to_loop(self: &Arc<Ingress>, stream: Arc<Stream>, inbox: Vec<u8>, state: State, in_flight: InFlight) {
        self.waker.add(self.acceptor, Box::new(Waiting::new(stream, inbox, state, self.clone())));
        drop(in_flight);
    }
}

/// What becomes of the connection after an exchange.
enum After {
    Keep,
    Close,
    Broken,
}

#[cfg(test)]
mod tests;
