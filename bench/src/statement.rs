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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::is_signed;
    use crate::server::unhex;

    #[test]
    fn the_projects_own_example_verifies_and_nothing_else_does() {
        let vectors: Value = serde_json::from_str(include_str!("../../formats/vectors/statement.json")).unwrap();
        let identity = unhex(vectors["identity"].as_str().unwrap()).unwrap();
        let example = &vectors["in the clear"];
        let bytes = |name: &str| unhex(example[name].as_str().unwrap()).unwrap();
        let time = example["timestamp_ms"].as_u64().unwrap();
        let (given, content, signature) = (bytes("given"), bytes("content_sha256"), bytes("signature"));
        assert!(is_signed(&identity, &signature, time, &given, &content, false));
        assert!(!is_signed(&identity, &signature, time, &given, &content, true), "not a sealed one");
        assert!(!is_signed(&identity, &signature, time + 1, &given, &content, false));
        assert!(!is_signed(&identity, &signature, time, &content, &given[..32], false));
    }
}
