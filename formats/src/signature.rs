//! Ed25519 signatures (RFC 8032), as the enclave's identity key and operators' keys make them.

use ring::signature::{ED25519, UnparsedPublicKey};

use crate::bytes::hex32;

hex32! {
    /// A public key that signatures are verified with (RFC 8032, 5.1.5). Any 32 bytes are accepted: if they are not a
    /// point on the curve, no signature verifies.
    VerifyingKey
}

impl VerifyingKey {
    /// Whether this is a signature of the message by the key's private half.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}
