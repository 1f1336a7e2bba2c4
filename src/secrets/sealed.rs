//! The sealed handshake: a bundle that the parent relays and cannot read, alter or send again.
//!
//! `{"sealed_bundle": {"boot_nonce", "counter", "enc", "ciphertext", "signature"}}`. The bundle is sealed by HPKE to
//! the enclave's sealing key, which its attestation document names, and all of it is signed by an operator's key
//! (Ed25519), whose public half stands in the image. The boot nonce ties it to this boot; the counter, which has to be
//! above that of the last bundle in force, keeps an older one from replacing a newer.

use std::sync::Arc;

use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use serde_json::json;

use super::bundle::{Refusal, WHOLE, refuse};
use super::object::{Keep, Object};
use crate::attest::{Attestation, BundleId};
use crate::base64;
use crate::digest::sha256;
use crate::hpke::{self, HpkeError, PrivateKey, PublicKey};

/// The member that holds a sealed bundle.
pub const SEALED: &str = "sealed_bundle";
const MEMBERS: [&str; 5] = ["boot_nonce", "counter", "enc", "ciphertext", "signature"];
/// HPKE's info, and the beginning of what is signed: neither means anything elsewhere.
const PURPOSE: &[u8] = b"teemark sealed bundle v1";

/// The enclave that a bundle is for, as its attestation document names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    pub sealing_key: PublicKey,
    pub boot_nonce: [u8; 32],
}

/// A bundle as it goes out.
pub struct Sealed {
    /// A line of JSON.
    pub text: String,
    pub id: BundleId,
}

/// Seals a bundle: the operator's side. `ephemeral` is a fresh random key.
///
/// # Errors
/// The destination's key is no usable one.
pub fn seal(
    bundle: &[u8],
    to: &Destination,
    counter: u64,
    operator: &Ed25519KeyPair,
    ephemeral: &PrivateKey,
) -> Result<Sealed, HpkeError> {
    let (enc, mut sender) = hpke::sender(&to.sealing_key, PURPOSE, ephemeral)?;
    let mut ciphertext = bundle.to_vec();
    sender.seal(&associated(&to.boot_nonce, counter), &mut ciphertext, 0)?;
    let signature = operator.sign(&to_be_signed(&to.boot_nonce, counter, &enc, &ciphertext));
    let text = json!({SEALED: {
        "boot_nonce": hex::encode(to.boot_nonce),
        "counter": counter,
        "enc": base64::encode(enc),
        "ciphertext": base64::encode(&ciphertext),
        "signature": base64::encode(signature.as_ref()),
    }});
    Ok(Sealed { text: text.to_string() + "\n", id: BundleId { counter, sha256: sha256(&ciphertext) } })
}

fn associated(boot_nonce: &[u8; 32], counter: u64) -> Vec<u8> {
    [&boot_nonce[..], &counter.to_be_bytes()].concat()
}

/// Everything but the last part has a fixed length, so no two bundles give the same bytes.
fn to_be_signed(boot_nonce: &[u8; 32], counter: u64, enc: &PublicKey, ciphertext: &[u8]) -> Vec<u8> {
    [PURPOSE, boot_nonce, &counter.to_be_bytes(), enc, ciphertext].concat()
}

/// The enclave's side.
pub struct Seal {
    attestation: Arc<Attestation>,
    operators: Vec<[u8; 32]>,
}

/// A bundle that came sealed.
pub struct Opened {
    pub bundle: Vec<u8>,
    id: BundleId,
}

impl Seal {
    /// Opens what these operators sign, for this boot.
    pub fn new(attestation: Arc<Attestation>, operators: Vec<[u8; 32]>) -> Seal {
        Seal { attestation, operators }
    }

    /// Opens a sealed bundle. The signature is looked at first, so that nobody but an operator learns more.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(&self, bytes: &[u8]) -> Result<Opened, Refusal> {
        let object = Object::parse(WHOLE, bytes, Keep::Named(&[SEALED]))?;
        let Some(sealed) = object.get(SEALED) else {
            return refuse(WHOLE, "is not sealed, and this enclave takes no other: teemark secrets --seal");
        };
        let sealed = Object::parse(SEALED, sealed.get().as_bytes(), Keep::Named(&MEMBERS))?;
        let text = |name| sealed.text(SEALED, name);
        let bytes = |name| base64::decode(&text(name)?).map_or_else(|| refuse(field(name), "is not base64"), Ok);
        let enc = exactly("enc", bytes("enc")?)?;
        let boot_nonce = hex::decode(&*text("boot_nonce")?).or_else(|_| refuse(field("boot_nonce"), "is not hex"))?;
        let boot_nonce = exactly("boot_nonce", boot_nonce)?;
        let (mut ciphertext, signature) = (bytes("ciphertext")?, bytes("signature")?);
        let counter = sealed.get("counter").and_then(|value| value.get().parse().ok());
        let Some(counter) = counter else {
            return refuse(field("counter"), "is not a whole number from 0 to 2^64 - 1");
        };

        let signed = to_be_signed(&boot_nonce, counter, &enc, &ciphertext);
        let by = |key: &[u8; 32]| UnparsedPublicKey::new(&ED25519, key).verify(&signed, &signature).is_ok();
        if !self.operators.iter().any(by) {
            return refuse(
                field("signature"),
                "is not of an operator whose key is in the image (TEEMARK_OPERATOR_KEYS)",
            );
        }
        if boot_nonce != *self.attestation.boot_nonce() {
            return refuse(field("boot_nonce"), "is of another boot: ask for a new attestation and seal anew");
        }
        let last = self.attestation.in_force().counter;
        if counter <= last {
            return refuse(field("counter"), format!("is not above {last}, that of the last bundle in force"));
        }
        let id = BundleId { counter, sha256: sha256(&ciphertext) };
        let opened = hpke::recipient(&enc, PURPOSE, self.attestation.sealing())
            .and_then(|mut sender| sender.open(&associated(&boot_nonce, counter), &mut ciphertext).map(|b| b.len()));
        match opened {
            Ok(length) => {
                ciphertext.truncate(length);
                Ok(Opened { bundle: ciphertext, id })
            }
            Err(HpkeError) => refuse(field("ciphertext"), "was not sealed to this enclave's sealing key"),
        }
    }

    /// The bundle has taken effect: none of its counter or below will.
    pub fn took_effect(&self, opened: &Opened) {
        self.attestation.put_in_force(opened.id);
    }
}

fn field(name: &str) -> String {
    format!("{SEALED}.{name}")
}

fn exactly(name: &str, bytes: Vec<u8>) -> Result<[u8; 32], Refusal> {
    let length = bytes.len();
    bytes.try_into().or_else(|_| refuse(field(name), format!("is {length} bytes long, not 32")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::TestNsm;
    use ring::signature::KeyPair;
    use serde_json::Value;

    struct Scene {
        operator: Ed25519KeyPair,
        seal: Seal,
        to: Destination,
    }

    fn scene() -> Scene {
        let attestation = Arc::new(Attestation::new(Box::new(TestNsm::default()), [0; 32]).unwrap());
        let operator = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
        let to = Destination { sealing_key: attestation.sealing().public(), boot_nonce: *attestation.boot_nonce() };
        let operators = vec![[9; 32], operator.public_key().as_ref().try_into().unwrap()];
        Scene { operator, seal: Seal::new(attestation, operators), to }
    }

    impl Scene {
        fn sealed(&self, counter: u64) -> String {
            seal(b"a bundle", &self.to, counter, &self.operator, &PrivateKey::new(Box::new([2; 32]))).unwrap().text
        }

        fn refused(&self, bytes: &str) -> Refusal {
            self.seal.open(bytes.as_bytes()).err().expect("a bundle was opened that has to be refused")
        }
    }

    #[test]
    fn what_an_operator_seals_the_enclave_opens() {
        let scene = scene();
        assert_eq!(scene.seal.open(scene.sealed(1).as_bytes()).unwrap().bundle, b"a bundle");
        let sealed: Value = serde_json::from_str(&scene.sealed(1)).unwrap();
        let ciphertext = base64::decode(sealed[SEALED]["ciphertext"].as_str().unwrap()).unwrap();
        assert!(!ciphertext.windows(8).any(|part| part == b"a bundle"));
    }

    #[test]
    fn a_bundle_takes_effect_once_and_an_older_one_not_after_a_newer() {
        let scene = scene();
        let (old, new) = (scene.sealed(7), scene.sealed(8));
        let opened = scene.seal.open(new.as_bytes()).unwrap();
        assert!(scene.seal.open(old.as_bytes()).is_ok(), "one that did not take effect counts for nothing");
        scene.seal.took_effect(&opened);
        for late in [&old, &new] {
            let refusal = scene.refused(late);
            assert!(refusal.field == "sealed_bundle.counter" && refusal.reason.contains("above 8"), "{refusal}");
        }
        assert!(scene.seal.open(scene.sealed(9).as_bytes()).is_ok());
    }

    #[test]
    fn a_bundle_for_another_boot_or_of_a_stranger_is_refused() {
        let (this, other) = (scene(), scene());
        assert_eq!(this.refused(&other.sealed(1)).field, "sealed_bundle.boot_nonce");
        let stranger = Scene { operator: Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap(), ..scene() };
        assert_eq!(stranger.refused(&stranger.sealed(1)).field, "sealed_bundle.signature");
        // Sealed to another key, and signed for this boot all the same.
        let key = PrivateKey::new(Box::new([5; 32])).public();
        let elsewhere = Destination { sealing_key: key, ..this.to };
        let sealed = seal(b"b", &elsewhere, 1, &this.operator, &PrivateKey::new(Box::new([2; 32]))).unwrap();
        assert_eq!(this.refused(&sealed.text).field, "sealed_bundle.ciphertext");
    }

    #[test]
    fn each_member_that_is_altered_or_missing_is_refused() {
        let scene = scene();
        let whole: Value = serde_json::from_str(&scene.sealed(1)).unwrap();
        for member in MEMBERS {
            let mut missing = whole.clone();
            missing[SEALED].as_object_mut().unwrap().remove(member);
            assert_eq!(scene.refused(&missing.to_string()).field, format!("sealed_bundle.{member}"));
            let mut altered = whole.clone();
            altered[SEALED][member] = match member {
                "counter" => json!(2),
                _ => {
                    let text = altered[SEALED][member].as_str().unwrap();
                    let first = if text.starts_with('0') { "1" } else { "0" };
                    json!(format!("{first}{}", &text[1..]))
                }
            };
            assert_eq!(scene.refused(&altered.to_string()).field, "sealed_bundle.signature", "{member}");
            altered[SEALED][member] = json!([]);
            assert_eq!(scene.refused(&altered.to_string()).field, format!("sealed_bundle.{member}"));
        }
        let refusal = scene.refused(r#"{"FILE_KEYS": {}}"#);
        assert!(refusal.field == "bundle" && refusal.reason.contains("--seal"), "{refusal}");
    }
}
