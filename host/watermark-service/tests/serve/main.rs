//! The binary over real sockets: certificates by the openssl command line, requests by curl, and by rustls where what
//! stands on the connection matters.

mod faults;
mod forms;
mod support;

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use support::{PROGRAM, Service, cert, curl, in_base64, request, run, sample};

#[test]
fn a_text_comes_back_marked_and_tells_whose_it_is() {
    let service = Service::start(&[]);
    let (status, marked) = service.post("/api/watermark", &request("The minutes.\r\nNobody came.\r\n"));
    assert_eq!((status.as_str(), &marked["status"]), ("200", &json!("success")));
    assert_eq!(marked.get("encoding"), None);
    let text = marked["watermarked_data"].as_str().unwrap();
    let visible: String = text.chars().filter(|c| c.is_ascii()).collect();
    assert_eq!(visible, "The minutes.\r\nNobody came.\r\n");
    let (status, owner) = service.post("/api/extract", &json!({ "data": text }));
    let expected = json!({"status": "success", "file_id": "report-7", "user_id": "alice"});
    assert_eq!((status.as_str(), owner), ("200", expected));
}

#[test]
fn a_picture_comes_back_marked_and_the_commands_read_it() {
    let service = Service::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let original = sample(folder.path());
    let (status, answer) = service.post("/api/watermark", &in_base64(&fs::read(&original).unwrap()));
    assert_eq!((status.as_str(), &answer["encoding"]), ("200", &json!("base64")));
    let (_, owner) = service.post("/api/extract", &json!({"data": answer["watermarked_data"], "encoding": "base64"}));
    assert_eq!(owner["user_id"], "alice");

    let marked = folder.path().join("marked.png").display().to_string();
    fs::write(&marked, BASE64_STANDARD.decode(answer["watermarked_data"].as_str().unwrap()).unwrap()).unwrap();
    let owner: Value = serde_json::from_slice(&run(&["extract", &marked]).stdout).unwrap();
    assert_eq!(owner, json!({"file_id": "report-7", "user_id": "alice"}));
    let none = run(&["extract", &original]);
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stderr).contains("no mark found"));
    let difference = folder.path().join("difference.png").display().to_string();
    assert!(run(&["difference", &original, &marked, &difference, "--gain", "64"]).status.success());
    assert!(fs::read(difference).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn one_handshake_carries_many_requests_and_each_is_logged_with_the_serial() {
    for (version, name) in [("1.2", "TLSv1.2"), ("1.3", "TLSv1.3")] {
        let service = Service::start(&["--tls", version]);
        let health = format!("{}/health", service.url);
        let (status, ..) = service.curl(&[&health, "-o", "/dev/null", "-o", "/dev/null", &health], "/health");
        assert_eq!(status, "200");
        let log = service.stop();
        let serial = Command::new("openssl").args(["x509", "-noout", "-serial", "-in", &cert("client.crt")]).output();
        let serial = String::from_utf8(serial.unwrap().stdout).unwrap().trim().to_owned();
        let handshakes: Vec<_> = log.lines().filter(|line| line.starts_with("TLS handshake")).collect();
        assert_eq!(handshakes.len(), 1, "{log}");
        assert!(handshakes[0].starts_with(&format!("TLS handshake: client CN=tee-client, {serial}, sha256=")), "{log}");
        assert!(handshakes[0].ends_with(&format!(", {name}")), "{log}");
        let requests = log.lines().filter(|l| l.starts_with("GET /health 200, 0 bytes in") && l.ends_with(&serial));
        assert_eq!(requests.count(), 3, "{log}");
    }
}

#[test]
fn nobody_is_served_without_a_client_certificate_of_the_ca() {
    let service = Service::start(&[]);
    let (stranger, key) = (cert("stranger.crt"), cert("stranger.key"));
    for identity in [&[][..], &["--cert", &stranger, "--key", &key]] {
        let out = curl(&service.url, identity, &[], "/health");
        assert!(!out.status.success() && out.stdout.ends_with(b"\n000"), "{out:?}");
    }
    let address = service.url.strip_prefix("https://").unwrap();
    let plain = curl(&format!("http://{address}"), &[], &[], "/health");
    assert!(plain.stdout.ends_with(b"\n000"), "{plain:?}");
    drop(TcpStream::connect(address).unwrap());
    // The last of them may still be on its way to the service.
    let (status, ..) = service.curl(&["--retry", "0"], "/health");
    assert_eq!(status, "200");
    let log = service.stop();
    assert_eq!(log.matches("TLS handshake failed: 127.0.0.1:").count(), 4, "{log}");
    assert_eq!(log.matches("TLS handshake: client").count(), 1, "{log}");
}

#[test]
fn what_cannot_be_marked_is_refused_with_the_reason() {
    let service = Service::start(&["--max-body", "100KiB"]);
    let too_long = json!({"file_id": "x".repeat(257), "user_id": "u", "data": ""});
    let cases = [
        (request(&"x".repeat(150 << 10)), "413", "over 102400 bytes"),
        (request(&"x".repeat(300 << 10)), "413", "over 102400 bytes"),
        (in_base64(b"\xff\xfe\x00"), "415", "neither a PNG image nor UTF-8 text"),
        (in_base64(b"\x89PNG\r\n\x1a\nrubbish"), "415", "cannot be decoded"),
        (in_base64(&tiny_png()), "422", "has 1 pixels; a mark of these ids needs 256"),
        (json!({"file_id": "f", "user_id": "u"}), "400", "neither image nor data"),
        (json!({"file_id": "", "user_id": "u", "data": ""}), "400", "file_id has 0 bytes"),
        (too_long, "400", "file_id has 257 bytes"),
        (json!({"file_id": "f", "user_id": "u", "data": "!", "encoding": "base64"}), "400", "not base64"),
        (json!({"file_id": "f", "user_id": "u", "data": "", "encoding": "hex"}), "400", "encoding can only be"),
        (json!(["no object"]), "400", "JSON"),
    ];
    for (body, expected, reason) in cases {
        let (status, answer) = service.post("/api/watermark", &body);
        assert_eq!(status, expected, "{reason}: {answer}");
        assert_eq!(answer["status"], "error");
        assert!(answer["message"].as_str().unwrap().contains(reason), "{reason}: {answer}");
    }
    let (status, answer) = service.post("/api/extract", &json!({"data": "nothing hidden"}));
    assert_eq!((status.as_str(), answer), ("404", json!({"status": "error", "message": "no mark found"})));
    assert_eq!(service.post("/health", &json!({})).0, "405");
    assert_eq!(service.post("/elsewhere", &json!({})).0, "404");
    assert_eq!(service.curl(&[], "/health").1, r#"{"status":"healthy"}"#);
}

fn tiny_png() -> Vec<u8> {
    let mut content = Vec::new();
    let encoder = png::Encoder::new(&mut content, 1, 1);
    encoder.write_header().unwrap().write_image_data(&[7]).unwrap();
    content
}

#[test]
fn what_cannot_start_says_which_option_and_why() {
    let (missing, other_key) = (cert("none.crt"), cert("client.key"));
    let taken = Service::start(&[]);
    let address = taken.url.strip_prefix("https://").unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&["--cert", &missing], "No such file"),
        (&["--key", &other_key], "does not match --cert"),
        (&["--client-ca", &other_key], "the file holds no PEM certificate"),
        (&["--key", &cert("ca.crt")], "cannot read a private key"),
        (&["--listen", address], "the port is in use"),
        (&["--fault", "cut", "--fault", "cut"], "give each fault once"),
    ];
    for (options, reason) in cases {
        // An option given twice is refused by clap, so the one under test takes its place.
        let mut arguments: Vec<String> = vec!["serve".to_owned()];
        let defaults = [("--listen", "127.0.0.1:0".to_owned()), ("--cert", cert("server.crt"))];
        let files = [("--key", cert("server.key")), ("--client-ca", cert("ca.crt"))];
        for (name, value) in defaults.into_iter().chain(files).filter(|(name, _)| !options.contains(name)) {
            arguments.extend([name.to_owned(), value]);
        }
        let out = Command::new(PROGRAM).args(arguments).args(options).output().unwrap();
        let message = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{message}");
        assert!(message.contains(reason) && message.contains(options[0]), "{reason}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}
