//! The key that signs grants, and its public half as a JWK set (RFC 7517): what GRANT_KEYS takes.

use anyhow::{Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use serde::Serialize;
use teemarkd::digest::sha256;

use crate::private_key::PrivateKey;

/// A key that signs tokens. What kind it is decides the algorithm.
pub struct Issuer {
    key: Signer,
    public: Public,
    /// By this a token names its key: the public half's thumbprint (RFC 7638) in base64url.
    kid: String,
}

enum Signer {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

/// The public half, in the members and the order of them that RFC 7638 (3.2; RFC 8037, 2) hashes.
#[derive(Serialize)]
struct Public {
    crv: &'static str,
    kty: &'static str,
    x: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    y: Option<String>,
}

#[derive(Serialize)]
struct JwkSet<'a> {
    keys: [Jwk<'a>; 1],
}

#[derive(Serialize)]
struct Jwk<'a> {
    #[serde(flatten)]
    public: &'a Public,
    kid: &'a str,
    alg: &'a str,
    #[serde(rename = "use")]
    usage: &'a str,
}

/// A JWS header (RFC 7515, 4.1).
#[derive(Serialize)]
struct Header<'a> {
    alg: &'a str,
    kid: &'a str,
    typ: &'a str,
}

impl Issuer {
    /// Takes a key for an issuer's.
    ///
    /// # Errors
    /// It cannot sign.
    pub fn new(key: PrivateKey) -> Result<Issuer> {
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (key, public) = match key {
            PrivateKey::Ed25519(key) => {
                let x = number(key.public_key().as_ref());
                (Signer::Ed25519(key), Public { crv: "Ed25519", kty: "OKP", x, y: None })
            }
            PrivateKey::P256(key) => {
                // An uncompressed point: 4, then the two numbers (SEC 1, 2.3.3).
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                let public = Public { crv: "P-256", kty: "EC", x: number(x), y: Some(number(y)) };
                (Signer::P256(key), public)
            }
            PrivateKey::X25519(_) => {
                bail!("it is {key}, and grants are signed with an Ed25519 or P-256 key: teemark keygen --for grants")
            }
        };
        let kid = number(&sha256(&serde_json::to_vec(&public)?));
        Ok(Issuer { key, public, kid })
    }

    fn alg(&self) -> &'static str {
        match self.key {
            Signer::Ed25519(_) => "EdDSA",
            Signer::P256(_) => "ES256",
        }
    }

    /// The public half, on one line.
    ///
    /// # Errors
    /// None that can be told of.
    pub fn jwk_set(&self) -> Result<String> {
        let jwk = Jwk { public: &self.public, kid: &self.kid, alg: self.alg(), usage: "sig" };
        Ok(serde_json::to_string(&JwkSet { keys: [jwk] })?)
    }

    /// A token of these claims (JWT, RFC 7519, as JWS compact serialization, RFC 7515, 7.1).
    ///
    /// # Errors
    /// The system has no random numbers to give, which ES256 needs.
    pub fn token(&self, claims: &impl Serialize) -> Result<String> {
        let part = |bytes: Vec<u8>| URL_SAFE_NO_PAD.encode(bytes);
        let header = Header { alg: self.alg(), kid: &self.kid, typ: "JWT" };
        let signed = part(serde_json::to_vec(&header)?) + "." + &part(serde_json::to_vec(claims)?);
        let signature = match &self.key {
            Signer::Ed25519(key) => key.sign(signed.as_bytes()),
            Signer::P256(key) => key
                .sign(&SystemRandom::new(), signed.as_bytes())
                .map_err(|_| anyhow!("the system gives no random numbers"))?,
        };
        Ok(signed + "." + &part(signature.as_ref().to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thumbprint_is_that_of_rfc_8037() {
        // RFC 8037, A.1 and A.3.
        let seed = URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap();
        let issuer = Issuer::new(PrivateKey::Ed25519(Ed25519KeyPair::from_seed_unchecked(&seed).unwrap())).unwrap();
        assert_eq!(issuer.public.x, "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
        assert_eq!(issuer.kid, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }
}
