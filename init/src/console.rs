//! Prints lines that begin with `[INIT] ` on the console, each in one write if it fits, so that the kernel's own lines do
//! not break it. Outside debug mode there is no console, so the target gets them too, by its standard input, for its log.

use core::fmt::{self, Write};

use rustix::fd::{AsRawFd, IntoRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::stdio;

use crate::errno::Named;
use crate::sys;

/// Bytes of one write; a longer line takes several.
const AT_ONCE: usize = 512;

/// Prints a line, with the arguments of `format!`.
#[macro_export]
macro_rules! say {
    ($($arguments:tt)*) => { $crate::console::say(format_args!($($arguments)*)) };
}

/// Prints a line; [`say!`] is shorter.
pub fn say(text: fmt::Arguments) {
    let mut line = Line { bytes: [0; AT_ONCE], length: 0 };
    let _ = writeln!(line, "[INIT] {text}");
    line.flush();
}

/// A line that is collected and written. A console that cannot be written to is ignored, since nothing could report it.
struct Line {
    bytes: [u8; AT_ONCE],
    length: usize,
}

impl Line {
    fn flush(&mut self) {
        // One that nobody reads is full at some time, and takes nothing then.
        let _ = sys::for_target().map(|pipe| rustix::io::write(pipe, &self.bytes[..self.length]));
        let mut rest = &self.bytes[..self.length];
        while !rest.is_empty() {
            match rustix::io::write(sys::stderr(), rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        self.length = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.length == AT_ONCE {
                self.flush();
            }
            self.bytes[self.length] = byte;
            self.length += 1;
        }
        Ok(())
    }
}

/// /dev/null cannot be opened.
#[derive(Debug)]
pub struct Error(Errno);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "opening /dev/null: {}", Named(self.0))
    }
}

/// Makes /dev/console the standard output and error of this process and of the target. Nobody types at an enclave, so
/// their standard input is a pipe with the lines that this process prints; /dev/null, if there is no pipe.
///
/// If the kernel has no console, /dev/null takes its place. All three descriptors are opened in any case: otherwise the
/// next file to be opened would get a free one of them, and lines for the console would be written into it.
///
/// # Errors
/// /dev/null cannot be opened.
pub fn open_standard_streams() -> Result<(), Error> {
    let null = open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(Error)?;
    let console = open(c"/dev/console", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty());
    let output = console.as_ref().unwrap_or(&null);
    let lines = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok();
    stdio::dup2_stdin(lines.as_ref().map_or(&null, |(read, _)| read))
        .and_then(|()| stdio::dup2_stdout(output))
        .and_then(|()| stdio::dup2_stderr(output))
        .map_err(Error)?;
    keep_standard(null);
    let _ = console.map(keep_standard);
    if let Some((read, write)) = lines {
        keep_standard(read);
        sys::keep_for_target(write);
    }
    Ok(())
}

/// Closes a descriptor, unless it is itself a standard stream: the kernel may have started us without any.
fn keep_standard(fd: OwnedFd) {
    if fd.as_raw_fd() <= stdio::raw_stderr() {
        let _ = fd.into_raw_fd();
    }
}
