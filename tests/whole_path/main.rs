//! The whole path: a file goes in encrypted and comes out marked for its user; and everything that a user, an operator
//! or the system can see on the way.

#[path = "../support/mod.rs"]
mod support;

mod boot;
mod browsers;
mod curl;
mod day;
mod drain;
mod errors;
mod expiry;
mod files;
mod health;
mod keys;
mod limits;
mod marked;
mod operators;
mod request_ids;
mod stop;

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde_json::{Value, json};
use support::*;

/// One set of certificates for all of these tests.
static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

/// A service with these arguments, and a daemon that has had its handshake with it.
fn pair(arguments: &[&str]) -> (Service, Daemon) {
    let service = Service::start(&CERTS, arguments);
    let daemon = Daemon::ready(&service, &CERTS);
    (service, daemon)
}

/// The same with other FILE_KEYS than those in tests/support.
fn pair_with_keys(keys: Value) -> (Service, Daemon) {
    let service = Service::start(&CERTS, &[]);
    let daemon = Setup::new(service.port).start();
    let mut bundle = CERTS.bundle(service.port);
    bundle["FILE_KEYS"] = keys;
    let answer = daemon.handshake(bundle.to_string().as_bytes());
    assert_eq!(answer["ok"], true, "{answer}");
    (service, daemon)
}

/// A file in the format that has `prefix` in front, with associated data.
fn seal(key: &[u8; 32], prefix: &[u8], associated: &[u8], plain: &[u8]) -> Vec<u8> {
    let iv: [u8; 12] = ring::rand::generate(&ring::rand::SystemRandom::new()).unwrap().expose();
    let mut sealed = plain.to_vec();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::from(associated), &mut sealed).unwrap();
    [prefix, &iv, &sealed].concat()
}

/// The JSON route with a body of these members.
fn post_json(daemon: &Daemon, body: &Value) -> Answer {
    daemon.post("/files/decrypt", body.to_string().as_bytes())
}

/// The JSON route for a file, with ids that do not matter.
fn decrypt_json(daemon: &Daemon, file: &[u8]) -> Answer {
    post_json(daemon, &json!({"file_id": "f", "user_id": "u", "encrypted_content": STANDARD.encode(file)}))
}

/// The file in a success answer of the JSON route.
fn decrypted_data(answer: &Answer) -> Vec<u8> {
    STANDARD.decode(answer.json()["decrypted_data"].as_str().unwrap()).unwrap()
}

/// A header field's value.
fn field<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.head.lines().find_map(|line| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// Checks an error answer as a whole: status, code, a message, JSON.
fn assert_error(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{answer:?}");
    assert!(answer.json()["error"].as_str().is_some_and(|message| !message.is_empty()), "{answer:?}");
    assert_eq!(answer.json().as_object().unwrap().len(), 2, "error and code, nothing else: {answer:?}");
    assert_eq!(field(answer, "Content-Type"), Some("application/json"), "{answer:?}");
}

/// A text without the characters that the service's marks consist of.
fn without_marks(text: &[u8]) -> String {
    let invisible = ['\u{200B}', '\u{200C}', '\u{2060}', '\u{2063}'];
    String::from_utf8(text.to_vec()).unwrap().replace(invisible, "")
}

/// The picture that `watermark-service sample` makes.
fn sample_png() -> Vec<u8> {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("sample.png");
    run(std::process::Command::new(program("watermark-service")).arg("sample").arg(&file));
    std::fs::read(file).unwrap()
}
