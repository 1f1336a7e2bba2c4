//! The members of a JSON object, without parsing those that nobody asked for.
//!
//! A JSON value of 1 MiB can become 80 MiB of memory. Here known members are kept as text, and the others are skipped.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::json::{self, Text, string};
use crate::refusal::{Refusal, refuse};

/// How many unknown names are kept, and the longest that is shown, in bytes. A key of 32 bytes in base64 that was put
/// in the wrong place is longer.
const MAX_IGNORED: usize = 16;
const NAME_TOLD: usize = 40;

/// The members of an object.
pub struct Object<'a> {
    /// The members that were asked for, in order. If one is repeated, its last value counts.
    pub known: Vec<(Cow<'a, str>, &'a RawValue)>,
    /// What is ignored, made safe to print: the names of unknown members, and of members that are null.
    pub ignored: Vec<String>,
}

/// Which members to keep.
#[derive(Clone, Copy)]
pub enum Keep<'k> {
    /// Those with these names.
    Named(&'k [&'k str]),
    /// All, up to this many.
    Most(usize),
}

impl<'a> Object<'a> {
    /// Parses an object; `field` is the name that a refusal gives.
    ///
    /// # Errors
    /// The text is cut off, not JSON, not an object, or has too many members.
    pub fn parse(field: &str, bytes: &'a [u8], keep: Keep<'_>) -> Result<Object<'a>, Refusal> {
        let text = json::text(bytes).or_else(|e| refuse(field, e.to_string()))?;
        if !text.trim_ascii_start().starts_with('{') {
            // serde_json's own message would quote the value.
            let json = serde_json::from_str::<IgnoredAny>(text);
            return refuse(field, json.map_or_else(reason, |_| "is not a JSON object".into()));
        }
        let mut json = serde_json::Deserializer::from_str(text);
        let object = json.deserialize_map(Members { keep }).and_then(|object| json.end().map(|()| object));
        object.or_else(|e| refuse(field, reason(e)))
    }

    /// The members that are not null.
    pub fn members(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.known.iter().map(|(name, value)| (&**name, *value)).filter(|(_, value)| !is_null(value))
    }

    /// The ignored members, with the object's own name in front.
    pub fn ignored_in<'o>(&'o self, field: &'o str) -> impl Iterator<Item = String> + 'o {
        self.ignored.iter().map(move |name| format!("{field}.{name}"))
    }

    fn ignore(&mut self, name: String) {
        if self.ignored.len() < MAX_IGNORED {
            self.ignored.push(name);
        }
    }

    /// The text of a member; `field` is the object's own name.
    ///
    /// # Errors
    /// The member is missing, or not a string.
    pub fn text(&self, field: &str, name: &str) -> Result<Cow<'a, str>, Refusal> {
        match self.get(name).map(string) {
            Some(Some(text)) => Ok(text),
            Some(None) => refuse(format!("{field}.{name}"), "is not a string"),
            None => refuse(format!("{field}.{name}"), "is missing"),
        }
    }

    /// The value of a member. Null counts as absent: programs write it for what is not set.
    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.get_including_null(name).filter(|value| !is_null(value))
    }

    /// The value of a member, even if it is null: for members that restrict, which must not vanish because a variable
    /// was empty.
    pub fn get_including_null(&self, name: &str) -> Option<&'a RawValue> {
        self.known.iter().rev().find(|(n, _)| n == name).map(|(_, value)| *value)
    }
}

fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

/// The text of an object that is given as such or as a string. The environment, and key/value secrets of AWS Secrets
/// Manager, hold only strings.
///
/// # Errors
/// It is neither.
pub fn object_text<'a>(field: &str, value: &'a RawValue) -> Result<Cow<'a, str>, Refusal> {
    match string(value) {
        Some(text) => Ok(text),
        None if value.get().starts_with('{') => Ok(Cow::Borrowed(value.get())),
        None => refuse(field, "is neither an object nor a string that holds one"),
    }
}

/// What is wrong with JSON of any shape: then serde_json reports the place, and no content.
fn reason(e: serde_json::Error) -> String {
    match e.is_eof() {
        true => format!("is cut off at line {} column {}", e.line(), e.column()),
        false if e.is_data() => e.to_string(), // from the visitor below
        false => format!("is not JSON: {e}"),
    }
}

/// A name that is safe to print. A long one may be a key in the wrong place, so it is not shown.
pub fn shown(name: &str) -> String {
    match name.len() {
        0..=NAME_TOLD => name.escape_debug().to_string(),
        n => format!("(a name of {n} bytes)"),
    }
}

struct Members<'k> {
    keep: Keep<'k>,
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
        let mut object = Object { known: Vec::new(), ignored: Vec::new() };
        while let Some(Text(name)) = map.next_key()? {
            match self.keep {
                Keep::Most(most) if object.known.len() == most => {
                    return Err(serde::de::Error::custom(format_args!("holds more than {most} members")));
                }
                Keep::Named(names) if !names.contains(&&*name) => {
                    map.next_value::<IgnoredAny>()?;
                    object.ignore(shown(&name));
                }
                _ => {
                    // A member named a thousand times is kept once.
                    if let Keep::Named(_) = self.keep {
                        object.known.retain(|(n, _)| *n != name);
                    }
                    let value = map.next_value()?;
                    if is_null(value) {
                        object.ignore(format!("{} (null)", shown(&name)));
                    }
                    object.known.push((name, value));
                }
            }
        }
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_and_others_named() {
        let text = br#" {"a": [1, {"b": "}"}], "x\n": 1, "c": "t\u0065xt", "a": "last"} "#;
        let object = Object::parse("f", text, Keep::Named(&["a", "c"])).unwrap();
        assert_eq!(object.get("a").map(RawValue::get), Some("\"last\""));
        assert_eq!(string(object.get("c").unwrap()).unwrap(), "text");
        assert_eq!((object.known.len(), object.ignored), (2, vec!["x\\n".to_owned()]));
    }

    #[test]
    fn a_member_that_is_null_counts_as_absent_and_is_named() {
        let object = Object::parse("f", br#"{"a":1,"b":null,"a":null}"#, Keep::Named(&["a", "b"])).unwrap();
        assert!(object.get("a").is_none() && object.get("b").is_none() && object.members().next().is_none());
        assert!(object.get_including_null("a").is_some());
        assert_eq!(object.ignored_in("f").collect::<Vec<_>>(), ["f.b (null)", "f.a (null)"]);
    }

    #[test]
    fn a_byte_order_mark_is_skipped_and_what_is_not_utf_8_is_refused_wherever_it_stands() {
        let object = Object::parse("f", b"\xef\xbb\xbf{\"a\":1}", Keep::Named(&["a"])).unwrap();
        assert!(object.get("a").is_some());
        let refusal = Object::parse("f", b"{\"other\":\"\xff\"}", Keep::Named(&["a"])).err().unwrap();
        assert_eq!(refusal.reason, "is not UTF-8 at byte 11");
    }

    #[test]
    fn what_is_not_an_object_is_refused_without_quoting_it() {
        for text in [
            "\"secret\"",
            "[\"secret\"]",
            "17",
            "{\"secret\"",
            "{\"secret\": }",
            "{} secret",
            "secret",
            "{\"a\":\"secret",
        ] {
            let refusal = Object::parse("f", text.as_bytes(), Keep::Most(9)).err().unwrap();
            assert!(refusal.field == "f" && !refusal.reason.contains("secret"), "{text}: {refusal}");
        }
        let refusal = Object::parse("f", br#"{"a":1,"b":2}"#, Keep::Most(1)).err().unwrap();
        assert!(refusal.reason.contains("more than 1 members"), "{refusal}");
    }

    #[test]
    fn a_key_in_the_place_of_a_name_is_not_shown() {
        assert_eq!(shown("MDEyMzQ1Njc4OWFiY2RlZmdoaWprbG1ub3BxcnN0dXY="), "(a name of 44 bytes)");
        assert_eq!(shown("1879232123"), "1879232123");
    }
}
