//! Reads the parameter `teemark.target=`, the program to start, from the kernel's command line, which is measured with the
//! image.

use core::ffi::CStr;
use core::fmt;

use crate::files;

const FILE: &CStr = c"/proc/cmdline";
/// Longest command line, in bytes; the kernel's own limit is 2,048 (COMMAND_LINE_SIZE, arch/x86 and arm64).
pub const BYTES: usize = 4096;
const TARGET: &[u8] = b"teemark.target=";
/// The target if the command line names none.
const DEFAULT_TARGET: &CStr = c"/teemarkd";

/// Why the target is not known.
#[derive(Debug)]
pub enum Error {
    /// The command line cannot be read.
    File(files::Error),
    /// The target is not an absolute path.
    NotAbsolute,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::File(error) => write!(f, "kernel command line: {error}"),
            Self::NotAbsolute => write!(f, "kernel command line: teemark.target= needs a path that begins with /"),
        }
    }
}

/// The target that /proc/cmdline names.
///
/// # Errors
/// [`Error`].
pub fn read_target(buffer: &mut [u8; BYTES + 1]) -> Result<&CStr, Error> {
    target(files::read_text(FILE, buffer).map_err(Error::File)?)
}

/// The target of a command line, which ends with a line feed: the last one counts, as with the kernel's own parameters,
/// and /teemarkd is the default. A path with spaces is not possible.
fn target(line: &mut [u8]) -> Result<&CStr, Error> {
    let words = line.split_inclusive_mut(u8::is_ascii_whitespace);
    let Some(word) = words.filter(|word| word.starts_with(TARGET)).last() else {
        return Ok(DEFAULT_TARGET);
    };
    let path = &mut word[TARGET.len()..];
    if let Some(end) = path.last_mut() {
        *end = 0;
    }
    match CStr::from_bytes_with_nul(path) {
        Ok(path) if path.to_bytes().starts_with(b"/") => Ok(path),
        _ => Err(Error::NotAbsolute),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;

    fn target_of(line: &str) -> Option<CString> {
        target(&mut line.as_bytes().to_vec()).ok().map(CString::from)
    }

    #[test]
    fn the_command_line_names_the_target() {
        let line = "reboot=k panic=1 console=ttyS0 teemark.target=/run.sh virtio_mmio.device=512@0xfeb00e00:12\n";
        assert_eq!(target_of(line).as_deref(), Some(c"/run.sh"));
        assert_eq!(target_of("teemark.target=/a/b\n").as_deref(), Some(c"/a/b"));
    }

    #[test]
    fn without_a_name_the_target_is_the_daemon() {
        for line in ["\n", "reboot=k panic=1\n", "xteemark.target=/x teemark.targets=/x\n"] {
            assert_eq!(target_of(line).as_deref(), Some(c"/teemarkd"), "{line}");
        }
    }

    #[test]
    fn the_last_of_several_names_counts() {
        assert_eq!(target_of("teemark.target=/a teemark.target=/b\n").as_deref(), Some(c"/b"));
    }

    #[test]
    fn a_target_that_is_not_an_absolute_path_is_an_error() {
        for line in ["teemark.target=\n", "teemark.target= /x\n", "teemark.target=x\n", "teemark.target=\"/x y\"\n"] {
            assert_eq!(target_of(line), None, "{line}");
        }
    }
}
