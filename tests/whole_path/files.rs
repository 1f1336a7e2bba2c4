//! Files of each kind, by both routes, and the ids in their marks.

use std::fs;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tempfile::TempDir;

use crate::support::*;
use crate::*;

const TEXTS: [&str; 5] =
    ["Grüße\nan alle\n", "one\r\ntwo\r\n", "", "a\0b\x01\x1b[2J\x7f\t\"\\\u{2028}", "\u{feff}漢字 🙂 no line end"];

#[test]
fn a_text_comes_back_whole_and_marked_for_its_user_by_the_raw_route() {
    let (_service, daemon) = pair(&[]);
    for text in TEXTS {
        let answer = daemon.decrypt(&encrypt(&KEY, text.as_bytes()), "file-1", "user-1");
        assert_eq!(answer.status, 200, "{text:?}: {answer:?}");
        assert_eq!(extract(&answer.body), json!({"file_id": "file-1", "user_id": "user-1"}), "{text:?}");
        assert_eq!(without_marks(&answer.body), text);
        assert_eq!(field(&answer, "Content-Type"), Some("application/octet-stream"));
        assert_eq!(field(&answer, "Teemark-Watermarked"), Some("true"));
    }
}

#[test]
fn a_text_comes_back_whole_and_marked_for_its_user_by_the_json_route() {
    let (_service, daemon) = pair(&[]);
    for text in TEXTS {
        let content = STANDARD.encode(encrypt(&KEY, text.as_bytes()));
        let answer =
            post_json(&daemon, &json!({"file_id": "file-2", "user_id": "user-2", "encrypted_content": content}));
        assert_eq!(answer.status, 200, "{text:?}: {answer:?}");
        assert_eq!(field(&answer, "Content-Type"), Some("application/json"));
        let marked = decrypted_data(&answer);
        assert_eq!(extract(&marked), json!({"file_id": "file-2", "user_id": "user-2"}), "{text:?}");
        assert_eq!(without_marks(&marked), text);
        let data = STANDARD.encode(&marked);
        let mut whole = json!({"file_id": "file-2", "user_id": "user-2", "decrypted_data": data, "watermarked": true});
        // These differ each time; tests/attest.rs checks them.
        for name in ["timestamp_ms", "signature", "identity"] {
            whole[name] = answer.json()[name].clone();
        }
        assert_eq!(answer.json(), whole);
    }
}

#[test]
fn a_picture_comes_back_as_a_picture_and_marked_by_both_routes() {
    let (_service, daemon) = pair(&[]);
    let picture = sample_png();
    let sealed = encrypt(&KEY, &picture);
    let raw = daemon.decrypt(&sealed, "f", "u");
    assert_eq!(raw.status, 200, "{}", raw.head);
    let json = decrypt_json(&daemon, &sealed);
    assert_eq!(json.status, 200, "{}", json.head);
    for marked in [raw.body, decrypted_data(&json)] {
        assert!(marked.starts_with(b"\x89PNG\r\n\x1a\n") && marked != picture);
        assert_eq!(extract(&marked), json!({"file_id": "f", "user_id": "u"}));
    }
}

#[test]
fn a_file_that_the_service_cannot_mark_is_not_given_out() {
    let (service, daemon) = pair(&[]);
    let binary = encrypt(&KEY, b"\xff\xfe neither picture nor text");
    for answer in [daemon.decrypt(&binary, "f", "u"), decrypt_json(&daemon, &binary)] {
        assert_error(&answer, 422, "watermark_unsupported");
        assert!(answer.text().contains("415") && !answer.text().contains("neither"), "{answer:?}");
    }
    assert_eq!(service.count("POST /api/watermark 415"), 2);
}

#[test]
fn ids_reach_the_mark_as_the_user_meant_them() {
    let (_service, daemon) = pair(&[]);
    let file = encrypt(&KEY, b"a text");
    for (path, file_id, user_id) in [
        ("/files/a%2Fb%20c/decrypt?user_id=x%26y%3Dz", "a/b c", "x&y=z"),
        ("/files/%E6%BC%A2%C3%A4/decrypt?user_id=%F0%9F%99%82", "漢ä", "🙂"),
        ("/files/a+b/decrypt?user_id=Anna+M%2B", "a+b", "Anna M+"),
        ("/files/decrypt/decrypt?unknown=1&user_id=u", "decrypt", "u"),
        ("/files/%2e%2e/decrypt?user_id=..%2f", "..", "../"),
    ] {
        let answer = daemon.post(path, &file);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(extract(&answer.body), json!({"file_id": file_id, "user_id": user_id}), "{path}");
    }
    let ids = json!({"file_id": "漢/ä+%41", "user_id": "a \"b\" \\ +", "encrypted_content": STANDARD.encode(&file)});
    let answer = post_json(&daemon, &ids);
    assert_eq!(answer.status, 200, "{answer:?}");
    let mark = json!({"file_id": ids["file_id"], "user_id": ids["user_id"]});
    assert_eq!(extract(&decrypted_data(&answer)), mark);
    assert_eq!((&answer.json()["file_id"], &answer.json()["user_id"]), (&ids["file_id"], &ids["user_id"]));
}

#[test]
fn ids_of_256_bytes_are_the_longest() {
    let (_service, daemon) = pair(&[]);
    let file = encrypt(&KEY, b"a text");
    let (longest, longer) = ("x".repeat(256), "x".repeat(257));
    assert_eq!(daemon.decrypt(&file, &longest, &longest).status, 200);
    for (file_id, user_id) in [(&*longer, "u"), ("f", &longer), ("f", ""), ("a%0Ab", "u"), ("f", "%00")] {
        assert_error(&daemon.decrypt(&file, file_id, user_id), 400, "invalid_request");
    }
}

#[test]
fn the_operators_command_line_gets_the_marked_file_or_says_why_not() {
    let (_service, daemon) = pair(&[]);
    let folder = TempDir::new().unwrap();
    let teemark = |input: &str, output: &str| {
        let mut command = Command::new(program("teemark"));
        command.current_dir(&folder).args(["decrypt", input, "--endpoint", &format!("http://{}", daemon.public)]);
        command.args(["--file-id", "a/b ä", "--user-id", "x+y&z", "--output", output]).output().unwrap()
    };
    // Above 1 MiB it asks first, with Expect: 100-continue.
    for (name, plain) in [("small", b"a text".to_vec()), ("large", b"a line of text\n".repeat(100_000))] {
        fs::write(folder.path().join(name), encrypt(&KEY, &plain)).unwrap();
        let done = teemark(name, "marked");
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
        let marked = fs::read(folder.path().join("marked")).unwrap();
        assert_eq!(extract(&marked), json!({"file_id": "a/b ä", "user_id": "x+y&z"}));
        assert_eq!(without_marks(&marked).as_bytes(), plain, "{name}");
        fs::remove_file(folder.path().join("marked")).unwrap();
    }
    fs::write(folder.path().join("foreign"), encrypt(&[9; 32], b"a text")).unwrap();
    let refused = teemark("foreign", "marked");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("decrypt_failed"));
    assert!(!folder.path().join("marked").exists());
}
