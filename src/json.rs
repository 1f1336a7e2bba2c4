//! JSON text taken from where it lies.

use std::borrow::Cow;
use std::ops::Deref;

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// A JSON string, borrowed from its document where it has no escapes, else in a buffer that is made once. It may be a
/// whole file, and serde_json would undo the escapes in a buffer that grows to twice its size, and copy that.
pub struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = <&RawValue>::deserialize(deserializer)?;
        string(value).map(Text).ok_or_else(|| D::Error::custom("not a string"))
    }
}

/// What a document that is mostly one [`Text`] comes to hold with that and with what is made of it, a copy or the bytes
/// of its base64.
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

/// The text of a JSON string; `None` where the value is something else.
pub fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    let text = value.get();
    // Without escapes there is nothing to undo, and nothing to copy.
    match text.strip_prefix('"')?.strip_suffix('"')? {
        plain if !plain.contains('\\') => Some(Cow::Borrowed(plain)),
        escaped => unescape(escaped).map(Cow::Owned),
    }
}

/// Undoes the escapes of RFC 8259, section 7; `None` where half a surrogate pair stands alone.
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

/// The character that an escape stands for, and the length of the escape, without its backslash.
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

/// Reads a member that may be left out, but that `null` does not stand for: what only restricts must not be lost in an
/// issuer's empty variable. Goes with serde's `default`.
///
/// # Errors
/// The value is none of this type, as `null` is in most.
pub fn even_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
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
