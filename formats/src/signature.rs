//! Ed25519 (RFC 8032): what the enclave's identity key and operators' keys sign with.

use std::fmt;

use ring::signature::{ED25519, UnparsedPublicKey};

/// The public half of a key that signs: 32 bytes, printed in hex.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VerifyingKey([u8; 32]);

impl VerifyingKey {
    /// The key of these bytes (RFC 8032, 5.1.5). Of bytes that are not a key no signature verifies.
    pub const fn from_bytes(bytes: [u8; 32]) -> VerifyingKey {
        VerifyingKey(bytes)
    }

    /// The key of as many bytes as a key has.
    pub fn from_slice(bytes: &[u8]) -> Option<VerifyingKey> {
        bytes.try_into().ok().map(VerifyingKey)
    }

    /// Whether the key's private half signed this message so.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}

impl AsRef<[u8]> for VerifyingKey {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({self})")
    }
}
