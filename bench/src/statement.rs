//! The statement that an answer's signature is over (docs/FORMATS.md, "Signatures"), written from that page.

use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, UnparsedPublicKey};

use crate::material::{FILE_ID, USER_ID};

/// Whether the identity key says of these bytes that they are the marked file, or, where `sealed`, the sealed one.
pub(crate) fn is_signed(
    identity: &[u8],
    signature: &[u8],
    timestamp_ms: u64,
    given: &[u8],
    content_sha256: &[u8],
    sealed: bool,
) -> bool {
    let mut bcs = vec![u8::from(sealed)];
    bcs.extend(timestamp_ms.to_le_bytes());
    for part in [digest(&SHA256, given).as_ref(), content_sha256, FILE_ID.as_bytes(), USER_ID.as_bytes()] {
        // ULEB128 of a length below 128 is one byte.
        bcs.push(u8::try_from(part.len()).expect("hashes and short ids"));
        bcs.extend(part);
    }
    bcs.push(1);
    UnparsedPublicKey::new(&ED25519, identity).verify(&bcs, signature).is_ok()
}
