//! The keys that may sign grants. What a key is decides its algorithm, and nothing else does.

use std::fmt;

use ring::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};

/// The names of both kinds' algorithms. RFC 9864 has a new one for Ed25519.
pub const ALGORITHMS: [&str; 3] = ["EdDSA", "Ed25519", "ES256"];

/// The keys in force, each with a kid of its own.
#[derive(Clone, Default)]
pub struct GrantKeys(pub Vec<GrantKey>);

/// One public key.
#[derive(Clone)]
pub struct GrantKey {
    /// By this a token names it.
    pub kid: String,
    pub kind: Kind,
    /// Ed25519: its 32 bytes (RFC 8032, 5.1.5); P-256: the uncompressed point (SEC 1, 2.3.3).
    pub public: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ed25519,
    P256,
}

impl fmt::Debug for GrantKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GrantKeys({} keys)", self.0.len())
    }
}

impl GrantKeys {
    pub fn find(&self, kid: &str) -> Option<&GrantKey> {
        self.0.iter().find(|key| key.kid == kid)
    }
}

impl GrantKey {
    /// Whether this is the name of the key's algorithm.
    pub fn is_for(&self, alg: &str) -> bool {
        match self.kind {
            Kind::Ed25519 => ALGORITHMS[..2].contains(&alg),
            Kind::P256 => ALGORITHMS[2..].contains(&alg),
        }
    }

    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = match self.kind {
            Kind::Ed25519 => UnparsedPublicKey::new(&ED25519, &self.public).verify(message, signature),
            Kind::P256 => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.public).verify(message, signature),
        };
        verified.is_ok()
    }
}
