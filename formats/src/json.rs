//! JSON objects and strings, read without copying where possible.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

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
        string(value).map(Text).ok_or_else(|| D::Error::custom("not a string"))
    }
}

/// Peak memory for a document that is mostly one [`Text`], with that text and with what is made of it: a copy, or the
/// bytes of its base64.
pub fn cost(document: &[u8]) -> usize {
    let n = document.len();
    let made = if document.contains(&b'\\') { n.saturating_add(n / 4 * 3) } else { n };
    n.saturating_add(made)
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// The text of a JSON string; `None` if the value is something else.
pub fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    let text = value.get();
    // Without escapes there is nothing to undo or to copy.
    match text.strip_prefix('"')?.strip_suffix('"')? {
        plain if !plain.contains('\\') => Some(Cow::Borrowed(plain)),
        escaped => unescape(escaped).map(Cow::Owned),
    }
}

/// Undoes the escapes of RFC 8259, section 7; `None` if half a surrogate pair stands alone.
fn unescape(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, escape)) = rest.split_once('\\') {
        let (character, length) = escaped(escape)?;
        plain.push_str(before);
        plain.push(character);
        rest = &escape[length..];
    }
    plain.push_str(rest);
    Some(plain)
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
        let document = format!("\"{}\"", "0123456789abcdef\\/".repeat(5000));
        let Text(Cow::Owned(plain)) = serde_json::from_str(&document).unwrap() else { panic!("not copied") };
        assert!(plain.len() == 17 * 5000 && plain.capacity() <= document.len(), "{}", plain.capacity());
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
    fn what_is_not_a_string_is_refused_where_a_text_is_expected() {
        for value in ["7", "null", "[\"a\"]", "{}", "true", "\"a"] {
            assert!(serde_json::from_str::<Text>(value).is_err(), "{value}");
        }
        assert!(serde_json::from_str::<Document>(r#"{"plain":null}"#).unwrap().plain.is_none());
    }
}
