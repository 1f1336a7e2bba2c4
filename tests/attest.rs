//! What the enclave proves about itself, and what it signs and seals, seen from outside a running daemon.

mod support;

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::digest::sha256;
use formats::hpke::PrivateKey;
use formats::reply::{self, About, Statement};
use formats::time::now_ms;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde_json::{Value, json};
use support::*;

static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

const ABOUT: About<'static> = About { file_id: "report-7", user_id: "alice" };

/// The text after these words in the log, up to the line's end.
fn logged(daemon: &Daemon, words: &str) -> String {
    wait_for(words, || {
        let log = daemon.process.log();
        let (_, rest) = log.split_once(words)?;
        Some(rest.lines().next()?.to_owned())
    })
}

fn identity(daemon: &Daemon) -> Vec<u8> {
    hex::decode(logged(daemon, "identity key ")).unwrap()
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn the_attestation_document_is_served_in_hex_and_holds_keys_nonce_and_allow_list() {
    let daemon = Setup::new(1).start();
    let nonce = "00ff".repeat(16);
    let answer = daemon.get(&format!("/get_attestation?nonce={nonce}"));
    assert_eq!(answer.status, 200);
    let document = hex::decode(answer.json()["attestation"].as_str().unwrap()).unwrap();
    let list = std::fs::read(daemon.folder.path().join("allowed_endpoints.yaml")).unwrap();
    let list = format!(r#""allow_list_sha256":"{}""#, hex::encode(sha256(&list)));
    for part in [&hex::decode(&nonce).unwrap()[..], &identity(&daemon), list.as_bytes()] {
        assert!(holds(&document, part));
    }
    for member in ["\"sealing_key\":\"", "\"boot_nonce\":\"", "\"counter\":0,", "\"bundle_sha256\":\"0000"] {
        assert!(holds(&document, member.as_bytes()), "{member}");
    }
    let root = STANDARD.decode(answer.json()["test_root"].as_str().unwrap()).unwrap();
    assert!(holds(&document, &root) && holds(&root, b"proves nothing"));
    assert_eq!(
        logged(&daemon, "made a test root for attestation documents, its SHA-256: "),
        hex::encode(sha256(&root))
    );
    assert_eq!(daemon.get("/get_attestation").status, 200, "a nonce may be left out");
    let metrics = daemon.get_admin("/metrics").text();
    assert!(!metrics.contains("clock_drift"), "there is only one clock: {metrics}");
}

#[test]
fn an_invalid_nonce_is_refused() {
    let daemon = Setup::new(1).start();
    for nonce in ["", "0", "xy", &"00".repeat(65), "00&nonce=01"] {
        let answer = daemon.get(&format!("/get_attestation?nonce={nonce}"));
        assert_eq!((answer.status, answer.code()), (400, "invalid_request".into()), "{nonce}");
    }
    assert_eq!(daemon.get(&format!("/get_attestation?nonce={}", "00".repeat(64))).status, 200);
}

#[test]
fn documents_that_are_asked_for_too_fast_are_put_off_and_others_served() {
    // A machine that is so busy that it takes five seconds over them has all of them served.
    let (daemon, answers) = wait_for("some to be put off", || {
        let daemon = Setup::new(1).start();
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let asks: Vec<_> = (0..60).map(|_| scope.spawn(|| daemon.get("/get_attestation"))).collect();
            asks.into_iter().map(|ask| ask.join().unwrap()).collect()
        });
        answers.iter().any(|answer| answer.status != 200).then_some((daemon, answers))
    });
    let put_off: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert!(put_off.len() <= 50, "{} of 60", put_off.len());
    let documents = |result| daemon.metric(&format!("teemark_attestation_documents_total{{result=\"{result}\"}}"));
    assert_eq!(documents("refused"), as_metric(put_off.len()));
    assert!(documents("made") >= as_metric(60 - put_off.len()) && documents("failed") == 0.0);
    for answer in put_off {
        assert_eq!((answer.status, answer.code()), (429, "too_many_requests".into()));
        assert!(answer.head.contains("Retry-After: 1\r\n"), "{}", answer.head);
    }
    assert_eq!(daemon.get("/health").status, 200);
    wait_for("a document again", || (daemon.get("/get_attestation").status == 200).then_some(()));
}

#[test]
fn the_plain_handshake_is_called_what_it_is() {
    let daemon = Setup::new(1).start();
    let told = logged(&daemon, "TEEMARK_HANDSHAKE is plain: ");
    assert!(told.contains("read the private key and the file keys") && told.contains("replay an old bundle"), "{told}");
    let sealed = daemon.handshake(br#"{"sealed_bundle": {}}"#);
    assert!(sealed["ok"] == false && sealed["error"].as_str().unwrap().contains("TEEMARK_HANDSHAKE"), "{sealed}");
}

#[test]
fn if_the_handshake_is_sealed_a_plain_bundle_changes_nothing_by_either_route() {
    let daemon = Setup::new(1).env("TEEMARK_HANDSHAKE", "sealed").start();
    assert!(daemon.process.has_logged("the handshake is closed: TEEMARK_OPERATOR_KEYS is empty"));
    let bundle = CERTS.full_bundle(1).to_string();
    let answer = daemon.handshake(bundle.as_bytes());
    assert!(answer["ok"] == false && answer["field"] == "bundle", "{answer}");
    let length = bundle.len();
    let head = format!("POST /admin/update-secrets HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
    let answer = request(daemon.admin, &head, bundle.as_bytes());
    assert_eq!((answer.status, answer.json()["field"].clone()), (400, json!("bundle")));
    assert_eq!(daemon.get("/ready").json()["missing"].as_array().unwrap().len(), 3);
}

#[test]
fn a_ca_that_is_not_pinned_does_not_take_effect() {
    let fingerprint = |name: &str| {
        let print = bash(CERTS.0.path(), &format!("openssl x509 -in {name} -noout -fingerprint -sha256"));
        print.trim().rsplit_once('=').unwrap().1.to_owned()
    };
    let daemon = Setup::new(1).env("TEEMARK_PIN_CA", &fingerprint("client.crt")).start();
    let answer = daemon.handshake(CERTS.full_bundle(1).to_string().as_bytes());
    assert_eq!(answer["field"], "MTLS_CLIENT_CERT_JSON.ca_cert", "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("not pinned"), "{answer}");
    assert_eq!(daemon.get("/ready").json()["missing"].as_array().unwrap().len(), 3);

    let pins = format!("{},{}", fingerprint("client.crt"), fingerprint("ecs-ca.crt"));
    let daemon = Setup::new(1).env("TEEMARK_PIN_CA", &pins).start();
    assert_eq!(daemon.handshake(CERTS.full_bundle(1).to_string().as_bytes())["ok"], true);
}

/// The value of a header field.
fn field(answer: &Answer, name: &str) -> String {
    let start = format!("{name}: ");
    let value = answer.head.lines().find_map(|line| line.strip_prefix(&start));
    value.unwrap_or_else(|| panic!("no {name} in {}", answer.head)).to_owned()
}

/// What the daemon says about an answer about ABOUT, made from this encrypted file.
fn statement(content: &[u8], sealed: bool, timestamp_ms: u64) -> Statement<'static> {
    Statement { about: ABOUT, content_sha256: sha256(content), watermarked: true, sealed, timestamp_ms }
}

/// Checks that the daemon signed exactly this about these bytes, a moment ago.
fn is_signed(daemon: &Daemon, right: Statement<'_>, given: &[u8], signature: &str) {
    assert!(now_ms() - right.timestamp_ms < 60_000);
    let signature = STANDARD.decode(signature).unwrap();
    let key = UnparsedPublicKey::new(&ED25519, identity(daemon));
    key.verify(&right.to_bcs(given), &signature).unwrap();
    for wrong in [
        Statement { timestamp_ms: right.timestamp_ms + 1, ..right },
        Statement { about: About { user_id: "bob", ..ABOUT }, ..right },
        Statement { content_sha256: sha256(b"another"), ..right },
        Statement { watermarked: !right.watermarked, ..right },
        Statement { sealed: !right.sealed, ..right },
    ] {
        key.verify(&wrong.to_bcs(given), &signature).unwrap_err();
    }
}

#[test]
fn the_raw_route_seals_where_it_is_asked_to_and_signs_always() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Daemon::ready(&service, &CERTS);
    let key = PrivateKey::new(Box::new([3; 32]));
    let text = b"A line of a long text, to be marked and given out. ".repeat(3000);
    let file = encrypt(&KEY, &text);
    let ask = |lines: &str| {
        let length = file.len();
        let target = "/files/report-7/decrypt?user_id=alice";
        request(
            daemon.public,
            &format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{lines}\r\n"),
            &file,
        )
    };
    let signed = |answer: &Answer, sealed: bool| {
        assert_eq!(answer.status, 200);
        assert_eq!(field(answer, "Teemark-Sealed"), sealed.to_string());
        assert_eq!(field(answer, "Teemark-Identity"), hex::encode(identity(&daemon)));
        let statement = statement(&file, sealed, field(answer, "Teemark-Timestamp").parse().unwrap());
        is_signed(&daemon, statement, &answer.body, &field(answer, "Teemark-Signature"));
    };
    signed(&ask(""), false);

    let mut sealed = ask(&format!("Teemark-Reply-Key: {}\r\n", STANDARD.encode(key.public())));
    signed(&sealed, true);
    assert!(!holds(&sealed.body, b"A line of a long text"));
    let marked = reply::open(&mut sealed.body, ABOUT, &key).unwrap();
    assert_eq!(extract(&marked)["user_id"], "alice");

    for bad in ["AAAA", "?", &STANDARD.encode([0; 32])] {
        let answer = ask(&format!("Teemark-Reply-Key: {bad}\r\n"));
        assert_eq!((answer.status, answer.code()), (400, "invalid_request".into()), "{bad}");
    }
}

#[test]
fn the_json_route_seals_where_it_is_asked_to_and_signs_always() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Daemon::ready(&service, &CERTS);
    let key = PrivateKey::new(Box::new([3; 32]));
    let file = encrypt(&KEY, b"A text to be marked and given out.");
    let ask = |more: Value| {
        let content = STANDARD.encode(&file);
        let mut body = json!({"file_id": "report-7", "user_id": "alice", "encrypted_content": content});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = daemon.post("/files/decrypt", body.to_string().as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    let signed = |answer: &Value, data: &str| {
        let bytes = STANDARD.decode(answer[data].as_str().unwrap()).unwrap();
        assert_eq!(answer["identity"], hex::encode(identity(&daemon)));
        let statement = statement(&file, data == "sealed_data", answer["timestamp_ms"].as_u64().unwrap());
        is_signed(&daemon, statement, &bytes, answer["signature"].as_str().unwrap());
        bytes
    };
    let open = ask(json!({}));
    assert_eq!(extract(&signed(&open, "decrypted_data"))["user_id"], "alice");
    assert!(open.get("sealed_data").is_none());

    let sealed = ask(json!({"reply_key": STANDARD.encode(key.public())}));
    let mut bytes = signed(&sealed, "sealed_data");
    assert!(sealed.get("decrypted_data").is_none());
    assert_eq!(extract(&reply::open(&mut bytes, ABOUT, &key).unwrap())["user_id"], "alice");
}

/// A nonce, as text and as bytes.
fn nonce() -> (String, Vec<u8>) {
    let text = "c0ffee".repeat(7);
    let bytes = hex::decode(&text).unwrap();
    (text, bytes)
}

#[test]
fn a_raw_answer_begins_with_the_document_that_was_asked_for_and_the_rest_is_signed() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Daemon::ready(&service, &CERTS);
    let (text, bytes) = nonce();
    let key = PrivateKey::new(Box::new([3; 32]));
    let sealed = format!("Teemark-Reply-Key: {}\r\n", STANDARD.encode(key.public()));
    // What is small goes out in one piece with the head, what is large does not.
    for (length, seal) in [(40, ""), (100_000, ""), (40, &sealed), (100_000, &sealed)] {
        let file = encrypt(&KEY, "A line of text.\n".repeat(length / 16).as_bytes());
        let ask = |nonce: &str| {
            let head = format!(
                "POST /files/report-7/decrypt?user_id=alice HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n{seal}{nonce}\r\n",
                file.len()
            );
            request(daemon.public, &head, &file)
        };
        let answer = ask(&format!("Teemark-Attest: {text}\r\n"));
        assert_eq!(answer.status, 200, "{}", answer.head);
        let (document, given) = answer.body.split_at(field(&answer, "Teemark-Attestation-Length").parse().unwrap());
        assert!(holds(document, &bytes) && holds(document, &identity(&daemon)) && document.len() > 5 << 10);
        let signed = statement(&file, !seal.is_empty(), field(&answer, "Teemark-Timestamp").parse().unwrap());
        is_signed(&daemon, signed, given, &field(&answer, "Teemark-Signature"));

        let without = ask("");
        assert_eq!(without.field("Teemark-Attestation-Length"), None);
        assert_eq!(without.body.len(), given.len());
        for bad in ["", "0", "xy", &"00".repeat(65), "00\r\nTeemark-Attest: 00"] {
            let answer = ask(&format!("Teemark-Attest: {bad}\r\n"));
            assert_eq!((answer.status, answer.code()), (400, "invalid_request".into()), "{bad}");
        }
    }
}

#[test]
fn a_json_answer_has_the_document_that_was_asked_for() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Daemon::ready(&service, &CERTS);
    let (text, bytes) = nonce();
    let file = encrypt(&KEY, b"A text to be marked and given out.");
    let ask = |nonce: Value| {
        let mut body = json!({"file_id": "report-7", "user_id": "alice", "encrypted_content": STANDARD.encode(&file)});
        body["attest_nonce"] = nonce;
        daemon.post("/files/decrypt", body.to_string().as_bytes())
    };
    let answer = ask(json!(text)).json();
    let document = hex::decode(answer["attestation"].as_str().unwrap()).unwrap();
    assert!(holds(&document, &bytes) && holds(&document, &identity(&daemon)));
    let given = STANDARD.decode(answer["decrypted_data"].as_str().unwrap()).unwrap();
    let signed = statement(&file, false, answer["timestamp_ms"].as_u64().unwrap());
    is_signed(&daemon, signed, &given, answer["signature"].as_str().unwrap());
    assert!(ask(Value::Null).json().get("attestation").is_none());
    for bad in [json!(""), json!("0"), json!("xy"), json!("00".repeat(65)), json!(7)] {
        let answer = ask(bad.clone());
        assert_eq!((answer.status, answer.code()), (400, "invalid_request".into()), "{bad}");
    }
}

#[test]
fn the_document_without_a_nonce_is_one_for_all_in_bytes_and_made_anew_each_minute() {
    let daemon = Setup::new(1).start();
    let first = daemon.get("/attestation");
    assert_eq!(first.status, 200);
    assert_eq!(field(&first, "Content-Type"), "application/cose; cose-type=\"cose-sign1\"");
    assert_eq!(field(&first, "Cache-Control"), "max-age=60");
    assert!(holds(&first.body, &identity(&daemon)) && holds(&first.body, b"\x65nonce\xf6"), "a nonce of null");
    // Nobody who asks for it takes the module's time.
    let asked: Vec<_> = (0..50).map(|_| daemon.get("/attestation")).collect();
    assert!(asked.iter().all(|answer| answer.status == 200));
    wait_for("another document", || (daemon.get("/attestation").body != first.body).then_some(()));
}

#[test]
fn the_daemon_signs_that_an_unmarked_file_is_not_marked() {
    let service = Service::start(&CERTS, &["--fault", "no-data"]);
    let setup = Setup::new(service.port).env("TEEMARK_ALLOW_UNWATERMARKED", "on");
    let daemon = Daemon::ready_with(setup, service.port, &CERTS);
    let file = encrypt(&KEY, b"a plain text");
    let answer = daemon.decrypt(&file, ABOUT.file_id, ABOUT.user_id);
    let timestamp = field(&answer, "Teemark-Timestamp").parse().unwrap();
    let statement = Statement { watermarked: false, ..statement(&file, false, timestamp) };
    is_signed(&daemon, statement, b"a plain text", &field(&answer, "Teemark-Signature"));
}
