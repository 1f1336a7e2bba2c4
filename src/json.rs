//! JSON text taken from where it lies.

use std::borrow::Cow;
use std::ops::Deref;

use serde::Deserialize;

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
