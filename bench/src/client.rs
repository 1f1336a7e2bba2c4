//! A client that speaks as much HTTP/1.1 as the servers' answers take: one request, one answer with a Content-Length.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memchr::memmem;

/// Longer than any answer takes on a machine that is busy with other things.
const TIMEOUT: Duration = Duration::from_secs(120);
/// A body up to this goes out in one write with its head.
const SMALL: usize = 128 << 10;
const BUFFER: usize = 64 << 10;

/// One client, with the connection that it keeps.
pub(crate) struct Client {
    to: SocketAddr,
    keep_alive: bool,
    connection: Option<TcpStream>,
    received: Vec<u8>,
}

/// An answer, as long as the client's next request is not sent.
pub(crate) struct Answer<'a> {
    head: &'a str,
    pub(crate) body: &'a [u8],
}

impl Client {
    pub(crate) fn new(to: SocketAddr, keep_alive: bool) -> Client {
        Client { to, keep_alive, connection: None, received: Vec::new() }
    }

    /// Sends a request whose head is in these pieces, and gives the answer to it.
    pub(crate) fn ask(&mut self, head: &[&str], body: &[u8]) -> Result<Answer<'_>> {
        let mut connection = match self.connection.take() {
            Some(kept) => kept,
            None => {
                let new = TcpStream::connect(self.to).context("connecting")?;
                new.set_nodelay(true)?;
                new.set_read_timeout(Some(TIMEOUT))?;
                new
            }
        };
        let mut first = head.concat().into_bytes();
        if body.len() <= SMALL {
            first.extend(body);
            connection.write_all(&first).context("sending")?;
        } else {
            connection.write_all(&first).context("sending the head")?;
            connection.write_all(body).context("sending the body")?;
        }

        self.received.clear();
        let body_at = loop {
            receive(&mut connection, &mut self.received, BUFFER)?;
            if let Some(end) = memmem::find(&self.received, b"\r\n\r\n") {
                break end + 4;
            }
        };
        let length: usize = {
            let head = std::str::from_utf8(&self.received[..body_at])?;
            field(head, "Content-Length").context("no Content-Length")?.parse()?
        };
        while self.received.len() < body_at + length {
            let missing = body_at + length - self.received.len();
            receive(&mut connection, &mut self.received, missing.min(16 * BUFFER))?;
        }
        let (head, body) = self.received.split_at(body_at);
        let answer = Answer { head: std::str::from_utf8(head)?, body };
        if self.keep_alive {
            self.connection = Some(connection);
        }
        Ok(answer)
    }
}

fn receive(connection: &mut TcpStream, received: &mut Vec<u8>, most: usize) -> Result<()> {
    let had = received.len();
    received.resize(had + most, 0);
    let n = connection.read(&mut received[had..]).context("receiving")?;
    received.truncate(had + n);
    ensure!(n > 0, "the connection was closed: {}", String::from_utf8_lossy(&received[..had.min(300)]));
    Ok(())
}

impl Answer<'_> {
    pub(crate) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        field(self.head, name)
    }

    /// How it begins, for a message.
    pub(crate) fn show(&self) -> String {
        let body = String::from_utf8_lossy(&self.body[..self.body.len().min(200)]);
        format!("{} {body}", self.head.lines().next().unwrap_or_default())
    }
}

fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
}
