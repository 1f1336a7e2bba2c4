//! Grants (docs/FORMATS.md, "Grants"): each request has to have one of its own.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use crate::material::{FILE_ID, USER_ID, random};

/// TEEMARK_FLEET: whom the grants are for.
pub(crate) const FLEET: &str = "bench";
const KEY_ID: &str = "bench";
/// How long a grant is valid, in seconds. The daemon remembers each used grant for this long, and a bounded number of them.
const VALID: u64 = 5;

/// The issuer of grants.
pub(crate) struct Issuer(Ed25519KeyPair);

impl Issuer {
    pub(crate) fn generate() -> Result<Issuer> {
        Ok(Issuer(Ed25519KeyPair::from_seed_unchecked(&random(32)?)?))
    }

    /// GRANT_KEYS.
    pub(crate) fn jwk_set(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x, "kid": KEY_ID, "use": "sig"}]}).to_string()
    }

    /// A new grant.
    pub(crate) fn grant(&self) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({"alg": "EdDSA", "kid": KEY_ID, "typ": "JWT"});
        let jti = URL_SAFE_NO_PAD.encode(random(16)?);
        let claims = json!({"sub": USER_ID, "file_id": FILE_ID, "aud": FLEET, "iat": now, "nbf": now, "exp": now + VALID, "jti": jti});
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes()));
        Ok(format!("{signed}.{signature}"))
    }
}
