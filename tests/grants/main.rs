//! Grants at a running daemon: a user with a grant gets the file, once, and nobody else gets any.
//!
//! The issuers are other people's code: PyJWT, and npm's package jose. If one cannot be had, its test says so.

#[path = "../support/mod.rs"]
mod support;

mod attested;
mod issuers;
mod requests;

use std::sync::LazyLock;

use formats::time::Utc;
use serde_json::{Value, json};
use support::issuer::*;
use support::*;

static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

const FILE: &[u8] = b"All of a text, long enough to be marked. ";

/// A daemon that requires grants, with its service.
struct Scene {
    daemon: Daemon,
    service: Service,
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
        Scene { daemon, service, file: encrypt(&KEY, &FILE.repeat(40)) }
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

/// Status and code of an error answer.
fn refusal(answer: &Answer) -> (u16, String) {
    (answer.status, answer.code())
}

fn is(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}
