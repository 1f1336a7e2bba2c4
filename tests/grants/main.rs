//! Grants at a running daemon: who has one gets its file, once, and nobody else gets any.
//!
//! The issuers are other people's: PyJWT, and the package jose of npm. Where one cannot be had, its test says so.

#[path = "../support/mod.rs"]
mod support;

mod issuers;
mod requests;

use std::sync::LazyLock;

use formats::time::Utc;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};
use support::*;

static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

const FILE: &[u8] = b"All of a text, long enough to be marked. ";

/// A daemon that asks for grants, with its service.
struct Scene {
    daemon: Daemon,
    _service: Service,
    file: Vec<u8>,
}

impl Scene {
    /// With these keys as GRANT_KEYS.
    fn new(jwks: &Value) -> Scene {
        Scene::with(jwks, &[])
    }

    fn with(jwks: &Value, service: &[&str]) -> Scene {
        let service = Service::start(&CERTS, service);
        let setup = Setup::new(service.port).env("TEEMARK_GRANTS", "required").env("TEEMARK_FLEET", "fleet");
        let daemon = setup.start();
        let mut bundle = CERTS.full_bundle(service.port);
        assert_eq!(daemon.handshake(bundle.to_string().as_bytes())["missing"], json!(["GRANT_KEYS"]));
        bundle["GRANT_KEYS"] = jwks.clone();
        assert_eq!(daemon.handshake(bundle.to_string().as_bytes())["missing"], json!([]));
        Scene { daemon, _service: service, file: encrypt(&KEY, &FILE.repeat(40)) }
    }

    /// The raw route with these header lines.
    fn ask(&self, lines: &str, file_id: &str, user_id: &str) -> Answer {
        let (file, length) = (&self.file, self.file.len());
        let head = format!(
            "POST /files/{file_id}/decrypt?user_id={user_id} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Length: {length}\r\n{lines}\r\n"
        );
        request(self.daemon.public, &head, file)
    }

    fn ask_with(&self, token: &str, file_id: &str, user_id: &str) -> Answer {
        self.ask(&format!("Authorization: Bearer {token}\r\n"), file_id, user_id)
    }
}

/// Status and code of an answer that is a refusal.
fn refusal(answer: &Answer) -> (u16, String) {
    (answer.status, answer.code())
}

fn is(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

/// An issuer of this test's own.
struct Issuer(Ed25519KeyPair);

impl Issuer {
    fn new() -> Issuer {
        Issuer(Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap())
    }

    fn jwks(&self) -> Value {
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "own", "x": base64url(self.0.public_key().as_ref())}]})
    }

    fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": "EdDSA", "kid": "own"}).to_string();
        let signed = format!("{}.{}", base64url(header.as_bytes()), base64url(claims.to_string().as_bytes()));
        format!("{signed}.{}", base64url(self.0.sign(signed.as_bytes()).as_ref()))
    }
}

fn base64url(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// Claims for alice's file `f`.
fn claims(jti: &str) -> Value {
    let now = Utc::now().0;
    json!({"sub": "alice", "file_id": "f", "aud": "fleet", "jti": jti, "nbf": now - 5, "exp": now + 300})
}

fn with(jti: &str, name: &str, value: Value) -> Value {
    let mut claims = claims(jti);
    claims[name] = value;
    claims
}
