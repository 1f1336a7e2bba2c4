//! Answers for one user: sealed to the user's key, and signed by the enclave.
//!
//! A sealed answer is `enc (32 bytes) || chunk || chunk …`. Each chunk is 64 KiB of the file; the last one is the rest
//! (empty for an empty file). HPKE ([`crate::hpke`]) seals the chunks in order and adds 16 bytes to each. A chunk's
//! associated data is a byte that is 1 for the last chunk and 0 before, the length of the file id (2 bytes, big
//! endian), the file id, and the user id. So no chunk can be left out, moved, or used for another file.
//!
//! The signature (Ed25519, by the identity key in the attestation document) is over BCS, as Nautilus signs: `intent:
//! u8, timestamp_ms: u64, {sha256: vector<u8>, content_sha256: vector<u8>, file_id: string, user_id: string,
//! watermarked: bool}`. The first hash is that of the bytes that are returned: of a sealed answer as it is, so that a
//! signature reveals nothing about a file to anyone who cannot open it. The second is that of the encrypted file in the
//! request, so that an answer cannot be used for that of another request. The intent is 1 if the answer is sealed, else
//! 0.

use ring::error::Unspecified;

use crate::digest::{Sha256, sha256};
use crate::hpke::{self, HpkeError, KEY_LEN, PrivateKey, PublicKey, Sender, TAG_LEN};

/// Header field of a request on the raw route: the key that the answer is to be sealed to, in base64.
pub const REPLY_KEY: &str = "Teemark-Reply-Key";
/// Header field of a request on the raw route: the nonce, in hex, of the attestation document that is to come with the
/// answer.
pub const ATTEST: &str = "Teemark-Attest";
/// Header field of its answer: how many bytes of the body, in front of the file, are the attestation document. A document
/// has some 5 KB, which is too much for a header field: nginx and HAProxy take 4 and 16 KiB of all of them by default.
pub const ATTESTATION_LENGTH: &str = "Teemark-Attestation-Length";
/// Header field of its answer: whether the file is marked, `true` or `false`.
pub const WATERMARKED: &str = "Teemark-Watermarked";
/// Header field of its answer: whether the body is sealed, `true` or `false`.
pub const SEALED: &str = "Teemark-Sealed";
/// Header field of its answer: when it was signed, in milliseconds since 1970.
pub const TIMESTAMP: &str = "Teemark-Timestamp";
/// Header field of its answer: the signature, in base64.
pub const SIGNATURE: &str = "Teemark-Signature";
/// Header field of its answer: the identity key that signed it, in hex.
pub const IDENTITY: &str = "Teemark-Identity";

/// HPKE's info.
pub const PURPOSE: &[u8] = b"teemark answer v1";
/// Bytes of the file in a chunk.
pub const CHUNK: usize = 64 << 10;
/// What the signature is about: a plain file, or a sealed one.
const INTENT_FILE: u8 = 0;
const INTENT_SEALED_FILE: u8 = 1;

/// The file that an answer is about, and the user who asked for it.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The file's id.
    pub file_id: &'a str,
    /// The user's id, which the mark carries.
    pub user_id: &'a str,
}

/// What the enclave's signature says about an answer.
#[derive(Clone, Copy, Debug)]
pub struct Statement<'a> {
    /// The file and the user.
    pub about: About<'a>,
    /// SHA-256 of the encrypted file in the request.
    pub content_sha256: Sha256,
    /// Whether the watermark service marked the file.
    pub watermarked: bool,
    /// Whether the answer is sealed to the user's key.
    pub sealed: bool,
    /// When it was signed, in milliseconds since 1970.
    pub timestamp_ms: u64,
}

/// Length of the sealed answer for a file of `n` bytes.
pub fn sealed_len(n: usize) -> usize {
    KEY_LEN + n + n.div_ceil(CHUNK).max(1) * TAG_LEN
}

/// Seals a file to `reply_key`, in its own buffer, which grows to [`sealed_len`].
///
/// # Errors
/// The system gave no random numbers.
pub fn seal(file: Vec<u8>, about: About<'_>, reply_key: &PublicKey) -> Result<Vec<u8>, Unspecified> {
    seal_by(hpke::sender(reply_key, PURPOSE)?, file, about).map_err(|_| Unspecified)
}

pub(crate) fn seal_by(
    (enc, mut sender): (PublicKey, Sender),
    mut file: Vec<u8>,
    about: About<'_>,
) -> Result<Vec<u8>, HpkeError> {
    let length = file.len();
    let chunks = length.div_ceil(CHUNK).max(1);
    file.reserve_exact(sealed_len(length) - length);
    file.resize(sealed_len(length), 0);
    // Each chunk moves to its place, the last one first, so that none overwrites another.
    for chunk in (0..chunks).rev() {
        let start = chunk * CHUNK;
        file.copy_within(start..length.min(start + CHUNK), KEY_LEN + chunk * (CHUNK + TAG_LEN));
    }
    let (key, rest) = file.split_at_mut(KEY_LEN);
    key.copy_from_slice(enc.as_ref());
    for (i, sealed) in rest.chunks_mut(CHUNK + TAG_LEN).enumerate() {
        let (chunk, tag) = sealed.split_at_mut(sealed.len() - TAG_LEN);
        tag.copy_from_slice(&sender.seal_in_place(&about.associated(i + 1 == chunks), chunk)?);
    }
    Ok(file)
}

/// Opens a sealed answer: the user's side.
///
/// # Errors
/// It was not sealed to this key for this file and user, or is incomplete or altered.
pub fn open(sealed: &mut [u8], about: About<'_>, key: &PrivateKey) -> Result<Vec<u8>, HpkeError> {
    let (enc, mut rest) = sealed.split_first_chunk_mut::<KEY_LEN>().ok_or(HpkeError)?;
    let enc = PublicKey::from_bytes(*enc).ok_or(HpkeError)?;
    let mut recipient = hpke::recipient(&enc, PURPOSE, key);
    let mut file = Vec::with_capacity(rest.len());
    loop {
        let (chunk, after) = rest.split_at_mut(rest.len().min(CHUNK + TAG_LEN));
        file.extend_from_slice(recipient.open(&about.associated(after.is_empty()), chunk)?);
        if after.is_empty() {
            return Ok(file);
        }
        rest = after;
    }
}

impl About<'_> {
    /// A chunk's associated data.
    pub fn associated(self, last: bool) -> Vec<u8> {
        let length = u16::try_from(self.file_id.len()).unwrap_or(u16::MAX).to_be_bytes();
        [&[u8::from(last)][..], &length, self.file_id.as_bytes(), self.user_id.as_bytes()].concat()
    }
}

impl Statement<'_> {
    /// The bytes that are signed when these bytes are returned.
    pub fn to_bcs(&self, given: &[u8]) -> Vec<u8> {
        self.to_bcs_of(sha256(given))
    }

    /// The same, by the SHA-256 of what is returned.
    pub fn to_bcs_of(&self, given: Sha256) -> Vec<u8> {
        let About { file_id, user_id } = self.about;
        let mut bcs = vec![if self.sealed { INTENT_SEALED_FILE } else { INTENT_FILE }];
        bcs.extend_from_slice(&self.timestamp_ms.to_le_bytes());
        for part in [given.as_ref(), self.content_sha256.as_ref(), file_id.as_bytes(), user_id.as_bytes()] {
            uleb128(part.len(), &mut bcs);
            bcs.extend_from_slice(part);
        }
        bcs.push(u8::from(self.watermarked));
        bcs
    }
}

/// Writes a length as BCS does.
fn uleb128(mut n: usize, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n.to_le_bytes()[0] | 0x80);
        n >>= 7;
    }
    out.push(n.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABOUT: About<'static> = About { file_id: "report-7", user_id: "alice" };

    fn key(byte: u8) -> PrivateKey {
        PrivateKey::new(Box::new([byte; 32]))
    }

    fn sealed(file: &[u8]) -> Vec<u8> {
        seal(file.to_vec(), ABOUT, &key(1).public()).unwrap()
    }

    #[test]
    fn a_file_of_any_length_comes_back_whole() {
        for n in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5] {
            let file: Vec<u8> = (0..n).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
            let mut sealed = sealed(&file);
            assert_eq!(sealed.len(), sealed_len(n));
            assert_eq!(open(&mut sealed, ABOUT, &key(1)).unwrap(), file);
        }
    }

    #[test]
    fn an_answer_that_is_cut_reordered_altered_or_anothers_does_not_open() {
        let whole = sealed(&vec![7; 3 * CHUNK]);
        let opens = |mut sealed: Vec<u8>, about, by| open(&mut sealed, about, &key(by)).is_ok();
        assert!(opens(whole.clone(), ABOUT, 1));
        assert!(!opens(whole.clone(), ABOUT, 3), "another's key");
        assert!(!opens(whole.clone(), About { file_id: "report-8", ..ABOUT }, 1));
        assert!(!opens(whole.clone(), About { user_id: "bob", ..ABOUT }, 1));
        assert!(
            !opens(whole.clone(), About { file_id: "report-7a", user_id: "lice" }, 1),
            "the boundary between the ids"
        );
        let chunk = CHUNK + TAG_LEN;
        for cut in [0, 31, 32, 33, 32 + chunk, 32 + 2 * chunk, whole.len() - 1] {
            assert!(!opens(whole[..cut].to_vec(), ABOUT, 1), "cut at {cut}");
        }
        let mut swapped = whole.clone();
        swapped[32..32 + 2 * chunk].rotate_left(chunk);
        assert!(!opens(swapped, ABOUT, 1));
        for at in [0, 40, 32 + chunk, whole.len() - 1] {
            let mut altered = whole.clone();
            altered[at] ^= 1;
            assert!(!opens(altered, ABOUT, 1), "byte {at}");
        }
    }

    #[test]
    fn the_statement_is_bcs_as_its_own_library_writes_it() {
        #[derive(serde::Serialize)]
        struct Given<'a> {
            sha256: Vec<u8>,
            content_sha256: Vec<u8>,
            file_id: &'a str,
            user_id: &'a str,
            watermarked: bool,
        }
        #[derive(serde::Serialize)]
        struct IntentMessage<'a> {
            intent: u8,
            timestamp_ms: u64,
            data: Given<'a>,
        }
        let file_id = &"f".repeat(200);
        for (sealed, watermarked) in [(false, true), (true, true), (true, false)] {
            let data = Given {
                sha256: sha256(b"bytes").as_ref().to_vec(),
                content_sha256: vec![9; 32],
                file_id,
                user_id: "alice",
                watermarked,
            };
            let message = IntentMessage { intent: sealed.into(), timestamp_ms: 1_764_000_000_123, data };
            let about = About { file_id, user_id: "alice" };
            let timestamp_ms = message.timestamp_ms;
            let statement =
                Statement { about, content_sha256: Sha256::from_bytes([9; 32]), watermarked, sealed, timestamp_ms };
            assert_eq!(statement.to_bcs(b"bytes"), bcs::to_bytes(&message).unwrap());
        }
    }
}
