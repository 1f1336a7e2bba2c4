//! Reads a whole small text file into a buffer of fixed size.

use core::ffi::CStr;
use core::fmt;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::errno::Named;
use crate::text::Text;

/// Why a file was not read.
#[derive(Debug)]
pub enum Error {
    /// open(2) or read(2) failed.
    Kernel {
        /// The file.
        path: &'static CStr,
        /// What the call returned.
        errno: Errno,
    },
    /// The file does not fit the buffer.
    TooLong {
        /// The file.
        path: &'static CStr,
        /// The most bytes that it may have.
        limit: usize,
    },
}

impl Error {
    /// Whether there is no such file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Kernel { errno: Errno::NOENT, .. })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Kernel { path, errno } => write!(f, "reading {}: {}", Text(path), Named(*errno)),
            Self::TooLong { path, limit } => write!(f, "reading {}: more than {limit} bytes", Text(path)),
        }
    }
}

/// Reads a file of at most `buffer.len() - 1` bytes. The text ends with a line feed, which is added if the file does not
/// end with one.
///
/// # Errors
/// The kernel's error, or the file is longer.
pub fn read_text<'a>(path: &'static CStr, buffer: &'a mut [u8]) -> Result<&'a mut [u8], Error> {
    let kernel = |errno| Error::Kernel { path, errno };
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(kernel)?;
    let mut length = 0;
    while length < buffer.len() {
        match rustix::io::read(&file, &mut buffer[length..]) {
            Ok(0) => {
                if length == 0 || buffer[length - 1] != b'\n' {
                    buffer[length] = b'\n';
                    length += 1;
                }
                return Ok(&mut buffer[..length]);
            }
            Ok(read) => length += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(kernel(errno)),
        }
    }
    Err(Error::TooLong { path, limit: buffer.len().saturating_sub(1) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::ffi::CString;
    use std::{format, fs};

    /// A file with this content. Its path is leaked, since the program's own are static too.
    fn file(name: &str, content: &str) -> &'static CStr {
        let path = std::env::temp_dir().join(format!("teemark-init-{}-{name}", std::process::id()));
        fs::write(&path, content).unwrap();
        Box::leak(CString::new(path.into_os_string().into_encoded_bytes()).unwrap().into_boxed_c_str())
    }

    fn remove(path: &CStr) {
        fs::remove_file(path.to_str().unwrap()).unwrap();
    }

    #[test]
    fn a_text_ends_with_a_line_feed_whether_the_file_does_or_not() {
        for (name, content) in [("with", "a\nb\n"), ("without", "a\nb")] {
            let path = file(name, content);
            assert_eq!(read_text(path, &mut [0; 5]).unwrap(), b"a\nb\n", "{name}");
            remove(path);
        }
    }

    #[test]
    fn an_empty_file_is_an_empty_line() {
        let path = file("empty", "");
        assert_eq!(read_text(path, &mut [0; 1]).unwrap(), b"\n");
        remove(path);
    }

    #[test]
    fn a_file_that_is_too_long_is_named_with_the_limit() {
        let path = file("long", "12345");
        assert!(read_text(path, &mut [0; 6]).is_ok());
        let error = format!("{}", read_text(path, &mut [0; 5]).unwrap_err());
        assert!(error.ends_with("long: more than 4 bytes"), "{error}");
        remove(path);
    }

    #[test]
    fn a_missing_file_and_one_that_cannot_be_read_are_different_errors() {
        assert!(read_text(c"/does/not/exist", &mut [0; 8]).unwrap_err().is_missing());
        let error = read_text(c"/", &mut [0; 8]).unwrap_err();
        assert!(!error.is_missing());
        assert_eq!(format!("{error}"), "reading /: EISDIR (a folder)");
    }
}
