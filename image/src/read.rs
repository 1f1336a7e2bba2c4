//! Reads an input file whole, and says which one cannot be used and why.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use formats::allow_list::AllowListError;

/// Why no image is built from a file.
#[derive(Debug)]
pub enum InputError {
    /// The file cannot be read.
    Unreadable {
        /// Its path.
        file: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// The file has no contents.
    Empty(PathBuf),
    /// The daemon would refuse the allow list. The error names the file and the line.
    AllowList(AllowListError),
    /// The contents cannot be used.
    Refused {
        /// Its path.
        file: PathBuf,
        /// The line at fault, counted from 1; 0 for the file as a whole.
        line: usize,
        /// The rest of a sentence that begins with the file or its line.
        reason: String,
    },
}

impl InputError {
    pub(crate) fn refused(file: &Path, reason: impl Into<String>) -> InputError {
        InputError::Refused { file: file.to_owned(), line: 0, reason: reason.into() }
    }
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, error } => write!(f, "{} cannot be read: {error}", file.display()),
            Self::Empty(file) => write!(f, "{} is empty", file.display()),
            Self::AllowList(error) => write!(f, "{error}"),
            Self::Refused { file, line: 0, reason } => write!(f, "{} {reason}", file.display()),
            Self::Refused { file, line, reason } => write!(f, "{}:{line}: {reason}", file.display()),
        }
    }
}

impl std::error::Error for InputError {}

/// The contents of a file that is not empty.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>, InputError> {
    match fs::read(file) {
        Ok(contents) if contents.is_empty() => Err(InputError::Empty(file.to_owned())),
        Ok(contents) => Ok(contents),
        Err(error) => Err(InputError::Unreadable { file: file.to_owned(), error }),
    }
}
