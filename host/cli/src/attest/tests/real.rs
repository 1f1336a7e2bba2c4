//! Documents of real enclaves, checked as of the time they were made; tests/documents/README.md says where they are from.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::attest::chain::{ChainError, Position, Root, TrustedLeaf};
use crate::attest::document::{Document, DocumentError, Signature};
use crate::attest::pcrs::{Pcrs, PcrsError};
use crate::attest::verify::{AttestationError, Policy, genuine, verify};

struct Real {
    document: &'static [u8],
    module: &'static str,
    made_at_ms: u64,
    nonce: Option<&'static [u8]>,
    /// The validity of its leaf, in seconds since 1970.
    valid: [u64; 2],
}

const WITH_NONCE: Real = Real {
    document: include_bytes!("../../../tests/documents/maple-sdk-2024-10-28.cose"),
    module: "i-06c79bf817127030a-enc0192d3d4945e0432",
    made_at_ms: 1_730_141_656_206,
    nonce: Some(b"cc6b95ef-a0d7-477d-90f2-36cc088d2449"),
    valid: [1_730_141_295, 1_730_152_098],
};
const WITHOUT_NONCE: Real = Real {
    document: include_bytes!("../../../tests/documents/nitro_attest-2025-01-06.cose"),
    module: "i-0bee92034f3d60691-enc01943c5eaab3ad6a",
    made_at_ms: 1_736_179_625_472,
    nonce: None,
    valid: [1_736_179_622, 1_736_190_425],
};
const DEBUG_MODE: Real = Real {
    document: include_bytes!("../../../tests/documents/aws-nitro-enclaves-attestation-2021-03-05.cose"),
    module: "i-026ae32a18c80f866-enc01780356441553dc",
    made_at_ms: 1_614_963_709_526,
    nonce: None,
    valid: [1_614_963_709, 1_614_974_509],
};

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// AWS' root and the document's own registers, which an operator with that image would have.
fn policy(real: &Real) -> Policy {
    let document = Document::parse(real.document, Signature::Real).unwrap();
    let pcrs = document.pcrs.into_iter().filter(|&(index, _)| index < 3).collect::<BTreeMap<_, _>>();
    Policy { pcrs: Pcrs::from(pcrs), root: Root::AWS, debug_mode: false, signature: Signature::Real }
}

impl Real {
    fn check_at(&self, seconds: u64) -> Result<Document, AttestationError> {
        genuine(self.document, self.nonce, &policy(self), at(seconds))
    }

    /// The document with one bit changed in `part` of it, checked at its time.
    fn with_a_flipped_bit(&self, part: &[u8], byte: usize) -> AttestationError {
        let start = self.document.windows(part.len()).position(|window| window == part).unwrap();
        let mut changed = self.document.to_vec();
        changed[start + byte] ^= 1;
        let checked = genuine(&changed, self.nonce, &policy(self), at(self.valid[0]));
        checked.expect_err(&format!("a document that differs in byte {}", start + byte))
    }
}

#[test]
fn documents_of_real_enclaves_are_genuine_at_their_time() {
    for real in [WITH_NONCE, WITHOUT_NONCE, DEBUG_MODE] {
        for seconds in [real.valid[0], real.made_at_ms / 1000, real.valid[1]] {
            let document = real.check_at(seconds).unwrap();
            assert_eq!((document.module_id.as_str(), document.timestamp_ms), (real.module, real.made_at_ms));
            assert_eq!(document.pcrs.len(), 16);
            assert_eq!(document.nonce.as_deref(), real.nonce);
        }
    }
}

#[test]
fn a_second_before_and_a_second_or_a_day_after_they_are_not() {
    for real in [WITH_NONCE, WITHOUT_NONCE, DEBUG_MODE] {
        let early = real.check_at(real.valid[0] - 1).unwrap_err();
        assert!(matches!(early, AttestationError::Chain(ChainError::NotYetValid(Position::Leaf, _))), "{early}");
        let late = real.check_at(real.valid[1] + 1).unwrap_err();
        assert!(matches!(late, AttestationError::Chain(ChainError::Expired(Position::Leaf, _))), "{late}");
        // The certificate of the instance, above the leaf, expires within a day too.
        let late = real.check_at(real.valid[1] + 86_400).unwrap_err();
        assert!(matches!(late, AttestationError::Chain(ChainError::Expired(Position::Issuer(3), _))), "{late}");
    }
}

#[test]
fn a_bit_flipped_in_a_certificate_is_refused_before_the_signature_is_looked_at() {
    for real in [WITH_NONCE, WITHOUT_NONCE] {
        let document = Document::parse(real.document, Signature::Real).unwrap();
        for (index, der) in document.cabundle.iter().enumerate() {
            for byte in (0..der.len()).step_by(7) {
                let refused = real.with_a_flipped_bit(der, byte);
                let AttestationError::Chain(why) = refused else { panic!("cabundle[{index}], byte {byte}: {refused}") };
                assert_eq!(matches!(why, ChainError::Root(_)), index == 0, "{why}");
            }
        }
        for byte in (0..document.certificate.len()).step_by(7) {
            let refused = real.with_a_flipped_bit(&document.certificate, byte);
            assert!(matches!(refused, AttestationError::Chain(_)), "certificate, byte {byte}: {refused}");
        }
    }
}

#[test]
fn a_bit_flipped_in_payload_or_signature_is_refused() {
    for real in [WITH_NONCE, WITHOUT_NONCE] {
        let document = Document::parse(real.document, Signature::Real).unwrap();
        for index in [0, 1, 2, 3, 15] {
            assert_eq!(real.with_a_flipped_bit(&document.pcrs[&index][..], 47), AttestationError::Signature);
        }
        assert_eq!(real.with_a_flipped_bit(document.module_id.as_bytes(), 0), AttestationError::Signature);
        assert_eq!(real.with_a_flipped_bit(document.public_key.as_deref().unwrap(), 5), AttestationError::Signature);
        let signature = &real.document[real.document.len() - 96..];
        for byte in 0..96 {
            assert_eq!(real.with_a_flipped_bit(signature, byte), AttestationError::Signature);
        }
    }
    assert_eq!(WITH_NONCE.with_a_flipped_bit(WITH_NONCE.nonce.unwrap(), 3), AttestationError::Signature);
}

#[test]
fn a_bit_flipped_in_the_protected_header_is_refused() {
    // {1: -35} becomes {1: -36}, which is ES512, and {0: -35}.
    let header = [0x44, 0xa1, 0x01, 0x38, 0x22];
    let refused = [1, 2, 4].map(|byte| WITH_NONCE.with_a_flipped_bit(&header, byte));
    for refused in refused {
        let by = matches!(refused, AttestationError::Document(DocumentError::Algorithm | DocumentError::NotSign1));
        assert!(by, "{refused}");
    }
    assert_eq!(WITH_NONCE.with_a_flipped_bit(&header, 4), AttestationError::Document(DocumentError::Algorithm));
}

#[test]
fn another_root_than_awss_is_refused() {
    let document = Document::parse(WITH_NONCE.document, Signature::Real).unwrap();
    let aws = Root::of(&document.cabundle[0]);
    assert_eq!(aws, Root::AWS);
    let policy = Policy { root: Root::of(&document.cabundle[1]), ..policy(&WITH_NONCE) };
    let refused = genuine(WITH_NONCE.document, WITH_NONCE.nonce, &policy, at(WITH_NONCE.valid[0])).unwrap_err();
    assert_eq!(refused, AttestationError::Chain(ChainError::Root(aws)));
}

#[test]
fn a_chain_out_of_order_is_refused() {
    let document = WITH_NONCE.check_at(WITH_NONCE.valid[0]).unwrap();
    let trust = |cabundle: &[Vec<u8>]| {
        TrustedLeaf::trust(cabundle, &document.certificate, Root::AWS, at(WITH_NONCE.valid[0])).map(|_| ())
    };
    trust(&document.cabundle).unwrap();
    for (one, other) in [(0, 1), (1, 2), (2, 3), (1, 3)] {
        let mut cabundle = document.cabundle.clone();
        cabundle.swap(one, other);
        trust(&cabundle).unwrap_err();
    }
    for missing in 0..4 {
        let mut cabundle = document.cabundle.clone();
        cabundle.remove(missing);
        trust(&cabundle).unwrap_err();
    }
}

#[test]
fn another_nonce_than_the_one_asked_with_is_refused() {
    let check = |real: &Real, nonce| genuine(real.document, nonce, &policy(real), at(real.valid[0])).unwrap_err();
    assert_eq!(check(&WITH_NONCE, Some(b"cc6b95ef-a0d7-477d-90f2-36cc088d2448")), AttestationError::Nonce);
    assert_eq!(check(&WITH_NONCE, None), AttestationError::Nonce);
    assert_eq!(check(&WITHOUT_NONCE, Some(b"cc6b95ef-a0d7-477d-90f2-36cc088d2449")), AttestationError::Nonce);
}

#[test]
fn the_registers_of_real_enclaves_are_held_against_the_image() {
    for real in [WITH_NONCE, WITHOUT_NONCE] {
        let document = real.check_at(real.valid[0]).unwrap();
        assert_eq!(policy(&real).pcrs.check(&document.pcrs, false).unwrap(), [0, 1, 2]);
    }
    let other = WITHOUT_NONCE.check_at(WITHOUT_NONCE.valid[0]).unwrap();
    let error = policy(&WITH_NONCE).pcrs.check(&other.pcrs, false).unwrap_err();
    assert!(matches!(error, PcrsError::Differs { index: 0, .. }), "{error}");

    let debugged = DEBUG_MODE.check_at(DEBUG_MODE.valid[0]).unwrap();
    assert_eq!(policy(&WITH_NONCE).pcrs.check(&debugged.pcrs, false), Err(PcrsError::DebugMode));
    assert!(policy(&WITH_NONCE).pcrs.check(&debugged.pcrs, true).unwrap().is_empty());
}

#[test]
fn a_genuine_document_of_another_program_is_not_taken_for_teemarkds() {
    let refused =
        |real: &Real, nonce: &[u8]| verify(real.document, nonce, &policy(real), at(real.valid[0])).unwrap_err();
    // Its public key has 32 bytes like ours, but there is no user data.
    assert_eq!(refused(&WITH_NONCE, WITH_NONCE.nonce.unwrap()), AttestationError::UserData);
    assert_eq!(refused(&WITHOUT_NONCE, b""), AttestationError::Nonce);
}
