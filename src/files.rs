//! Opening an encrypted file.
//!
//! AES-256-GCM in one piece (NIST SP 800-38D): `IV (12 bytes) || ciphertext || tag (16 bytes)`, which is what Zing's
//! clients send and what Tink calls RAW; or the same behind Tink's prefix, `0x01 || key id (4 bytes, big endian)`.

use std::collections::BTreeMap;
use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// Bytes of a key.
pub const KEY_LEN: usize = 32;
/// What the longest format adds to a plaintext, in bytes: Tink's prefix, the IV and the tag.
pub const OVERHEAD: usize = PREFIX_LEN + NONCE_LEN + TAG_LEN;

const TAG_LEN: usize = 16;
/// Length and first byte of Tink's output prefix (tink-crypto, "Wire format").
const PREFIX_LEN: usize = 5;
const PREFIX_VERSION: u8 = 1;

/// One key of FILE_KEYS.
pub struct FileKey {
    key: LessSafeKey,
    binds_file_id: bool,
}

impl FileKey {
    /// A key of 32 bytes. With `binds_file_id`, the file id is the associated data of every file under this key.
    pub fn new(key: &[u8; KEY_LEN], binds_file_id: bool) -> FileKey {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("the length is AES-256's");
        FileKey { key: LessSafeKey::new(key), binds_file_id }
    }
}

/// The keys in force, by key id.
#[derive(Default)]
pub struct FileKeys(BTreeMap<String, FileKey>);

/// Why a file was not opened.
#[derive(Debug, PartialEq, Eq)]
pub enum OpenError {
    /// No key of the given id is known.
    UnknownKey,
    /// No id was given and there are several keys.
    KeyIdNeeded,
    /// Wrong key, length, associated data or tag. Which one is nobody's business.
    Failed,
}

impl fmt::Debug for FileKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileKeys({} keys)", self.0.len())
    }
}

impl FromIterator<(String, FileKey)> for FileKeys {
    fn from_iter<T: IntoIterator<Item = (String, FileKey)>>(keys: T) -> Self {
        FileKeys(keys.into_iter().collect())
    }
}

impl FileKeys {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Opens `file` in place and gives the plaintext.
    ///
    /// A file is taken to have Tink's prefix when it begins with one that names a known key, the asked one if an id
    /// is given. The 12 bytes of a random IV look like that once in 2^40 files.
    ///
    /// # Errors
    /// See [`OpenError`]; the file's bytes are gone then.
    pub fn open(&self, mut file: Vec<u8>, file_id: &str, key_id: Option<&str>) -> Result<Vec<u8>, OpenError> {
        let prefixed = tink_key_id(&file)
            .and_then(|id| self.0.get(&id).map(|key| (id, key)))
            .filter(|(id, _)| key_id.is_none_or(|asked| asked == id));
        let (key, prefix) = match (prefixed, key_id) {
            (Some((_, key)), _) => (key, PREFIX_LEN),
            (None, Some(id)) => (self.0.get(id).ok_or(OpenError::UnknownKey)?, 0),
            (None, None) if self.0.len() > 1 => return Err(OpenError::KeyIdNeeded),
            (None, None) => (self.0.values().next().ok_or(OpenError::UnknownKey)?, 0),
        };
        let sealed = prefix + NONCE_LEN;
        if file.len() < sealed + TAG_LEN {
            return Err(OpenError::Failed);
        }
        let nonce = Nonce::try_assume_unique_for_key(&file[prefix..sealed]).map_err(|_| OpenError::Failed)?;
        let aad = Aad::from(if key.binds_file_id { file_id.as_bytes() } else { b"" });
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

    fn sealed(key: &[u8; KEY_LEN], iv: [u8; NONCE_LEN], aad: &[u8], prefix: &[u8]) -> Vec<u8> {
        let mut body = PLAIN.to_vec();
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::from(aad), &mut body).unwrap();
        [prefix, &iv, &body].concat()
    }

    fn keys(entries: &[(&str, u8, bool)]) -> FileKeys {
        entries.iter().map(|&(id, byte, aad)| (id.to_owned(), FileKey::new(&[byte; KEY_LEN], aad))).collect()
    }

    #[test]
    fn a_file_opens_in_both_formats() {
        let keys = keys(&[("7", 7, false), ("other", 8, false)]);
        let raw = sealed(&[7; 32], [9; 12], b"", b"");
        assert_eq!(keys.open(raw.clone(), "f", Some("7")).unwrap(), PLAIN);
        assert_eq!(keys.open(raw, "f", None).unwrap_err(), OpenError::KeyIdNeeded);
        let tink = sealed(&[7; 32], [9; 12], b"", &[1, 0, 0, 0, 7]);
        assert_eq!(keys.open(tink.clone(), "f", Some("7")).unwrap(), PLAIN);
        assert_eq!(keys.open(tink.clone(), "f", None).unwrap(), PLAIN);
        assert_eq!(keys.open(tink, "f", Some("other")).unwrap_err(), OpenError::Failed);
    }

    #[test]
    fn an_iv_that_begins_like_the_prefix_of_an_unknown_key_is_an_iv() {
        let iv = [1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        let file = sealed(&[7; 32], iv, b"", b"");
        assert_eq!(keys(&[("7", 7, false)]).open(file, "f", None).unwrap(), PLAIN);
    }

    #[test]
    fn a_key_bound_to_the_file_id_opens_that_file_only() {
        let keys = keys(&[("k", 7, true)]);
        let file = sealed(&[7; 32], [9; 12], b"file-1", b"");
        assert_eq!(keys.open(file.clone(), "file-1", None).unwrap(), PLAIN);
        assert_eq!(keys.open(file, "file-2", None).unwrap_err(), OpenError::Failed);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused_alike() {
        let keys = keys(&[("7", 7, false)]);
        for prefix in [&b""[..], &[1, 0, 0, 0, 7]] {
            let file = sealed(&[7; 32], [9; 12], b"", prefix);
            for bit in prefix.len() * 8..file.len() * 8 {
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
    fn an_unknown_id_is_told_apart_from_a_bad_file() {
        assert_eq!(keys(&[("7", 7, false)]).open(vec![0; 99], "f", Some("8")).unwrap_err(), OpenError::UnknownKey);
        assert_eq!(FileKeys::default().open(vec![0; 99], "f", None).unwrap_err(), OpenError::UnknownKey);
    }

    #[test]
    fn the_empty_file_opens() {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap());
        let mut tag = Vec::new();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key([0; 12]), Aad::empty(), &mut tag).unwrap();
        let file = [&[0; 12][..], &tag].concat();
        assert_eq!(keys(&[("7", 7, false)]).open(file, "f", None).unwrap(), b"");
    }
}
