//! The format of encrypted files.
//!
//! AES-256-GCM in one piece (NIST SP 800-38D): `IV (12 bytes) || ciphertext || tag (16 bytes)`, which is what Zing's
//! clients send and what Tink calls RAW; or the same after Tink's prefix, `0x01 || key id (4 bytes, big endian)`. The
//! associated data is the file id for a key that is bound to it, else empty.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::digest::Sha256;
use crate::file_keys::{ChangeError, DeliveredKey, KEY_COST, MAX_KEYS};
use crate::object::shown;
use crate::state::Item;

pub use ring::aead::NONCE_LEN;

/// What the longest format adds to a plaintext, in bytes: Tink's prefix, the IV and the tag.
pub const OVERHEAD: usize = PREFIX_LEN + NONCE_LEN + TAG_LEN;

/// Length of the tag at a file's end, in bytes.
pub const TAG_LEN: usize = 16;
/// Length and first byte of Tink's output prefix (tink-crypto, "Wire format").
pub const PREFIX_LEN: usize = 5;
const PREFIX_VERSION: u8 = 1;

/// A key of FILE_KEYS, expanded for use. Its bytes are not kept.
pub struct FileKey {
    key: LessSafeKey,
    binds_file_id: bool,
    digest: Sha256,
}

impl From<&DeliveredKey> for FileKey {
    fn from(delivered: &DeliveredKey) -> FileKey {
        let key = UnboundKey::new(&AES_256_GCM, delivered.bytes.expose()).expect("the length is AES-256's");
        FileKey { key: LessSafeKey::new(key), binds_file_id: delivered.binds_file_id, digest: delivered.digest() }
    }
}

impl FileKey {
    /// Encrypts a file in place and appends the tag; [`head`] goes in front of it. `iv` must be random, and used only
    /// once.
    ///
    /// # Errors
    /// The file is longer than AES-GCM takes in one piece, 64 GiB.
    pub fn seal(&self, file: &mut Vec<u8>, file_id: &str, iv: [u8; NONCE_LEN]) -> Result<(), TooLong> {
        let nonce = Nonce::assume_unique_for_key(iv);
        self.key.seal_in_place_append_tag(nonce, self.associated(file_id), file).map_err(|_| TooLong)
    }

    fn associated<'f>(&self, file_id: &'f str) -> Aad<&'f [u8]> {
        Aad::from(if self.binds_file_id { file_id.as_bytes() } else { b"" })
    }
}

/// The file is longer than AES-GCM takes in one piece, 64 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the file is too long for AES-GCM in one piece (64 GiB)")
    }
}

impl std::error::Error for TooLong {}

/// Tink's prefix for files under the key with this id; `None` if the id is not a number that fits, written as Tink
/// writes it: in decimal, without leading zeros.
pub fn tink_prefix(key_id: &str) -> Option<[u8; PREFIX_LEN]> {
    let number = key_id.parse::<u32>().ok().filter(|number| number.to_string() == key_id)?;
    let [a, b, c, d] = number.to_be_bytes();
    Some([PREFIX_VERSION, a, b, c, d])
}

/// What precedes the ciphertext of a file: the prefix, if it has one, and the IV.
pub fn head(prefix: Option<[u8; PREFIX_LEN]>, iv: [u8; NONCE_LEN]) -> Vec<u8> {
    [prefix.as_ref().map_or(&[][..], |prefix| prefix), &iv].concat()
}

/// The keys in force, with unique ids. A set that was changed shares its keys with the one that it was made from.
#[derive(Clone, Default)]
pub struct FileKeys(HashMap<Arc<str>, Arc<FileKey>>);

/// The key that a file is to be opened with.
#[derive(Clone)]
pub struct ChosenKey {
    id: Arc<str>,
    key: Arc<FileKey>,
    /// Length of Tink's prefix, if the file has one.
    prefix: usize,
}

/// Why a file was not opened.
#[derive(Debug, PartialEq, Eq)]
pub enum OpenError {
    /// No key has the given id.
    UnknownKey,
    /// No id was given, and there are several keys.
    KeyIdNeeded,
    /// Wrong key, length, associated data or tag. The error does not tell which.
    Failed,
}

impl fmt::Debug for FileKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileKeys({} keys)", self.0.len())
    }
}

impl FromIterator<(String, FileKey)> for FileKeys {
    fn from_iter<T: IntoIterator<Item = (String, FileKey)>>(keys: T) -> Self {
        FileKeys(keys.into_iter().map(|(id, key)| (id.into(), Arc::new(key))).collect())
    }
}

impl FileKeys {
    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// About how much memory the keys take, in bytes.
    pub fn memory(&self) -> usize {
        self.0.keys().map(|id| KEY_COST + id.len()).sum()
    }

    /// The keys, described without revealing them.
    pub fn describe(&self) -> Item {
        Item::file_keys(self.0.iter().map(|(id, key)| (&**id, &key.digest)))
    }

    /// These keys without the `removed` ones and with the `added` ones, in this order: so one bundle can replace a key.
    ///
    /// # Errors
    /// The first key that cannot go or come.
    pub fn changed(&self, removed: &BTreeSet<String>, added: FileKeys) -> Result<FileKeys, ChangeError> {
        let mut keys = self.0.clone();
        for id in removed {
            keys.remove(&**id).ok_or_else(|| ChangeError::Missing(shown(id)))?;
        }
        for (id, key) in added.0 {
            if let Some(id) = keys.get_key_value(&*id).map(|(id, _)| shown(id)) {
                return Err(ChangeError::Exists(id));
            }
            keys.insert(id, key);
        }
        match keys.len() {
            0 => Err(ChangeError::Empty),
            n if n > MAX_KEYS => Err(ChangeError::TooMany(MAX_KEYS)),
            _ => Ok(FileKeys(keys)),
        }
    }

    /// Chooses the key of a file.
    ///
    /// A file is taken to have Tink's prefix if it begins with one that names a known key: the requested one, if an id
    /// is given. The 12 bytes of a random IV look like that once in 2^40 files.
    ///
    /// # Errors
    /// There is no such key, or none is named and there are several.
    pub fn choose(&self, file: &[u8], key_id: Option<&str>) -> Result<ChosenKey, OpenError> {
        let chosen =
            |(id, key): (&Arc<str>, &Arc<FileKey>), prefix| ChosenKey { id: id.clone(), key: key.clone(), prefix };
        let prefixed = tink_key_id(file).filter(|id| key_id.is_none_or(|asked| asked == id));
        if let Some(found) = prefixed.and_then(|id| self.0.get_key_value(&*id)) {
            return Ok(chosen(found, PREFIX_LEN));
        }
        let found = match key_id {
            Some(id) => self.0.get_key_value(id),
            None if self.0.len() > 1 => return Err(OpenError::KeyIdNeeded),
            None => self.0.iter().next(),
        };
        found.map(|found| chosen(found, 0)).ok_or(OpenError::UnknownKey)
    }

    /// Whether this key is still in force, under its id.
    pub fn still_have(&self, ChosenKey { id, key, .. }: &ChosenKey) -> bool {
        self.0.get(id).is_some_and(|now| Arc::ptr_eq(now, key))
    }

    /// Chooses the key of a file, and opens it.
    ///
    /// # Errors
    /// See [`OpenError`]; the file's bytes are then lost.
    pub fn open(&self, file: Vec<u8>, file_id: &str, key_id: Option<&str>) -> Result<Vec<u8>, OpenError> {
        self.choose(&file, key_id)?.open(file, file_id)
    }
}

impl ChosenKey {
    /// The key's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Decrypts `file` in place and returns the plaintext.
    ///
    /// # Errors
    /// [`OpenError::Failed`]; the file's bytes are then lost.
    pub fn open(&self, mut file: Vec<u8>, file_id: &str) -> Result<Vec<u8>, OpenError> {
        let ChosenKey { key, prefix, .. } = self;
        let sealed = prefix + NONCE_LEN;
        if file.len() < sealed + TAG_LEN {
            return Err(OpenError::Failed);
        }
        let nonce = Nonce::try_assume_unique_for_key(&file[*prefix..sealed]).map_err(|_| OpenError::Failed)?;
        let aad = key.associated(file_id);
        let plain = key.key.open_within(nonce, aad, &mut file, sealed..).map_err(|_| OpenError::Failed)?.len();
        file.truncate(plain);
        Ok(file)
    }
}

/// The key id in Tink's prefix, in decimal as Tink writes it.
fn tink_key_id(file: &[u8]) -> Option<String> {
    match file {
        [PREFIX_VERSION, a, b, c, d, ..] => Some(u32::from_be_bytes([*a, *b, *c, *d]).to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] = b"a file";

    fn key(byte: u8, binds_file_id: bool) -> FileKey {
        FileKey::from(&DeliveredKey::new(Box::new([byte; 32]), binds_file_id))
    }

    /// A file under the key of this byte, bound to its file id unless that is empty.
    fn sealed(byte: u8, iv: [u8; NONCE_LEN], file_id: &str, prefix: Option<&str>) -> Vec<u8> {
        let mut body = PLAIN.to_vec();
        key(byte, !file_id.is_empty()).seal(&mut body, file_id, iv).unwrap();
        [head(prefix.map(|id| tink_prefix(id).unwrap()), iv), body].concat()
    }

    fn keys(entries: &[(&str, u8, bool)]) -> FileKeys {
        entries.iter().map(|&(id, byte, aad)| (id.to_owned(), key(byte, aad))).collect()
    }

    #[test]
    fn tinks_prefix_is_one_byte_of_version_and_the_key_id_big_endian() {
        assert_eq!(tink_prefix("16909060"), Some([1, 1, 2, 3, 4]));
        for bad in ["", "007", "+7", "-1", "4294967296", "contracts"] {
            assert_eq!(tink_prefix(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_file_opens_in_both_formats() {
        let keys = keys(&[("7", 7, false), ("other", 8, false)]);
        let raw = sealed(7, [9; 12], "", None);
        assert_eq!(keys.open(raw.clone(), "f", Some("7")).unwrap(), PLAIN);
        assert_eq!(keys.open(raw, "f", None).unwrap_err(), OpenError::KeyIdNeeded);
        let tink = sealed(7, [9; 12], "", Some("7"));
        assert_eq!(keys.open(tink.clone(), "f", Some("7")).unwrap(), PLAIN);
        assert_eq!(keys.open(tink.clone(), "f", None).unwrap(), PLAIN);
        assert_eq!(keys.open(tink, "f", Some("other")).unwrap_err(), OpenError::Failed);
    }

    #[test]
    fn an_iv_that_begins_like_the_prefix_of_an_unknown_key_is_an_iv() {
        let iv = [1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        let file = sealed(7, iv, "", None);
        assert_eq!(keys(&[("7", 7, false)]).open(file, "f", None).unwrap(), PLAIN);
    }

    #[test]
    fn a_key_bound_to_the_file_id_opens_that_file_only() {
        let keys = keys(&[("k", 7, true)]);
        let file = sealed(7, [9; 12], "file-1", None);
        assert_eq!(keys.open(file.clone(), "file-1", None).unwrap(), PLAIN);
        assert_eq!(keys.open(file, "file-2", None).unwrap_err(), OpenError::Failed);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused_alike() {
        let keys = keys(&[("7", 7, false)]);
        for (prefix, length) in [(None, 0), (Some("7"), PREFIX_LEN)] {
            let file = sealed(7, [9; 12], "", prefix);
            for bit in length * 8..file.len() * 8 {
                let mut bad = file.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(keys.open(bad, "f", None).unwrap_err(), OpenError::Failed);
            }
            for len in 0..file.len() {
                assert_eq!(keys.open(file[..len].to_vec(), "f", None).unwrap_err(), OpenError::Failed);
            }
        }
    }

    #[test]
    fn when_two_keys_have_one_id_only_the_last_counts() {
        let keys = keys(&[("7", 7, false), ("7", 8, false)]);
        assert_eq!(keys.open(sealed(8, [9; 12], "", None), "f", None).unwrap(), PLAIN);
        assert_eq!(keys.open(sealed(7, [9; 12], "", None), "f", Some("7")), Err(OpenError::Failed));
    }

    #[test]
    fn keys_come_and_go_one_by_one() {
        let first = keys(&[("a", 1, false), ("b", 2, false)]);
        let added = || keys(&[("a", 3, false), ("c", 4, false)]);
        let chosen = |keys: &FileKeys, id: &str| keys.choose(&sealed(1, [9; 12], "", None), Some(id)).unwrap();
        let second = first.changed(&["a".to_owned()].into(), added()).unwrap();
        assert_eq!((second.len(), first.len()), (3, 2));
        assert!(second.still_have(&chosen(&first, "b")) && !second.still_have(&chosen(&first, "a")));
        assert_eq!(second.describe(), keys(&[("c", 4, false), ("b", 2, false), ("a", 3, false)]).describe());
        let refused = |removed: &[&str], added: FileKeys| {
            first.changed(&removed.iter().map(|id| (*id).to_owned()).collect(), added).err().unwrap()
        };
        assert_eq!(refused(&[], added()), ChangeError::Exists("a".into()));
        assert_eq!(refused(&["x"], FileKeys::default()), ChangeError::Missing("x".into()));
        assert_eq!(refused(&["a", "b"], FileKeys::default()), ChangeError::Empty);
    }

    #[test]
    fn an_unknown_id_is_told_apart_from_a_bad_file() {
        assert_eq!(keys(&[("7", 7, false)]).open(vec![0; 99], "f", Some("8")).unwrap_err(), OpenError::UnknownKey);
        assert_eq!(FileKeys::default().open(vec![0; 99], "f", None).unwrap_err(), OpenError::UnknownKey);
    }

    #[test]
    fn the_empty_file_opens() {
        let mut tag = Vec::new();
        key(7, false).seal(&mut tag, "f", [0; 12]).unwrap();
        let file = [&[0; 12][..], &tag].concat();
        assert_eq!(keys(&[("7", 7, false)]).open(file, "f", None).unwrap(), b"");
    }
}
