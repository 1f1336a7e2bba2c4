//! Tells whether a file is the one of before, without keeping that one.
//!
//! A universal hash under a random key does this as surely as SHA-256, and takes a fraction of its time: the tags of
//! AES-256-GCM (NIST SP 800-38D), over pieces that are encrypted for nothing else, each with the tag before it. ring hashes
//! what it encrypts several blocks at once, and associated data a block at a time. Two different files of up to 1 GiB have
//! the same tag with a probability of at most 2^-101, whoever chose them, since nobody but this value knows the key.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey};
use ring::error::Unspecified;
use ring::rand::{SecureRandom, SystemRandom};

/// Bytes that are encrypted at once: few enough for the nearest cache.
const PIECE: usize = 16 << 10;

/// A file's length, and its hash under a key of its own.
pub(crate) struct Fingerprint {
    length: usize,
    key: LessSafeKey,
    tag: [u8; MAX_TAG_LEN],
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({} bytes)", self.length)
    }
}

impl Fingerprint {
    /// The fingerprint of a file.
    ///
    /// # Errors
    /// There are no random numbers.
    pub(crate) fn of(file: &[u8]) -> Result<Box<Fingerprint>, Unspecified> {
        let mut key = [0; 32];
        SystemRandom::new().fill(&mut key)?;
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key)?);
        let tag = tag(&key, file)?;
        Ok(Box::new(Fingerprint { length: file.len(), key, tag }))
    }

    /// Whether it is this file's.
    pub(crate) fn is_of(&self, file: &[u8]) -> bool {
        self.length == file.len() && tag(&self.key, file).is_ok_and(|tag| tag == self.tag)
    }
}

/// The key is used for two files, with the same nonces: nothing of it leaves the process, so no one can learn the key.
fn tag(key: &LessSafeKey, file: &[u8]) -> Result<[u8; MAX_TAG_LEN], Unspecified> {
    let (mut scratch, mut tag) = (vec![0; PIECE.min(file.len())], [0; MAX_TAG_LEN]);
    for (number, piece) in (0u64..).zip(file.chunks(PIECE)) {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&number.to_le_bytes());
        let scratch = &mut scratch[..piece.len()];
        scratch.copy_from_slice(piece);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let of_piece = key.seal_in_place_separate_tag(nonce, Aad::from(tag), scratch)?;
        tag.copy_from_slice(of_piece.as_ref());
    }
    Ok(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_told_from_another_by_any_bit_and_by_its_length() {
        for length in [0, 1, 15, 16, 17, 1000, PIECE - 1, PIECE, PIECE + 1, 100_000] {
            let mut file = vec![7; length];
            let fingerprint = Fingerprint::of(&file).unwrap();
            assert!(fingerprint.is_of(&file), "{length} bytes");
            for at in [0, PIECE - 1, PIECE, length / 2, length.saturating_sub(1)] {
                let Some(byte) = file.get_mut(at) else { continue };
                *byte ^= 0x80;
                assert!(!fingerprint.is_of(&file), "{length} bytes, a bit at {at}");
                file[at] ^= 0x80;
            }
            // GHASH fills up with zeros, and then adds the length.
            file.push(0);
            assert!(!fingerprint.is_of(&file), "{length} bytes and one");
        }
    }

    #[test]
    fn a_file_is_told_from_one_with_the_same_pieces_in_another_order() {
        let [a, b] = [[1; PIECE], [2; PIECE]];
        let fingerprint = Fingerprint::of(&[a, b, a].concat()).unwrap();
        assert!(fingerprint.is_of(&[a, b, a].concat()));
        assert!(!fingerprint.is_of(&[b, a, a].concat()) && !fingerprint.is_of(&[a, a, b].concat()));
    }
}
