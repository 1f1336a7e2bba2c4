//! JSON text taken from where it lies.

use std::borrow::Cow;
use std::ops::Deref;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// A JSON string, borrowed from its document where it has no escapes. serde borrows a bare `Cow`, but copies for an
/// `Option<Cow>`; this it borrows in both.
#[derive(Deserialize)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

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
        _ => serde_json::from_str(text).ok().map(Cow::Owned),
    }
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
}
