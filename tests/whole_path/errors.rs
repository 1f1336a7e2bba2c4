//! Every row of the error table that can be caused from outside.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::support::*;
use crate::*;

/// One request with any method and an empty body.
fn ask(to: std::net::SocketAddr, method: &str, path: &str) -> Answer {
    request(
        to,
        &format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
        b"",
    )
}

#[test]
fn a_request_that_cannot_be_understood_is_answered_400_with_the_part_that_is_wrong() {
    let (_service, daemon) = pair(&[]);
    for (path, body, part) in [
        ("/files/f/decrypt", &b"x"[..], "user_id is missing"),
        ("/files/f/decrypt?user_id=", b"x", "user_id"),
        ("/files/f/decrypt?user_id=u&user_id=v", b"x", "user_id is given twice"),
        ("/files/f/decrypt?user_id=u&key_id=", b"x", "key_id"),
        ("/files//decrypt?user_id=u", b"x", "file_id"),
        ("/files/%ff/decrypt?user_id=u", b"x", "the path is not UTF-8"),
        ("/files/f/decrypt?user_id=%ff", b"x", "the query is not UTF-8"),
        ("/files/decrypt", b"", "the body is not a JSON object"),
        ("/files/decrypt", br#"["f", "u", "AAAA", null, null]"#, "the body is not a JSON object"),
        ("/files/decrypt", b"{\"more\":\"\xff\"}", "the body is not UTF-8 at byte 10"),
        ("/files/decrypt", b"{\"file_id\":\n 7}", "line 2 column 3"),
        ("/files/decrypt", b"{\"file_id\":\"f\xff\"}", "the body is not UTF-8"),
        ("/files/decrypt", br#"{"user_id":"u","encrypted_content":""}"#, "file_id is missing"),
        ("/files/decrypt", br#"{"file_id":"f","encrypted_content":""}"#, "user_id is missing"),
        ("/files/decrypt", br#"{"file_id":"f","user_id":"u"}"#, "encrypted_content is missing"),
        ("/files/decrypt", br#"{"file_id":"f","user_id":"u","encrypted_content":"*"}"#, "encrypted_content"),
        ("/files/decrypt", br#"{"file_id":"f\n","user_id":"u","encrypted_content":""}"#, "file_id"),
    ] {
        let answer = daemon.post(path, body);
        assert_error(&answer, 400, "invalid_request");
        assert!(answer.text().contains(part), "{path}: {answer:?}");
    }
}

#[test]
fn what_the_ingress_refuses_is_answered_with_json_too() {
    let (_service, daemon) = pair(&[]);
    let many = "A: b\r\n".repeat(65);
    for (head, status, code) in [
        ("not HTTP\r\n\r\n", 400, "invalid_request"),
        ("GET /\u{e4} HTTP/1.1\r\nHost: x\r\n\r\n", 400, "invalid_request"),
        ("GET ftp://x/health HTTP/1.1\r\nHost: x\r\n\r\n", 400, "invalid_request"),
        ("GET /health HTTP/1.1\r\n\r\n", 400, "invalid_request"),
        ("GET /health HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400, "invalid_request"),
        ("GET /health HTTP/1.1\nHost: x\n\n", 400, "invalid_request"),
        ("POST /files/decrypt HTTP/1.1\r\nHost: x\r\n\r\n", 411, "length_required"),
        ("POST /files/decrypt HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999999\r\n\r\n", 413, "file_too_large"),
        (
            "POST /files/decrypt HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nExpect: wonders\r\n\r\n",
            417,
            "invalid_request",
        ),
        (&format!("GET / HTTP/1.1\r\n{many}\r\n"), 431, "invalid_request"),
    ] {
        let answer = request(daemon.public, head, b"");
        assert_error(&answer, status, code);
        assert!(
            status != 413 || answer.text().contains("the limit is 67108864 bytes (TEEMARK_MAX_FILE)"),
            "{answer:?}"
        );
    }
    let head = "POST /admin/update-secrets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999999\r\n\r\n";
    let answer = request(daemon.admin, head, b"");
    assert_error(&answer, 413, "file_too_large");
    assert!(answer.text().contains("the bundle is too large: the limit is 1048576 bytes"), "{answer:?}");
}

#[test]
fn what_real_clients_and_proxies_send_is_served() {
    let (_service, daemon) = pair(&[]);
    for head in [
        "GET http://x.example:80/health HTTP/1.1\r\nHost: x.example\r\nConnection: close\r\n\r\n",
        "GET HTTPS://x.example/health HTTP/1.1\r\nHost: x.example\r\nConnection: close\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: x\r\nX-City: S\u{e3}o Paulo\r\nConnection: close\r\n\r\n",
        "GET /health HTTP/1.0\r\n\r\n",
    ] {
        let answer = request(daemon.public, head, b"");
        assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("alive")), "{head}");
        assert_eq!(field(&answer, "Connection"), Some("close"), "{head}");
    }
}

#[test]
fn a_path_has_one_spelling_so_that_a_limit_in_front_of_it_is_not_passed_by() {
    let (_service, daemon) = pair(&[]);
    assert_eq!(ask(daemon.public, "GET", "/get_attestation").status, 200);
    for path in
        ["//get_attestation", "/%67et_attestation", "/get%5fattestation", "/./get_attestation", "/get_attestation/"]
    {
        assert_error(&ask(daemon.public, "GET", path), 404, "not_found");
    }
    let file = encrypt(&KEY, b"a text");
    assert_eq!(daemon.decrypt(&file, "a%2Fb%20c", "u").status, 200, "an id may hold any character");
    assert_error(&daemon.post("/files/f/%64ecrypt?user_id=u", &file), 404, "not_found");
}

#[test]
fn a_wrong_path_is_404_and_a_wrong_method_is_405_with_the_right_one() {
    let (_service, daemon) = pair(&[]);
    for path in ["/nothing", "/files", "/files/f", "/files/f/decrypt/", "/files/a/b/decrypt", "/Health", "/health/"] {
        assert_error(&ask(daemon.public, "GET", path), 404, "not_found");
        assert_error(&ask(daemon.public, "POST", path), 404, "not_found");
    }
    let gets = ["/", "/health", "/ready", "/health_check"];
    let posts = ["/files/decrypt", "/files/f/decrypt?user_id=u"];
    let public = gets.map(|p| (daemon.public, p, "GET")).into_iter();
    let public = public.chain(posts.map(|p| (daemon.public, p, "POST")));
    let admin = [("/ping", "GET"), ("/metrics", "GET"), ("/admin/status", "GET"), ("/admin/update-secrets", "POST")];
    for (side, path, right) in public.chain(admin.map(|(p, m)| (daemon.admin, p, m))) {
        for wrong in ["GET", "POST", "PUT", "DELETE", "OPTIONS"].into_iter().filter(|m| *m != right) {
            if wrong == "OPTIONS" && side == daemon.public {
                assert_eq!(ask(side, wrong, path).status, 204);
                continue;
            }
            let answer = ask(side, wrong, path);
            assert_error(&answer, 405, "method_not_allowed");
            assert_eq!(field(&answer, "Allow"), Some(right), "{wrong} {path}");
        }
    }
}

#[test]
fn the_routes_of_one_side_are_not_served_on_the_other() {
    let (_service, daemon) = pair(&[]);
    for path in ["/ping", "/metrics", "/admin/status", "/admin/update-secrets"] {
        assert_eq!(ask(daemon.admin, "PUT", path).status, 405, "{path} is there");
        for method in ["GET", "POST"] {
            assert_error(&ask(daemon.public, method, path), 404, "not_found");
        }
    }
    for path in ["/", "/health", "/ready", "/health_check", "/files/decrypt", "/files/f/decrypt"] {
        for method in ["GET", "POST"] {
            assert_error(&ask(daemon.admin, method, path), 404, "not_found");
        }
    }
}

#[test]
fn why_a_file_does_not_open_cannot_be_told_from_the_answer() {
    let (_service, daemon) =
        pair_with_keys(json!({"k": {"key": STANDARD.encode(KEY), "aad": "file_id"}, "l": STANDARD.encode([7; 32])}));
    let good = seal(&KEY, b"", b"f", b"a text of some length");
    let ask = |file: &[u8]| daemon.post("/files/f/decrypt?user_id=u&key_id=k", file);
    assert_eq!(ask(&good).status, 200);
    let damaged = |at: usize| {
        let mut file = good.clone();
        file[at] ^= 1;
        file
    };
    let files = [
        ("wrong key", seal(&[9; 32], b"", b"f", b"a text")),
        ("another known key", seal(&[7; 32], b"", b"f", b"a text")),
        ("wrong IV", damaged(0)),
        ("wrong ciphertext", damaged(12)),
        ("wrong tag", damaged(good.len() - 1)),
        ("cut file", good[..good.len() - 1].to_vec()),
        ("shorter than IV and tag", good[..27].to_vec()),
        ("empty", Vec::new()),
        ("wrong associated data", seal(&KEY, b"", b"g", b"a text")),
        ("no associated data", seal(&KEY, b"", b"", b"a text")),
        ("Tink's prefix of no key", seal(&KEY, &[1, 0, 0, 0, 1], b"f", b"a text")),
    ];
    let bytes = |answer: &Answer| {
        let varies = |line: &str| line.starts_with("Date: ") || line.starts_with("X-Request-Id: ");
        let head: Vec<&str> = answer.head.lines().filter(|line| !varies(line)).collect();
        (head.join("\n"), answer.body.clone())
    };
    let first = ask(&files[0].1);
    assert_error(&first, 422, "decrypt_failed");
    for (why, file) in &files {
        assert_eq!(bytes(&ask(file)), bytes(&first), "{why}");
        let content = STANDARD.encode(file);
        let body = json!({"file_id": "f", "user_id": "u", "key_id": "k", "encrypted_content": content});
        assert_eq!(bytes(&post_json(&daemon, &body)), bytes(&first), "{why}, JSON");
    }
}

#[test]
fn no_byte_of_a_file_reaches_the_service_before_all_of_it_was_authenticated() {
    let (service, daemon) = pair(&[]);
    let good = encrypt(&KEY, &vec![b'x'; 4 << 20]);
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    assert_error(&daemon.decrypt(&bad, "f", "u"), 422, "decrypt_failed");
    assert_eq!(service.count("TLS handshake: client"), 0, "{}", service.process.log());
    assert_eq!(daemon.decrypt(&good, "f", "u").status, 200);
    assert_eq!(service.count("TLS handshake: client"), 1);
}

#[test]
fn no_byte_of_a_marked_file_reaches_the_user_before_all_of_it_is_there() {
    let (_service, daemon) = pair(&["--fault", "cut"]);
    let answer = daemon.decrypt(&encrypt(&KEY, &vec![b'x'; 4 << 20]), "f", "u");
    assert_error(&answer, 502, "watermark_failed");
}

#[test]
fn before_the_handshake_a_file_is_answered_503_with_what_is_missing() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Setup::new(service.port).start();
    let refused = |missing: &[&str]| {
        for answer in [daemon.decrypt(b"x", "f", "u"), decrypt_json(&daemon, b"x")] {
            assert_error(&answer, 503, "not_ready");
            assert_eq!(field(&answer, "Retry-After"), Some("5"));
            for item in ["MTLS_CLIENT_CERT_JSON", "ECS_WATERMARK_ENDPOINT", "FILE_KEYS"] {
                assert_eq!(answer.text().contains(item), missing.contains(&item), "{answer:?}");
            }
        }
    };
    refused(&["MTLS_CLIENT_CERT_JSON", "ECS_WATERMARK_ENDPOINT", "FILE_KEYS"]);
    assert_eq!(daemon.handshake(CERTS.bundle(service.port).to_string().as_bytes())["ok"], true);
    refused(&["FILE_KEYS"]);
    assert_eq!(daemon.handshake(json!({"FILE_KEYS": {"k": STANDARD.encode(KEY)}}).to_string().as_bytes())["ok"], true);
    assert_eq!(daemon.decrypt(&encrypt(&KEY, b"a text"), "f", "u").status, 200);
}

#[test]
fn a_request_that_can_never_fit_the_memory_is_too_large_and_is_not_told_to_come_again() {
    let service = Service::start(&CERTS, &[]);
    let setup = Setup::new(service.port).env("TEEMARK_MEMORY", "1MiB");
    let daemon = Daemon::ready_with(setup, service.port, &CERTS);
    let large = encrypt(&KEY, &[b'x'; 600 << 10]);
    let largest = &daemon.get_admin("/admin/status").json()["limits"]["largest_file_bytes"];
    for (route, answer) in [("raw", daemon.decrypt(&large, "f", "u")), ("json", decrypt_json(&daemon, &large))] {
        assert_error(&answer, 413, "file_too_large");
        assert_eq!(field(&answer, "Retry-After"), None);
        let (text, largest) = (answer.text().to_lowercase(), &largest[route]);
        assert!(text.contains(&format!("by the {route} route a file of up to {largest} bytes")), "{answer:?}");
        assert!(text.contains("may hold together, 1048576 bytes (teemark_memory)"), "{answer:?}");
    }
    assert_eq!(daemon.metric("teemark_memory_left_bytes"), f64::from(1 << 20), "nothing of it is kept");
    assert_eq!(daemon.decrypt(&encrypt(&KEY, b"a text"), "f", "u").status, 200);
}
