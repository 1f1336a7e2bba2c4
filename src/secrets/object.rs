//! The members of a JSON object, without building what nobody asked for.
//!
//! A JSON value of 1 MiB can become 80 MiB of memory. Here the members that count are kept as the text they are, and
//! the others are read over.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::bundle::{Refusal, refuse};
use crate::json::{Text, string};

/// How many unknown names are remembered, and the longest that is shown, in bytes: a key of 32 bytes in base64, set
/// in the wrong place, is longer.
const NAMES_TOLD: usize = 16;
const NAME_TOLD: usize = 40;

/// The members of an object.
pub struct Object<'a> {
    /// Those that were asked for, in their order; a repeated one counts as it stands last.
    pub known: Vec<(Cow<'a, str>, &'a RawValue)>,
    /// Names of others, made safe to print.
    pub unknown: Vec<String>,
}

/// Which members to keep.
#[derive(Clone, Copy)]
pub enum Keep<'k> {
    Named(&'k [&'k str]),
    /// All, but not more than so many.
    Most(usize),
}

impl<'a> Object<'a> {
    /// Reads an object; `field` is what a refusal names.
    ///
    /// # Errors
    /// It is cut off, not JSON, no object, or has too many members.
    pub fn parse(field: &str, text: &'a [u8], keep: Keep<'_>) -> Result<Object<'a>, Refusal> {
        if !text.trim_ascii_start().starts_with(b"{") {
            // serde_json's own message would quote the value.
            let json = serde_json::from_slice::<IgnoredAny>(text);
            return refuse(field, json.map_or_else(reason, |_| "is not a JSON object".into()));
        }
        let mut json = serde_json::Deserializer::from_slice(text);
        let object = json.deserialize_map(Members { keep }).and_then(|object| json.end().map(|()| object));
        object.or_else(|e| refuse(field, reason(e)))
    }

    /// The text of a member; `field` is the object's own name.
    ///
    /// # Errors
    /// It is missing, or is no string.
    pub fn text(&self, field: &str, name: &str) -> Result<Cow<'a, str>, Refusal> {
        match self.get(name).map(string) {
            Some(Some(text)) => Ok(text),
            Some(None) => refuse(format!("{field}.{name}"), "is not a string"),
            None => refuse(format!("{field}.{name}"), "is missing"),
        }
    }

    /// The value of a member.
    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.known.iter().rev().find(|(n, _)| n == name).map(|(_, value)| *value)
    }
}

/// What is wrong with JSON of any shape: serde_json tells the place and no content then.
fn reason(e: serde_json::Error) -> String {
    match e.is_eof() {
        true => format!("is cut off at line {} column {}", e.line(), e.column()),
        false if e.is_data() => e.to_string(), // what Members said
        false => format!("is not JSON: {e}"),
    }
}

/// A name as it may be printed. A long one may be a key in the wrong place.
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
        let mut object = Object { known: Vec::new(), unknown: Vec::new() };
        while let Some(Text(name)) = map.next_key()? {
            match self.keep {
                Keep::Most(most) if object.known.len() == most => {
                    return Err(serde::de::Error::custom(format_args!("holds more than {most} members")));
                }
                Keep::Named(names) if !names.contains(&&*name) => {
                    map.next_value::<IgnoredAny>()?;
                    if object.unknown.len() < NAMES_TOLD {
                        object.unknown.push(shown(&name));
                    }
                }
                _ => {
                    // A member named a thousand times is kept once.
                    object.known.retain(|(n, _)| matches!(self.keep, Keep::Most(_)) || *n != name);
                    object.known.push((name, map.next_value()?));
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
        assert_eq!((object.known.len(), object.unknown), (2, vec!["x\\n".to_owned()]));
    }

    #[test]
    fn what_is_no_object_is_refused_without_a_word_of_it() {
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
