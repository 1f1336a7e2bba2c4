//! What an accepted bundle does: the answer, the files, and what else it affects.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use support::openssl::*;

const WRITTEN: [(&str, u32); 3] = [("client.crt", 0o644), ("client.key", 0o600), ("ecs-ca.crt", 0o644)];

fn modes(folder: &Path) -> Vec<(String, u32)> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let mut modes: Vec<_> = entries
        .map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().permissions().mode() & 0o7777))
        .collect();
    modes.sort();
    modes
}

fn assert_written(folder: &Path, certs: &Certs, name: &str) {
    assert_eq!(modes(folder), WRITTEN.map(|(name, mode)| (name.to_owned(), mode)));
    for (written, given) in [("client.crt", format!("{name}.crt")), ("client.key", format!("{name}.key"))] {
        assert_eq!(fs::read_to_string(folder.join(written)).unwrap(), certs.read(&given), "{written}");
    }
    assert_eq!(fs::read_to_string(folder.join("ecs-ca.crt")).unwrap(), certs.read("ca.crt"));
}

#[test]
fn before_the_handshake_the_daemon_lives_and_says_what_is_missing() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Setup::new(service.port).start();
    let all = json!(["MTLS_CLIENT_CERT_JSON", "ECS_WATERMARK_ENDPOINT", "FILE_KEYS"]);
    let not_ready = |missing: &Value| {
        let ready = daemon.get("/ready");
        assert_eq!((ready.status, ready.json()), (503, json!({"ready": false, "missing": missing})));
        let raw = daemon.decrypt(&encrypt(&KEY, b"a text"), "file", "user");
        assert_eq!((raw.status, raw.code()), (503, "not_ready".to_owned()));
        let body = json!({"file_id": "f", "user_id": "u", "encrypted_content": STANDARD.encode(encrypt(&KEY, b"x"))});
        let json = daemon.post("/files/decrypt", body.to_string().as_bytes());
        assert_eq!((json.status, json.code()), (503, "not_ready".to_owned()));
        for name in missing.as_array().unwrap() {
            assert!(json.text().contains(name.as_str().unwrap()), "{}", json.text());
        }
        assert_eq!(daemon.get("/health_check?strict=1").status, 503);
        assert_eq!(daemon.get("/health").status, 200);
    };
    not_ready(&all);
    let waits = format!(
        "not ready: waiting for the handshake on unix:{}; missing: MTLS_CLIENT_CERT_JSON, ",
        daemon.secrets.display()
    );
    wait_for("the line that tells what is missing", || daemon.process.log().contains(&waits).then_some(()));

    // An empty object is not a handshake, and neither is an empty connection.
    assert_eq!(daemon.handshake(b"{}")["ok"], false);
    assert_eq!(daemon.handshake(b"")["ok"], false);
    not_ready(&all);

    let mut whole = bundle(service.port, client(&CERTS, "client"));
    let keys = whole["FILE_KEYS"].take();
    whole.as_object_mut().unwrap().remove("FILE_KEYS");
    assert_eq!(daemon.handshake(whole.to_string().as_bytes())["missing"], json!(["FILE_KEYS"]));
    not_ready(&json!(["FILE_KEYS"]));

    assert_eq!(daemon.handshake(json!({"FILE_KEYS": keys}).to_string().as_bytes())["missing"], json!([]));
    let ready = daemon.get("/ready");
    assert_eq!((ready.status, ready.json()), (200, json!({"ready": true, "missing": []})));
    assert_eq!(decrypts(&daemon), 200);
}

#[test]
fn the_answer_is_one_line_that_names_what_was_ignored() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Setup::new(service.port).start();
    let mut extra = bundle(service.port, client(&CERTS, "client"));
    extra["SUI_KEY"] = json!("s3cret");
    extra["MTLS_CLIENT_CERT_JSON"]["note"] = json!({"a": "s3cret"});
    extra["line\nbreak"] = json!(null);
    fs::write(daemon.folder.path().join("bundle"), extra.to_string()).unwrap();
    // Seen from outside, as bytes: socat waits for the answer until the daemon closes.
    let answer = bash(daemon.folder.path(), "socat -t 30 - UNIX-CONNECT:secrets.sock < bundle");
    assert_eq!(answer.lines().count(), 1);
    assert!(answer.ends_with("}\n"), "{answer:?}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let mut ignored: Vec<_> = answer["ignored"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    ignored.sort_unstable();
    assert_eq!(ignored, ["MTLS_CLIENT_CERT_JSON.note", "SUI_KEY", "line\\nbreak"]);
    let updated = ["MTLS_CLIENT_CERT_JSON", "ECS_WATERMARK_ENDPOINT", "FILE_KEYS"];
    assert_eq!(
        answer,
        json!({"ok": true, "updated": updated, "ignored": answer["ignored"], "warnings": [], "missing": []})
    );
    assert_eq!(decrypts(&daemon), 200);
}

#[test]
fn the_certificates_are_written_with_their_modes_and_the_log_says_where() {
    let certs = Certs::with_root();
    certs.client("first");
    certs.client("second");
    let service = Service::start(&certs, &[]);
    let daemon = Setup::new(service.port).start();
    let folder = daemon.folder.path().join("certs");
    let line = format!("[RUN_SH] mTLS client certificates written to {}/", folder.display());
    let written = || daemon.process.log().lines().filter(|l| l.ends_with(&line)).count();
    assert_eq!((folder.exists(), written()), (false, 0));

    accepted(&daemon, &bundle(service.port, client(&certs, "first")));
    assert_written(&folder, &certs, "first");
    wait_for("the line", || (written() == 1).then_some(()));

    // Modes that somebody changed are restored.
    for (name, mode) in [("client.crt", 0o600), ("client.key", 0o644), ("ecs-ca.crt", 0o666)] {
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    accepted(&daemon, &bundle(service.port, client(&certs, "second")));
    assert_written(&folder, &certs, "second");
    wait_for("the second line", || (written() == 2).then_some(()));
}

#[test]
fn certificates_that_cannot_be_written_are_refused_and_the_old_ones_stay_in_force() {
    let certs = Certs::with_root();
    certs.client("first");
    certs.client("second");
    let service = Service::start(&certs, &[]);
    let daemon = Setup::new(service.port).start();
    accepted(&daemon, &bundle(service.port, client(&certs, "first")));
    let folder = daemon.folder.path().join("certs");
    // A folder in the place of a file stops even root.
    fs::create_dir(folder.join(".client.key.new")).unwrap();
    let answer = daemon.handshake(bundle(service.port, client(&certs, "second")).to_string().as_bytes());
    assert_eq!((&answer["ok"], &answer["field"]), (&json!(false), &json!("MTLS_CLIENT_CERT_JSON")));
    assert!(answer["error"].as_str().unwrap().contains("cannot be written to"), "{answer}");
    for (written, given) in [("client.crt", "first.crt"), ("client.key", "first.key"), ("ecs-ca.crt", "ca.crt")] {
        assert_eq!(fs::read_to_string(folder.join(written)).unwrap(), certs.read(given));
    }
    assert_eq!(decrypts(&daemon), 200);
    assert_eq!(serials(&service, 1), [certs.serial("first")]);
}

#[test]
fn a_bundle_replaces_only_the_items_that_it_names() {
    let certs = Certs::with_root();
    certs.client("first");
    certs.client("second");
    let (one, two) = (Service::start(&certs, &[]), Service::start(&certs, &[]));
    let mut setup = Setup::new(one.port);
    setup.allowed += &format!("  - localhost:{}\n", two.port);
    let daemon = setup.start();
    accepted(&daemon, &bundle(one.port, client(&certs, "first")));
    assert_eq!(decrypts(&daemon), 200);
    let send = |item: &str, value: Value| {
        let answer = daemon.handshake(json!({item: value}).to_string().as_bytes());
        assert_eq!(answer, json!({"ok": true, "updated": [item], "ignored": [], "warnings": [], "missing": []}));
    };
    let folder = daemon.folder.path().join("certs");
    let changed = |name: &str| fs::metadata(folder.join(name)).unwrap().modified().unwrap();
    let before = WRITTEN.map(|(name, _)| changed(name));

    // Only other keys: the old key is gone, the identity and even the connection stay.
    let new_key = [7; 32];
    send("FILE_KEYS", json!({"new": STANDARD.encode(new_key)}));
    assert_eq!(decrypts(&daemon), 422);
    assert_eq!(daemon.decrypt(&encrypt(&new_key, b"a text"), "file", "user").status, 200);
    assert_eq!(daemon.decrypt(&encrypt(&KEY, b"a text"), "file", "user&key_id=k").code(), "unknown_key");
    assert_eq!(tls_handshakes(&one, &certs.serial("first")), 1);
    send("FILE_KEYS", json!({"k": STANDARD.encode(KEY)}));

    // Only another endpoint.
    send("ECS_WATERMARK_ENDPOINT", json!(format!("https://localhost:{}", two.port)));
    assert_eq!(decrypts(&daemon), 200);
    assert_eq!(serials(&two, 1), [certs.serial("first")]);
    assert_eq!(WRITTEN.map(|(name, _)| changed(name)), before);

    // Only another certificate.
    send("MTLS_CLIENT_CERT_JSON", client(&certs, "second"));
    assert_eq!(decrypts(&daemon), 200);
    assert_eq!(serials(&two, 2), [certs.serial("first"), certs.serial("second")]);
    assert_eq!(serials(&one, 2).len(), 2);
    assert_written(&folder, &certs, "second");
}

#[test]
fn the_admin_port_takes_the_same_bundle_and_gives_the_same_answers() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Setup::new(service.port).start();
    let post = |to, body: &[u8]| {
        let head =
            format!("POST /admin/update-secrets HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
        request(to, &head, body)
    };
    let mut whole = bundle(service.port, client(&CERTS, "client"));
    whole["NEW"] = json!(1);
    assert_eq!(post(daemon.public, whole.to_string().as_bytes()).status, 404);
    assert_eq!(daemon.get("/ready").status, 503);

    let answer = post(daemon.admin, whole.to_string().as_bytes());
    assert_eq!((answer.status, answer.json()), (200, daemon.handshake(whole.to_string().as_bytes())));
    assert_eq!(answer.json()["ignored"], json!(["NEW"]));
    assert_written(&daemon.folder.path().join("certs"), &CERTS, "client");
    assert_eq!(decrypts(&daemon), 200);

    let mut large = whole.to_string().into_bytes();
    large.resize((1 << 20) + 1, b' ');
    for bad in [&b""[..], b"[]", br#"{"FILE_KEYS":{"k":"AA=="}}"#, br#"{"ECS_WATERMARK_ENDPOINT":"#, &large] {
        let refused = post(daemon.admin, bad);
        let mut expected = daemon.handshake(bad);
        assert_eq!(expected["ok"], false);
        expected["code"] = json!("invalid_request");
        assert_eq!((refused.status, refused.json()), (400, expected));
    }
    assert_eq!(decrypts(&daemon), 200);
}

#[test]
fn a_bundle_of_exactly_one_mebibyte_is_taken() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Setup::new(service.port).start();
    let mut large = bundle(service.port, client(&CERTS, "client")).to_string().into_bytes();
    large.resize(1 << 20, b' ');
    assert_eq!(daemon.handshake(&large)["ok"], true);
    assert_eq!(decrypts(&daemon), 200);
}

#[test]
fn a_key_bound_to_the_file_id_opens_the_files_of_that_id_only() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Setup::new(service.port).start();
    let mut bound = bundle(service.port, client(&CERTS, "client"));
    bound["FILE_KEYS"] = json!({"k": {"key": STANDARD.encode(KEY), "aad": "file_id"}});
    accepted(&daemon, &bound);
    // `teemark encrypt` seals with the file id; what was sealed without it does not open.
    let folder = daemon.folder.path();
    fs::write(folder.join("keys.json"), bound["FILE_KEYS"].to_string()).unwrap();
    fs::write(folder.join("text"), "a text").unwrap();
    succeeds(teemark(folder, &["encrypt", "text", "--keys", "keys.json", "--file-id", "one"]));
    let sealed = fs::read(folder.join("text.enc")).unwrap();
    assert_eq!(daemon.decrypt(&sealed, "one", "user").status, 200);
    assert_eq!(daemon.decrypt(&sealed, "two", "user").status, 422);
    assert_eq!(daemon.decrypt(&encrypt(&KEY, b"a text"), "one", "user").status, 422);
}

#[test]
fn every_accepted_certificate_is_a_new_tls_handshake_under_tls_1_3_by_its_own_name() {
    let certs = Certs::with_root();
    let service = Service::start(&certs, &[]);
    let daemon = Setup::new(service.port).start();
    for (name, kind) in [("rsa", RSA_2048), ("curve", P_256), ("edwards", ED25519)] {
        certs.issue(name, kind, "ca", FOR_CLIENT, VALID);
        accepted(&daemon, &bundle(service.port, client(&certs, name)));
        assert_eq!(decrypts(&daemon), 200);
        let sha256 =
            certs.shell(&format!("openssl x509 -in {name}.crt -outform DER | openssl dgst -sha256 -r | cut -c1-64"));
        let line = format!(
            "TLS handshake: client CN={name}, serial={}, sha256={}, TLSv1.3",
            certs.serial(name),
            sha256.trim()
        );
        assert_eq!(service.count(&line), 1, "{line}\n{}", service.process.log());
    }
}
