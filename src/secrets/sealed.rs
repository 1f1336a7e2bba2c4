//! The sealed handshake: accepts only bundles that operators signed for this boot, each once, and none older than the
//! last.

use std::sync::Arc;

use formats::attestation::{BootNonce, BundleId};
use formats::digest::Sha256;
use formats::refusal::{Refusal, refuse};
use formats::sealed_bundle::{self, SealedBundle, v2};
use formats::signature::VerifyingKey;

use crate::attest::Attestation;
use crate::settings::Operators;

/// Opens the bundles that operators sealed to this enclave.
pub struct Unsealer {
    attestation: Arc<Attestation>,
    operators: Operators,
}

/// A bundle that came sealed.
pub struct Opened {
    /// The bundle in the clear.
    pub bundle: Vec<u8>,
    /// Identifies it.
    pub id: BundleId,
    /// What it says that it does, in JSON: in version 2.
    pub manifest: Option<Vec<u8>>,
    /// Who signed it.
    pub signers: Vec<VerifyingKey>,
}

/// A sealed bundle, and who signed it.
#[derive(Debug)]
pub struct Signed {
    /// Identifies the bundle.
    pub id: BundleId,
    /// Who signed it.
    pub signers: Vec<VerifyingKey>,
}

impl Signed {
    /// Both, for the audit trail.
    pub fn parts(&self) -> (BundleId, &[VerifyingKey]) {
        (self.id, &self.signers)
    }
}

/// What is known of a bundle by the time that it is refused.
#[derive(Debug, Default)]
pub struct Known {
    /// The operators whose signatures verified, and what they signed.
    pub signed: Option<Signed>,
    /// The names of its items, and the state in force, if it could be opened.
    pub contents: Option<(Vec<&'static str>, Sha256)>,
}

impl Known {
    fn is_signed(&mut self, id: BundleId, signers: &[VerifyingKey]) {
        self.signed = (!signers.is_empty()).then(|| Signed { id, signers: signers.to_vec() });
    }
}

/// The line of a bundle of version 2 whose signatures have been checked: what follows it may be read.
pub struct CheckedLine {
    line: v2::Line,
    signers: Vec<VerifyingKey>,
}

impl CheckedLine {
    /// How many bytes follow.
    pub fn following(&self) -> usize {
        self.line.following()
    }

    /// The bundle, and who signed it.
    pub fn signed(&self) -> Signed {
        Signed { id: self.line.id(), signers: self.signers.clone() }
    }

    /// The bundle's counter.
    pub fn counter(&self) -> u64 {
        self.line.counter
    }
}

impl Unsealer {
    /// Accepts what these operators sign, for this boot.
    pub fn new(attestation: Arc<Attestation>, operators: Operators) -> Unsealer {
        Unsealer { attestation, operators }
    }

    /// Opens a bundle of version 1. The signature is checked first, so that only an operator learns more from an error. Adds to
    /// what is `known`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(&self, bytes: &[u8], known: &mut Known) -> Result<Opened, Refusal> {
        let sealed = SealedBundle::parse(bytes)?;
        let signer = sealed.check_signature(&self.operators.keys)?;
        known.is_signed(sealed.id(), &[signer]);
        if self.operators.threshold > 1 {
            let n = self.operators.threshold;
            return refuse(
                sealed_bundle::field("signature"),
                format!("is one, and {n} are needed (TEEMARK_OPERATOR_THRESHOLD): seal the bundle in version 2"),
            );
        }
        self.is_for_now(sealed.boot_nonce, sealed.counter, sealed_bundle::field)?;
        let id = sealed.id();
        let bundle = sealed.open(self.attestation.sealing())?;
        Ok(Opened { bundle, id, manifest: None, signers: vec![signer] })
    }

    /// Checks the line of a bundle of version 2, the signatures first. Adds to what is `known`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_line(&self, line: &[u8], known: &mut Known) -> Result<CheckedLine, Refusal> {
        let line = v2::Line::parse(line)?;
        let signers = line.signers(&self.operators.keys);
        known.is_signed(line.id(), &signers);
        v2::Line::suffice(&signers, self.operators.threshold)?;
        self.is_for_now(line.boot_nonce, line.counter, v2::field)?;
        Ok(CheckedLine { line, signers })
    }

    /// Opens a bundle of version 2, of which these bytes follow the line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open_v2(&self, CheckedLine { line, signers }: CheckedLine, rest: Vec<u8>) -> Result<Opened, Refusal> {
        // Another bundle may have taken effect while this one came.
        self.is_for_now(line.boot_nonce, line.counter, v2::field)?;
        let id = line.id();
        let mut sealed = v2::SealedBundle::complete(line, rest)?;
        let manifest = Some(std::mem::take(&mut sealed.manifest));
        Ok(Opened { bundle: sealed.open(self.attestation.sealing())?, id, manifest, signers })
    }

    fn is_for_now(&self, boot_nonce: BootNonce, counter: u64, field: fn(&str) -> String) -> Result<(), Refusal> {
        if boot_nonce != self.attestation.boot_nonce() {
            return refuse(
                field("boot_nonce"),
                "is from another boot: get a new attestation document and seal the bundle again",
            );
        }
        let last = self.attestation.in_force().bundle.counter;
        if counter <= last {
            return refuse(field("counter"), format!("is not above {last}, the counter of the last bundle in force"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use formats::hpke::PrivateKey;
    use formats::sealed_bundle::{Destination, seal};
    use formats::state::{Items, Manifest};
    use ring::signature::{Ed25519KeyPair, KeyPair};

    use super::*;

    struct Scene {
        operator: Ed25519KeyPair,
        attestation: Arc<Attestation>,
        unsealer: Unsealer,
        to: Destination,
    }

    fn operator(byte: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[byte; 32]).unwrap()
    }

    /// An enclave whose bundles this many operators have to sign; those of the bytes 1 and 2 may.
    fn scene_with(threshold: usize) -> Scene {
        let attestation = Arc::new(Attestation::new(None, Sha256::default()).unwrap());
        let to = Destination { sealing_key: attestation.sealing().public(), boot_nonce: attestation.boot_nonce() };
        let keys = [1, 2].map(|byte| VerifyingKey::from_slice(operator(byte).public_key().as_ref()).unwrap());
        let unsealer = Unsealer::new(attestation.clone(), Operators { keys: keys.into(), threshold });
        Scene { operator: operator(1), attestation, unsealer, to }
    }

    fn scene() -> Scene {
        scene_with(1)
    }

    impl Scene {
        fn sealed(&self, counter: u64) -> String {
            seal(b"a bundle", &self.to, counter, &self.operator).unwrap().to_json()
        }

        fn sealed_v2(&self, counter: u64, signers: &[u8]) -> v2::SealedBundle {
            let manifest = Manifest { complete_at: None, from: Sha256::default(), items: Items::new() };
            let mut sealed = v2::seal(b"a bundle", &manifest, &self.to, counter).unwrap();
            signers.iter().for_each(|byte| sealed.line.sign(&operator(*byte)));
            sealed
        }

        fn open_v2(&self, sealed: &v2::SealedBundle) -> Result<Opened, Refusal> {
            let line = self.unsealer.check_line(sealed.line.to_json().as_bytes(), &mut Known::default())?;
            self.unsealer.open_v2(line, [&sealed.manifest[..], &sealed.ciphertext].concat())
        }

        fn open(&self, bytes: &str) -> Result<Opened, Refusal> {
            self.unsealer.open(bytes.as_bytes(), &mut Known::default())
        }

        fn took_effect(&self, opened: &Opened) {
            self.attestation.put_in_force(Some(opened.id), Sha256::default());
        }

        fn refused(&self, bytes: &str) -> Refusal {
            self.open(bytes).err().expect("a bundle was opened that has to be refused")
        }
    }

    #[test]
    fn a_bundle_takes_effect_once_and_never_after_a_newer_one() {
        let scene = scene();
        let (old, new) = (scene.sealed(7), scene.sealed(8));
        let opened = scene.open(&new).unwrap();
        assert!(scene.open(&old).is_ok(), "a bundle that did not take effect does not count");
        scene.took_effect(&opened);
        for late in [&old, &new] {
            let refusal = scene.refused(late);
            assert!(refusal.field == "sealed_bundle.counter" && refusal.reason.contains("above 8"), "{refusal}");
        }
        assert!(scene.open(&scene.sealed(9)).is_ok());
        // Both versions share the counter.
        assert_eq!(scene.open_v2(&scene.sealed_v2(8, &[1])).err().unwrap().field, "sealed_bundle_v2.counter");
        let opened = scene.open_v2(&scene.sealed_v2(10, &[1])).unwrap();
        scene.took_effect(&opened);
        assert_eq!(scene.refused(&scene.sealed(10)).field, "sealed_bundle.counter");
    }

    #[test]
    fn of_two_bundles_that_come_at_once_the_older_does_not_replace_the_newer() {
        let scene = scene();
        let (old, new) = (scene.sealed_v2(7, &[1]), scene.sealed_v2(8, &[1]));
        let line = scene.unsealer.check_line(old.line.to_json().as_bytes(), &mut Known::default()).unwrap();
        scene.took_effect(&scene.open_v2(&new).unwrap());
        let late = scene.unsealer.open_v2(line, [&old.manifest[..], &old.ciphertext].concat());
        assert_eq!(late.err().unwrap().field, "sealed_bundle_v2.counter");
    }

    #[test]
    fn a_bundle_for_another_boot_or_from_a_stranger_is_refused() {
        let (this, other) = (scene(), scene());
        assert_eq!(this.refused(&other.sealed(1)).field, "sealed_bundle.boot_nonce");
        let other_boot = this.open_v2(&other.sealed_v2(1, &[1])).err().unwrap();
        assert_eq!(other_boot.field, "sealed_bundle_v2.boot_nonce");
        let stranger = Scene { operator: operator(3), ..scene() };
        assert_eq!(stranger.refused(&stranger.sealed(1)).field, "sealed_bundle.signature");
        assert_eq!(this.open_v2(&this.sealed_v2(1, &[3])).err().unwrap().field, "sealed_bundle_v2.signatures");
        // Sealed to another key, although signed for this boot.
        let key = PrivateKey::new(Box::new([5; 32])).public();
        let elsewhere = Destination { sealing_key: key, ..this.to };
        let sealed = seal(b"b", &elsewhere, 1, &this.operator).unwrap();
        assert_eq!(this.refused(&sealed.to_json()).field, "sealed_bundle.ciphertext");
    }

    #[test]
    fn of_a_bundle_that_is_refused_it_is_known_who_signed_it() {
        let scene = scene_with(2);
        let known = |open: &dyn Fn(&mut Known)| {
            let mut known = Known::default();
            open(&mut known);
            known.signed.map(|signed| (signed.id.counter, signed.signers.len()))
        };
        let old = |by: &Scene| {
            let sealed = by.sealed(3);
            known(&|known| assert!(scene.unsealer.open(sealed.as_bytes(), known).is_err()))
        };
        let line = |by: &[u8]| {
            let line = scene.sealed_v2(4, by).line.to_json();
            known(&|known| drop(scene.unsealer.check_line(line.as_bytes(), known)))
        };
        assert_eq!((old(&scene), old(&Scene { operator: operator(3), ..scene_with(2) })), (Some((3, 1)), None));
        assert_eq!([line(&[1, 3]), line(&[2, 1]), line(&[3])], [Some((4, 1)), Some((4, 2)), None]);
    }

    #[test]
    fn where_two_have_to_sign_one_is_not_enough_in_either_version() {
        let scene = scene_with(2);
        let refusal = scene.refused(&scene.sealed(1));
        assert!(refusal.field == "sealed_bundle.signature" && refusal.reason.contains("version 2"), "{refusal}");
        for too_few in [&[1][..], &[1, 1], &[2, 3]] {
            let refusal = scene.open_v2(&scene.sealed_v2(1, too_few)).err().unwrap();
            assert_eq!(refusal.field, "sealed_bundle_v2.signatures", "{too_few:?}");
        }
        assert_eq!(scene.open_v2(&scene.sealed_v2(1, &[2, 1])).unwrap().signers.len(), 2);
    }
}
