//! Reading and writing with an end in sight.

use std::io::{self, Read, Write};
use std::time::Instant;

use super::addr::Stream;

/// A stream on which every read and write fails with `TimedOut` once the deadline has passed. A socket's own time-out
/// starts anew with each byte; this one does not, so a peer that sends a byte now and then gains nothing.
#[derive(Debug)]
pub struct Timed {
    pub stream: Stream,
    /// Without one, reads and writes wait for ever.
    pub deadline: Option<Instant>,
}

impl Timed {
    fn left(&self) -> io::Result<Option<std::time::Duration>> {
        let Some(deadline) = self.deadline else { return Ok(None) };
        match deadline.saturating_duration_since(Instant::now()) {
            left if left.is_zero() => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

/// A socket whose time-out ends says EAGAIN (socket(7), SO_RCVTIMEO).
fn name_timeout(e: io::Error) -> io::Error {
    if e.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { e }
}

impl Read for Timed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buf).map_err(name_timeout)
    }
}

impl Write for Timed {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buf).map_err(name_timeout)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[test]
    fn a_byte_now_and_then_does_not_move_the_deadline() {
        let (near, mut far) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            while far.write_all(b".").is_ok() {
                std::thread::sleep(Duration::from_millis(20))
            }
        });
        let start = Instant::now();
        let mut timed = Timed { stream: Stream::Unix(near), deadline: Some(start + Duration::from_millis(200)) };
        let error = timed.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}
