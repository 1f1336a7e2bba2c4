//! TEEMARK_MAX_FILE and TEEMARK_ALLOW_UNWATERMARKED.

use crate::support::*;
use crate::*;

#[test]
fn a_file_of_exactly_the_largest_size_passes_and_one_byte_more_does_not() {
    let service = Service::start(&CERTS, &[]);
    let setup = Setup::new(service.port).env("TEEMARK_MAX_FILE", "20000");
    let daemon = setup.start();
    let mut bundle = CERTS.bundle(service.port);
    bundle["FILE_KEYS"] = json!({"7": STANDARD.encode(KEY)});
    assert_eq!(daemon.handshake(bundle.to_string().as_bytes())["ok"], true);
    for prefix in [&b""[..], &[1, 0, 0, 0, 7]] {
        let file = |size| seal(&KEY, prefix, b"", &vec![b'x'; size]);
        for answer in [daemon.decrypt(&file(20_000), "f", "u"), decrypt_json(&daemon, &file(20_000))] {
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        // One byte above is decided by the plaintext, a thousand by the body's length; both routes say the same.
        for size in [20_001, 21_000, 200_000] {
            for answer in [daemon.decrypt(&file(size), "f", "u"), decrypt_json(&daemon, &file(size))] {
                assert_error(&answer, 413, "file_too_large");
                assert!(answer.text().contains("the limit is 20000 bytes (TEEMARK_MAX_FILE)"), "{answer:?}");
            }
        }
    }
    assert_eq!(service.count("POST /api/watermark"), 4, "no file that is too large reaches the service");
}

#[test]
fn a_file_that_is_too_large_is_noticed_in_chunks_too() {
    let service = Service::start(&CERTS, &[]);
    let setup = Setup::new(service.port).env("TEEMARK_MAX_FILE", "20000");
    let daemon = Daemon::ready_with(setup, service.port, &CERTS);
    let chunked = |size: usize| {
        let file = encrypt(&KEY, &vec![b'x'; size]);
        let mut body = Vec::new();
        for chunk in file.chunks(1000) {
            body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            body.extend_from_slice(chunk);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\n\r\n");
        let head = "POST /files/f/decrypt?user_id=u HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        request(daemon.public, head, &body)
    };
    assert_eq!(chunked(20_000).status, 200);
    assert_error(&chunked(20_001), 413, "file_too_large");
    assert_error(&chunked(25_000), 413, "file_too_large");
}

#[test]
fn a_success_without_a_marked_file_is_an_error() {
    let (_service, daemon) = pair(&["--fault", "no-data"]);
    let file = encrypt(&KEY, b"a plain text");
    for answer in [daemon.decrypt(&file, "f", "u"), decrypt_json(&daemon, &file)] {
        assert_error(&answer, 502, "watermark_missing");
        assert!(!answer.text().contains("plain"), "{answer:?}");
    }
}

#[test]
fn a_success_without_a_marked_file_gives_the_plain_one_only_where_that_is_allowed() {
    let service = Service::start(&CERTS, &["--fault", "no-data", "--fault", "first=2"]);
    let setup = Setup::new(service.port).env("TEEMARK_ALLOW_UNWATERMARKED", "on");
    let daemon = Daemon::ready_with(setup, service.port, &CERTS);
    let file = encrypt(&KEY, b"a plain text");
    let raw = daemon.decrypt(&file, "f", "u");
    assert_eq!((raw.status, &raw.body[..]), (200, &b"a plain text"[..]), "{raw:?}");
    assert_eq!(field(&raw, "Teemark-Watermarked"), Some("false"));
    let json = decrypt_json(&daemon, &file);
    assert_eq!((json.status, &json.json()["watermarked"]), (200, &json!(false)), "{json:?}");
    assert_eq!(decrypted_data(&json), b"a plain text");
    // A marked file is reported as marked, here too.
    let marked = daemon.decrypt(&file, "f", "u");
    assert_eq!(field(&marked, "Teemark-Watermarked"), Some("true"));
    assert_eq!(extract(&marked.body), json!({"file_id": "f", "user_id": "u"}));
}

#[test]
fn where_unmarked_files_are_allowed_a_failing_service_still_gives_none() {
    let service = Service::start(&CERTS, &["--fault", "status-error"]);
    let setup = Setup::new(service.port).env("TEEMARK_ALLOW_UNWATERMARKED", "on");
    let daemon = Daemon::ready_with(setup, service.port, &CERTS);
    assert_error(&daemon.decrypt(&encrypt(&KEY, b"a text"), "f", "u"), 502, "watermark_failed");
}
