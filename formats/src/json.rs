//! JSON objects and strings, read without copying where possible, and strings written piece by piece.

use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, Range};

use memchr::{memchr, memchr2};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::base64;

/// Why bytes are not the expected JSON. Contains nothing of the bytes.
#[derive(Debug)]
pub enum JsonError {
    /// The first byte that is not UTF-8 (RFC 8259, 8.1), counted from 1.
    NotUtf8(usize),
    /// They begin with UTF-16's byte order mark, which PowerShell 5 writes into redirected files.
    Utf16,
    /// The JSON is not an object.
    NotAnObject,
    /// It is not JSON, or not of the expected form; only the place is shown.
    Json(serde_json::Error),
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JsonError::NotUtf8(n) => write!(f, "is not UTF-8 at byte {n}"),
            JsonError::Utf16 => f.write_str("is UTF-16, not UTF-8"),
            JsonError::NotAnObject => f.write_str("is not a JSON object"),
            JsonError::Json(e) => write!(f, "is not the expected JSON at line {} column {}", e.line(), e.column()),
        }
    }
}

/// Parses an object. All of it must be UTF-8, including unknown members; a leading byte order mark is skipped.
///
/// # Errors
/// The bytes are not UTF-8, not an object (serde would also accept an array of the members' values), or not a `T`.
pub fn object<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, JsonError> {
    match text(bytes)? {
        text if text.trim_ascii_start().starts_with('{') => serde_json::from_str(text).map_err(JsonError::Json),
        _ => Err(JsonError::NotAnObject),
    }
}

/// JSON as text. Programs on Windows put a byte order mark in front, which a reader may ignore (RFC 8259, 8.1).
///
/// # Errors
/// The bytes are not UTF-8.
pub fn text(bytes: &[u8]) -> Result<&str, JsonError> {
    let text = str::from_utf8(bytes).map_err(|e| match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => JsonError::Utf16,
        _ => JsonError::NotUtf8(e.valid_up_to() + 1),
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// A JSON string: borrowed from its document if it has no escapes, else in a buffer that is allocated once. It may be a
/// whole file, and serde_json would undo the escapes in a buffer that grows to twice its size, and then copy that.
#[derive(Debug)]
pub struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = <&RawValue>::deserialize(deserializer)?;
        if value.get().len() > LONGEST_COPY && value.get().contains('\\') {
            return Err(D::Error::custom("too long"));
        }
        string(value).map(Text).ok_or_else(|| D::Error::custom("not a string"))
    }
}

/// Longest string with escapes that [`Text`] copies, in bytes.
const LONGEST_COPY: usize = 64 << 10;

/// Bytes of a document besides those of its largest string that is a value. Few of them mean that reading the document
/// takes little memory beyond its own: serde_json copies names with escapes, and notes each level of nesting.
pub fn beside_largest_value(document: &[u8]) -> usize {
    let (mut largest, mut rest) = (0, document);
    while let Some(start) = memchr(b'"', rest) {
        rest = &rest[start + 1..];
        let mut end = 0;
        loop {
            match memchr2(b'"', b'\\', rest.get(end..).unwrap_or_default()) {
                Some(n) if rest[end + n] == b'"' => {
                    end += n;
                    break;
                }
                // The backslash and what it stands before.
                Some(n) => end += n + 2,
                None => return document.len() - largest,
            }
        }
        let after = &rest[end + 1..];
        if after.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b':') {
            largest = largest.max(end);
        }
        rest = after;
    }
    document.len() - largest
}

/// A JSON string that may be a whole file: only its place, so that [`into_text`] can turn the document's own buffer into
/// its text.
#[derive(Clone, Copy, Debug)]
pub struct LargeText<'a>(&'a str);

impl<'de: 'a, 'a> Deserialize<'de> for LargeText<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = <&RawValue>::deserialize(deserializer)?;
        between_quotes(value).map(LargeText).ok_or_else(|| D::Error::custom("not a string"))
    }
}

impl LargeText<'_> {
    /// The place of the text in the document that it was read from: between its quotes, with its escapes.
    pub fn place(self, document: &[u8]) -> Range<usize> {
        let start = self.0.as_ptr().addr() - document.as_ptr().addr();
        start..start + self.0.len()
    }
}

/// Turns a document into the text at `place`, with its escapes undone, in the document's own buffer. `None` if half a
/// surrogate pair stands alone in it.
pub fn into_text(mut document: Vec<u8>, place: Range<usize>) -> Option<Vec<u8>> {
    document.truncate(place.end);
    document.drain(..place.start);
    unescape(&mut document)?;
    Some(document)
}

/// Turns a document into what the base64 at `place` stands for, in the document's own buffer. `None` if it is not base64
/// (see [`base64::decode`]).
pub fn into_bytes(document: Vec<u8>, place: Range<usize>) -> Option<Vec<u8>> {
    base64::decode_to_front(document, place.clone())
        .or_else(|document| into_text(document, place).and_then(base64::decode_in_place).ok_or(()))
        .ok()
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// The text of a JSON string; `None` if the value is something else.
pub fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    // Without escapes there is nothing to undo or to copy.
    match between_quotes(value)? {
        plain if !plain.contains('\\') => Some(Cow::Borrowed(plain)),
        escaped => {
            let mut text = escaped.as_bytes().to_vec();
            unescape(&mut text)?;
            String::from_utf8(text).ok().map(Cow::Owned)
        }
    }
}

fn between_quotes(value: &RawValue) -> Option<&str> {
    value.get().strip_prefix('"')?.strip_suffix('"')
}

/// Length of the longest escape, a surrogate pair.
const LONGEST_ESCAPE: usize = r"\ud83d\ude00".len();

/// Undoes the escapes of RFC 8259, section 7, in a text that is UTF-8. What an escape stands for is never longer than
/// the escape. `None` if half a surrogate pair stands alone.
fn unescape(text: &mut Vec<u8>) -> Option<()> {
    if !text.contains(&b'\\') {
        return Some(());
    }
    let (mut read, mut written) = (0, 0);
    while read < text.len() {
        let rest = &text[read..];
        let plain = memchr(b'\\', rest).unwrap_or(rest.len());
        text.copy_within(read..read + plain, written);
        (read, written) = (read + plain, written + plain);
        if read == text.len() {
            break;
        }
        let window = &text[read + 1..text.len().min(read + LONGEST_ESCAPE)];
        // It may end within a character; an escape is ASCII.
        let escape = str::from_utf8(window).or_else(|e| str::from_utf8(&window[..e.valid_up_to()])).ok()?;
        let (character, length) = escaped(escape)?;
        written += character.encode_utf8(&mut text[written..]).len();
        read += 1 + length;
    }
    text.truncate(written);
    Some(())
}

/// The character that an escape stands for, and the escape's length without its backslash.
fn escaped(escape: &str) -> Option<(char, usize)> {
    let unit = |at: usize| u16::from_str_radix(escape.get(at..at + 4)?, 16).ok();
    let character = match escape.as_bytes().first()? {
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => {
            let first = unit(1)?;
            let Some(character) = char::from_u32(first.into()) else {
                let second = escape.get(5..7).filter(|next| *next == "\\u").and_then(|_| unit(7))?;
                return Some((char::decode_utf16([first, second]).next()?.ok()?, 11));
            };
            return Some((character, 5));
        }
        other @ (b'"' | b'\\' | b'/') => char::from(*other),
        _ => return None,
    };
    Some((character, 1))
}

/// Length of a text between a JSON string's quotes, as [`escape`] writes it.
pub fn escaped_len(text: &[u8]) -> usize {
    // Of so few bytes the sum of what they are longer by fits into a byte, which lets the compiler add up many at once.
    const BLOCK: usize = 32;
    let longer_by = |b: &u8| match *b {
        b'"' | b'\\' | 0x08..=0x0a | 0x0c | 0x0d => 1,
        0..0x20 => 5,
        _ => 0,
    };
    text.len() + text.chunks(BLOCK).map(|block| usize::from(block.iter().map(longer_by).sum::<u8>())).sum::<usize>()
}

/// Length of the longest escape that [`escape`] writes.
pub const ESCAPE_LEN: usize = r"\u001f".len();

/// Writes as much of a text as fits into `out`, as it stands between a JSON string's quotes. Returns the number of bytes
/// read, which is at least one if `out` has room for [`ESCAPE_LEN`], and the number of bytes written.
pub fn escape(text: &[u8], out: &mut [u8]) -> (usize, usize) {
    let (mut read, mut written) = (0, 0);
    loop {
        let most = (text.len() - read).min(out.len() - written);
        let rest = &text[read..read + most];
        let plain = plain_len(rest);
        out[written..written + plain].copy_from_slice(&rest[..plain]);
        (read, written) = (read + plain, written + plain);
        let (Some(byte), Some(room)) = (text.get(read), out.get_mut(written..written + ESCAPE_LEN)) else {
            return (read, written);
        };
        let Some(letter) = escape_of(*byte) else { return (read, written) };
        let hex = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
        room.copy_from_slice(&[b'\\', letter, b'0', b'0', hex(byte >> 4), hex(byte & 15)]);
        (read, written) = (read + 1, written + if letter == b'u' { ESCAPE_LEN } else { 2 });
    }
}

/// Bytes before the first one that has to be escaped.
fn plain_len(text: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGHS: u64 = ONES << 7;
    let mut words = text.chunks_exact(8);
    for (i, word) in words.by_ref().enumerate() {
        let word = u64::from_le_bytes(word.try_into().expect("it has eight bytes"));
        // Sets the high bit of each byte that is less than `n`. A borrow can set a wrong one, but only in a byte after
        // the first right one.
        let less = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word;
        let equal = |word: u64, byte: u8| less(word ^ (ONES * u64::from(byte)), 1);
        let found = less(word, 0x20) | equal(word, b'"') | equal(word, b'\\');
        if found & HIGHS != 0 {
            return 8 * i + (found & HIGHS).trailing_zeros() as usize / 8;
        }
    }
    let rest = words.remainder();
    text.len() - rest.len() + rest.iter().position(|b| escape_of(*b).is_some()).unwrap_or(rest.len())
}

/// The letter after the backslash in the escape of a byte that must not stand in a JSON string (RFC 8259, section 7);
/// `u` if it has no letter of its own.
fn escape_of(byte: u8) -> Option<u8> {
    match byte {
        b'"' | b'\\' => Some(byte),
        0x08 => Some(b'b'),
        0x0c => Some(b'f'),
        b'\n' => Some(b'n'),
        b'\r' => Some(b'r'),
        b'\t' => Some(b't'),
        0..0x20 => Some(b'u'),
        _ => None,
    }
}

/// For optional members where `null` is an error and not an absence: a restriction must not vanish because an issuer's
/// variable was empty. Goes with serde's `default`.
///
/// # Errors
/// The value does not have this type, as `null` rarely does.
pub fn deny_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Document<'a> {
        #[serde(borrow)]
        plain: Option<Text<'a>>,
        #[serde(borrow)]
        escaped: Option<Text<'a>>,
    }

    #[test]
    fn a_text_without_escapes_is_not_copied() {
        let document: Document = serde_json::from_str(r#"{"plain":"a","escaped":"\n"}"#).unwrap();
        assert!(matches!(document.plain, Some(Text(Cow::Borrowed("a")))));
        assert_eq!(&*document.escaped.unwrap(), "\n");
    }

    #[test]
    fn an_object_is_read_with_and_without_a_byte_order_mark() {
        for text in ["{\"plain\":\"a\"}", "\u{feff}{\"plain\":\"a\"}", "\u{feff} \r\n\t{\"plain\":\"a\",\"new\":[{}]} "]
        {
            let document: Document = object(text.as_bytes()).unwrap();
            assert_eq!(&*document.plain.unwrap(), "a");
        }
    }

    #[test]
    fn what_is_not_an_object_or_not_utf_8_is_refused_without_quoting_it() {
        for (bytes, message) in [
            (&b"[\"secret\",null]"[..], "is not a JSON object"),
            (b"\"secret\"", "is not a JSON object"),
            (b"null", "is not a JSON object"),
            (b"", "is not a JSON object"),
            (b"{\"plain\":7}", "is not the expected JSON at line 1 column 11"),
            (b"{\"plain\":\"secret", "is not the expected JSON at line 1 column 16"),
            (b"{} secret", "is not the expected JSON at line 1 column 4"),
            // Also in members that serde_json would skip.
            (b"{\"new\":\"\xff\"}", "is not UTF-8 at byte 9"),
            (b"{\"new\":{\"\xed\xa0\x80\":1}}", "is not UTF-8 at byte 10"),
            (b"\xff\xfe{\0}\0", "is UTF-16, not UTF-8"),
            (b"\xfe\xff\0{\0}", "is UTF-16, not UTF-8"),
            (b"\xff{}", "is not UTF-8 at byte 1"),
            // Only one mark, and only before the object.
            (b"\xef\xbb\xbf\xef\xbb\xbf{}", "is not a JSON object"),
            (b"{}\xef\xbb\xbf", "is not the expected JSON at line 1 column 3"),
        ] {
            let told = object::<Document>(bytes).unwrap_err().to_string();
            assert_eq!(told, message, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_text_with_escapes_takes_no_more_than_it_has_in_its_document() {
        let document = format!("\"{}\"", "0123456789abcdef\\/".repeat(3000));
        let Text(Cow::Owned(plain)) = serde_json::from_str(&document).unwrap() else { panic!("not copied") };
        assert!(plain.len() == 17 * 3000 && plain.capacity() <= document.len(), "{}", plain.capacity());
    }

    #[test]
    fn escapes_are_undone_as_serde_json_does_it() {
        for text in [
            r#""""#,
            r#""\""#,
            r#""\\n\/\"\b\f\n\r\t""#,
            r#""a\u00e4\u002B\u002f\u0000z""#,
            r#""\ud83d\ude00 and 😀\uD83D\uDE00""#,
            r#""\ud83d""#,
            r#""\ud83d\ud83d""#,
            r#""\ude00\ud83d""#,
            r#""\ud83dx\ude00""#,
            r#""\ud83d\n""#,
            r#""\ud83d\u""#,
            r#""\u12""#,
            r#""\x""#,
        ] {
            let ours = serde_json::from_str::<Text>(text).ok().map(|text| text.0);
            assert_eq!(ours.as_deref(), serde_json::from_str::<String>(text).ok().as_deref(), "{text}");
        }
    }

    #[test]
    fn what_is_beside_the_largest_value_is_counted_also_names_escapes_and_nesting() {
        for (document, beside) in [
            (r#"{"a":"12345","b":"123"}"#, 18),
            (r#"{"a" : "1\"34\\" , "12345678901" : 1}"#, 30),
            (r#"{"a":"12345\"#, 12),
            (r#"["#, 1),
            ("", 0),
            (r#"{"12345\n" :"#, 12),
        ] {
            assert_eq!(beside_largest_value(document.as_bytes()), beside, "{document}");
        }
        assert_eq!(beside_largest_value("[".repeat(9).as_bytes()), 9);
    }

    #[test]
    fn a_long_text_is_not_copied() {
        let long = "a".repeat(LONGEST_COPY);
        assert!(serde_json::from_str::<Text>(&format!("\"{long}\"")).is_ok(), "without escapes it is borrowed");
        assert!(serde_json::from_str::<Text>(&format!("\"\\n{long}\"")).is_err());
    }

    #[test]
    fn a_large_text_is_made_in_the_buffer_of_its_document() {
        #[derive(Deserialize)]
        struct Document<'a> {
            #[serde(borrow)]
            plain: LargeText<'a>,
        }
        let file = r"0123456789abcdef\/\u00e4\ud83d\ude00".repeat(5000);
        for before in ["", "\u{feff} "] {
            let document = format!("{before}{{\"new\":1,\"plain\":\"{file}\",\"escaped\":null}}").into_bytes();
            let buffer = document.as_ptr().addr();
            let place = object::<Document>(&document).unwrap().plain.place(&document);
            let text = into_text(document, place).unwrap();
            assert_eq!(text, "0123456789abcdef/ä😀".repeat(5000).into_bytes());
            assert_eq!(text.as_ptr().addr(), buffer);
        }
        assert!(into_text(br#""\ud83d""#.to_vec(), 1..7).is_none());
        assert!(serde_json::from_str::<LargeText>("7").is_err());
    }

    #[test]
    fn base64_is_decoded_in_the_buffer_of_its_document_also_with_lines_and_escapes() {
        let file: Vec<u8> = (0..100_000_u32).map(|i| (i * 7 % 251) as u8).collect();
        for length in [0, 1, 2, 3, 100, 12_287, 12_288, 12_289, file.len()] {
            let plain = base64::encode(&file[..length]);
            let lines = plain.as_bytes().chunks(76).map(|line| line.escape_ascii().to_string() + "\\r\\n").collect();
            let escaped = plain.replace('/', "\\/");
            for text in [plain.clone(), lines, escaped, plain.trim_end_matches('=').to_owned()] {
                let document = format!("{{\"plain\":\"{text}\",\"encoding\":\"base64\"}}").into_bytes();
                let (buffer, place) = (document.as_ptr().addr(), 10..10 + text.len());
                let bytes = into_bytes(document, place).unwrap();
                assert!(bytes == file[..length], "{length} bytes in {} characters", text.len());
                assert_eq!(bytes.as_ptr().addr(), buffer);
            }
        }
        for wrong in ["Zm9", "Zm9v!", "Zm9v\\ud83d"] {
            assert_eq!(into_bytes(wrong.into(), 0..wrong.len()), None, "{wrong}");
        }
    }

    #[test]
    fn a_text_is_escaped_as_serde_json_does_it_however_small_the_pieces() {
        let text: String = (0..0x80_u8).map(char::from).chain("grün \u{2028} 😀 \"quoted\"".chars()).collect();
        let whole = serde_json::to_string(&text).unwrap();
        assert_eq!(escaped_len(text.as_bytes()) + 2, whole.len());
        for size in [ESCAPE_LEN, 7, 11, 64, 4096] {
            let (mut rest, mut written) = (text.as_bytes(), Vec::new());
            while !rest.is_empty() {
                let mut out = vec![0; size];
                let (read, n) = escape(rest, &mut out);
                assert!(read > 0, "in pieces of {size}");
                written.extend_from_slice(&out[..n]);
                rest = &rest[read..];
            }
            assert_eq!(format!("\"{}\"", String::from_utf8(written).unwrap()), whole, "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_not_a_string_is_refused_where_a_text_is_expected() {
        for value in ["7", "null", "[\"a\"]", "{}", "true", "\"a"] {
            assert!(serde_json::from_str::<Text>(value).is_err(), "{value}");
        }
        assert!(serde_json::from_str::<Document>(r#"{"plain":null}"#).unwrap().plain.is_none());
    }
}
