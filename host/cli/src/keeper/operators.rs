//! The operators whose signatures a keeper counts: its own, and those that its configuration names.

use anyhow::{Context, Result, bail};
use formats::sealed_bundle::v2::Line;
use formats::signature::VerifyingKey;
use ring::signature::{Ed25519KeyPair, KeyPair};

use super::config::OperatorKey;

/// This keeper's operator, and the others.
pub(crate) struct Operators {
    own: Ed25519KeyPair,
    own_key: VerifyingKey,
    others: Vec<VerifyingKey>,
}

impl Operators {
    /// From the private key, and the list in the configuration, which may have the own key too.
    ///
    /// # Errors
    /// There are too few others for so many signatures, or for any that are to be added to theirs.
    pub(crate) fn new(
        own: Ed25519KeyPair,
        listed: &[OperatorKey],
        signatures: usize,
        takes_bundles: bool,
    ) -> Result<Operators> {
        let own_key = VerifyingKey::from_slice(own.public_key().as_ref()).context("an Ed25519 key has 32 bytes")?;
        let mut others: Vec<VerifyingKey> = Vec::new();
        for OperatorKey(key) in listed {
            if *key != own_key && !others.contains(key) {
                others.push(*key);
            }
        }
        let least = signatures.saturating_sub(1).max(usize::from(takes_bundles));
        if others.len() < least {
            let found = others.len();
            bail!("operators: {least} besides this keeper's own key are needed, and {found} are named");
        }
        Ok(Operators { own, own_key, others })
    }

    /// Those whose signatures verify.
    pub(crate) fn signers(&self, line: &Line) -> Vec<VerifyingKey> {
        let all: Vec<_> = self.others.iter().chain([&self.own_key]).copied().collect();
        line.signers(&all)
    }

    /// Adds this keeper's signature, and removes strangers'.
    pub(crate) fn sign(&self, line: &mut Line) {
        line.signatures.retain(|signed| self.others.contains(&signed.key));
        line.sign(&self.own);
    }

    /// Checks that another operator has signed, and this keeper has not.
    pub(crate) fn check_signatures(&self, line: &Line) -> Result<()> {
        let signers = self.signers(line);
        if signers.contains(&self.own_key) {
            bail!(
                "this keeper has signed it already: there are too few keepers for the threshold, or one of them is away"
            );
        }
        if signers.is_empty() {
            bail!("no operator whom this keeper knows has signed it (operators in its configuration)");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use formats::attestation::BootNonce;
    use formats::digest::Sha256;
    use formats::hpke;
    use formats::sealed_bundle::{Destination, v2};
    use formats::state::{Items, Manifest};

    use super::*;

    fn operator(byte: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[byte; 32]).unwrap()
    }

    fn public(byte: u8) -> OperatorKey {
        OperatorKey(VerifyingKey::from_slice(operator(byte).public_key().as_ref()).unwrap())
    }

    #[test]
    fn a_strangers_signature_counts_for_nothing_and_a_keeper_is_never_the_first_to_sign_what_it_is_passed() {
        let operators = Operators::new(operator(1), &[1, 2, 3, 3].map(public), 2, true).unwrap();
        let to = Destination {
            sealing_key: hpke::PrivateKey::new(Box::new([9; 32])).public(),
            boot_nonce: BootNonce::from_bytes([7; 32]),
        };
        let manifest = Manifest { complete_at: None, from: Sha256::default(), items: Items::new() };
        let sealed = v2::seal(b"{}", &manifest, &to, 1).unwrap().line;
        let by = |signers: &[u8]| {
            let mut line = sealed.clone();
            signers.iter().for_each(|byte| line.sign(&operator(*byte)));
            line
        };
        for (signers, words) in [
            (&[][..], "no operator whom this keeper knows"),
            (&[4], "no operator whom this keeper knows"),
            (&[4, 5, 6], "no operator whom this keeper knows"),
            (&[1], "has signed it already"),
            (&[1, 2], "has signed it already"),
        ] {
            let told = operators.check_signatures(&by(signers)).unwrap_err().to_string();
            assert!(told.contains(words), "{signers:?}: {told}");
        }
        // A signature by a known key that does not verify.
        let mut forged = by(&[2]);
        forged.counter = 2;
        assert!(operators.check_signatures(&forged).is_err());
        operators.check_signatures(&by(&[4, 2])).unwrap();
        assert_eq!(operators.signers(&by(&[4, 5, 2])).len(), 1);
        let mut line = by(&[4, 5, 2]);
        operators.sign(&mut line);
        assert_eq!((line.signatures.len(), operators.signers(&line).len()), (2, 2));
    }

    #[test]
    fn so_many_operators_have_to_be_named_that_the_threshold_can_be_reached() {
        for (listed, signatures, takes_bundles, good) in [
            (&[][..], 1, false, true),
            (&[2], 2, true, true),
            (&[1, 2], 2, true, true),
            (&[1], 2, true, false),
            (&[1], 1, true, false),
            (&[1, 2, 2], 3, true, false),
            (&[1, 2, 3], 3, true, true),
        ] {
            let listed: Vec<_> = listed.iter().map(|byte| public(*byte)).collect();
            let made = Operators::new(operator(1), &listed, signatures, takes_bundles);
            assert_eq!(made.is_ok(), good, "{listed:?} {signatures}");
        }
    }
}
