//! HPKE (RFC 9180): only the holder of a private key can open what is sealed to its public key.
//!
//! Base mode, and one suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. Base mode does not authenticate the
//! sender; where that matters, the sealed bytes are signed.
//!
//! Built from ring, and from x25519-dalek for keys that are used more than once: ring's own X25519 keys can be used only
//! once. The tests use the RFC's own test vectors.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::error::Unspecified;
use ring::hmac::{self, HMAC_SHA256, Tag};
use ring::rand::{SecureRandom, SystemRandom};
use x25519_dalek::{X25519_BASEPOINT_BYTES, x25519};

use crate::base64;

/// Bytes of a private key, a public key and an encapsulated key: Nsk, Npk and Nenc (RFC 9180, 7.1).
pub const KEY_LEN: usize = 32;
/// Bytes that sealing adds to each message (RFC 9180, 7.3).
pub const TAG_LEN: usize = 16;

/// "KEM" and the KEM's number; "HPKE" and the numbers of the three algorithms (RFC 9180, 4.1 and 5.1, 7.1 to 7.3).
const KEM_SUITE: &[u8] = b"KEM\x00\x20";
const SUITE: &[u8] = b"HPKE\x00\x20\x00\x01\x00\x02";
const VERSION: &[u8] = b"HPKE-v1";
const MODE_BASE: &[u8] = &[0];

/// The u-coordinates of all points of small order, and their other encodings below 2^255: 0, 1, two of order 8, and
/// p - 1, p and p + 1 for the prime p = 2^255 - 19 (Bernstein, "Curve25519", 2006, and cr.yp.to/ecdh.html, "How do I
/// validate Curve25519 public keys?").
const SMALL_ORDER: [[u8; KEY_LEN]; 7] = {
    const fn number(first: u8, middle: u8, last: u8) -> [u8; KEY_LEN] {
        let mut bytes = [middle; KEY_LEN];
        (bytes[0], bytes[KEY_LEN - 1]) = (first, last);
        bytes
    }
    [
        number(0, 0, 0),
        number(1, 0, 0),
        *b"\xe0\xeb\x7a\x7c\x3b\x41\xb8\xae\x16\x56\xe3\xfa\xf1\x9f\xc4\x6a\xda\x09\x8d\xeb\x9c\x32\xb1\xfd\x86\x62\x05\x16\x5f\x49\xb8\x00",
        *b"\x5f\x9c\x95\xbc\xa3\x50\x8c\x24\xb1\xd0\xb1\x55\x9c\x83\xef\x5b\x04\x44\x5c\xc4\x58\x1c\x8e\x86\xd8\x22\x4e\xdd\xd0\x9f\x11\x57",
        number(0xec, 0xff, 0x7f),
        number(0xed, 0xff, 0x7f),
        number(0xee, 0xff, 0x7f),
    ]
};

/// A public key of the KEM, which messages can be sealed to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; KEY_LEN]);

/// A private key of the KEM. Any 32 bytes are valid (RFC 7748, 5).
pub struct PrivateKey(Box<[u8; KEY_LEN]>);

impl PrivateKey {
    /// Takes the key's bytes, which must be random.
    pub fn new(bytes: Box<[u8; KEY_LEN]>) -> PrivateKey {
        PrivateKey(bytes)
    }

    /// Makes a new key.
    ///
    /// # Errors
    /// The system gave no random numbers.
    pub fn random() -> Result<PrivateKey, Unspecified> {
        let mut bytes = Box::new([0; KEY_LEN]);
        SystemRandom::new().fill(&mut *bytes)?;
        Ok(PrivateKey(bytes))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519(*self.0, X25519_BASEPOINT_BYTES))
    }

    /// The shared secret with another party's key.
    pub(crate) fn agree(&self, other: &PublicKey) -> Box<[u8; KEY_LEN]> {
        Box::new(x25519(*self.0, other.0))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

impl PublicKey {
    /// Takes the key's bytes; `None` for the few points of small order (RFC 7748, 6.1), which give the all-zero secret
    /// with every private key (RFC 9180, 7.1.4).
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Option<PublicKey> {
        let mut u = bytes;
        // Implementations of X25519 ignore the last bit (RFC 7748, 5).
        u[KEY_LEN - 1] &= 0x7f;
        (!SMALL_ORDER.contains(&u)).then_some(PublicKey(bytes))
    }

    /// Parses base64 of a key.
    pub fn from_base64(text: &str) -> Option<PublicKey> {
        base64::decode(text)?.try_into().ok().and_then(PublicKey::from_bytes)
    }
}

impl AsRef<[u8]> for PublicKey {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", base64::encode(self.0))
    }
}

/// The message was not sealed to this key, was altered, came in another order or has other associated data; or the
/// sequence numbers are used up. The error does not tell which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HpkeError;

impl fmt::Display for HpkeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it was not sealed to this key, or has been altered")
    }
}

impl std::error::Error for HpkeError {}

/// One direction of messages, each sealed under the next sequence number.
struct Context {
    key: LessSafeKey,
    base_nonce: [u8; NONCE_LEN],
    sequence: u64,
}

/// Seals messages to a recipient, in order.
pub struct Sender(Context);

/// Opens a sender's messages, in order.
pub struct Recipient(Context);

/// Begins a sequence of messages to `recipient`, under a fresh random key (RFC 9180, 5.1.1). `info` says what they are
/// for, and must be the same on both sides. Also returns the encapsulated key, which the recipient needs besides the
/// messages.
///
/// # Errors
/// The system gave no random numbers.
pub fn sender(recipient: &PublicKey, info: &[u8]) -> Result<(PublicKey, Sender), Unspecified> {
    let ephemeral = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new())?;
    let enc = PublicKey(ephemeral.compute_public_key()?.as_ref().try_into().map_err(|_| Unspecified)?);
    let recipients = UnparsedPublicKey::new(&X25519, recipient);
    let secret = agree_ephemeral(ephemeral, &recipients, |agreed| {
        let agreed = agreed.try_into().expect("X25519 gives 32 bytes");
        shared_secret(agreed, &enc, recipient)
    })?;
    Ok((enc, Sender(Context::new(&*secret, info))))
}

/// The same under a given key, for test vectors: with a second message of another sequence under the same key, both
/// could be read.
#[cfg(test)]
pub(crate) fn sender_with(recipient: &PublicKey, info: &[u8], ephemeral: &PrivateKey) -> (PublicKey, Sender) {
    let enc = ephemeral.public();
    let secret = shared_secret(&ephemeral.agree(recipient), &enc, recipient);
    (enc, Sender(Context::new(&*secret, info)))
}

/// Begins to open a sequence of messages, with the sender's encapsulated key (RFC 9180, 5.1.1).
pub fn recipient(enc: &PublicKey, info: &[u8], key: &PrivateKey) -> Recipient {
    let secret = shared_secret(&key.agree(enc), enc, &key.public());
    Recipient(Context::new(&*secret, info))
}

impl Sender {
    /// Seals the message that `buffer` holds from `start` on; it grows by [`TAG_LEN`] bytes.
    ///
    /// # Errors
    /// Only after 2^64 messages.
    pub fn seal(&mut self, aad: &[u8], buffer: &mut Vec<u8>, start: usize) -> Result<(), HpkeError> {
        let tag = self.seal_in_place(aad, &mut buffer[start..])?;
        buffer.extend_from_slice(&tag);
        Ok(())
    }

    /// Seals a message in place and returns the tag that belongs behind it.
    ///
    /// # Errors
    /// Never for a message that fits into memory.
    pub fn seal_in_place(&mut self, aad: &[u8], message: &mut [u8]) -> Result<[u8; TAG_LEN], HpkeError> {
        let nonce = self.0.next()?;
        let tag = self.0.key.seal_in_place_separate_tag(nonce, Aad::from(aad), message).map_err(|_| HpkeError)?;
        tag.as_ref().try_into().map_err(|_| HpkeError)
    }
}

impl Recipient {
    /// Opens a message in place and returns the plaintext.
    ///
    /// # Errors
    /// It is not this sender's next message with this associated data.
    pub fn open<'m>(&mut self, aad: &[u8], message: &'m mut [u8]) -> Result<&'m mut [u8], HpkeError> {
        let nonce = self.0.next()?;
        self.0.key.open_in_place(nonce, Aad::from(aad), message).map_err(|_| HpkeError)
    }
}

impl Context {
    fn new(shared_secret: &[u8], info: &[u8]) -> Context {
        let (key, base_nonce) = key_schedule(shared_secret, info);
        let key = UnboundKey::new(&AES_256_GCM, &*key).expect("the length is AES-256's");
        Context { key: LessSafeKey::new(key), base_nonce, sequence: 0 }
    }

    /// The nonce of the next message (RFC 9180, 5.2).
    fn next(&mut self) -> Result<Nonce, HpkeError> {
        let mut nonce = self.base_nonce;
        for (byte, number) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(HpkeError)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// KeySchedule (RFC 9180, 5.1), with the base mode's empty pre-shared key.
pub(crate) fn key_schedule(shared_secret: &[u8], info: &[u8]) -> (Box<[u8; 32]>, [u8; NONCE_LEN]) {
    let psk_id_hash = labeled_extract(b"", SUITE, b"psk_id_hash", b"");
    let info_hash = labeled_extract(b"", SUITE, b"info_hash", info);
    let context: [&[u8]; 3] = [MODE_BASE, psk_id_hash.as_ref(), info_hash.as_ref()];
    let secret = labeled_extract(shared_secret, SUITE, b"secret", b"");
    let key = labeled_expand::<32>(secret.as_ref(), SUITE, b"key", &context);
    let base_nonce = *labeled_expand::<NONCE_LEN>(secret.as_ref(), SUITE, b"base_nonce", &context);
    (key, base_nonce)
}

/// ExtractAndExpand of the KEM (RFC 9180, 4.1).
pub(crate) fn shared_secret(agreed: &[u8; KEY_LEN], enc: &PublicKey, recipient: &PublicKey) -> Box<[u8; 32]> {
    let eae_prk = labeled_extract(b"", KEM_SUITE, b"eae_prk", agreed);
    labeled_expand(eae_prk.as_ref(), KEM_SUITE, b"shared_secret", &[&enc.0, &recipient.0])
}

/// LabeledExtract (RFC 9180, 4): HKDF-Extract is HMAC under the salt (RFC 5869, 2.2).
fn labeled_extract(salt: &[u8], suite: &[u8], label: &[u8], ikm: &[u8]) -> Tag {
    let mut hmac = hmac::Context::with_key(&hmac::Key::new(HMAC_SHA256, salt));
    [VERSION, suite, label, ikm].iter().for_each(|part| hmac.update(part));
    hmac.sign()
}

/// LabeledExpand (RFC 9180, 4) for at most a hash's length: then HKDF-Expand is one HMAC (RFC 5869, 2.3).
fn labeled_expand<const N: usize>(prk: &[u8], suite: &[u8], label: &[u8], info: &[&[u8]]) -> Box<[u8; N]> {
    const { assert!(N <= 32) };
    let mut hmac = hmac::Context::with_key(&hmac::Key::new(HMAC_SHA256, prk));
    let length = u16::try_from(N).expect("at most 32").to_be_bytes();
    [&length, VERSION, suite, label].iter().chain(info).chain([&&[1][..]]).for_each(|part| hmac.update(part));
    let mut out = Box::new([0; N]);
    out.copy_from_slice(&hmac.sign().as_ref()[..N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn vector() -> Value {
        serde_json::from_str(include_str!("../tests/rfc9180.json")).unwrap()
    }

    fn hex(value: &Value) -> Vec<u8> {
        hex::decode(value.as_str().unwrap()).unwrap()
    }

    fn key(value: &Value) -> PrivateKey {
        PrivateKey::new(Box::new(hex(value).try_into().unwrap()))
    }

    #[test]
    fn rfc_9180s_own_vectors_hold() {
        let v = vector();
        let (skr, ske) = (key(&v["skRm"]), key(&v["skEm"]));
        assert_eq!(skr.public().as_ref(), hex(&v["pkRm"]));
        let agreed = ske.agree(&skr.public());
        assert_eq!(shared_secret(&agreed, &ske.public(), &skr.public()).to_vec(), hex(&v["shared_secret"]));

        let (enc, mut sender) = sender_with(&skr.public(), &hex(&v["info"]), &ske);
        assert_eq!((enc.as_ref().to_vec(), sender.0.base_nonce.to_vec()), (hex(&v["enc"]), hex(&v["base_nonce"])));
        let mut recipient = recipient(&enc, &hex(&v["info"]), &skr);
        let mut next = 0;
        for e in v["encryptions"].as_array().unwrap() {
            // The vectors leave out some messages between those that they print.
            for context in [&mut sender.0, &mut recipient.0] {
                (next..e["sequence"].as_u64().unwrap()).for_each(|_| drop(context.next()));
            }
            next = e["sequence"].as_u64().unwrap() + 1;
            let mut message = hex(&e["pt"]);
            sender.seal(&hex(&e["aad"]), &mut message, 0).unwrap();
            assert_eq!(message, hex(&e["ct"]));
            assert_eq!(recipient.open(&hex(&e["aad"]), &mut message).unwrap(), hex(&e["pt"]));
        }
        assert_eq!(next, 257);
    }

    #[test]
    fn what_is_altered_reordered_or_meant_for_another_use_does_not_open() {
        let (skr, ske) = (PrivateKey::new(Box::new([7; 32])), PrivateKey::new(Box::new([9; 32])));
        let sealed = |n: usize| {
            let (_, mut sender) = sender_with(&skr.public(), b"info", &ske);
            let mut messages = vec![b"message".to_vec(); n];
            messages.iter_mut().for_each(|m| sender.seal(b"aad", m, 0).unwrap());
            messages
        };
        let open = |info: &[u8], key: &PrivateKey, aad: &[u8], message: &mut [u8]| {
            recipient(&ske.public(), info, key).open(aad, message).map(|m| m.to_vec())
        };
        assert_eq!(open(b"info", &skr, b"aad", &mut sealed(1)[0]).unwrap(), b"message");
        assert_eq!(open(b"other", &skr, b"aad", &mut sealed(1)[0]), Err(HpkeError));
        assert_eq!(open(b"info", &ske, b"aad", &mut sealed(1)[0]), Err(HpkeError));
        assert_eq!(open(b"info", &skr, b"other", &mut sealed(1)[0]), Err(HpkeError));
        assert_eq!(open(b"info", &skr, b"aad", &mut sealed(2)[1]), Err(HpkeError));
        assert_eq!(open(b"info", &skr, b"aad", &mut [0; 15]), Err(HpkeError));
        for bit in 0..8 * (7 + TAG_LEN) {
            let mut message = sealed(1).remove(0);
            message[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(b"info", &skr, b"aad", &mut message), Err(HpkeError));
        }
    }

    #[test]
    fn a_key_that_gives_everybody_the_same_secret_is_refused() {
        let key = PrivateKey::new(Box::new([9; 32]));
        for point in SMALL_ORDER {
            for bad in [point, {
                let mut other = point;
                other[31] |= 0x80;
                other
            }] {
                assert_eq!(*key.agree(&PublicKey(bad)), [0; 32], "why it is refused");
                assert_eq!(PublicKey::from_bytes(bad), None);
                assert_eq!(PublicKey::from_base64(&base64::encode(bad)), None);
                assert!(sender(&PublicKey(bad), b"info").is_err());
            }
        }
        assert_eq!(PublicKey::from_bytes(key.public().0), Some(key.public()));
    }

    #[test]
    fn a_sender_has_a_key_of_its_own_for_each_sequence() {
        let key = PrivateKey::new(Box::new([7; 32]));
        let sealed = [(); 2].map(|()| {
            let (enc, mut sender) = sender(&key.public(), b"info").unwrap();
            let mut message = b"message".to_vec();
            sender.seal(b"aad", &mut message, 0).unwrap();
            (enc, message)
        });
        assert_ne!(sealed[0], sealed[1]);
        for (enc, mut message) in sealed {
            assert_eq!(recipient(&enc, b"info", &key).open(b"aad", &mut message).unwrap(), b"message");
        }
    }
}
