//! Prints bytes of unknown origin: whatever is not printable ASCII is escaped, so that nothing can look like a line of its
//! own.

use core::ffi::CStr;
use core::fmt;

/// Prints a path or a name, escaped.
pub struct Text<'a>(pub &'a CStr);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.0.to_bytes().escape_ascii())
    }
}

/// The first 63 bytes of a text, kept for an error that outlives it.
#[derive(Debug)]
pub struct Short([u8; 64]);

impl Short {
    /// Copies the text up to its 63rd byte or its first zero byte.
    pub fn new(text: &[u8]) -> Self {
        let mut bytes = [0; 64];
        for (to, from) in bytes[..63].iter_mut().zip(text) {
            *to = *from;
        }
        Self(bytes)
    }
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        Text(CStr::from_bytes_until_nul(&self.0).unwrap_or_default()).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn what_is_not_printable_is_escaped() {
        assert_eq!(format!("{}", Text(c"/teemarkd\n[INIT] \x1b\xff")), "/teemarkd\\n[INIT] \\x1b\\xff");
    }

    #[test]
    fn a_long_text_is_cut_and_a_short_one_is_not() {
        assert_eq!(format!("{}", Short::new(&[b'x'; 64])), "x".repeat(63));
        assert_eq!(format!("{}", Short::new(b"nsm-hwrng")), "nsm-hwrng");
        assert_eq!(format!("{}", Short::new(b"")), "");
    }
}
