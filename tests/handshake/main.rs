//! The handshake: certificates made by openssl in every accepted form, every refusal, and what a bundle changes.

#[path = "../support/mod.rs"]
mod support;

mod chains;
mod delivery;
mod forms;
mod kept;
mod refusals;
mod seed;
mod stalled;

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use support::*;

/// A root, the service's certificate and the client `client`: enough for tests that make no others.
static CERTS: LazyLock<Certs> = LazyLock::new(|| {
    let certs = Certs::with_root();
    certs.client("client");
    certs
});

/// MTLS_CLIENT_CERT_JSON as an object of these texts.
fn parts(certificate: &str, key: &str, authority: &str) -> Value {
    json!({"client_cert": certificate, "client_key": key, "ca_cert": authority})
}

/// MTLS_CLIENT_CERT_JSON of a client with these certificates, as PEM.
fn client(certs: &Certs, name: &str) -> Value {
    parts(&certs.read(&format!("{name}.crt")), &certs.read(&format!("{name}.key")), &certs.read("ca.crt"))
}

/// A whole bundle, with [`KEY`] as `k`.
fn bundle(port: u16, parts: Value) -> Value {
    json!({
        "MTLS_CLIENT_CERT_JSON": parts,
        "ECS_WATERMARK_ENDPOINT": format!("https://localhost:{port}"),
        "FILE_KEYS": {"k": STANDARD.encode(KEY)},
    })
}

fn accepted(daemon: &Daemon, bundle: &Value) {
    accepted_with(daemon, bundle, &[]);
}

/// The same, with these warnings in the answer and in the log.
fn accepted_with(daemon: &Daemon, bundle: &Value, warnings: &[&str]) {
    let answer = daemon.handshake(bundle.to_string().as_bytes());
    let updated = ["MTLS_CLIENT_CERT_JSON", "ECS_WATERMARK_ENDPOINT", "FILE_KEYS"];
    assert_eq!(answer, json!({"ok": true, "updated": updated, "ignored": [], "warnings": warnings, "missing": []}));
    for warning in warnings {
        assert!(daemon.process.has_logged(warning), "{warning}");
    }
}

/// Has a text decrypted and marked, and returns the status.
fn decrypts(daemon: &Daemon) -> u16 {
    daemon.decrypt(&encrypt(&KEY, b"a text"), "file", "user").status
}

/// The client's serial number in each of the service's lines about requests, once there are `number`: a line may come
/// a moment after its answer.
fn serials(service: &Service, number: usize) -> Vec<String> {
    wait_for("the service's log", || {
        let log = service.process.log();
        let lines = log
            .lines()
            .filter_map(|line| line.starts_with("POST /api/watermark").then_some(line)?.split_once("client serial="));
        let serials: Vec<String> = lines.map(|(_, serial)| serial.to_owned()).collect();
        (serials.len() >= number).then_some(serials)
    })
}

/// TLS handshakes that the service made with this client.
fn tls_handshakes(service: &Service, serial: &str) -> usize {
    service.count(&format!("serial={serial}, sha256="))
}
