//! Bytes to be written to a stream that may not take them all at once.

use std::io::{self, ErrorKind, Write};

/// Bytes that are still to be written.
#[derive(Default)]
pub struct Outbox {
    /// The bytes, of which some may already be written.
    pub bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    /// Begins with these bytes.
    pub fn new(bytes: Vec<u8>) -> Outbox {
        Outbox { bytes, sent: 0 }
    }

    /// Whether everything is written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes what the stream takes. The memory is freed once all is written, since most connections only wait.
    ///
    /// # Errors
    /// The stream's error.
    pub fn flush(&mut self, stream: &mut impl Write) -> io::Result<usize> {
        let before = self.sent;
        while self.sent < self.bytes.len() {
            match stream.write(&self.bytes[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(self.sent - before),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let wrote = self.sent - before;
        *self = Outbox::default();
        Ok(wrote)
    }
}
