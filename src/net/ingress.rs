//! The way in: carries requests from vsock to tiny_http, and keeps the limits that tiny_http lacks.
//!
//! tiny_http listens on a Unix socket of its own and sees a connection for each request, made when the request's head
//! is complete and correct. So a client that says nothing, or says it slowly, or talks nonsense, never gets there; a
//! kept-alive connection costs no thread between requests; and one request at a time is taken from each connection.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::addr::{Listener, Stream};
use super::backend::{Backend, Connection};
use super::http::{self, Body, MAX_HEAD, Refusal, RequestHead};
use super::pump::{Door, Outbox, Pace, Session, Turn};
use crate::metrics::METRICS;

/// Time for the first byte and for a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Time that a complete head may wait for tiny_http.
const QUEUE_LIMIT: Duration = Duration::from_secs(10);
/// Time that a kept-alive connection may wait for its next request.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Time for a client to take the last answer and close. What it still sends is thrown away: closing with bytes
/// unread would reset the connection and could destroy the answer (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_secs(5);

const OVERLOADED: Refusal =
    Refusal { status: 503, code: "overloaded", message: "too many connections; try again in a second" };
const TOO_SLOW: Refusal = Refusal { status: 408, code: "invalid_request", message: "the request came too slowly" };
const NO_ANSWER: Refusal = Refusal { status: 500, code: "internal", message: "the request failed" };

/// The largest body, in bytes, and what is said of one that is larger.
#[derive(Clone, Debug)]
pub struct MaxBody {
    pub bytes: u64,
    pub message: Arc<str>,
}

/// A door that leads requests from `listener` to tiny_http.
pub fn door(listener: Listener, limit: usize, max_body: MaxBody, server: Arc<Backend>) -> Door {
    let open = move |stream, full| -> super::pump::Opened {
        let mut exchange = Exchange::new(stream, server.clone(), max_body.clone(), Instant::now());
        if full {
            exchange.refuse(OVERLOADED, Instant::now());
        }
        Ok(Some(Box::new(exchange)))
    };
    Door { listener, limit, open: Box::new(open) }
}

/// Where a connection stands in its current exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waiting for, or in the middle of, a request's head.
    Head,
    /// The request's body goes to tiny_http; or, after an early answer, nowhere.
    Body,
    /// The request is complete, its answer is not.
    Answer,
    /// The last answer is given; the connection is being closed.
    Closing,
}

/// One client's connection.
struct Exchange {
    client: Stream,
    server: Arc<Backend>,
    max_body: MaxBody,
    phase: Phase,
    /// Bytes from the client that nobody has looked at yet.
    inbox: Vec<u8>,
    /// The client will send no more.
    ended: bool,
    /// A request's head is complete, and waits since then until tiny_http takes another request.
    queued: Option<Instant>,
    /// tiny_http's side of this request.
    backend: Option<Connection>,
    to_backend: Outbox,
    to_client: Outbox,
    body: Body,
    /// The client waits for 100 (Continue), and has not been given it.
    expects: bool,
    /// The answer has no body, whatever its length says.
    head_only: bool,
    answer: Answer,
    /// Whether another request has been answered on this connection.
    used: bool,
    keep_alive: bool,
    /// When the phase began: in the phase Head, when its first byte came.
    since: Instant,
    sending: Pace,
    taking: Pace,
}

/// What has come of an answer.
enum Answer {
    /// Its head, as far as it has come.
    Head(Vec<u8>),
    /// So many bytes of its body are still to come.
    Body(u64),
}

impl Exchange {
    fn new(client: Stream, server: Arc<Backend>, max_body: MaxBody, now: Instant) -> Exchange {
        Exchange {
            client,
            server,
            max_body,
            phase: Phase::Head,
            inbox: Vec::new(),
            ended: false,
            queued: None,
            backend: None,
            to_backend: Outbox::default(),
            to_client: Outbox::default(),
            body: Body::Length(0),
            expects: false,
            head_only: false,
            answer: Answer::Head(Vec::new()),
            used: false,
            keep_alive: true,
            since: now,
            sending: Pace::from(now),
            taking: Pace::from(now),
        }
    }

    /// Answers without tiny_http and closes.
    fn refuse(&mut self, refusal: Refusal, now: Instant) {
        METRICS.answered("refused", refusal.status);
        let reason = match refusal.status {
            400 => "Bad Request",
            408 => "Request Timeout",
            411 => "Length Required",
            413 => "Content Too Large",
            417 => "Expectation Failed",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        let message = if refusal == http::TOO_LARGE { &self.max_body.message } else { refusal.message };
        let body = format!("{{\"error\":\"{message}\",\"code\":\"{}\"}}", refusal.code);
        let retry = if refusal.status == 503 { "Retry-After: 1\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: application/json\r\n{retry}Content-Length: {}\r\nConnection: close\r\n\r\n",
            refusal.status,
            body.len()
        );
        self.to_client.bytes.extend_from_slice(head.as_bytes());
        self.to_client.bytes.extend_from_slice(body.as_bytes());
        self.close(now);
    }

    fn close(&mut self, now: Instant) {
        self.leave_backend();
        self.queued = None;
        self.inbox = Vec::new();
        self.phase = Phase::Closing;
        self.since = now;
        self.taking = Pace::from(now);
    }

    fn leave_backend(&mut self) {
        self.to_backend = Outbox::default();
        if let Some(connection) = self.backend.take() {
            self.server.ended(connection);
        }
    }

    /// Reads from the client if it may send now.
    fn read_client(&mut self, scratch: &mut [u8], now: Instant) -> io::Result<()> {
        let room = if self.phase == Phase::Head { MAX_HEAD.saturating_sub(self.inbox.len()) } else { scratch.len() };
        let n = match self.client.read(&mut scratch[..room]) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            other => other?,
        };
        self.ended |= n == 0 && room > 0;
        if self.phase == Phase::Closing {
            return Ok(());
        }
        if self.phase == Phase::Head && self.inbox.is_empty() && n > 0 {
            self.since = now;
        }
        self.sending.moved(n, now);
        self.inbox.extend_from_slice(&scratch[..n]);
        Ok(())
    }

    /// Takes one step with what is in the inbox; says whether there was one to take.
    fn step(&mut self, now: Instant) -> Result<bool, Refusal> {
        match self.phase {
            Phase::Head if !self.inbox.is_empty() => {
                let Some((head, length)) = http::request_head(&self.inbox, self.max_body.bytes)? else {
                    return Ok(false);
                };
                let connection = self.server.connect().map_err(|_| OVERLOADED)?;
                if connection.is_none() {
                    self.queued.get_or_insert(now);
                    return Ok(false);
                }
                self.queued = None;
                self.backend = connection;
                self.consume(length);
                self.begin(head, now);
            }
            Phase::Body if self.to_backend.is_empty() && !self.body.is_done() => {
                let taken = self.body.take(&self.inbox, &mut self.to_backend.bytes)?;
                self.consume(taken);
                return Ok(taken > 0);
            }
            Phase::Body if self.to_backend.is_empty() => match &self.backend {
                Some(backend) => {
                    if matches!(self.body, Body::Chunked(_)) {
                        // The end of a body without a length is the end of the stream. It is that also where a client
                        // is lost in the middle; what it meant to send then fails as a file or as JSON.
                        let _ = backend.stream.shutdown(Shutdown::Write);
                    }
                    self.phase = Phase::Answer;
                }
                None => self.next(now),
            },
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn consume(&mut self, bytes: usize) {
        self.inbox.drain(..bytes);
        if self.inbox.is_empty() {
            self.inbox = Vec::new();
        }
    }

    /// Passes a request's head on.
    fn begin(&mut self, head: RequestHead, now: Instant) {
        self.to_backend.bytes = head.bytes;
        self.body = head.body;
        self.keep_alive &= head.keep_alive;
        self.expects = head.expects;
        self.head_only = head.head_only;
        self.answer = Answer::Head(Vec::new());
        self.phase = Phase::Body;
        self.since = now;
        self.sending = Pace::from(now);
    }

    /// The exchange is complete on both sides.
    fn next(&mut self, now: Instant) {
        if self.keep_alive && !self.ended {
            self.used = true;
            self.phase = Phase::Head;
            self.since = now;
        } else {
            self.close(now);
        }
    }

    /// Reads tiny_http's answer for the client.
    fn read_backend(&mut self, scratch: &mut [u8], now: Instant) -> Result<(), Refusal> {
        let Some(backend) = &mut self.backend else { return Ok(()) };
        let n = match backend.stream.read(scratch) {
            Ok(0) => return Err(NO_ANSWER),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(_) => return Err(NO_ANSWER),
        };
        let mut input = &scratch[..n];
        let gathered;
        if let Answer::Head(head) = &mut self.answer {
            self.taking = Pace::from(now);
            head.extend_from_slice(input);
            gathered = std::mem::take(head);
            input = &gathered;
        }
        while let Answer::Head(rest) = &mut self.answer {
            let Some(found) = http::answer_head(input, self.head_only).map_err(|_| NO_ANSWER)? else {
                rest.extend_from_slice(input);
                return Ok(());
            };
            let (head, after) = input.split_at(found.length);
            input = after;
            if found.interim {
                // tiny_http puts a length into its own, which is forbidden there (RFC 9110, 8.6).
                self.to_client.bytes.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                self.expects = false;
                continue;
            }
            // After an answer instead of 100 (Continue), nobody knows whether the body will come.
            self.keep_alive &= !self.expects;
            self.to_client.bytes.extend_from_slice(&head[..head.len() - 2]);
            self.to_client.bytes.extend_from_slice(if self.keep_alive {
                b"\r\n"
            } else {
                b"Connection: close\r\n\r\n"
            });
            self.answer = Answer::Body(found.body);
        }
        if let Answer::Body(left) = &mut self.answer {
            let part = &input[..input.len().min(usize::try_from(*left).unwrap_or(usize::MAX))];
            self.to_client.bytes.extend_from_slice(part);
            *left -= part.len() as u64;
            if *left == 0 {
                self.answered(now);
            }
        }
        Ok(())
    }

    /// The answer is complete, the request perhaps not.
    fn answered(&mut self, now: Instant) {
        self.leave_backend();
        match self.phase {
            Phase::Body if !self.keep_alive => self.close(now),
            Phase::Body => {}
            _ => self.next(now),
        }
    }

    /// Whether a refusal can still be given: no other answer has begun.
    fn may_refuse(&self) -> bool {
        let asked = self.backend.is_some() && matches!(self.answer, Answer::Head(_));
        self.phase == Phase::Head || asked
    }

    fn write(&mut self, now: Instant) -> io::Result<()> {
        let passed_on = self.backend.as_mut().is_some_and(|b| self.to_backend.flush(&mut b.stream).is_ok());
        if !passed_on {
            // tiny_http stopped reading: its answer is there or on the way, and the rest of the body is nobody's.
            self.to_backend = Outbox::default();
        }
        let took = self.to_client.flush(&mut self.client)?;
        self.taking.moved(took, now);
        if self.phase == Phase::Closing && self.to_client.is_empty() {
            self.client.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    fn run(&mut self, ready: [PollFlags; 2], scratch: &mut [u8], now: Instant) -> Result<(), Failure> {
        let [client, backend] = ready;
        if client.contains(PollFlags::POLLIN) {
            self.read_client(scratch, now)?;
        } else if client.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL) {
            return Err(Failure::Broken);
        }
        if !backend.is_empty() {
            self.read_backend(scratch, now)?;
        }
        loop {
            self.write(now)?;
            if !self.step(now)? {
                break;
            }
        }
        if self.phase == Phase::Head && self.ended && !self.to_client.is_empty() {
            self.close(now); // the client will not ask again, and is still taking its answer
        }
        let over = match self.phase {
            Phase::Head | Phase::Body => self.ended,
            Phase::Answer => false,
            Phase::Closing => self.ended && self.to_client.is_empty(),
        };
        if over { Err(Failure::Broken) } else { Ok(()) }
    }
}

/// Why a connection does not go on.
enum Failure {
    /// It can still be told.
    Refused(Refusal),
    /// It is gone, or nothing can be said any more.
    Broken,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::Refused(refusal)
    }
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Failure {
        Failure::Broken
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.leave_backend();
    }
}

impl Session for Exchange {
    fn watch(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; 2] {
        let wants = match self.phase {
            Phase::Head | Phase::Closing => !self.ended && self.queued.is_none(),
            Phase::Body => !self.ended && self.to_backend.is_empty(),
            Phase::Answer => false,
        };
        let flags = |read, write| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, read);
            flags.set(PollFlags::POLLOUT, write);
            flags
        };
        let client = (self.client.as_fd(), flags(wants, !self.to_client.is_empty()));
        // tiny_http closes after its answer; while the client has not taken what came before, that can wait.
        let backend = self.backend.as_ref().filter(|_| self.to_client.is_empty());
        [Some(client), backend.map(|b| (b.stream.as_fd(), flags(true, !self.to_backend.is_empty())))]
    }

    fn turn(&mut self, ready: [PollFlags; 2], scratch: &mut [u8], now: Instant) -> Turn {
        match self.run(ready, scratch, now) {
            Ok(()) => Turn::GoOn,
            Err(Failure::Refused(refusal)) if self.may_refuse() => {
                self.refuse(refusal, now);
                self.write(now).map_or(Turn::Over, |()| Turn::GoOn)
            }
            Err(_) => Turn::Over,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        if !self.to_client.is_empty() {
            return Some(self.taking.deadline());
        }
        match self.phase {
            Phase::Head if self.queued.is_some() => self.queued.map(|since| since + QUEUE_LIMIT),
            Phase::Head if self.inbox.is_empty() && self.used => Some(self.since + IDLE_LIMIT),
            Phase::Head => Some(self.since + HEAD_LIMIT),
            Phase::Body => Some(self.sending.deadline()),
            Phase::Answer => None,
            Phase::Closing => Some(self.since + LINGER),
        }
    }

    fn overdue(&mut self, now: Instant) -> Turn {
        let waiting = self.phase == Phase::Head && self.inbox.is_empty();
        if self.phase == Phase::Closing || (waiting && self.used && self.to_client.is_empty()) {
            return Turn::Over;
        }
        METRICS.connections_refused.add(1);
        if waiting || !self.to_client.is_empty() || !self.may_refuse() {
            return Turn::Over;
        }
        self.refuse(if self.queued.is_some() { OVERLOADED } else { TOO_SLOW }, now);
        self.write(now).map_or(Turn::Over, |()| Turn::GoOn)
    }

    fn idle_since(&self) -> Option<Instant> {
        let idle = self.phase == Phase::Head && self.inbox.is_empty() && self.to_client.is_empty();
        idle.then_some(self.since)
    }

    fn is_queued(&self) -> bool {
        self.queued.is_some()
    }

    fn finish(&mut self) -> Turn {
        self.keep_alive = false;
        if self.idle_since().is_some() { Turn::Over } else { Turn::GoOn }
    }
}
