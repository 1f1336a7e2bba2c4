//! What sessions move bytes through within one turn. It belongs to the loop, so that a connection that waits has no buffer.

use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};

use log::debug;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice};
use nix::sys::utsname::uname;

use crate::outbox::Outbox;
use crate::socket::Stream;

/// Most bytes read at once.
pub(crate) const BUFFER: usize = 64 << 10;
/// Most bytes spliced at once, and the size of the pipe. The more there are, the fewer turns the loop takes, each of which
/// polls every connection.
const PIPE: i32 = 256 << 10;

/// The first Linux that gives a socket all of a pipe's pages in one call (MSG_SPLICE_PAGES). Before, each page took one, and
/// a packet of its own over AF_VSOCK.
const SPLICES: (u32, u32) = (6, 5);

/// A buffer, and a pipe for bytes that are forwarded without being copied. The pipe is empty between turns.
pub struct Scratch {
    /// To read into: 64 KiB.
    pub bytes: Box<[u8]>,
    pipe: Pipe,
}

/// Made for the first bytes that are forwarded, since it takes two descriptors.
enum Pipe {
    NotMade,
    Made(PipeReader, PipeWriter),
    /// The system has no descriptors left, is too old, or does not splice these sockets.
    Refused,
}

impl Scratch {
    /// Takes the memory; the pipe is made when it is needed.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Scratch {
        Scratch { bytes: vec![0; BUFFER].into(), pipe: Pipe::NotMade }
    }

    /// Moves what one stream has to the other. What that does not take now is put into `rest`, which has to be empty:
    /// at most 256 KiB. Returns how many bytes were read: 0 at the end of the stream.
    ///
    /// With `much` to come it splices. That is dearer for a few bytes: for AF_VSOCK, the kernel takes as many pages as
    /// could be needed and gives them back.
    ///
    /// # Errors
    /// That of either stream; `WouldBlock` if there is nothing to read now.
    pub(crate) fn forward(&mut self, from: &Stream, to: &Stream, rest: &mut Outbox, much: bool) -> io::Result<usize> {
        if much {
            if let Pipe::NotMade = self.pipe {
                self.pipe = Pipe::make();
            }
            if let Pipe::Made(out, into) = &self.pipe {
                match spliced(from, to, (out, into), rest) {
                    Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) => self.pipe = Pipe::Refused,
                    moved => return moved,
                }
            }
        }
        self.copied(from, to, rest)
    }

    fn copied(&mut self, mut from: &Stream, mut to: &Stream, rest: &mut Outbox) -> io::Result<usize> {
        let read = from.read(&mut self.bytes)?;
        let bytes = &self.bytes[..read];
        // From here, since most streams take all of it, and then nothing has to be kept.
        let written = match to.write(bytes) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            written => written?,
        };
        if written < read {
            *rest = Outbox::new(bytes[written..].to_vec());
        }
        Ok(read)
    }
}

impl Pipe {
    fn make() -> Pipe {
        if !is_new_enough() {
            return Pipe::Refused;
        }
        let Ok((out, into)) = io::pipe() else { return Pipe::Refused };
        // Past the limits of pipe(7) it keeps its 64 KiB, which do as well.
        if let Err(e) = fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE)) {
            debug!("the pipe for forwarded bytes stays at 64 KiB: {e}");
        }
        Pipe::Made(out, into)
    }
}

fn is_new_enough() -> bool {
    let Ok(system) = uname() else { return false };
    let mut numbers = system.release().to_str().unwrap_or_default().split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|text| text.parse().ok()).unwrap_or(0);
    (number(), number()) >= SPLICES
}

/// Moves bytes by splice(2), which passes the kernel's pages on. Nothing of the daemon wipes these; they hold other
/// processes' TLS, and the enclave's kernel clears every page that it frees (CONFIG_INIT_ON_FREE_DEFAULT_ON).
///
/// # Errors
/// That of either stream; `EINVAL`, before a byte is read, if `from` cannot be spliced.
fn spliced(
    from: &Stream,
    to: &Stream,
    (mut out, into): (&PipeReader, &PipeWriter),
    rest: &mut Outbox,
) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
    let read = splice(from, None, into, None, PIPE.unsigned_abs() as usize, flags)?;
    let mut left = read;
    let mut ended = Ok(());
    while left > 0 {
        match splice(out, None, to, None, left, flags) {
            Ok(written @ 1..) => left -= written,
            Err(Errno::EINTR) => {}
            // What it does not take from a pipe it may take from memory.
            Ok(0) | Err(Errno::EAGAIN | Errno::EINVAL) => break,
            Err(e) => {
                ended = Err(e.into());
                break;
            }
        }
    }
    if left > 0 {
        // After an error too: the next session has to find the pipe empty.
        let mut bytes = vec![0; left];
        out.read_exact(&mut bytes)?;
        *rest = Outbox::new(bytes);
    }
    ended.map(|()| read)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (UnixStream, Stream) {
        let (outer, inner) = UnixStream::pair().unwrap();
        inner.set_nonblocking(true).unwrap();
        (outer, Stream::Unix(inner))
    }

    #[test]
    fn bytes_whose_reader_is_gone_reach_no_other_reader() {
        let mut scratch = Scratch::new();
        let ((mut writer, from), (reader, to)) = (pair(), pair());
        drop(reader);
        writer.write_all(b"nobody's").unwrap();
        let error = scratch.forward(&from, &to, &mut Outbox::default(), true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);

        let ((mut writer, from), (mut reader, to)) = (pair(), pair());
        writer.write_all(b"mine").unwrap();
        let mut rest = Outbox::default();
        assert_eq!(scratch.forward(&from, &to, &mut rest, true).unwrap(), 4);
        drop(to);
        let mut got = String::new();
        reader.read_to_string(&mut got).unwrap();
        assert!(got == "mine" && rest.is_empty(), "{got:?}");
        assert!(matches!(scratch.pipe, Pipe::Made(..)));
    }
}
