//! The two certificates of a test root, in DER (RFC 5280, 4.1).

use formats::time::Utc;

use crate::der::{BIT_STRING, INTEGER, OBJECT, OCTET_STRING, SEQUENCE, element};

const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SET: u8 = 0x31;
/// Context-specific, constructed, with these numbers.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

/// ecdsa-with-SHA384, id-ecPublicKey, secp384r1 (RFC 5480, 2; RFC 5758, 3.2), commonName, keyUsage, basicConstraints.
const ECDSA_WITH_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const SECP384R1: &[u8] = &[0x2b, 0x81, 4, 0, 0x22];
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// No end (RFC 5280, 4.1.2.5).
const FOR_EVER: &[u8] = b"99991231235959Z";
const TRUE: &[u8] = &[0x01, 1, 0xff];

/// A P-384 certificate before it is signed.
pub(super) struct Certificate<'a> {
    pub issuer: &'a str,
    pub subject: &'a str,
    /// The uncompressed point.
    pub key: &'a [u8],
    /// Before 2050.
    pub from: Utc,
    /// Whether it may sign others.
    pub authority: bool,
}

impl Certificate<'_> {
    /// TBSCertificate.
    pub(super) fn to_be_signed(&self) -> Vec<u8> {
        // 2026-11-25T22:04:05Z as 261125220405Z
        let from: String = self.from.to_string().chars().skip(2).filter(|c| !"-T:".contains(*c)).collect();
        let key_usage: &[u8] = if self.authority { &[BIT_STRING, 2, 2, 0x04] } else { &[BIT_STRING, 2, 7, 0x80] };
        let constraints = if self.authority { element(SEQUENCE, &[TRUE]) } else { element(SEQUENCE, &[]) };
        let extension =
            |id, value: &[u8]| element(SEQUENCE, &[&element(OBJECT, &[id]), TRUE, &element(OCTET_STRING, &[value])]);
        let key_kind = element(SEQUENCE, &[&element(OBJECT, &[EC_PUBLIC_KEY]), &element(OBJECT, &[SECP384R1])]);
        element(
            SEQUENCE,
            &[
                &element(VERSION, &[&element(INTEGER, &[&[2]])]),
                &element(INTEGER, &[&[1 + u8::from(!self.authority)]]),
                &algorithm(),
                &name(self.issuer),
                &element(SEQUENCE, &[&element(UTC_TIME, &[from.as_bytes()]), &element(GENERALIZED_TIME, &[FOR_EVER])]),
                &name(self.subject),
                &element(SEQUENCE, &[&key_kind, &element(BIT_STRING, &[&[0], self.key])]),
                &element(
                    EXTENSIONS,
                    &[&element(
                        SEQUENCE,
                        &[&extension(BASIC_CONSTRAINTS, &constraints), &extension(KEY_USAGE, key_usage)],
                    )],
                ),
            ],
        )
    }
}

/// The certificate, of what was signed and the signature.
pub(super) fn signed(to_be_signed: &[u8], signature: &[u8]) -> Vec<u8> {
    element(SEQUENCE, &[to_be_signed, &algorithm(), &element(BIT_STRING, &[&[0], signature])])
}

fn algorithm() -> Vec<u8> {
    element(SEQUENCE, &[&element(OBJECT, &[ECDSA_WITH_SHA384])])
}

fn name(common: &str) -> Vec<u8> {
    let attribute = element(SEQUENCE, &[&element(OBJECT, &[COMMON_NAME]), &element(UTF8_STRING, &[common.as_bytes()])]);
    element(SEQUENCE, &[&element(SET, &[&attribute])])
}
