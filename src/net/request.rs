//! A request in flight: its head, and its body as it arrives.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_loop::socket::Stream;
use nix::poll::PollFlags;

use super::http::{Body, HttpError, RequestHead};
use super::pace::Pace;
use super::wait;

/// Most bytes of a chunked body that are read at once.
const PIECE: usize = 64 << 10;

/// A client's connection, owned by one thread.
pub struct Connection {
    /// Non-blocking.
    pub stream: Arc<Stream>,
    /// Bytes from the client that have not been looked at yet.
    pub inbox: Vec<u8>,
}

impl Connection {
    /// Writes all bytes, as fast as the client takes them.
    ///
    /// # Errors
    /// The client is gone or too slow.
    pub fn send(&self, mut bytes: &[u8], pace: &mut Pace) -> io::Result<()> {
        while !bytes.is_empty() {
            match (&*self.stream).write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    pace.moved(n, Instant::now());
                    bytes = &bytes[n..];
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    wait::ready(&self.stream, PollFlags::POLLOUT, Some(pace.deadline()))?;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// The outcome of a read of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Content.
    Content,
    /// Nothing, in the time allowed.
    Nothing,
    /// The body is complete.
    End,
}

/// Why a body does not arrive.
#[derive(Debug)]
pub enum BodyError {
    /// It breaks HTTP's rules, or is too large or too slow.
    Http(HttpError),
    /// The client has closed the connection.
    Gone,
}

impl From<HttpError> for BodyError {
    fn from(e: HttpError) -> BodyError {
        BodyError::Http(e)
    }
}

/// A request whose head is complete.
pub struct Request<'a> {
    /// The request's head.
    pub head: RequestHead,
    connection: &'a mut Connection,
    /// The pace of the content; framing does not count.
    pace: Pace,
    /// Whether the client has been told to send a body that it held back, or sends it anyway.
    asked_for_body: bool,
}

impl Request<'_> {
    /// A request at the start of its body.
    pub fn new(head: RequestHead, connection: &mut Connection) -> Request<'_> {
        let asked_for_body = !head.expects;
        Request { head, connection, pace: Pace::from(Instant::now()), asked_for_body }
    }

    /// The length of the body, if it was announced.
    pub fn announced(&self) -> Option<u64> {
        match self.head.body {
            Body::Length(length) => Some(length),
            Body::Unannounced => Some(0),
            Body::Chunked(_) => None,
        }
    }

    /// Adds content that arrives to `into`, `room` bytes at most. Waits no longer than `patience`, and reads as long as
    /// there is something.
    ///
    /// # Errors
    /// See [`BodyError`]. After an error nothing more comes. A body that is wanted has to be announced: an empty one is
    /// more likely lost than meant.
    pub fn read(&mut self, into: &mut Vec<u8>, room: usize, patience: Duration) -> Result<Progress, BodyError> {
        if self.head.body == Body::Unannounced {
            return Err(HttpError::LengthRequired.into());
        }
        if !std::mem::replace(&mut self.asked_for_body, true) {
            let mut pace = Pace::from(Instant::now());
            self.connection.send(b"HTTP/1.1 100 Continue\r\n\r\n", &mut pace).map_err(|_| BodyError::Gone)?;
        }
        let until = Instant::now() + patience;
        loop {
            if self.head.body.is_done() {
                return Ok(Progress::End);
            }
            let before = into.len();
            let ended = self.take(into, room)?;
            if into.len() > before {
                self.pace.moved(into.len() - before, Instant::now());
                return Ok(Progress::Content);
            }
            match ended {
                Some(ErrorKind::WouldBlock) => {
                    let slow = self.pace.deadline();
                    match wait::ready(&self.connection.stream, PollFlags::POLLIN, Some(slow.min(until))) {
                        Err(e) if e.kind() == ErrorKind::TimedOut && Instant::now() >= slow => {
                            return Err(HttpError::TooSlow.into());
                        }
                        Err(e) if e.kind() == ErrorKind::TimedOut => return Ok(Progress::Nothing),
                        Err(_) => return Err(BodyError::Gone),
                        Ok(_) => {}
                    }
                }
                Some(_) => return Err(BodyError::Gone),
                None => {}
            }
        }
    }

    /// Takes content from the inbox, else from the stream; returns why the stream gave nothing, if it did not.
    fn take(&mut self, into: &mut Vec<u8>, room: usize) -> Result<Option<ErrorKind>, BodyError> {
        let Connection { stream, inbox } = &mut *self.connection;
        let taken = self.head.body.take(inbox, room, into)?;
        if taken > 0 {
            inbox.drain(..taken);
            return Ok(None);
        }
        let read = match &mut self.head.body {
            // Straight to its destination.
            Body::Length(left) => {
                let before = into.len();
                let most = usize::try_from(*left).unwrap_or(usize::MAX).min(room);
                let read = (&**stream).take(most as u64).read_to_end(into);
                *left -= (into.len() - before) as u64;
                read
            }
            Body::Unannounced => Ok(0),
            Body::Chunked(_) => (&**stream).take(PIECE as u64).read_to_end(inbox),
        };
        Ok(match read {
            Ok(0) => Some(ErrorKind::UnexpectedEof),
            Ok(_) => None,
            Err(e) => Some(e.kind()),
        })
    }

    /// The client was kept waiting for this long.
    pub fn pause(&mut self, waited: Duration) {
        self.pace.pause(waited);
    }

    /// When content last came.
    pub fn last_content(&self) -> Instant {
        self.pace.last()
    }

    /// Whether another request may follow on the connection: the rest of this one's body is already there.
    pub fn is_complete(&mut self) -> bool {
        let mut rest = Vec::new();
        while self.asked_for_body && !self.head.body.is_done() && rest.len() < PIECE {
            match self.take(&mut rest, PIECE) {
                Ok(None) => {}
                _ => break,
            }
        }
        self.head.body.is_done()
    }
}
