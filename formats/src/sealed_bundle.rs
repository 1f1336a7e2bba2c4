//! A sealed bundle: whoever relays it can neither read nor alter nor replay it. This is version 1, with one signature;
//! [`v2`] is version 2.
//!
//! `{"sealed_bundle": {"boot_nonce", "counter", "enc", "ciphertext", "signature"}}`. The bundle is sealed by HPKE to
//! the enclave's sealing key, which its attestation document names, and all of it is signed with an operator's key
//! (Ed25519), whose public half is in the image. The boot nonce binds it to this boot. The counter must be above that
//! of the last bundle in force, so that an older bundle cannot replace a newer one.

use ring::error::Unspecified;
use ring::signature::Ed25519KeyPair;
use serde_json::json;

use crate::attestation::{BootNonce, BundleId};
use crate::base64;
use crate::digest::sha256;
use crate::hpke::{self, HpkeError, PrivateKey, PublicKey, Recipient, Sender};
use crate::object::{Keep, Object};
use crate::refusal::{Refusal, WHOLE, refuse};
use crate::signature::VerifyingKey;

pub mod v2;

/// The member that holds a sealed bundle.
pub const SEALED: &str = "sealed_bundle";
const MEMBERS: [&str; 5] = ["boot_nonce", "counter", "enc", "ciphertext", "signature"];
/// HPKE's info, and the prefix of what is signed: neither has a meaning elsewhere.
pub const PURPOSE: &[u8] = b"teemark sealed bundle v1";

/// The enclave that a bundle is for, as its attestation document names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The key that it is sealed to.
    pub sealing_key: PublicKey,
    /// The boot that it is for.
    pub boot_nonce: BootNonce,
}

/// The parts of a sealed bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedBundle {
    /// The boot that it is for.
    pub boot_nonce: BootNonce,
    /// The operator's counter, above that of the last bundle in force.
    pub counter: u64,
    /// HPKE's encapsulated key.
    pub enc: PublicKey,
    /// The sealed bundle.
    pub ciphertext: Vec<u8>,
    /// The operator's signature, 64 bytes, of [`SealedBundle::to_be_signed`].
    pub signature: Vec<u8>,
}

/// Seals a bundle: the operator's side.
///
/// # Errors
/// The system gave no random numbers.
pub fn seal(
    bundle: &[u8],
    to: &Destination,
    counter: u64,
    operator: &Ed25519KeyPair,
) -> Result<SealedBundle, Unspecified> {
    seal_by(hpke::sender(&to.sealing_key, PURPOSE)?, bundle, to, counter, operator).map_err(|_| Unspecified)
}

pub(crate) fn seal_by(
    (enc, mut sender): (PublicKey, Sender),
    bundle: &[u8],
    to: &Destination,
    counter: u64,
    operator: &Ed25519KeyPair,
) -> Result<SealedBundle, HpkeError> {
    let mut ciphertext = bundle.to_vec();
    sender.seal(&associated(&to.boot_nonce, counter), &mut ciphertext, 0)?;
    let mut sealed = SealedBundle { boot_nonce: to.boot_nonce, counter, enc, ciphertext, signature: Vec::new() };
    sealed.signature = operator.sign(&sealed.to_be_signed()).as_ref().to_vec();
    Ok(sealed)
}

/// A bundle's associated data.
pub fn associated(boot_nonce: &BootNonce, counter: u64) -> Vec<u8> {
    [boot_nonce.as_ref(), &counter.to_be_bytes()].concat()
}

impl SealedBundle {
    /// Parses a sealed bundle.
    ///
    /// # Errors
    /// It is not a sealed bundle, or a member is missing or malformed.
    pub fn parse(bytes: &[u8]) -> Result<SealedBundle, Refusal> {
        let object = Object::parse(WHOLE, bytes, Keep::Named(&[SEALED]))?;
        let Some(sealed) = object.get(SEALED) else {
            return refuse(
                WHOLE,
                "is not sealed, but this enclave takes only sealed bundles: use teemark secrets --seal",
            );
        };
        let sealed = Object::parse(SEALED, sealed.get().as_bytes(), Keep::Named(&MEMBERS))?;
        let text = |name| sealed.text(SEALED, name);
        let bytes = |name| base64::decode(&text(name)?).map_or_else(|| refuse(field(name), "is not base64"), Ok);
        let Some(enc) = PublicKey::from_bytes(exactly("enc", bytes("enc")?)?) else {
            return refuse(field("enc"), "is not a usable X25519 public key");
        };
        let boot_nonce = hex::decode(&*text("boot_nonce")?).or_else(|_| refuse(field("boot_nonce"), "is not hex"))?;
        let boot_nonce = BootNonce::from_bytes(exactly("boot_nonce", boot_nonce)?);
        let (ciphertext, signature) = (bytes("ciphertext")?, bytes("signature")?);
        let counter = sealed.get("counter").and_then(|value| value.get().parse().ok());
        let Some(counter) = counter else {
            return refuse(field("counter"), "is not a whole number from 0 to 2^64 - 1");
        };
        Ok(SealedBundle { boot_nonce, counter, enc, ciphertext, signature })
    }

    /// Identifies this bundle.
    pub fn id(&self) -> BundleId {
        BundleId { counter: self.counter, sha256: sha256(&self.ciphertext) }
    }

    /// The bundle as a line of JSON.
    pub fn to_json(&self) -> String {
        let text = json!({SEALED: {
            "boot_nonce": self.boot_nonce,
            "counter": self.counter,
            "enc": base64::encode(self.enc),
            "ciphertext": base64::encode(&self.ciphertext),
            "signature": base64::encode(&self.signature),
        }});
        text.to_string() + "\n"
    }

    /// The bytes that the operator signs. All parts but the last have a fixed length, so no two bundles give the same
    /// bytes.
    pub fn to_be_signed(&self) -> Vec<u8> {
        let counter = self.counter.to_be_bytes();
        [PURPOSE, self.boot_nonce.as_ref(), &counter, self.enc.as_ref(), &self.ciphertext].concat()
    }

    /// Checks that one of these operators signed the bundle, and returns that one.
    ///
    /// # Errors
    /// It is not signed by any of them.
    pub fn check_signature(&self, operators: &[VerifyingKey]) -> Result<VerifyingKey, Refusal> {
        let signed = self.to_be_signed();
        if let Some(operator) = operators.iter().find(|operator| operator.verifies(&signed, &self.signature)) {
            return Ok(*operator);
        }
        refuse(field("signature"), "is not by an operator whose key is in the image (TEEMARK_OPERATOR_KEYS)")
    }

    /// Opens the bundle: the enclave's side.
    ///
    /// # Errors
    /// It was not sealed to this key.
    pub fn open(self, sealing_key: &PrivateKey) -> Result<Vec<u8>, Refusal> {
        let associated = associated(&self.boot_nonce, self.counter);
        let recipient = hpke::recipient(&self.enc, PURPOSE, sealing_key);
        open_ciphertext(recipient, &associated, self.ciphertext, field)
    }
}

/// Opens a bundle in the buffer of its ciphertext; `field` names members as its version does.
fn open_ciphertext(
    mut recipient: Recipient,
    associated: &[u8],
    mut ciphertext: Vec<u8>,
    field: fn(&str) -> String,
) -> Result<Vec<u8>, Refusal> {
    match recipient.open(associated, &mut ciphertext).map(|bundle| bundle.len()) {
        Ok(length) => {
            ciphertext.truncate(length);
            Ok(ciphertext)
        }
        Err(HpkeError) => refuse(field("ciphertext"), "was not sealed to this enclave's sealing key"),
    }
}

/// A member's name as refusals give it.
pub fn field(name: &str) -> String {
    format!("{SEALED}.{name}")
}

fn exactly(name: &str, bytes: Vec<u8>) -> Result<[u8; 32], Refusal> {
    let length = bytes.len();
    bytes.try_into().or_else(|_| refuse(field(name), format!("is {length} bytes long, not 32")))
}

#[cfg(test)]
mod tests {
    use ring::signature::KeyPair;
    use serde_json::Value;

    use super::*;

    fn key(byte: u8) -> PrivateKey {
        PrivateKey::new(Box::new([byte; 32]))
    }

    fn operator() -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap()
    }

    fn sealed() -> SealedBundle {
        let to = Destination { sealing_key: key(5).public(), boot_nonce: BootNonce::from_bytes([3; 32]) };
        seal(b"a bundle", &to, 7, &operator()).unwrap()
    }

    fn open(bytes: &str) -> Result<Vec<u8>, Refusal> {
        let operators = [[9; 32], operator().public_key().as_ref().try_into().unwrap()].map(VerifyingKey::from_bytes);
        let sealed = SealedBundle::parse(bytes.as_bytes())?;
        sealed.check_signature(&operators)?;
        sealed.open(&key(5))
    }

    #[test]
    fn what_an_operator_seals_the_enclave_opens() {
        let sealed = sealed();
        let text = sealed.to_json();
        assert_eq!(open(&text).unwrap(), b"a bundle");
        assert!(!sealed.ciphertext.windows(8).any(|part| part == b"a bundle"));
        assert_eq!(SealedBundle::parse(text.as_bytes()).as_ref(), Ok(&sealed));
        let elsewhere = sealed.open(&key(6)).unwrap_err();
        assert_eq!(elsewhere.field, "sealed_bundle.ciphertext");
    }

    #[test]
    fn each_member_that_is_altered_or_missing_is_refused() {
        let whole: Value = serde_json::from_str(&sealed().to_json()).unwrap();
        for member in MEMBERS {
            let mut missing = whole.clone();
            missing[SEALED].as_object_mut().unwrap().remove(member);
            assert_eq!(open(&missing.to_string()).unwrap_err().field, format!("sealed_bundle.{member}"));
            let mut altered = whole.clone();
            altered[SEALED][member] = match member {
                "counter" => json!(2),
                _ => {
                    let text = altered[SEALED][member].as_str().unwrap();
                    let first = if text.starts_with('0') { "1" } else { "0" };
                    json!(format!("{first}{}", &text[1..]))
                }
            };
            assert_eq!(open(&altered.to_string()).unwrap_err().field, "sealed_bundle.signature", "{member}");
            altered[SEALED][member] = json!([]);
            assert_eq!(open(&altered.to_string()).unwrap_err().field, format!("sealed_bundle.{member}"));
        }
        let mut small = whole.clone();
        small[SEALED]["enc"] = json!(base64::encode([0; 32]));
        assert_eq!(open(&small.to_string()).unwrap_err().field, "sealed_bundle.enc");
        let refusal = open(r#"{"FILE_KEYS": {}}"#).unwrap_err();
        assert!(refusal.field == "bundle" && refusal.reason.contains("--seal"), "{refusal}");
    }
}
