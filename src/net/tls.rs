//! One TLS connection to the watermark service, as ureq's transport.
//!
//! A file may be large, and the service may answer before it has received all of it: with 413 after the head alone, for
//! instance. So while a request goes out, this transport also looks at what comes in. An answer that comes before the
//! last byte of its request was sent is an error here, [`EarlyAnswer`], and the connection is not used again. Such an
//! answer can only refuse: it never becomes the answer to a file that the service has not received completely.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Instant;

use event_loop::socket::Stream;
use formats::allow_list::Endpoint;
use log::info;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ProtocolVersion};
use ureq::Error;
use ureq::unversioned::transport::{Buffers, LazyBuffers, NextTimeout, Transport};

use super::wait::{Timed, ready_for_client as wait};
use crate::metrics::METRICS;

/// Longest head of an answer in bytes, and most fields in it. The second number is also ureq's, which has no setting
/// for it.
pub const MAX_ANSWER_HEAD: usize = 64 << 10;
/// Most header fields of an answer.
pub const MAX_ANSWER_FIELDS: usize = 128;

/// Bytes that are read or written by one system call: four TLS records (RFC 8446, 5.1).
const AT_ONCE: usize = 64 << 10;
/// Most reads in a row that bring nothing but TLS' own records.
const MAX_READS: usize = 1000;

/// A used connection was closed, or had bytes on it that no request had asked for, before a byte of this request's body
/// was written. The service cannot have acted on the request, so it may be sent again on a new connection.
#[derive(Debug)]
pub struct Stale;

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the pooled connection was no longer usable")
    }
}

impl std::error::Error for Stale {}

/// The service answered before the whole request was sent.
#[derive(Debug, PartialEq, Eq)]
pub struct EarlyAnswer {
    /// The answer's status, 200 to 999.
    pub status: u16,
    /// The answer's Retry-After, in seconds.
    pub retry_after: Option<u64>,
}

impl fmt::Display for EarlyAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the service answered HTTP {} before it had the whole request", self.status)
    }
}

impl std::error::Error for EarlyAnswer {}

/// The head of an answer is over [`MAX_ANSWER_HEAD`] bytes or [`MAX_ANSWER_FIELDS`] fields.
#[derive(Debug)]
pub struct HeadTooLarge;

impl fmt::Display for HeadTooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the head of its answer is over {} KiB or {MAX_ANSWER_FIELDS} header fields", MAX_ANSWER_HEAD >> 10)
    }
}

impl std::error::Error for HeadTooLarge {}

/// What came is not an HTTP answer.
#[derive(Debug)]
pub struct NotHttp;

impl fmt::Display for NotHttp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it does not speak HTTP/1.1")
    }
}

impl std::error::Error for NotHttp {}

/// How far the current request has progressed. ureq passes the head first, and the body in further pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No request has begun.
    Idle,
    /// The head waits to be sent, or has been; no byte of a body was written.
    Head,
    /// A byte of the body was written.
    Body,
    /// A byte of the answer has come, after the whole request was sent.
    Answer,
}

/// A TLS connection after its handshake. Its socket is non-blocking: poll(2) waits for both directions at once.
pub struct TlsTransport {
    tls: ClientConnection,
    stream: Stream,
    incoming: Incoming,
    buffers: LazyBuffers,
    phase: Phase,
    /// Whether an earlier request was answered on this connection.
    served: bool,
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsTransport(served: {}, {:?})", self.served, self.phase)
    }
}

impl TlsTransport {
    /// Shakes hands over a new stream. The service's certificate must contain the endpoint's name.
    ///
    /// # Errors
    /// The certificate does not verify, the service refuses, the stream fails or the deadline has passed.
    pub fn handshake(
        stream: Stream,
        endpoint: &Endpoint,
        config: Arc<ClientConfig>,
        deadline: Option<Instant>,
    ) -> io::Result<TlsTransport> {
        let name = ServerName::try_from(endpoint.host().to_owned()).map_err(io::Error::other)?;
        let mut tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let mut timed = Timed::new(stream, deadline)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut timed).map_err(|e| match is_closed(&e) {
                true => last_alert(&mut tls, &mut timed).unwrap_or(e),
                false => e,
            })?;
        }
        METRICS.tls_handshakes.add(1);
        info!("mTLS connection to {endpoint} established ({})", protocol(&tls));
        Ok(TlsTransport::new(tls, timed.into_inner()))
    }

    /// A connection over a non-blocking stream.
    fn new(mut tls: ClientConnection, stream: Stream) -> TlsTransport {
        // What is written at once is bounded by the buffer that it is written from.
        tls.set_buffer_limit(None);
        let incoming = Incoming::default();
        TlsTransport { tls, stream, incoming, buffers: buffers(), phase: Phase::Idle, served: false }
    }

    /// Reads what has arrived, without waiting, up to the first plaintext. Returns whether more can come.
    fn take_in(&mut self) -> io::Result<bool> {
        for _ in 0..MAX_READS {
            let state = match self.tls.process_new_packets() {
                Ok(state) => state,
                Err(e) => {
                    // Tells the service why, if it still listens.
                    let _ = self.tls.write_tls(&mut self.stream);
                    return Err(io::Error::other(e));
                }
            };
            if state.plaintext_bytes_to_read() > 0 {
                return Ok(true);
            }
            if state.peer_has_closed() {
                return Ok(false);
            }
            match self.tls.read_tls(&mut self.incoming.of(&mut self.stream)) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if is_closed(&e) => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Err(io::Error::other(NotHttp))
    }

    /// Whether the connection is open and nothing has come on it that was not requested. Session tickets are fine.
    fn is_quiet(&mut self) -> bool {
        let nothing_came = |tls: &mut ClientConnection| {
            tls.process_new_packets().is_ok_and(|s| s.plaintext_bytes_to_read() == 0 && !s.peer_has_closed())
        };
        if !nothing_came(&mut self.tls) {
            return false;
        }
        if self.incoming.is_empty() && is_silent(&self.stream) {
            return true;
        }
        self.take_in().is_ok_and(|open| open) && nothing_came(&mut self.tls)
    }

    /// Sends what TLS has to send, a piece of a body or of a head, and looks at what comes meanwhile.
    fn send(&mut self, is_body: bool, deadline: Option<Instant>) -> io::Result<()> {
        while self.tls.wants_write() {
            let ready = wait(&self.stream, PollFlags::POLLIN | PollFlags::POLLOUT, deadline)?;
            // First of all: an answer saves sending the rest of a large file.
            if ready != PollFlags::POLLOUT {
                self.look_for_answer(deadline)?;
            }
            match self.tls.write_tls(&mut self.stream) {
                Ok(_) if is_body => self.phase = Phase::Body,
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) if is_closed(&e) => {
                    // The service may have said why before it closed.
                    self.look_for_answer(deadline)?;
                    return Err(self.closed());
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Fails if the service has answered or closed before it was sent everything. Interim answers are skipped (RFC
    /// 9110, 15.2).
    fn look_for_answer(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let mut head = Vec::new();
        loop {
            let open = self.take_in()?;
            read_what_is_there(&mut self.tls, &mut head)?;
            // Leading empty lines belong to the previous answer (RFC 9112, 2.2, has the same for requests).
            let blank = head.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
            head.drain(..blank);
            while let Some((answer, length)) = answer_head(&head)? {
                if answer.status >= 200 {
                    return Err(io::Error::other(answer));
                }
                head.drain(..length);
            }
            match (head.is_empty(), open) {
                // What is buffered is not told by poll(2).
                (true, true) if self.incoming.is_empty() => return Ok(()),
                (true, true) if deadline.is_some_and(|at| at <= Instant::now()) => {
                    return Err(ErrorKind::TimedOut.into());
                }
                (true, true) => {}
                (true, false) => return Err(self.closed()),
                (false, true) if self.incoming.has_more() => {}
                (false, true) => drop(wait(&self.stream, PollFlags::POLLIN, deadline)?),
                (false, false) => return Err(ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// The error for a connection that has ended: it went stale in the pool, or it failed.
    fn closed(&self) -> io::Error {
        match self.phase {
            Phase::Head if self.served => io::Error::other(Stale),
            _ => ErrorKind::UnexpectedEof.into(),
        }
    }

    /// Sends a piece of a request.
    fn transmit(&mut self, amount: usize, deadline: Option<Instant>) -> io::Result<()> {
        let begins = matches!(self.phase, Phase::Idle | Phase::Answer);
        if begins {
            self.served |= self.phase == Phase::Answer;
            self.phase = Phase::Head;
            if !self.served {
                // The service may already have said why it refuses this client: in TLS 1.3 its alert comes only now.
                self.look_for_answer(deadline)?;
            } else if !self.is_quiet() {
                return Err(self.closed());
            }
        }
        self.tls.writer().write_all(&self.buffers.output()[..amount])?;
        // A head goes out together with the first piece of its body, or before the answer is waited for.
        if begins { Ok(()) } else { self.send(true, deadline) }
    }

    /// Waits for a piece of the answer. Returns whether one has come; none does once the service has closed properly.
    fn receive(&mut self, deadline: Option<Instant>) -> io::Result<bool> {
        if self.phase == Phase::Head {
            self.send(false, deadline)?;
        }
        let mut open = true;
        loop {
            let room = self.buffers.input_append_buf();
            if room.is_empty() {
                return Err(io::Error::other(HeadTooLarge));
            }
            match self.tls.reader().read(room) {
                Ok(0) if self.phase == Phase::Answer => return Ok(false),
                Ok(n @ 1..) => {
                    self.buffers.input_appended(n);
                    self.phase = Phase::Answer;
                    return Ok(true);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock && open => {}
                Ok(0) => return Err(self.closed()),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::UnexpectedEof) => {
                    return Err(self.closed());
                }
                Err(e) => return Err(e),
            }
            // TLS itself may have something to send, such as a key update.
            let flags = if self.tls.wants_write() { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
            if self.incoming.has_more() || wait(&self.stream, flags, deadline)?.contains(PollFlags::POLLOUT) {
                match self.tls.write_tls(&mut self.stream) {
                    Err(e) if e.kind() != ErrorKind::WouldBlock => return Err(e),
                    _ => {}
                }
            }
            open = self.take_in()?;
        }
    }
}

/// What has been read of a stream and not yet been taken by TLS, which takes a few KiB at once.
#[derive(Default)]
struct Incoming {
    bytes: Vec<u8>,
    taken: usize,
    read: usize,
}

impl Incoming {
    /// The stream, read through this buffer.
    fn of<'a>(&'a mut self, stream: &'a mut Stream) -> Buffered<'a> {
        Buffered { buffer: self, stream }
    }

    fn is_empty(&self) -> bool {
        self.taken == self.read
    }

    /// Whether a read gets something at once, or likely does, since the last one filled the buffer.
    fn has_more(&self) -> bool {
        !self.is_empty() || (self.read > 0 && self.read == self.bytes.len())
    }
}

struct Buffered<'a> {
    buffer: &'a mut Incoming,
    stream: &'a mut Stream,
}

impl Read for Buffered<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Incoming { bytes, taken, read } = &mut *self.buffer;
        if taken == read {
            if bytes.is_empty() {
                *bytes = vec![0; AT_ONCE];
            }
            (*taken, *read) = (0, 0);
            *read = self.stream.read(bytes)?;
        }
        let n = buf.len().min(*read - *taken);
        buf[..n].copy_from_slice(&bytes[*taken..*taken + n]);
        *taken += n;
        Ok(n)
    }
}

/// Overwrites the buffer that it is to read into, and has nothing for it. TLS decrypts records where they were read to, so
/// the last one of an answer would stand there until the connection is used again.
struct Zeros;

impl Read for Zeros {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        buf.fill(0);
        Err(ErrorKind::WouldBlock.into())
    }
}

/// Whether there is nothing to read from a stream, neither bytes nor its end nor an error. Most pooled connections are
/// silent, and this needs no buffer.
fn is_silent(stream: &Stream) -> bool {
    recv(stream.as_fd().as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) == Err(Errno::EAGAIN)
}

/// The alert by which the service refused, if a write found the connection closed before the alert was read.
fn last_alert(tls: &mut ClientConnection, stream: &mut Timed) -> Option<io::Error> {
    while let Ok(1..) = tls.read_tls(stream) {
        if let Err(alert) = tls.process_new_packets() {
            return Some(io::Error::other(alert));
        }
    }
    None
}

/// Adds the plaintext that has been decrypted.
fn read_what_is_there(tls: &mut ClientConnection, into: &mut Vec<u8>) -> io::Result<()> {
    let came = tls.reader().read_to_end(into);
    // At the end of what is there, the reader reports that it would block, or that the connection was not closed
    // properly.
    came.map(drop).or_else(|e| match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::UnexpectedEof => Ok(()),
        _ => Err(e),
    })
}

/// The answer whose head these bytes begin with, and the head's length; `None` if it is not complete.
fn answer_head(bytes: &[u8]) -> io::Result<Option<(EarlyAnswer, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_ANSWER_FIELDS];
    let mut answer = httparse::Response::new(&mut fields);
    match answer.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => {
            let retry_after = answer.headers.iter().find(|field| field.name.eq_ignore_ascii_case("Retry-After"));
            let retry_after = retry_after.and_then(|field| std::str::from_utf8(field.value).ok()?.trim().parse().ok());
            Ok(Some((EarlyAnswer { status: answer.code.unwrap_or_default(), retry_after }, length)))
        }
        Ok(httparse::Status::Partial) if bytes.len() <= MAX_ANSWER_HEAD => Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => Err(io::Error::other(HeadTooLarge)),
        Err(_) => Err(io::Error::other(NotHttp)),
    }
}

fn is_closed(e: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(e.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// Buffers for the longest head of an answer and a piece of a request. They take memory only when they are used.
fn buffers() -> LazyBuffers {
    LazyBuffers::new(MAX_ANSWER_HEAD + 1, AT_ONCE)
}

fn protocol(tls: &ClientConnection) -> &'static str {
    match tls.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "TLSv1.2",
    }
}

/// When this time limit of ureq's ends, from now; `None` if it has none.
pub fn deadline(timeout: NextTimeout) -> Option<Instant> {
    timeout.not_zero().and_then(|left| Instant::now().checked_add(*left))
}

/// An error as ureq reports it: a timeout with the limit that ended.
pub fn with_timeout(e: io::Error, timeout: NextTimeout) -> Error {
    if e.kind() == ErrorKind::TimedOut { Error::Timeout(timeout.reason) } else { e.into() }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        self.transmit(amount, deadline(timeout)).map_err(|e| with_timeout(e, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        self.receive(deadline(timeout)).map_err(|e| with_timeout(e, timeout))
    }

    /// ureq asks before it puts a connection into the pool and when it takes it out. By then the buffers hold pieces of
    /// files, so they are freed, which wipes them, and the next request makes new ones; TLS' own is overwritten.
    fn is_open(&mut self) -> bool {
        // What is left of an answer's bytes belongs to no request, but for empty lines.
        let all_read = self.buffers.input().iter().all(|b| matches!(b, b'\r' | b'\n'));
        self.buffers = buffers();
        let quiet = all_read && self.is_quiet();
        self.incoming = Incoming::default();
        // It fails, since there was nothing to read; what matters is where it would have been read to.
        let _ = self.tls.read_tls(&mut Zeros);
        quiet
    }

    fn is_tls(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
