//! What a request gets for its grant.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::*;

#[test]
fn without_a_good_grant_no_file_is_given_and_each_refusal_has_its_code() {
    let issuer = Issuer::new();
    let scene = Scene::new(&issuer.jwks());
    let now = Utc::now().0;
    let ask = |claims: &Value| scene.ask_with(&issuer.token(claims), "f", "alice");
    assert_eq!(refusal(&scene.ask("", "f", "alice")), is(401, "grant_missing"));
    assert_eq!(refusal(&scene.ask("Authorization: Basic YTpi\r\n", "f", "alice")), is(401, "grant_missing"));
    assert_eq!(refusal(&scene.ask_with("x.y.z", "f", "alice")), is(401, "grant_invalid"));
    assert_eq!(refusal(&ask(&with("1", "exp", json!(now - 60)))), is(401, "grant_expired"));
    assert_eq!(refusal(&ask(&with("1", "nbf", json!(now + 60)))), is(401, "grant_not_yet_valid"));
    assert_eq!(refusal(&ask(&with("1", "aud", json!("other")))), is(401, "grant_invalid"));
    assert_eq!(refusal(&ask(&with("1", "file_id", json!("g")))), is(403, "grant_for_another_file"));
    assert_eq!(refusal(&ask(&with("1", "sub", json!("bob")))), is(403, "grant_for_another_user"));
    let twice = format!("Authorization: Bearer {0}\r\nAuthorization: Bearer {0}\r\n", issuer.token(&claims("1")));
    assert_eq!(refusal(&scene.ask(&twice, "f", "alice")), is(400, "invalid_request"));
    assert!(scene.ask("", "f", "alice").head.contains("WWW-Authenticate: Bearer\r\n"));
    assert!(scene.ask_with("x", "f", "alice").head.contains("WWW-Authenticate: Bearer error=\"invalid_token\"\r\n"));
    // None of these requests used it up.
    let token = issuer.token(&claims("1"));
    assert_eq!(scene.ask_with(&token, "f", "alice").status, 200);
    assert_eq!(refusal(&scene.ask_with(&token, "f", "alice")), is(403, "grant_used"));
    assert!(!scene.daemon.process.log().contains(&token[token.len() - 40..]), "a token is in the log");
    assert!(scene.daemon.metric("teemark_grants_refused_total") >= 10.0);
    assert_eq!(scene.daemon.metric("teemark_refusals_total{code=\"grant_used\"}"), 1.0);
    assert_eq!(scene.daemon.metric("teemark_grants_remembered"), 1.0, "the one that was used");
    assert_eq!(scene.daemon.metric("teemark_keys_in_force{item=\"GRANT_KEYS\"}"), 1.0);
}

#[test]
fn a_grant_for_this_enclave_names_its_identity_key() {
    let issuer = Issuer::new();
    let scene = Scene::new(&issuer.jwks());
    let log = scene.daemon.process.log();
    let (_, identity) = log.split_once("identity key ").unwrap();
    let identity = identity.lines().next().unwrap();
    assert_eq!(identity.len(), 64);
    assert_eq!(scene.ask_with(&issuer.token(&with("1", "aud", json!(identity))), "f", "alice").status, 200);
    let other = "0".repeat(64);
    let refused = scene.ask_with(&issuer.token(&with("2", "aud", json!(other))), "f", "alice");
    assert_eq!(refusal(&refused), is(401, "grant_invalid"));
}

#[test]
fn the_json_route_asks_for_a_grant_too() {
    let issuer = Issuer::new();
    let scene = Scene::new(&issuer.jwks());
    let content = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(&scene.file)
    };
    let body = json!({"file_id": "f", "user_id": "alice", "encrypted_content": content}).to_string();
    let post = |lines: &str| {
        let length = body.len();
        let head = format!("POST /files/decrypt HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{lines}\r\n");
        request(scene.daemon.public, &head, body.as_bytes())
    };
    let bearer = |claims: &Value| format!("authorization: bearer {}\r\n", issuer.token(claims));
    assert_eq!(refusal(&post("")), is(401, "grant_missing"));
    assert_eq!(refusal(&post(&bearer(&with("1", "sub", json!("bob"))))), is(403, "grant_for_another_user"));
    assert_eq!(post(&bearer(&claims("1"))).status, 200);
    assert_eq!(refusal(&post(&bearer(&claims("1")))), is(403, "grant_used"));
}

#[test]
fn what_a_request_asks_for_in_the_other_forms_place_is_an_error_and_leaves_its_grant_good() {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    let issuer = Issuer::new();
    let scene = Scene::new(&issuer.jwks());
    let (token, key, nonce) = (issuer.token(&claims("1")), STANDARD.encode([9; 32]), "c0ffee");
    let json =
        json!({"file_id": "f", "user_id": "alice", "encrypted_content": STANDARD.encode(&scene.file)}).to_string();
    let post = |path: &str, lines: &str, body: &[u8]| {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{lines}Content-Length: {}\r\n\r\n",
            body.len()
        );
        request(scene.daemon.public, &head, body)
    };
    let key_field = format!("Teemark-Reply-Key: {key}\r\n");
    let key_parameter = format!("reply_key={}", key.replace('+', "%2B"));
    for (path, lines, body) in [
        ("/files/decrypt".to_owned(), &*key_field, json.as_bytes()),
        ("/files/decrypt".into(), "teemark-attest: c0ffee\r\n", json.as_bytes()),
        // Whatever is in it.
        ("/files/decrypt".into(), "Teemark-Attest: \r\n", json.as_bytes()),
        (format!("/files/decrypt?{key_parameter}"), "", json.as_bytes()),
        (format!("/files/decrypt?attest_nonce={nonce}"), "", json.as_bytes()),
        (format!("/files/f/decrypt?user_id=alice&{key_parameter}"), "", &scene.file),
        (format!("/files/f/decrypt?user_id=alice&attest_nonce={nonce}"), "", &scene.file),
        (format!("/files/f/decrypt?user_id=alice&attest_nonce={nonce}"), "Teemark-Attest: c0ffee\r\n", &scene.file),
    ] {
        let answer = post(&path, lines, body);
        assert_eq!(refusal(&answer), is(400, "invalid_request"), "{path} {lines}");
        let message = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(message.contains("Teemark-") && message.contains("JSON body"), "{message}");
    }
    assert_eq!(scene.service.count("POST /api/watermark"), 0);
    assert_eq!(post("/files/decrypt", "", json.as_bytes()).status, 200, "none of these used it up");
}

#[test]
fn a_request_that_returned_nothing_leaves_its_grant_valid_and_only_one_of_two_at_once_is_served() {
    let issuer = Issuer::new();
    let scene = Scene::with(&issuer.jwks(), &["--fault", "slow=2"]);
    let token = issuer.token(&claims("1"));
    let damaged = Scene { file: vec![0; 100], ..scene };
    assert_eq!(refusal(&damaged.ask_with(&token, "f", "alice")), is(422, "decrypt_failed"));
    let scene = Scene { file: encrypt(&KEY, FILE), ..damaged };
    let statuses = std::thread::scope(|scope| {
        let asks = [(); 4].map(|()| scope.spawn(|| scene.ask_with(&token, "f", "alice").status));
        asks.map(|ask| ask.join().unwrap())
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 403).count(), 3, "{statuses:?}");
}

#[test]
fn a_refusal_comes_before_the_body_is_asked_for() {
    let scene = Scene::new(&Issuer::new().jwks());
    let head = "POST /files/f/decrypt?user_id=alice HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\
                Expect: 100-continue\r\n\r\n";
    let answer = request(scene.daemon.public, head, b"");
    assert_eq!(refusal(&answer), is(401, "grant_missing"));
}

/// GRANT_KEYS without the issuer's key.
fn other_keys() -> Value {
    json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "new", "x": base64url(&[1; 32])}]})
}

/// The answer to a request with this grant that sends half of its file, then a byte now and then until `happened`, and
/// then the rest. `None` if the answer did not wait for the file.
fn meanwhile(scene: &Scene, token: &str, mut happened: impl FnMut() -> bool) -> Option<Answer> {
    // That of an answer before it, too.
    scene.daemon.has_all_its_memory();
    let free = scene.daemon.metric("teemark_memory_left_bytes");
    let (half, mut rest) = scene.file.split_at(scene.file.len() / 2);
    let head = format!(
        "POST /files/f/decrypt?user_id=alice HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\
         Authorization: Bearer {token}\r\n\r\n",
        scene.file.len()
    );
    let mut stream = TcpStream::connect(scene.daemon.public).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    // An answer that does not wait may end the connection.
    let _ = stream.write_all(&[head.as_bytes(), half].concat());
    let answered = || {
        stream.set_nonblocking(true).unwrap();
        let peeked = stream.peek(&mut [0]);
        stream.set_nonblocking(false).unwrap();
        !peeked.is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
    };
    // Memory is reserved for it once its grant has been checked.
    let begun = wait_for("the request to begin", || {
        let begun = scene.daemon.metric("teemark_memory_left_bytes") < free;
        (begun || answered()).then_some(begun)
    });
    if !begun {
        return None;
    }
    while !happened() {
        stream.write_all(&rest[..1]).unwrap();
        rest = &rest[1..];
        std::thread::sleep(Duration::from_millis(100));
    }
    stream.write_all(rest).unwrap();
    Some(read_answer(&mut stream).expect("an answer"))
}

#[test]
fn a_grant_must_still_be_valid_when_the_file_has_arrived() {
    let issuer = Issuer::new();
    // Half of it alone may take half a minute.
    let scene = Scene { file: encrypt(&KEY, &FILE.repeat(50_000)), ..Scene::new(&issuer.jwks()) };
    let valid = meanwhile(&scene, &issuer.token(&claims("1")), || true).expect("it begins");
    assert_eq!(valid.status, 200);

    // Ten seconds of leeway are added to it. They may be over before the request begins, on a machine that is busy.
    let expired = unspoilt("a grant that is valid still when the request begins", || {
        let exp = Utc::now().0;
        meanwhile(&scene, &issuer.token(&with("2", "exp", json!(exp))), || Utc::now().0 >= exp + 10)
    });
    assert_eq!(refusal(&expired), is(401, "grant_expired"));

    let revoked = meanwhile(&scene, &issuer.token(&claims("3")), || {
        scene.daemon.handshake(json!({"GRANT_KEYS": other_keys()}).to_string().as_bytes())["ok"] == true
    });
    assert_eq!(refusal(&revoked.expect("it begins")), is(401, "grant_invalid"));
}

#[test]
fn while_a_request_arrives_no_other_can_use_the_same_grant() {
    let issuer = Issuer::new();
    let scene = Scene::new(&issuer.jwks());
    let token = issuer.token(&claims("1"));
    let answer = meanwhile(&scene, &token, || {
        let head = format!(
            "POST /files/decrypt HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\
             Authorization: Bearer {token}\r\n\r\n"
        );
        refusal(&request(scene.daemon.public, &head, b"")) == is(403, "grant_used")
    });
    assert_eq!(answer.expect("it begins").status, 200);
}

#[test]
fn replaced_keys_can_no_longer_sign_grants() {
    let issuer = Issuer::new();
    let scene = Scene::new(&issuer.jwks());
    let answer = scene.daemon.handshake(json!({"GRANT_KEYS": other_keys()}).to_string().as_bytes());
    assert_eq!(answer["updated"], json!(["GRANT_KEYS"]));
    assert_eq!(refusal(&scene.ask_with(&issuer.token(&claims("1")), "f", "alice")), is(401, "grant_invalid"));
}
