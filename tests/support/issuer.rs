//! An issuer of grants.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use formats::time::Utc;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

/// An issuer of grants, with a key of its own.
pub(crate) struct Issuer(Ed25519KeyPair);

impl Issuer {
    pub(crate) fn new() -> Issuer {
        Issuer(Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap())
    }

    pub(crate) fn jwks(&self) -> Value {
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "own", "x": base64url(self.0.public_key().as_ref())}]})
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": "EdDSA", "kid": "own"}).to_string();
        let signed = format!("{}.{}", base64url(header.as_bytes()), base64url(claims.to_string().as_bytes()));
        format!("{signed}.{}", base64url(self.0.sign(signed.as_bytes()).as_ref()))
    }
}

pub(crate) fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Claims for alice's file `f`.
pub(crate) fn claims(jti: &str) -> Value {
    let now = Utc::now().0;
    json!({"sub": "alice", "file_id": "f", "aud": "fleet", "jti": jti, "nbf": now - 5, "exp": now + 300})
}

pub(crate) fn with(jti: &str, name: &str, value: Value) -> Value {
    let mut claims = claims(jti);
    claims[name] = value;
    claims
}
