//! What counts without a handshake: files from an earlier one, and the environment.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use super::*;

/// Endpoint and key, which the folder of certificates cannot hold.
fn rest(port: u16) -> Value {
    let mut rest = bundle(port, Value::Null);
    rest.as_object_mut().unwrap().remove("MTLS_CLIENT_CERT_JSON");
    rest
}

fn with_folder(port: u16, folder: &Path) -> Setup {
    Setup::new(port).env("TEEMARK_CERTS", folder.to_str().unwrap())
}

#[test]
fn after_a_restart_the_certificates_still_count_and_ready_names_the_rest() {
    let certs = &*CERTS;
    let service = Service::start(certs, &[]);
    let kept = tempfile::TempDir::new().unwrap();
    let mut first = with_folder(service.port, kept.path()).start();
    accepted(&first, &bundle(service.port, client(certs, "client")));
    first.process.signal("TERM");
    assert_eq!(first.process.child.wait().unwrap().code(), Some(0));

    let second = with_folder(service.port, kept.path()).start();
    assert!(second.process.has_logged("certificates found in the image or from an earlier handshake"));
    let ready = second.get("/ready");
    assert_eq!((ready.status, ready.json()["missing"].clone()), (503, json!(["ECS_WATERMARK_ENDPOINT", "FILE_KEYS"])));
    let answer = second.handshake(rest(service.port).to_string().as_bytes());
    let updated = ["ECS_WATERMARK_ENDPOINT", "FILE_KEYS"];
    assert_eq!(answer, json!({"ok": true, "updated": updated, "ignored": [], "warnings": [], "missing": []}));
    assert_eq!(decrypts(&second), 200);
    assert_eq!(serials(&service, 1), [certs.serial("client")]);
}

#[test]
fn certificates_baked_into_the_image_count_from_the_start() {
    let certs = &*CERTS;
    let service = Service::start(certs, &[]);
    let image = tempfile::TempDir::new().unwrap();
    for (name, from) in [("client.crt", "client.crt"), ("client.key", "client.key"), ("ecs-ca.crt", "ca.crt")] {
        fs::copy(certs.path(from), image.path().join(name)).unwrap();
    }
    let daemon = with_folder(service.port, image.path())
        .env("ECS_WATERMARK_ENDPOINT", &format!("https://localhost:{}", service.port))
        .env("FILE_KEYS", &json!({"k": STANDARD.encode(KEY)}).to_string())
        .start();
    assert_eq!(daemon.get("/ready").status, 200);
    assert_eq!(decrypts(&daemon), 200);
}

#[test]
fn unusable_files_are_reported_and_the_handshake_can_still_deliver() {
    let certs = &*CERTS;
    let service = Service::start(certs, &[]);
    for (files, reason) in [
        (&[("client.crt", "client.crt"), ("ecs-ca.crt", "ca.crt")][..], "client_key: "),
        (
            &[("client.crt", "client.crt"), ("client.key", "server.key"), ("ecs-ca.crt", "ca.crt")],
            "client_key: does not belong",
        ),
        (
            &[("client.crt", "client.key"), ("client.key", "client.key"), ("ecs-ca.crt", "ca.crt")],
            "client_cert: holds a PEM block PRIVATE KEY",
        ),
    ] {
        let folder = tempfile::TempDir::new().unwrap();
        for (name, from) in files {
            fs::copy(certs.path(from), folder.path().join(name)).unwrap();
        }
        let daemon = with_folder(service.port, folder.path()).start();
        let line = format!("certificates not used: {}: {reason}", folder.path().display());
        assert!(daemon.process.has_logged(&line), "{line}\n{}", daemon.process.log());
        assert_eq!(daemon.get("/ready").json()["missing"][0], "MTLS_CLIENT_CERT_JSON");
        accepted(&daemon, &bundle(service.port, client(certs, "client")));
        assert_eq!(decrypts(&daemon), 200);
    }
}

#[test]
fn the_three_items_of_the_environment_count_at_the_start() {
    let certs = &*CERTS;
    let service = Service::start(certs, &[]);
    let daemon = Setup::new(service.port)
        .env("MTLS_CLIENT_CERT_JSON", &client(certs, "client").to_string())
        .env("ECS_WATERMARK_ENDPOINT", &format!("https://localhost:{}", service.port))
        .env("FILE_KEYS", &json!({"k": STANDARD.encode(KEY)}).to_string())
        .start();
    assert_eq!(daemon.get("/ready").status, 200);
    assert_eq!(decrypts(&daemon), 200);
    let folder = daemon.folder.path().join("certs");
    assert!(daemon.process.has_logged(format!("mTLS client certificates written to {}/", folder.display())));
    assert_eq!(fs::read_to_string(folder.join("client.crt")).unwrap(), certs.read("client.crt"));
}

#[test]
fn each_item_of_the_environment_counts_alone() {
    let certs = &*CERTS;
    let service = Service::start(certs, &[]);
    let items = [
        ("MTLS_CLIENT_CERT_JSON", client(certs, "client").to_string()),
        ("ECS_WATERMARK_ENDPOINT", format!("https://localhost:{}", service.port)),
        ("FILE_KEYS", json!({"k": STANDARD.encode(KEY)}).to_string()),
    ];
    for (name, value) in &items {
        let daemon = Setup::new(service.port).env(name, value).start();
        let others: Vec<_> = items.iter().map(|(other, _)| *other).filter(|other| other != name).collect();
        assert_eq!(daemon.get("/ready").json()["missing"], json!(others));
        accepted(&daemon, &bundle(service.port, client(certs, "client")));
        assert_eq!(decrypts(&daemon), 200);
    }
}

#[test]
fn the_environment_goes_before_the_files() {
    let certs = Certs::with_root();
    certs.client("filed");
    certs.client("given");
    let service = Service::start(&certs, &[]);
    let kept = tempfile::TempDir::new().unwrap();
    let first = with_folder(service.port, kept.path()).start();
    accepted(&first, &bundle(service.port, client(&certs, "filed")));
    drop(first);
    let second = with_folder(service.port, kept.path())
        .env("MTLS_CLIENT_CERT_JSON", &client(&certs, "given").to_string())
        .start();
    assert_eq!(second.handshake(rest(service.port).to_string().as_bytes())["ok"], true);
    assert_eq!(decrypts(&second), 200);
    assert_eq!(serials(&service, 1), [certs.serial("given")]);
}

#[test]
fn an_unusable_environment_is_reported_and_the_daemon_waits_for_the_handshake() {
    let certs = &*CERTS;
    let service = Service::start(certs, &[]);
    for (name, value, field) in [
        ("MTLS_CLIENT_CERT_JSON", "{", "MTLS_CLIENT_CERT_JSON: is cut off"),
        ("ECS_WATERMARK_ENDPOINT", "http://localhost", "ECS_WATERMARK_ENDPOINT: is not an https URL"),
        ("FILE_KEYS", "k=c2VjcmV0LXNlY3JldA==", "FILE_KEYS: is not JSON"),
    ] {
        let daemon = Setup::new(service.port).env(name, value).start();
        let log = daemon.process.log();
        assert!(log.contains(&format!("environment not used: {field}")), "{log}");
        assert!(!log.contains("c2VjcmV0"), "{log}");
        assert_eq!(daemon.get("/ready").json()["missing"].as_array().unwrap().len(), 3);
        accepted(&daemon, &bundle(service.port, client(certs, "client")));
        assert_eq!(decrypts(&daemon), 200);
    }
}

/// `teemarkd write-certificates` under a umask, with this environment and nothing else of a daemon's set-up.
fn write_certificates(umask: &str, folder: &Path, items: &[(&str, &str)]) -> Output {
    let script = format!("umask {umask}; exec \"$0\" write-certificates");
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_teemarkd")).env_clear();
    command.env("TEEMARK_CERTS", folder).envs(items.iter().copied()).output().unwrap()
}

#[test]
fn write_certificates_writes_the_three_files_whatever_the_umask() {
    let certs = &*CERTS;
    let base64 = |name| STANDARD.encode(certs.read(name));
    let seeds = parts(&base64("client.crt"), &base64("client.key"), &base64("ca.crt")).to_string();
    for umask in ["000", "077", "777"] {
        let folder = tempfile::TempDir::new().unwrap();
        // The rest of the environment does not matter, valid or not.
        let items = [("MTLS_CLIENT_CERT_JSON", seeds.as_str()), ("FILE_KEYS", "[]"), ("ECS_WATERMARK_ENDPOINT", "?")];
        let output = write_certificates(umask, folder.path(), &items);
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{log}");
        let line = format!("[RUN_SH] mTLS client certificates written to {}/", folder.path().display());
        assert!(log.lines().any(|l| l.ends_with(&line)), "{log}");
        for (name, mode, from) in
            [("client.crt", 0o644, "client.crt"), ("client.key", 0o600, "client.key"), ("ecs-ca.crt", 0o644, "ca.crt")]
        {
            let file = folder.path().join(name);
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, mode, "{name}, umask {umask}");
            assert_eq!(fs::read_to_string(file).unwrap(), certs.read(from));
        }
    }
}

#[test]
fn write_certificates_that_fails_says_why_and_leaves_what_was_there() {
    let certs = &*CERTS;
    let folder = tempfile::TempDir::new().unwrap();
    fs::write(folder.path().join("client.crt"), "old").unwrap();
    let swapped = parts(&certs.read("client.crt"), &certs.read("server.key"), &certs.read("ca.crt")).to_string();
    for (items, reason) in [
        (
            &[("MTLS_CLIENT_CERT_JSON", swapped.as_str())][..],
            "MTLS_CLIENT_CERT_JSON.client_key: does not belong to client_cert",
        ),
        (&[("MTLS_CLIENT_CERT_JSON", "{}")], "MTLS_CLIENT_CERT_JSON.client_cert: is missing"),
        (&[("MTLS_CLIENT_CERT_JSON", "")], "MTLS_CLIENT_CERT_JSON is not set"),
        (&[], "MTLS_CLIENT_CERT_JSON is not set"),
    ] {
        let output = write_certificates("022", folder.path(), items);
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains(reason), "{log}");
        assert!(!log.contains("written to"), "{log}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(folder.path().join("client.crt")).unwrap(), "old");
    }
}
