//! The key file: FILE_KEYS of the bundle ([`formats::file_keys`]), with unique ids.
//!
//! No message here repeats a value of the file: only ids and positions.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use formats::file_keys::{DeliveredKey, DeliveredKeys, KEY_LEN};
use formats::hpke;
use formats::items::{FILE_KEYS, MAX_BUNDLE_V2};
use ring::rand::{SecureRandom, SystemRandom};
use serde::Serialize;

use crate::output;

/// Largest key file, in bytes: as large as a bundle can be.
const LARGEST: u64 = MAX_BUNDLE_V2 as u64;

/// The keys of one key file by id, in the file's order; ids are unique.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct KeyFile(DeliveredKeys);

/// A new file key from the system's random number generator.
///
/// # Errors
/// The system has no random numbers to give.
pub(crate) fn fresh_file_key(binds_file_id: bool) -> Result<DeliveredKey> {
    let mut bytes = Box::new([0; KEY_LEN]);
    fill_random(&mut *bytes)?;
    Ok(DeliveredKey::new(bytes, binds_file_id))
}

/// The error if the system has no random numbers to give.
pub(crate) const NO_RANDOM: &str = "the system gives no random numbers";

/// Fills `bytes` from the system's random number generator.
///
/// # Errors
/// The system has no random numbers to give.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<()> {
    SystemRandom::new().fill(bytes).map_err(|_| anyhow!(NO_RANDOM))
}

/// A new X25519 key that one answer is to be sealed to.
///
/// # Errors
/// The system has no random numbers to give.
pub(crate) fn fresh_private_key() -> Result<hpke::PrivateKey> {
    hpke::PrivateKey::random().map_err(|_| anyhow!(NO_RANDOM))
}

fn twice(id: &str) -> String {
    format!("there are two keys with id {id:?}; ids must differ")
}

impl KeyFile {
    /// Reads and checks a key file, and warns on stderr if others can read it too.
    ///
    /// # Errors
    /// It cannot be read, does not have the form of FILE_KEYS, or has an id twice.
    pub(crate) fn read(path: &Path) -> Result<KeyFile> {
        let in_file = || format!("the key file {}", path.display());
        let file = output::open_key(path)?;
        let mut text = Vec::new();
        file.take(LARGEST + 1).read_to_end(&mut text).with_context(in_file)?;
        if text.len() as u64 > LARGEST {
            bail!("{} is larger than 16 MiB", in_file());
        }
        KeyFile::parse(&text).with_context(in_file)
    }

    /// Checks the text of a key file.
    ///
    /// # Errors
    /// As [`KeyFile::read`]; no message repeats a key.
    pub(crate) fn parse(text: &[u8]) -> Result<KeyFile> {
        let mut ignored = Vec::new();
        let keys = DeliveredKeys::read(text, &mut ignored).map_err(|refusal| match refusal.field.as_str() {
            FILE_KEYS => anyhow!("it {}", refusal.reason),
            field => {
                anyhow!("the key {} {}", field.trim_start_matches(FILE_KEYS).trim_start_matches('.'), refusal.reason)
            }
        })?;
        // The daemon ignores what it does not know; in a key file that is a mistake.
        if let Some(name) = ignored.first() {
            bail!("{name} has no meaning there");
        }
        let mut known = BTreeSet::new();
        match keys.0.iter().find(|(id, _)| !known.insert(id)) {
            Some((id, _)) => bail!(twice(id)),
            None => Ok(KeyFile(keys)),
        }
    }

    /// Adds a key.
    ///
    /// # Errors
    /// The id is there already.
    pub(crate) fn add(&mut self, id: String, key: DeliveredKey) -> Result<()> {
        if self.0.0.iter().any(|(known, _)| *known == id) {
            bail!(twice(&id));
        }
        self.0.0.push((id, key));
        Ok(())
    }

    /// The keys as a bundle delivers them.
    pub(crate) fn into_keys(self) -> DeliveredKeys {
        self.0
    }

    /// How many keys there are.
    pub(crate) fn len(&self) -> usize {
        self.0.0.len()
    }

    /// The key with this id, or the only one if no id is given.
    ///
    /// # Errors
    /// There is no such key, or no id is given and there are several; the message names the ids.
    pub(crate) fn find(&self, id: Option<&str>) -> Result<(&str, &DeliveredKey)> {
        let known = || self.0.0.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>().join(", ");
        let found = match (id, self.0.0.as_slice()) {
            (None, [only]) => Some(only),
            (None, _) => bail!("the key file holds several keys; choose one with --key-id: {}", known()),
            (Some(id), all) => all.iter().find(|(known, _)| known == id),
        };
        let (id, key) = found.with_context(|| format!("the key file has no such key id; it has: {}", known()))?;
        Ok((id, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

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
}
