//! Base64 as people and programs write it (RFC 4648, section 4): on one line or on many, with padding or without.
//! `base64` and PEM break lines; JavaScript and JWK libraries leave out the padding.
//!
//! Tokens and the members of JWKs are base64url (RFC 7515, section 2), which allows neither and is not read here.

use std::ops::Range;

use base64_simd::{AsOut, STANDARD, STANDARD_NO_PAD};

/// Characters that stand for `n` bytes, with padding.
pub fn encoded_len(n: usize) -> usize {
    n.div_ceil(3).saturating_mul(4)
}

/// Base64 in one line, with padding.
pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode_to_string(bytes)
}

/// The same, written to the beginning of `out`. Gives its length, [`encoded_len`].
///
/// # Panics
/// `out` is too short for it.
pub fn encode_into(bytes: &[u8], out: &mut [u8]) -> usize {
    STANDARD.encode(bytes, out.as_out()).len()
}

/// What this text stands for. Spaces, tabs and line ends may be anywhere in it. `None` if anything else in it is not
/// base64, or if its trailing bits are not zero (RFC 4648, 3.5).
pub fn decode(text: &str) -> Option<Vec<u8>> {
    decode_in_place(text.as_bytes().to_vec())
}

/// The same, in the buffer that holds the text.
pub fn decode_in_place(text: Vec<u8>) -> Option<Vec<u8>> {
    let all = 0..text.len();
    decode_to_front(text, all).or_else(|text| decode_lines(text).ok_or(())).ok()
}

/// What the text at `place` stands for, at the beginning of the buffer that holds the text and then nothing else.
///
/// # Errors
/// The text is not base64 in one line, with padding: the buffer as it was.
pub fn decode_to_front(mut buffer: Vec<u8>, place: Range<usize>) -> Result<Vec<u8>, Vec<u8>> {
    if STANDARD.check(&buffer[place.clone()]).is_err() {
        return Err(buffer);
    }
    // The output may overlap its input, so each block is copied first: to the heap, which is wiped when it is freed.
    let mut block = vec![0; BLOCK.min(place.len())];
    let (mut read, mut written) = (place.start, 0);
    while read < place.end {
        let n = block.len().min(place.end - read);
        block[..n].copy_from_slice(&buffer[read..read + n]);
        let decoded = STANDARD.decode(&block[..n], buffer[written..].as_out()).expect("it was checked");
        (read, written) = (read + n, written + decoded.len());
    }
    buffer.truncate(written);
    Ok(buffer)
}

/// Characters that are decoded at once by [`decode_to_front`]: few enough to stay in the processor's first cache. A
/// multiple of four.
const BLOCK: usize = 16 << 10;

/// What a text in lines stands for, or one without padding.
fn decode_lines(mut text: Vec<u8>) -> Option<Vec<u8>> {
    text.retain(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n'));
    let padding = text.iter().rev().take_while(|b| **b == b'=').count();
    text.truncate(text.len() - padding);
    let most = if text.len() % 4 < 2 { 0 } else { 4 - text.len() % 4 };
    if padding > most {
        return None;
    }
    let length = STANDARD_NO_PAD.decode_inplace(&mut text).ok()?.len();
    text.truncate(length);
    Some(text)
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
