//! Which key opens a file.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::*;
use crate::*;

const OTHER: [u8; 32] = [7; 32];

/// The same file by both routes, with a key id or without.
fn both(daemon: &Daemon, file: &[u8], file_id: &str, key_id: Option<&str>) -> [Answer; 2] {
    let parameter = key_id.map_or(String::new(), |id| format!("&key_id={id}"));
    let raw = daemon.post(&format!("/files/{file_id}/decrypt?user_id=u{parameter}"), file);
    let mut body = json!({"file_id": file_id, "user_id": "u", "encrypted_content": STANDARD.encode(file)});
    if let Some(id) = key_id {
        body["key_id"] = json!(id);
    }
    [raw, post_json(daemon, &body)]
}

fn assert_opens(answers: [Answer; 2]) {
    for answer in answers {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

fn assert_errors(answers: [Answer; 2], status: u16, code: &str) {
    for answer in answers {
        assert_error(&answer, status, code);
    }
}

fn two_keys() -> Value {
    json!({"k": STANDARD.encode(KEY), "other": {"key": STANDARD.encode(OTHER)}})
}

#[test]
fn with_one_key_its_id_may_be_left_out_and_another_id_is_unknown() {
    let (_service, daemon) = pair(&[]);
    let file = encrypt(&KEY, b"a text");
    assert_opens(both(&daemon, &file, "f", None));
    assert_opens(both(&daemon, &file, "f", Some("k")));
    assert_errors(both(&daemon, &file, "f", Some("K")), 404, "unknown_key");
}

#[test]
fn with_several_keys_the_id_is_needed_and_picks_the_key() {
    let (_service, daemon) = pair_with_keys(two_keys());
    for (key, id, another) in [(KEY, "k", "other"), (OTHER, "other", "k")] {
        let file = encrypt(&key, b"a text");
        assert_opens(both(&daemon, &file, "f", Some(id)));
        assert_errors(both(&daemon, &file, "f", Some(another)), 422, "decrypt_failed");
        assert_errors(both(&daemon, &file, "f", Some("none")), 404, "unknown_key");
        assert_errors(both(&daemon, &file, "f", None), 400, "invalid_request");
    }
}

#[test]
fn tinks_prefix_picks_its_key_without_an_id() {
    let keys = json!({"4027": STANDARD.encode(KEY), "4294967295": STANDARD.encode(OTHER)});
    let (_service, daemon) = pair_with_keys(keys);
    for (key, id, prefix) in [(KEY, "4027", [1, 0, 0, 0x0f, 0xbb]), (OTHER, "4294967295", [1, 255, 255, 255, 255])] {
        let file = seal(&key, &prefix, b"", b"a text");
        assert_opens(both(&daemon, &file, "f", None));
        assert_opens(both(&daemon, &file, "f", Some(id)));
        // A file without the prefix opens under the same key if its id is given.
        assert_opens(both(&daemon, &encrypt(&key, b"a text"), "f", Some(id)));
    }
}

#[test]
fn a_key_with_aad_opens_a_file_only_under_the_file_id_that_it_was_made_for() {
    let bound = json!({"key": STANDARD.encode(OTHER), "aad": "file_id"});
    let (_service, daemon) = pair_with_keys(json!({"k": STANDARD.encode(KEY), "bound": bound}));
    let file = seal(&OTHER, b"", b"file-1", b"a text");
    assert_opens(both(&daemon, &file, "file-1", Some("bound")));
    assert_errors(both(&daemon, &file, "file-2", Some("bound")), 422, "decrypt_failed");
    let unbound = seal(&OTHER, b"", b"", b"a text");
    assert_errors(both(&daemon, &unbound, "file-1", Some("bound")), 422, "decrypt_failed");
    // The key beside it is not bound to a file id.
    assert_opens(both(&daemon, &encrypt(&KEY, b"a text"), "whatever", Some("k")));
}
