//! Base64 as people and programs write it (RFC 4648, section 4): on one line or on many, with padding or without.
//! `base64` and PEM break lines; JavaScript and JWK libraries leave out the padding.
//!
//! Tokens and the members of JWKs are base64url (RFC 7515, section 2), which allows neither and is not read here.

use ::base64::Engine;
use ::base64::alphabet;
use ::base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Characters that are decoded at a time where white space has to be removed; four stand for three bytes.
const BLOCK: usize = 4096;

/// Encodes with padding, on one line.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64.encode(bytes)
}

/// Decodes base64. Spaces, tabs and line ends may be anywhere in it. `None` if anything else in it is not base64, or if
/// its trailing bits are not zero (RFC 4648, 3.5).
///
/// Apart from the result, the memory it needs does not grow with the text.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    match BASE64.decode(text) {
        Ok(bytes) => Some(bytes),
        Err(_) if text.bytes().any(is_space) => decode_lines(text),
        Err(_) => None,
    }
}

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\r' | b'\n')
}

fn decode_lines(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    // On the heap, where freed memory is wiped: this may be a key.
    let mut block = Vec::with_capacity(BLOCK);
    for b in text.bytes().filter(|&b| !is_space(b)) {
        if block.len() == BLOCK {
            let before = bytes.len();
            BASE64.decode_vec(&block, &mut bytes).ok()?;
            // Padding is allowed only at the end, and this is not the end.
            (bytes.len() - before == BLOCK / 4 * 3).then_some(())?;
            block.clear();
        }
        block.push(b);
    }
    BASE64.decode_vec(&block, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_in_lines_and_without_padding_is_read() {
        for text in ["Zm9vYg==", "Zm9vYg", " Zm9v\r\nYg==\n", "Zm9vY\tg = =", "Z\nm\n9\nv\nY\ng", "Zm9vYg=\n="] {
            assert_eq!(decode(text).as_deref(), Some(&b"foob"[..]), "{text:?}");
        }
        for empty in ["", "\n", " \r\n\t"] {
            assert_eq!(decode(empty), Some(Vec::new()), "{empty:?}");
        }
    }

    #[test]
    fn what_is_not_base64_is_not_read_in_lines_either() {
        for text in
            ["Zm9vYh==", "Zm9vYh", "Z", "Zm9vYg===", "Zm9=Yg==", "Zm-_", "Zm9v\0Yg==", "Zm9v\u{a0}Yg==", "====", "="]
        {
            assert_eq!(decode(text), None, "{text:?}");
            assert_eq!(decode(&format!("{text}\n")), None, "{text:?} in a line");
        }
    }

    #[test]
    fn every_length_comes_back_from_lines_of_every_length() {
        let bytes: Vec<u8> = (0..2 * BLOCK).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
        for length in (0..9).chain(BLOCK / 4 * 3 - 4..BLOCK / 4 * 3 + 5).chain([2 * BLOCK]) {
            let text = encode(&bytes[..length]);
            for (width, end) in [(1, "\n"), (63, " "), (64, "\r\n"), (76, "\n"), (BLOCK, "\n"), (BLOCK + 1, "\t")] {
                let lines: String =
                    text.as_bytes().chunks(width).map(|l| format!("{}{end}", l.escape_ascii())).collect();
                assert_eq!(decode(&lines).as_deref(), Some(&bytes[..length]), "{length} bytes in lines of {width}");
            }
        }
    }

    #[test]
    fn padding_before_the_end_of_a_long_text_is_refused() {
        let mut text = "A".repeat(2 * BLOCK);
        text.replace_range(BLOCK - 2..BLOCK, "==");
        assert_eq!(decode(&text), None);
        text.push('\n');
        assert_eq!(decode(&text), None);
    }
}
