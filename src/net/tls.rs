//! One TLS connection to the watermark service, as ureq's transport.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use log::info;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, StreamOwned};
use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, LazyBuffers, NextTimeout, Transport};

use super::addr::Stream;
use super::endpoints::Endpoint;
use super::timed::Timed;
use crate::metrics::METRICS;

/// A connection that has served before was found closed, before any byte of an answer. The service had closed it
/// while it lay in the pool, so the request may be sent again on a new one.
#[derive(Debug)]
pub struct Stale;

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the pooled connection had been closed by the service")
    }
}

impl std::error::Error for Stale {}

/// A TLS connection whose handshake is done.
pub struct TlsTransport {
    stream: StreamOwned<ClientConnection, Timed>,
    buffers: LazyBuffers,
    /// A former request was answered on this connection.
    served: bool,
    /// A byte of the current request's answer has come.
    answering: bool,
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsTransport(served: {}, answering: {})", self.served, self.answering)
    }
}

impl TlsTransport {
    /// Shakes hands over a fresh stream. The endpoint's name must stand in the service's certificate.
    ///
    /// # Errors
    /// The certificate does not verify, the service refuses, the stream fails or the time is over.
    pub fn handshake(
        stream: Stream,
        endpoint: &Endpoint,
        config: Arc<ClientConfig>,
        details: &ConnectionDetails,
    ) -> Result<TlsTransport, Error> {
        let name = ServerName::try_from(endpoint.host().to_owned()).map_err(io::Error::other)?;
        let mut tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let mut timed = Timed { stream, deadline: deadline(details.timeout) };
        while tls.is_handshaking() {
            tls.complete_io(&mut timed).map_err(|e| with_timeout(e, details.timeout))?;
        }
        METRICS.tls_handshakes.add(1);
        info!("mTLS connection to {endpoint} established ({})", protocol(&tls));
        Ok(TlsTransport { stream: StreamOwned::new(tls, timed), buffers: buffers(), served: false, answering: false })
    }

    /// Tells a connection that went stale in the pool from one that failed.
    fn fail(&self, e: io::Error, timeout: NextTimeout) -> Error {
        let closed = matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
        if closed && self.served && !self.answering { io::Error::other(Stale).into() } else { with_timeout(e, timeout) }
    }
}

/// Buffers for a TLS record each way (RFC 8446, 5.1). They take memory when they are used.
fn buffers() -> LazyBuffers {
    LazyBuffers::new(16 << 10, 16 << 10)
}

fn protocol(tls: &ClientConnection) -> &'static str {
    match tls.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "TLSv1.2",
    }
}

fn deadline(timeout: NextTimeout) -> Option<Instant> {
    timeout.not_zero().and_then(|left| Instant::now().checked_add(*left))
}

fn with_timeout(e: io::Error, timeout: NextTimeout) -> Error {
    if e.kind() == ErrorKind::TimedOut { Error::Timeout(timeout.reason) } else { e.into() }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.answering {
            (self.served, self.answering) = (true, false);
        }
        let timeout = timeout.for_write();
        self.stream.sock.deadline = deadline(timeout);
        let sent = self.stream.write_all(&self.buffers.output()[..amount]).and_then(|()| self.stream.flush());
        sent.map_err(|e| self.fail(e, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        self.stream.sock.deadline = deadline(timeout);
        let got = match self.stream.read(self.buffers.input_append_buf()) {
            Ok(0) if !self.answering => Err(ErrorKind::UnexpectedEof.into()),
            other => other,
        };
        let n = got.map_err(|e| self.fail(e, timeout))?;
        self.buffers.input_appended(n);
        self.answering |= n > 0;
        Ok(n > 0)
    }

    /// Looks for what came in while the connection lay in the pool: session tickets are fine, an end is not, and
    /// neither is an answer that nobody asked for.
    ///
    /// ureq asks before it puts a connection into the pool. The buffers hold pieces of files by then, so they are given
    /// back, and wiped thereby; the next request makes new ones.
    fn is_open(&mut self) -> bool {
        self.buffers = buffers();
        let StreamOwned { conn, sock } = &mut self.stream;
        let mut look = || -> io::Result<bool> {
            if conn.process_new_packets().map_err(io::Error::other)?.plaintext_bytes_to_read() > 0 {
                return Ok(false);
            }
            sock.stream.set_nonblocking(true)?;
            loop {
                match conn.read_tls(&mut sock.stream) {
                    Ok(0) => return Ok(false),
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) => return Err(e),
                }
                let state = conn.process_new_packets().map_err(io::Error::other)?;
                if state.peer_has_closed() || state.plaintext_bytes_to_read() > 0 {
                    return Ok(false);
                }
            }
            sock.stream.set_nonblocking(false)?;
            Ok(true)
        };
        look().unwrap_or(false)
    }

    fn is_tls(&self) -> bool {
        true
    }
}
