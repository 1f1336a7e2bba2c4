//! The key file: FILE_KEYS of the bundle, a JSON object of key id -> base64 of 32 bytes, or
//! -> `{"key": base64, "aad": "file_id"}` where the file id is the associated data of every file under that key.
//!
//! No message here repeats a value of the file: only ids and positions.

use std::fmt;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use ring::rand::{SecureRandom, SystemRandom};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeMap};
use serde_json::{Value, json};
use teemarkd::{base64, hpke};

use crate::output;

/// A key's length in bytes: AES-256.
pub const KEY_LENGTH: usize = 32;

/// The one kind of associated data there is.
const BY_FILE_ID: &str = "file_id";

/// Longest key id that the daemon takes, in bytes.
pub const LONGEST_ID: usize = 128;

/// Most bytes of a key file; the daemon takes a bundle of 1 MiB.
const LARGEST: u64 = 1 << 20;

/// A checked AES-256 key.
#[derive(Clone, PartialEq, Eq)]
pub struct FileKey {
    pub bytes: [u8; KEY_LENGTH],
    /// The file id is the associated data.
    pub bound_to_file_id: bool,
}

/// The keys of one key file by id, in the file's order; ids are unique.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyFile(Vec<(String, FileKey)>);

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileKey(…)")
    }
}

impl FileKey {
    /// A new key from the system's random number generator.
    ///
    /// # Errors
    /// The system has no random numbers to give.
    pub fn random(bound_to_file_id: bool) -> Result<FileKey> {
        let mut bytes = [0; KEY_LENGTH];
        fill_random(&mut bytes)?;
        Ok(FileKey { bytes, bound_to_file_id })
    }

    fn from_json(value: &Value) -> std::result::Result<FileKey, &'static str> {
        const FORM: &str = "is neither base64 text nor {\"key\": base64 text, \"aad\": \"file_id\"}";
        let (text, bound_to_file_id) = match value {
            Value::String(text) => (text, false),
            Value::Object(fields) => match (fields.get("key"), fields.get("aad"), fields.len()) {
                (Some(Value::String(text)), Some(Value::String(aad)), 2) if aad == BY_FILE_ID => (text, true),
                (Some(Value::String(text)), None, 1) => (text, false),
                _ => return Err(FORM),
            },
            _ => return Err(FORM),
        };
        let bytes = base64::decode(text).ok_or("is not base64")?;
        let bytes = bytes.try_into().map_err(|_| "is not 32 bytes long, as an AES-256 key is")?;
        Ok(FileKey { bytes, bound_to_file_id })
    }

    fn to_json(&self) -> Value {
        let text = base64::encode(self.bytes);
        if self.bound_to_file_id { json!({"key": text, "aad": BY_FILE_ID}) } else { json!(text) }
    }
}

const NO_RANDOM: &str = "the system gives no random numbers";

/// Fills `bytes` from the system's random number generator.
///
/// # Errors
/// The system has no random numbers to give.
pub fn fill_random(bytes: &mut [u8]) -> Result<()> {
    SystemRandom::new().fill(bytes).map_err(|_| anyhow!(NO_RANDOM))
}

/// A new X25519 key, to seal or to be sealed to once.
///
/// # Errors
/// The system has no random numbers to give.
pub fn fresh_private_key() -> Result<hpke::PrivateKey> {
    hpke::PrivateKey::random().map_err(|_| anyhow!(NO_RANDOM))
}

impl KeyFile {
    /// Reads and checks a key file, and warns on stderr where others can read it too.
    ///
    /// # Errors
    /// It cannot be read, is not of the form above, or names an id twice.
    pub fn read(path: &Path) -> Result<KeyFile> {
        let in_file = || format!("the key file {}", path.display());
        let file = output::open_key(path)?;
        let mut text = Vec::new();
        file.take(LARGEST + 1).read_to_end(&mut text).with_context(in_file)?;
        if text.len() as u64 > LARGEST {
            bail!("{} is larger than 1 MiB", in_file());
        }
        KeyFile::parse(&text).with_context(in_file)
    }

    fn parse(text: &[u8]) -> Result<KeyFile> {
        // Serde's own message may repeat a value.
        let Raw(raw) = serde_json::from_slice(output::without_mark(text))
            .map_err(|e| anyhow!("line {}, column {}: not a JSON object of keys by id", e.line(), e.column()))?;
        let mut keys = KeyFile::default();
        for (id, value) in raw {
            if id.is_empty() || id.len() > LONGEST_ID {
                bail!("{id:?} is no key id of 1 to {LONGEST_ID} bytes");
            }
            let key = FileKey::from_json(&value).map_err(|why| anyhow!("the key with id {id:?} {why}"))?;
            keys.add(id, key)?;
        }
        if keys.0.is_empty() {
            bail!("it holds no key; add one with teemark keygen --add --output");
        }
        Ok(keys)
    }

    /// Adds a key.
    ///
    /// # Errors
    /// The id is there already.
    pub fn add(&mut self, id: String, key: FileKey) -> Result<()> {
        if self.0.iter().any(|(known, _)| *known == id) {
            bail!("there are two keys with id {id:?}; ids must differ");
        }
        self.0.push((id, key));
        Ok(())
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The key with this id, or the only one where no id is given.
    ///
    /// # Errors
    /// There is none, or there are several to choose from; the message names the ids.
    pub fn find(&self, id: Option<&str>) -> Result<(&str, &FileKey)> {
        let known = || self.0.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>().join(", ");
        let found = match (id, self.0.as_slice()) {
            (None, [only]) => Some(only),
            (None, _) => bail!("the key file holds several keys; choose one with --key-id: {}", known()),
            (Some(id), all) => all.iter().find(|(known, _)| known == id),
        };
        let (id, key) = found.with_context(|| format!("the key file has no such key id; it has: {}", known()))?;
        Ok((id, key))
    }
}

impl Serialize for KeyFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (id, key) in &self.0 {
            map.serialize_entry(id, &key.to_json())?;
        }
        map.end()
    }
}

/// The members of a JSON object as they stand: a map type would drop all but the last of one id.
struct Raw(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Raw, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Raw, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Raw(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn both_forms_are_read_and_written_back_in_order() {
        let text = format!(r#"{{"b":"{KEY}","a":{{"aad":"file_id","key":"{KEY}"}}}}"#);
        let keys = KeyFile::parse(text.as_bytes()).unwrap();
        assert_eq!(keys.len(), 2);
        assert_eq!(keys.find(Some("b")).unwrap().1.bytes[31], 31);
        assert!(keys.find(Some("a")).unwrap().1.bound_to_file_id);
        assert_eq!(serde_json::to_string(&keys).unwrap(), text);
    }

    #[test]
    fn base64_is_read_as_the_daemon_reads_it() {
        let key = KeyFile::parse(format!(r#"{{"a":"{}"}}"#, KEY.replace('=', "")).as_bytes()).unwrap();
        let lines = KeyFile::parse(format!(r#"{{"a":"{}\n{}\n"}}"#, &KEY[..20], &KEY[20..]).as_bytes()).unwrap();
        assert_eq!(key, lines);
        let marked = KeyFile::parse(format!("\u{feff}{{\"a\":\"{KEY}\"}}").as_bytes()).unwrap();
        assert_eq!(key, marked, "a byte order mark is skipped");
    }

    #[test]
    fn a_bad_file_is_refused_without_a_word_of_its_content() {
        for text in [
            format!(r#"{{"a":"{KEY}","a":"{KEY}"}}"#),
            format!(r#"{{"a":"{KEY}x"}}"#),
            format!(r#"{{"a":["{KEY}"]}}"#),
            format!(r#"{{"a":{{"aad":"file_id"}},"{KEY}":1}}"#).replace(&KEY[4..], "b"),
            format!(r#"{{"a":{{"key":"{KEY}","more":1}}}}"#),
            format!(r#"{{"a":{{"key":"{KEY}","aad":"user_id"}}}}"#),
            format!(r#"{{"a":{{"key":"{KEY}","aad":"file_id","more":1}}}}"#),
            format!(r#"["{KEY}"]"#),
            format!(r#""{KEY}""#),
            format!(r#"{{"a":"{KEY}""#),
            format!(r#"{{"a":"{}"}}"#, &KEY[4..]),
            "{}".to_owned(),
        ] {
            let error = format!("{:#}", KeyFile::parse(text.as_bytes()).unwrap_err());
            assert!(!error.contains(&KEY[4..12]), "{error}");
        }
    }

    #[test]
    fn a_key_may_be_left_unnamed_only_where_it_is_the_only_one() {
        let one = KeyFile::parse(format!(r#"{{"7":"{KEY}"}}"#).as_bytes()).unwrap();
        assert_eq!(one.find(None).unwrap().0, "7");
        assert!(one.find(Some("8")).unwrap_err().to_string().contains("it has: 7"));
        let two = KeyFile::parse(format!(r#"{{"7":"{KEY}","8":"{KEY}"}}"#).as_bytes()).unwrap();
        assert!(two.find(None).unwrap_err().to_string().contains("7, 8"));
    }

    #[test]
    fn debug_output_does_not_show_the_key() {
        let key = FileKey::random(true).unwrap();
        assert_eq!(format!("{key:?}"), "FileKey(…)");
    }
}
