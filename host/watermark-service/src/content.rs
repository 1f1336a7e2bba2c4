//! A file as the service sees it: a PNG, or UTF-8 text; anything else cannot be marked.

use std::fmt;

use crate::mark::picture::{self, MAX_PIXELS, PictureError};
use crate::mark::{Mark, text};

/// A file that can be marked.
pub(crate) enum Content {
    Png(Vec<u8>),
    Text(String),
}

/// Why a file cannot be marked or read.
#[derive(Debug)]
pub(crate) enum ContentError {
    /// Neither a PNG nor UTF-8 text; the bytes before this position are UTF-8.
    Unknown {
        valid_up_to: usize,
    },
    Picture(PictureError),
}

impl fmt::Display for ContentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContentError::Unknown { valid_up_to } => write!(
                f,
                "the content is neither a PNG image nor UTF-8 text (byte {valid_up_to} is not UTF-8); only those can be marked"
            ),
            ContentError::Picture(PictureError::Damaged(reason)) => {
                write!(f, "the content begins as a PNG image but cannot be decoded: {reason}")
            }
            ContentError::Picture(PictureError::Animated) => {
                f.write_str("the content is an animated PNG; only still images can be marked")
            }
            ContentError::Picture(PictureError::TooLarge) => {
                write!(f, "the image is too large; at most {MAX_PIXELS} pixels are decoded")
            }
            ContentError::Picture(PictureError::TooSmall { pixels, needed }) => {
                write!(f, "the image has {pixels} pixels; a mark of these ids needs {needed}")
            }
        }
    }
}

impl std::error::Error for ContentError {}

impl From<PictureError> for ContentError {
    fn from(error: PictureError) -> Self {
        ContentError::Picture(error)
    }
}

impl Content {
    /// Tells which of the two a file is.
    ///
    /// # Errors
    /// `Unknown` if it is neither.
    pub(crate) fn recognize(bytes: Vec<u8>) -> Result<Self, ContentError> {
        if picture::is_png(&bytes) {
            return Ok(Content::Png(bytes));
        }
        String::from_utf8(bytes)
            .map(Content::Text)
            .map_err(|e| ContentError::Unknown { valid_up_to: e.utf8_error().valid_up_to() })
    }

    /// The same file with `mark` in it, which replaces an older one.
    ///
    /// # Errors
    /// A picture that cannot be decoded or has too few pixels.
    pub(crate) fn marked(&self, mark: &Mark) -> Result<Self, ContentError> {
        Ok(match self {
            Content::Png(bytes) => Content::Png(picture::embed(bytes, mark)?),
            Content::Text(text) => Content::Text(text::embed(text, mark)),
        })
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        match self {
            Content::Png(bytes) => bytes,
            Content::Text(text) => text.into_bytes(),
        }
    }

    /// The mark in the file.
    ///
    /// # Errors
    /// A picture that cannot be decoded.
    pub(crate) fn mark(&self) -> Result<Option<Mark>, ContentError> {
        Ok(match self {
            Content::Png(bytes) => picture::extract(bytes)?,
            Content::Text(text) => text::extract(text),
        })
    }
}
