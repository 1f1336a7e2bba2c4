//! FILE_KEYS: the keys of encrypted files, as they are delivered and as a key file holds them.
//!
//! A JSON object of key ids. Each key is base64 of 32 bytes, or `{"key": base64, "aad": "file_id"}` if the file id is
//! the associated data of every file under that key. FILE_KEYS_ADD has the same form.

use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;

use crate::base64;
use crate::digest::{Sha256, sha256};
use crate::items::FILE_KEYS;
use crate::json::string;
use crate::object::{Keep, Object, object_text, shown};
use crate::refusal::{Refusal, refuse};

/// Bytes of a key: AES-256.
pub const KEY_LEN: usize = 32;
/// Most keys in FILE_KEYS, and most in force.
pub const MAX_KEYS: usize = 100_000;
/// Memory of a key in force, in bytes, besides its id: the expanded key, the table's entry, and what an allocator adds.
pub const KEY_COST: usize = 832;
/// Longest key id, in bytes.
pub const MAX_KEY_ID: usize = 128;
/// The only kind of associated data.
const BY_FILE_ID: &str = "file_id";

/// The bytes of a key, on the heap, where freed memory is wiped.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyBytes(Box<[u8; KEY_LEN]>);

impl KeyBytes {
    /// Takes the key's bytes, which must be random.
    pub fn new(bytes: Box<[u8; KEY_LEN]>) -> KeyBytes {
        KeyBytes(bytes)
    }

    /// The bytes themselves: copies of them have to stay on the heap.
    pub fn expose(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyBytes(…)")
    }
}

/// A key as it is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveredKey {
    /// The AES-256 key.
    pub bytes: KeyBytes,
    /// Whether the file id is the associated data of every file under this key.
    pub binds_file_id: bool,
}

impl DeliveredKey {
    /// Takes the key's bytes, which must be random.
    pub fn new(bytes: Box<[u8; KEY_LEN]>, binds_file_id: bool) -> DeliveredKey {
        DeliveredKey { bytes: KeyBytes(bytes), binds_file_id }
    }

    /// Identifies the key and its use without revealing it: the SHA-256 of a byte, 1 if the key binds the file id, else 0,
    /// and the key.
    pub fn digest(&self) -> Sha256 {
        // On the heap, where freed memory is wiped.
        let mut bytes = Vec::with_capacity(1 + KEY_LEN);
        bytes.push(u8::from(self.binds_file_id));
        bytes.extend_from_slice(self.bytes.expose());
        sha256(&bytes)
    }
}

/// Keys by id, in the order of the text. A repeated id is kept each time, and the last one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliveredKeys(pub Vec<(String, DeliveredKey)>);

impl DeliveredKeys {
    /// Parses the item of this name; unknown members go to `ignored`.
    ///
    /// # Errors
    /// The first error.
    pub fn parse(name: &str, value: &RawValue, ignored: &mut Vec<String>) -> Result<DeliveredKeys, Refusal> {
        DeliveredKeys::parse_text(name, object_text(name, value)?.as_bytes(), ignored)
    }

    /// Parses the object itself, as a key file holds it.
    ///
    /// # Errors
    /// The first error.
    pub fn read(text: &[u8], ignored: &mut Vec<String>) -> Result<DeliveredKeys, Refusal> {
        DeliveredKeys::parse_text(FILE_KEYS, text, ignored)
    }

    /// About how much memory the keys will take once they are expanded, in bytes.
    pub fn memory(&self) -> usize {
        self.0.iter().map(|(id, _)| KEY_COST + id.len()).sum()
    }

    fn parse_text(name: &str, text: &[u8], ignored: &mut Vec<String>) -> Result<DeliveredKeys, Refusal> {
        let object = Object::parse(name, text, Keep::Most(MAX_KEYS))?;
        ignored.extend(object.ignored_in(name));
        match object.members().next() {
            None => refuse(name, "holds no key"),
            Some(_) => {
                object.members().map(|(id, value)| Ok((id.to_owned(), key(name, id, value, ignored)?))).collect()
            }
        }
    }
}

/// Why keys of a set cannot go or come one by one. An id is made safe to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeError {
    /// A key that is to come has this id, which one in force has.
    Exists(String),
    /// The key of this id is to go, and is not in force.
    Missing(String),
    /// No key would be left.
    Empty,
    /// More than this many would be left.
    TooMany(usize),
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChangeError::Exists(id) => {
                write!(f, "{id:?} is in force already: remove it in the same bundle to replace it")
            }
            ChangeError::Missing(id) => write!(f, "{id:?} is not in force, so it cannot be removed"),
            ChangeError::Empty => f.write_str("no key would be left"),
            ChangeError::TooMany(most) => write!(f, "more than {most} keys would be in force"),
        }
    }
}

impl std::error::Error for ChangeError {}

impl FromIterator<(String, DeliveredKey)> for DeliveredKeys {
    fn from_iter<T: IntoIterator<Item = (String, DeliveredKey)>>(keys: T) -> Self {
        DeliveredKeys(keys.into_iter().collect())
    }
}

fn key(name: &str, id: &str, value: &RawValue, ignored: &mut Vec<String>) -> Result<DeliveredKey, Refusal> {
    let field = format!("{name}.{}", shown(id));
    if id.is_empty() || id.len() > MAX_KEY_ID {
        return refuse(field, format!("is not a key id of 1 to {MAX_KEY_ID} bytes"));
    }
    let object = match value.get().starts_with('{') {
        true => Some(Object::parse(&field, value.get().as_bytes(), Keep::Named(&["key", "aad"]))?),
        false => None,
    };
    let (text, aad) = match &object {
        Some(object) => (object.get("key").and_then(string), object.get_including_null("aad")),
        None => (string(value), None),
    };
    let binds_file_id = match aad.map(string) {
        None => false,
        Some(Some(aad)) if aad == BY_FILE_ID => true,
        Some(_) => return refuse(field, "has an aad other than \"file_id\""),
    };
    let Some(text) = text else { return refuse(field, "is neither base64 nor an object with a string named key") };
    let Some(bytes) = base64::decode(&text) else { return refuse(field, "is not base64") };
    let length = bytes.len();
    let Ok(bytes) = bytes.into_boxed_slice().try_into() else {
        return refuse(field, format!("is {length} bytes long, not {KEY_LEN}"));
    };
    ignored.extend(object.iter().flat_map(|object| object.ignored_in(&field)));
    Ok(DeliveredKey { bytes: KeyBytes(bytes), binds_file_id })
}

impl Serialize for DeliveredKeys {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (id, key) in &self.0 {
            map.serialize_entry(id, key)?;
        }
        map.end()
    }
}

impl Serialize for DeliveredKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = base64::encode(self.bytes.expose());
        if !self.binds_file_id {
            return serializer.serialize_str(&text);
        }
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("aad", BY_FILE_ID)?;
        map.serialize_entry("key", &text)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn both_forms_are_read_and_written_back_in_order() {
        let text = format!(r#"{{"b":"{KEY}","a":{{"aad":"file_id","key":"{KEY}"}}}}"#);
        let mut ignored = Vec::new();
        let keys = DeliveredKeys::read(text.as_bytes(), &mut ignored).unwrap();
        let [(b, bare), (a, bound)] = &keys.0[..] else { panic!("{keys:?}") };
        assert_eq!((b.as_str(), bare.binds_file_id, a.as_str(), bound.binds_file_id), ("b", false, "a", true));
        assert_eq!(bare.bytes.expose()[31], 31);
        assert_eq!((serde_json::to_string(&keys).unwrap(), ignored.len()), (text, 0));
        assert!(!format!("{keys:?}").contains("31"), "{keys:?}");
    }
}
