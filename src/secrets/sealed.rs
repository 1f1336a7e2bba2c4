//! The sealed handshake: accepts only bundles that an operator signed for this boot, each once, and none older than the
//! last.

use std::sync::Arc;

use formats::attestation::BundleId;
use formats::refusal::{Refusal, refuse};
use formats::sealed_bundle::{SealedBundle, field};
use formats::signature::VerifyingKey;

use crate::attest::Attestation;

/// Opens the bundles that an operator sealed to this enclave.
pub struct Unsealer {
    attestation: Arc<Attestation>,
    operators: Vec<VerifyingKey>,
}

/// A bundle that came sealed.
pub struct Opened {
    /// The bundle in the clear.
    pub bundle: Vec<u8>,
    id: BundleId,
}

impl Unsealer {
    /// Accepts what these operators sign, for this boot.
    pub fn new(attestation: Arc<Attestation>, operators: Vec<VerifyingKey>) -> Unsealer {
        Unsealer { attestation, operators }
    }

    /// Opens a sealed bundle. The signature is checked first, so that only an operator learns more from an error.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(&self, bytes: &[u8]) -> Result<Opened, Refusal> {
        let sealed = SealedBundle::parse(bytes)?;
        sealed.check_signature(&self.operators)?;
        if sealed.boot_nonce != self.attestation.boot_nonce() {
            return refuse(
                field("boot_nonce"),
                "is from another boot: get a new attestation document and seal the bundle again",
            );
        }
        let last = self.attestation.in_force().counter;
        if sealed.counter <= last {
            return refuse(field("counter"), format!("is not above {last}, the counter of the last bundle in force"));
        }
        let id = sealed.id();
        Ok(Opened { bundle: sealed.open(self.attestation.sealing())?, id })
    }

    /// The bundle has taken effect: from now on none with its counter or a lower one will.
    pub fn took_effect(&self, opened: &Opened) {
        self.attestation.put_in_force(opened.id);
    }
}

#[cfg(test)]
mod tests {
    use formats::digest::Sha256;
    use formats::hpke::PrivateKey;
    use formats::sealed_bundle::{Destination, seal};
    use ring::signature::{Ed25519KeyPair, KeyPair};

    use super::*;

    struct Scene {
        operator: Ed25519KeyPair,
        unsealer: Unsealer,
        to: Destination,
    }

    fn scene() -> Scene {
        let attestation = Arc::new(Attestation::new(None, Sha256::default()).unwrap());
        let operator = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
        let to = Destination { sealing_key: attestation.sealing().public(), boot_nonce: attestation.boot_nonce() };
        let operators = [[9; 32], operator.public_key().as_ref().try_into().unwrap()].map(VerifyingKey::from_bytes);
        Scene { operator, unsealer: Unsealer::new(attestation, operators.into()), to }
    }

    impl Scene {
        fn sealed(&self, counter: u64) -> String {
            seal(b"a bundle", &self.to, counter, &self.operator).unwrap().to_json()
        }

        fn refused(&self, bytes: &str) -> Refusal {
            self.unsealer.open(bytes.as_bytes()).err().expect("a bundle was opened that has to be refused")
        }
    }

    #[test]
    fn a_bundle_takes_effect_once_and_never_after_a_newer_one() {
        let scene = scene();
        let (old, new) = (scene.sealed(7), scene.sealed(8));
        let opened = scene.unsealer.open(new.as_bytes()).unwrap();
        assert!(scene.unsealer.open(old.as_bytes()).is_ok(), "a bundle that did not take effect does not count");
        scene.unsealer.took_effect(&opened);
        for late in [&old, &new] {
            let refusal = scene.refused(late);
            assert!(refusal.field == "sealed_bundle.counter" && refusal.reason.contains("above 8"), "{refusal}");
        }
        assert!(scene.unsealer.open(scene.sealed(9).as_bytes()).is_ok());
    }

    #[test]
    fn a_bundle_for_another_boot_or_from_a_stranger_is_refused() {
        let (this, other) = (scene(), scene());
        assert_eq!(this.refused(&other.sealed(1)).field, "sealed_bundle.boot_nonce");
        let stranger = Scene { operator: Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap(), ..scene() };
        assert_eq!(stranger.refused(&stranger.sealed(1)).field, "sealed_bundle.signature");
        // Sealed to another key, although signed for this boot.
        let key = PrivateKey::new(Box::new([5; 32])).public();
        let elsewhere = Destination { sealing_key: key, ..this.to };
        let sealed = seal(b"b", &elsewhere, 1, &this.operator).unwrap();
        assert_eq!(this.refused(&sealed.to_json()).field, "sealed_bundle.ciphertext");
    }
}
