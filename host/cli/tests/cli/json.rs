//! `--json` and the exit status of every command.

use serde_json::{Value, json};

use super::enclave::{Enclave, Reply, TRUST, answer, daemon};
use super::secrets::{ACCEPTED, Meet, REFUSED, listener};
use super::*;

/// The only object on standard output.
#[track_caller]
fn object(output: &Output) -> Value {
    let text = stdout(output);
    assert!(text.ends_with('\n') && text.lines().count() == 1, "{text:?}; {}", stderr(output));
    serde_json::from_str(&text).unwrap()
}

/// The result of a command that succeeded.
#[track_caller]
fn result(output: Output) -> Value {
    object(&succeeds(output))
}

/// Expects that the command ended with this status, which the object repeats, and this code.
#[track_caller]
fn failure(status: i32, code: &str, output: &Output) -> Value {
    let said = fails(status, output);
    let object = object(output);
    assert_eq!((&object["exit"], &object["code"]), (&json!(status), &json!(code)), "{object}");
    assert!(!object["error"].as_str().unwrap().is_empty() && !said.is_empty());
    object
}

#[test]
fn every_command_gives_its_result_as_one_object() {
    let place = Place::new();
    let made = |arguments: &[&str]| result(place.teemark(&[arguments, &["--json"]].concat()));
    let key = made(&["keygen", "--id", "7", "--output", "keys.json"]);
    assert_eq!(key, json!({"use": "file", "key_id": "7", "key_file": "keys.json", "keys": 1}));
    assert_eq!(made(&["keygen", "--id", "7"])["keys"]["7"].as_str().unwrap().len(), 44);
    let pair = made(&["keygen", "--for", "reply", "--output", "reply.key"]);
    assert_eq!((&pair["use"], &pair["private_key_file"]), (&json!("reply"), &json!("reply.key")));
    let grants = made(&["keygen", "--for", "grants", "--output", "grants.key", "--public-output", "grants.json"]);
    assert_eq!(grants["public_key"]["keys"][0]["crv"], "Ed25519");
    assert_eq!(grants["public_key_file"], "grants.json");

    let grant = ["grant", "--key", "grants.key", "--file-id", "f", "--user-id", "u", "--audience", "a"];
    let grant = made(&grant);
    assert_eq!((grant["grant"].as_str().unwrap().split('.').count(), &grant["claims"]["sub"]), (3, &json!("u")));

    place.write("file", "hello");
    let encrypted = made(&["encrypt", "file", "--keys", "keys.json"]);
    let expected = json!({"input": "file", "output": "file.enc", "key_id": "7", "file_id": null, "bytes": 12 + 5 + 16});
    assert_eq!(encrypted, expected);

    place.write("list", "endpoints:\n- a.example\n");
    let unit = "teemark-vsock-proxy@8101.service";
    let endpoint = json!({"vsock_port": 8101, "host": "a.example", "port": 443, "unit": unit});
    assert_eq!(made(&["vsock-proxy", "--endpoints", "list"]), json!({"endpoints": [endpoint]}));
    assert!(made(&["completions", "bash"])["script"].as_str().unwrap().contains("keygen"));

    let bundle = made(&["secrets", "--endpoint", "https://h:1"]);
    assert_eq!(bundle, json!({"bundle": {"ECS_WATERMARK_ENDPOINT": "https://h:1"}}));
    let written = made(&["secrets", "--endpoint", "https://h:1", "--output", "bundle.json"]);
    assert_eq!(written, json!({"output": "bundle.json"}));
    let (address, _bundles) = listener("tcp:127.0.0.1:0", vec![Meet::Answer(ACCEPTED)]);
    let address = address.to_string();
    let sent = made(&["secrets", "--endpoint", "https://h:1", "--plain", "--send", &address]);
    let expected = json!({
        "accepted_by": address, "confirmed": false,
        "updated": ["ECS_WATERMARK_ENDPOINT"], "ignored": ["COLOUR"], "warnings": ["another CA"], "missing": ["FILE_KEYS"],
    });
    assert_eq!(sent, expected);

    let (endpoint, _requests) = daemon(vec![Reply::After(answer("200 OK", "", "marked"))]);
    let decrypted = made(&["decrypt", "file.enc", "--endpoint", &endpoint, "--user-id", "u", "--force"]);
    let expected = json!({
        "input": "file.enc", "output": "file", "file_id": "file", "bytes": 6,
        "watermarked": true, "sealed": false, "verified": false, "identity": null,
    });
    assert_eq!(decrypted, expected);
}

#[test]
fn what_is_refused_for_good_ends_with_1() {
    let enclave = Enclave::new();
    let place = enclave.place();
    place.write("file.enc", "sealed");
    let refusal = answer("403 Forbidden", "", r#"{"error":"it was used","code":"grant_used"}"#);
    let (endpoint, _requests) = daemon(vec![Reply::After(refusal)]);
    let decrypt = ["decrypt", "file.enc", "--endpoint", &endpoint, "--user-id", "u", "--json"];
    let object = failure(1, "grant_used", &place.teemark(&decrypt));
    assert_eq!(object["status"], 403);

    let (endpoint, _requests) = daemon(vec![Enclave::new().attests()]);
    let attest = [&["attest", "--json", "--endpoint", &endpoint], &TRUST[..]].concat();
    failure(1, "attestation_refused", &place.teemark(&attest));

    let (address, _bundles) = listener("tcp:127.0.0.1:0", vec![Meet::Answer(REFUSED)]);
    let send = ["secrets", "--json", "--endpoint", "https://h:1", "--plain", "--send", &address.to_string()];
    let object = failure(1, "bundle_refused", &place.teemark(&send));
    assert_eq!(object["field"], "MTLS_CLIENT_CERT_JSON.client_key");
}

#[test]
fn what_may_pass_ends_with_3() {
    let place = Place::new();
    place.write("file.enc", "sealed");
    let decrypt = |endpoint: &str, more: &[&str]| {
        place.teemark(&[&["decrypt", "file.enc", "--endpoint", endpoint, "--user-id", "u", "--json"], more].concat())
    };
    let attest = |endpoint: &str| place.teemark(&["attest", "--endpoint", endpoint, "--development", "--json"]);
    failure(3, "no_answer", &decrypt("http://127.0.0.1:1", &[]));
    failure(3, "no_answer", &attest("http://127.0.0.1:1"));
    let send = ["secrets", "--endpoint", "https://h:1", "--plain", "--send", "unix:socket", "--wait", "0", "--json"];
    failure(3, "no_answer", &place.teemark(&send));
    for (status, code) in [
        ("408 Request Timeout", "request_timeout"),
        ("429 Too Many Requests", "too_many_requests"),
        ("503 Service Unavailable", "watermark_busy"),
        ("504 Gateway Timeout", "watermark_timeout"),
    ] {
        let busy = || Reply::After(answer(status, "", &format!(r#"{{"error":"not now","code":"{code}"}}"#)));
        let (endpoint, _requests) = daemon(vec![busy(), busy()]);
        failure(3, code, &decrypt(&endpoint, &[]));
        failure(3, code, &attest(&endpoint));
    }
    // A proxy in front of the daemon has an answer of its own.
    let (endpoint, _requests) = daemon(vec![Reply::After(answer("503 Service Unavailable", "", "<h1>busy</h1>"))]);
    failure(3, "not_teemarkd", &decrypt(&endpoint, &[]));
    // It takes the request, and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", listener.local_addr().unwrap());
    failure(3, "no_answer", &decrypt(&silent, &["--timeout", "1"]));
}

#[test]
fn wrong_usage_and_any_other_error_end_with_2() {
    let place = Place::new();
    place.write("file", "hello");
    for arguments in [
        &["--json"][..],
        &["keygen", "--json", "--for", "nobody"],
        &["decrypt", "--json"],
        &["keygen", "--json", "--for", "operator"],
        &["secrets", "--json", "--endpoint", "https://h:1", "--send", "unix:socket"],
    ] {
        failure(2, "usage", &place.teemark(arguments));
    }
    place.keys(&["1"]);
    let to_stdout = ["encrypt", "file", "--keys", "keys.json", "--output", "-", "--json"];
    let object_of = failure(2, "usage", &place.teemark(&to_stdout));
    assert!(object_of["error"].as_str().unwrap().contains("standard output is for the result"), "{object_of}");
    failure(2, "error", &place.teemark(&["encrypt", "none", "--keys", "keys.json", "--json"]));
    failure(2, "error", &place.teemark(&["vsock-proxy", "--json"]));
    for (status, code) in [("500 Internal Server Error", "internal"), ("502 Bad Gateway", "watermark_failed")] {
        let reply = answer(status, "", &format!(r#"{{"error":"it went wrong","code":"{code}"}}"#));
        let (endpoint, _requests) = daemon(vec![Reply::After(reply)]);
        let decrypt = ["decrypt", "file", "--endpoint", &endpoint, "--user-id", "u", "--output", "o", "--json"];
        failure(2, code, &place.teemark(&decrypt));
    }
    // Without --json standard output is empty.
    assert!(place.teemark(&["keygen", "--for", "nobody"]).stdout.is_empty());
    let help = succeeds(place.teemark(&["--help"]));
    for words in ["0  done", "1  refused for good", "2  wrong usage", "3  try again"] {
        assert!(stdout(&help).contains(words), "{words}");
    }
}

#[test]
fn a_daemons_words_can_neither_steer_a_terminal_nor_hide_in_it() {
    let place = Place::new();
    place.write("file.enc", "sealed");
    // Characters that JSON allows: they move the cursor, reverse the direction, are invisible, end a line, are tags.
    let words = r#"no\u001b[2J\u202e\u2066\u200b\ufeff\n\u2028\udb40\udc41"#;
    let hostile = "\x1b\u{202e}\u{2066}\u{200b}\u{feff}\u{2028}\u{e0041}";
    let clean = |output: &Output| {
        let both = stdout(output) + &stderr(output);
        assert!(!both.contains(|c| hostile.contains(c)), "{both:?}");
        assert!(stderr(output).contains("\\u{1b}[2J\\u{202e}\\u{2066}\\u{200b}\\u{feff}\\n\\u{2028}\\u{e0041}"));
    };
    for json in [&[][..], &["--json"]] {
        let refusal = answer("403 Forbidden", "", &format!(r#"{{"error":"{words}","code":"{words}"}}"#));
        let (endpoint, _requests) = daemon(vec![Reply::After(refusal)]);
        let decrypt = ["decrypt", "file.enc", "--endpoint", &endpoint, "--user-id", "u"];
        clean(&place.teemark(&[&decrypt[..], json].concat()));

        let refusal: &str =
            Box::leak(format!(r#"{{"ok":false,"field":"{words}","error":"{words}"}}"#).into_boxed_str());
        let accepted = format!(
            r#"{{"ok":true,"updated":["{words}"],"ignored":["{words}"],"warnings":["{words}"],"missing":["{words}"]}}"#
        );
        let accepted: &str = Box::leak(accepted.into_boxed_str());
        let (address, _bundles) = listener("tcp:127.0.0.1:0", vec![Meet::Answer(refusal), Meet::Answer(accepted)]);
        let address = address.to_string();
        let send = ["secrets", "--endpoint", "https://h:1", "--plain", "--send", &address];
        clean(&place.teemark(&[&send[..], json].concat()));
        clean(&succeeds(place.teemark(&[&send[..], json].concat())));
    }
}
