use std::sync::mpsc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ciborium::Value;
use formats::attestation::TEST_ROOT;
use rcgen::DnType;
use serde_json::json;

use super::enclave::{self, Reply, Request};
use super::nsm::{self, Nsm, bytes, set};
use super::*;

/// Serves one connection for each reply, which is made for the request's nonce; returns the address and the requests.
fn daemon<R: FnOnce(&[u8]) -> Vec<u8> + Send + 'static>(replies: Vec<R>) -> (String, mpsc::Receiver<Request>) {
    let made = |reply: R| Reply::Made(Box::new(move |request: &Request| reply(&request.nonce())));
    enclave::daemon(replies.into_iter().map(made).collect())
}

fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    enclave::answer(status, headers, body).into_bytes()
}

pub(crate) fn with_document(document: &[u8]) -> Vec<u8> {
    answer("200 OK", "", &json!({"attestation": hex::encode(document)}).to_string())
}

/// A folder with the image's measurements and the root of `nsm`, in both forms.
pub(crate) fn place(nsm: &Nsm) -> Place {
    let place = Place::new();
    place.write("image.pcrs", nsm::pcrs_file());
    place.write("root.der", &nsm.cabundle[0]);
    place.write("root.pem", pem::encode(&pem::Pem::new("CERTIFICATE", nsm.cabundle[0].clone())));
    place
}

pub(crate) const WITH_ROOT: [&str; 4] = ["--pcrs", "image.pcrs", "--root", "root.der"];

fn attest(place: &Place, endpoint: &str, more: &[&str]) -> Output {
    place.teemark(&[&["attest", "--endpoint", endpoint], more].concat())
}

/// Attests a daemon that sends this one answer.
fn attest_answer(place: &Place, reply: impl FnOnce(&[u8]) -> Vec<u8> + Send + 'static, more: &[&str]) -> Output {
    attest(place, &daemon(vec![reply]).0, more)
}

#[test]
fn an_enclave_is_attested_and_its_keys_printed() {
    for root in ["root.der", "root.pem"] {
        let nsm = Nsm::new();
        let place = place(&nsm);
        let (endpoint, _requests) = daemon(vec![move |nonce: &[u8]| with_document(&nsm.document(nonce))]);
        let output = succeeds(attest(&place, &endpoint, &["--pcrs", "image.pcrs", "--root", root]));
        // The module's clock is in the year 2025.
        let told = stderr(&output);
        assert!(told.starts_with("warning: the clocks differ: it is 20") && told.lines().count() == 1, "{told}");
        assert!(told.ends_with("and 2025-01-06T16:07:05Z in the enclave's document\n"), "{told}");
        let lines = [
            format!("attested by {endpoint}: module {}, made at 2025-01-06T16:07:05Z", nsm::MODULE),
            format!("PCR0                {}", "a0".repeat(48)),
            format!("PCR1                {}", "a1".repeat(48)),
            format!("PCR2                {}", "a2".repeat(48)),
            format!("identity key        {}", "11".repeat(32)),
            format!("sealing key         {}", STANDARD.encode(nsm::SEALING_KEY)),
            format!("allow list, SHA-256 {}", "33".repeat(32)),
            format!("boot nonce          {}", "44".repeat(32)),
            format!("counter             {}", nsm::COUNTER),
            format!("bundle, SHA-256     {}\n", hex::encode(nsm::BUNDLE)),
        ];
        assert_eq!(stdout(&output), lines.join("\n"));
    }
}

#[test]
fn scripts_get_one_json_object() {
    let nsm = Nsm::new();
    let place = place(&nsm);
    let arguments = [&WITH_ROOT[..], &["--json"]].concat();
    let output = succeeds(attest_answer(&place, move |nonce| with_document(&nsm.document(nonce)), &arguments));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut pcrs: serde_json::Map<_, _> = (0..16).map(|index| (index.to_string(), json!("00".repeat(48)))).collect();
    for index in 0..3 {
        pcrs[&index.to_string()] = json!(format!("a{index}").repeat(48));
    }
    let expected = json!({
        "module_id": nsm::MODULE,
        "timestamp_ms": nsm::MADE_AT_MS,
        "pcrs": pcrs,
        "pcrs_compared": [0, 1, 2],
        "identity": "11".repeat(32),
        "sealing_key": STANDARD.encode(nsm::SEALING_KEY),
        "allow_list_sha256": "33".repeat(32),
        "boot_nonce": "44".repeat(32),
        "counter": nsm::COUNTER,
        "bundle_sha256": hex::encode(nsm::BUNDLE),
        "state_sha256": null,
        "debug_mode": false,
        "signature_checked": true,
    });
    assert_eq!(told, expected);
}

#[test]
fn each_run_asks_with_a_nonce_of_its_own_and_an_old_document_is_refused() {
    let nsm = Nsm::new();
    let place = place(&nsm);
    let old = with_document(&nsm.document(&[7; 32]));
    let replies = (0..2).map(|_| {
        let old = old.clone();
        move |_: &[u8]| old
    });
    let (endpoint, requests) = daemon(replies.collect());
    for _ in 0..2 {
        let told = fails(1, &attest(&place, &endpoint, &WITH_ROOT));
        assert!(told.starts_with("refused: nonce: "), "{told}");
    }
    let [first, second] = [(); 2].map(|()| requests.recv().unwrap().line().to_owned());
    assert!(requests.recv().is_err(), "a third request");
    assert_ne!(first, second);
    assert_eq!(first.len(), "GET /get_attestation?nonce= HTTP/1.1".len() + 64);
}

#[test]
fn a_refusal_names_the_check_and_ends_with_1() {
    let nsm = Nsm::new();
    let place = place(&nsm);
    let root = &nsm.cabundle[0];
    let other = Nsm::new();
    place.write("other.pcrs", nsm::pcrs_file().replacen("a1", "b1", 1));
    place.write("other.der", &other.cabundle[0]);

    let reply = |alter: fn(&mut nsm::Payload)| {
        let nsm = nsm.clone();
        move |nonce: &[u8]| {
            let mut payload = nsm.payload(nonce);
            alter(&mut payload);
            with_document(&nsm.sign(payload))
        }
    };
    let told = fails(1, &attest_answer(&place, reply(|_| {}), &["--pcrs", "image.pcrs"]));
    let fingerprint = hex::encode(ring::digest::digest(&ring::digest::SHA256, root));
    assert!(told.starts_with("refused: root: ") && told.contains(&fingerprint), "{told}");
    let told = fails(1, &attest_answer(&place, reply(|_| {}), &["--pcrs", "image.pcrs", "--root", "other.der"]));
    assert!(told.starts_with("refused: root: "), "{told}");
    let told = fails(1, &attest_answer(&place, reply(|_| {}), &["--pcrs", "other.pcrs", "--root", "root.der"]));
    assert!(told.starts_with("refused: PCR1: ") && told.contains("another image"), "{told}");
    let told = fails(1, &attest_answer(&place, reply(|p| set(p, "public_key", Value::Null)), &WITH_ROOT));
    assert!(told.starts_with("refused: public_key: "), "{told}");
    let told = fails(1, &attest_answer(&place, |_| with_document(b"\x00"), &WITH_ROOT));
    assert!(told.starts_with("refused: structure: "), "{told}");
    let forged = move |nonce: &[u8]| with_document(&other.sign(nsm.payload(nonce)));
    let told = fails(1, &attest_answer(&place, forged, &WITH_ROOT));
    assert!(told.starts_with("refused: signature: "), "{told}");
}

#[test]
fn a_development_machines_root_is_recognized_and_trusted_only_where_it_is_given() {
    let nsm = Nsm::with(|params| params.root.distinguished_name.push(DnType::CommonName, TEST_ROOT));
    let place = place(&nsm);
    let replies = (0..3).map(|_| {
        let nsm = nsm.clone();
        move |nonce: &[u8]| {
            let (document, root) = (hex::encode(nsm.document(nonce)), STANDARD.encode(&nsm.cabundle[0]));
            answer("200 OK", "", &json!({"attestation": document, "test_root": root}).to_string())
        }
    });
    let (endpoint, _requests) = daemon(replies.collect());
    let told = fails(1, &attest(&place, &endpoint, &["--pcrs", "image.pcrs"]));
    assert!(told.contains("signed by a test root; a development machine has no NSM"), "{told}");
    assert!(told.contains("--root"), "{told}");
    succeeds(attest(&place, &endpoint, &WITH_ROOT));
    // With zeros for registers, the document's own root would do.
    let told = fails(1, &attest(&place, &endpoint, &["--development"]));
    assert!(told.starts_with("refused: PCR0: "), "{told}");
}

#[test]
fn a_document_is_written_as_it_came_and_replaces_an_older_one() {
    let nsm = Nsm::new();
    let place = place(&nsm);
    for _ in 0..2 {
        let (signed, nsm) = (mpsc::channel(), nsm.clone());
        let reply = move |nonce: &[u8]| {
            let document = nsm.document(nonce);
            signed.0.send(document.clone()).unwrap();
            with_document(&document)
        };
        succeeds(attest_answer(&place, reply, &[&WITH_ROOT[..], &["--output", "document"]].concat()));
        assert_eq!(place.read("document"), signed.1.recv().unwrap());
    }
    let other = Nsm::new();
    let before = place.read("document");
    let output = attest_answer(
        &place,
        move |nonce| with_document(&other.document(nonce)),
        &[&WITH_ROOT[..], &["--output", "document"]].concat(),
    );
    fails(1, &output);
    assert_eq!(place.read("document"), before, "one that is refused is not written");
}

#[test]
fn debug_mode_is_refused_unless_asked_for_and_then_said_to_prove_nothing() {
    let nsm = Nsm::new();
    let place = place(&nsm);
    let replies = (0..2).map(|_| {
        let nsm = nsm.clone();
        move |nonce: &[u8]| {
            let mut payload = nsm.payload(nonce);
            set(&mut payload, "pcrs", Value::Map((0..16).map(|index| (index.into(), bytes(&[0; 48]))).collect()));
            with_document(&nsm.sign(payload))
        }
    });
    let (endpoint, _requests) = daemon(replies.collect());
    let told = fails(1, &attest(&place, &endpoint, &WITH_ROOT));
    assert!(told.starts_with("refused: debug mode: "), "{told}");
    let output = succeeds(attest(&place, &endpoint, &[&WITH_ROOT[..], &["--debug-mode"]].concat()));
    assert!(stderr(&output).contains("nothing is proven about the code"), "{}", stderr(&output));
    assert!(stdout(&output).contains("PCRs                zero: debug mode"), "{}", stdout(&output));
}

#[test]
fn qemus_unsigned_document_passes_only_with_a_loud_warning() {
    let place = place(&Nsm::new());
    let reply = |nonce: &[u8]| with_document(&nsm::qemu_document(nonce));
    fails(1, &attest_answer(&place, reply, &["--pcrs", "image.pcrs"]));
    let output = succeeds(attest_answer(&place, reply, &["--pcrs", "image.pcrs", "--unsigned", "--json"]));
    assert!(stderr(&output).contains("WARNING: --unsigned: "), "{}", stderr(&output));
    assert!(stdout(&output).contains(r#""signature_checked":false"#), "{}", stdout(&output));
    let output = succeeds(attest_answer(&place, reply, &["--pcrs", "image.pcrs", "--unsigned"]));
    assert!(stdout(&output).starts_with("NOT attested (--unsigned)"), "{}", stdout(&output));
    assert!(!stdout(&place.teemark(&["attest", "--help"])).contains("unsigned"));
}

#[test]
fn a_daemon_that_asks_to_wait_is_asked_again() {
    let nsm = Nsm::new();
    let place = place(&nsm);
    let wait = r#"{"error":"too many at once","code":"overloaded"}"#;
    let replies = |refusals: usize| {
        (0..refusals + 1).map(move |number| {
            let nsm = nsm.clone();
            move |nonce: &[u8]| match number {
                _ if number < refusals => answer("429 Too Many Requests", "Retry-After: 0\r\n", wait),
                _ => with_document(&nsm.document(nonce)),
            }
        })
    };
    let (endpoint, requests) = daemon(replies(2).collect());
    let output = succeeds(attest(&place, &endpoint, &WITH_ROOT));
    assert!(stderr(&output).contains("(2 of 3)"), "{}", stderr(&output));
    assert_eq!(requests.iter().count(), 3);

    let last = |_: &[u8]| answer("429 Too Many Requests", "", wait);
    let told = fails(3, &attest_answer(&place, last, &WITH_ROOT));
    assert!(told.contains("try again: too many at once (overloaded, HTTP 429)"), "{told}");
}

#[test]
fn what_does_not_answer_as_teemarkd_ends_with_2_and_what_does_not_answer_with_3() {
    let place = place(&Nsm::new());
    for reply in [
        answer("200 OK", "", "Pong!"),
        answer("200 OK", "", "{}"),
        answer("200 OK", "", r#"{"attestation":"0g"}"#),
        answer("404 Not Found", "", "<h1>Not Found</h1>"),
        answer("302 Found", "Location: http://127.0.0.1:1/\r\n", ""),
    ] {
        let told = fails(2, &attest_answer(&place, |_| reply, &WITH_ROOT));
        assert!(told.contains("as teemarkd does"), "{told}");
    }
    let cut = answer("200 OK", "", &" ".repeat(1000))[..500].to_vec();
    let told = fails(3, &attest_answer(&place, |_| cut, &WITH_ROOT));
    assert!(told.contains("did not arrive whole"), "{told}");
    let told = fails(3, &attest(&place, "http://127.0.0.1:1", &WITH_ROOT));
    assert!(told.contains("http://127.0.0.1:1 gave no answer"), "{told}");
}

#[test]
fn a_huge_answer_is_not_read_to_its_end() {
    let place = place(&Nsm::new());
    let chunk = |_: usize| format!("10000\r\n{}\r\n", " ".repeat(65_536));
    let endless: String = (0..64).map(chunk).collect();
    for reply in [
        answer("200 OK", "", &" ".repeat(257 << 10)),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{endless}").into_bytes(),
    ] {
        let told = fails(2, &attest_answer(&place, |_| reply, &WITH_ROOT));
        assert!(told.contains("more than 256 KiB"), "{told}");
    }
}

#[test]
fn files_are_read_before_anything_is_asked() {
    let place = place(&Nsm::new());
    place.write("bad.pcrs", "a0 PCR0\n");
    place.write("two.pem", [place.read("root.pem"), place.read("root.pem")].concat());
    place.write("text", "no certificate");
    for (arguments, words) in [
        (&[][..], "--pcrs <FILE>"),
        (&["--root", "root.der"], "--pcrs <FILE>"),
        (&["--pcrs", "none"], "cannot read none"),
        (&["--pcrs", "bad.pcrs"], "--pcrs bad.pcrs: line 1"),
        (&["--pcrs", "image.pcrs", "--root", "none"], "cannot read --root none"),
        (&["--pcrs", "image.pcrs", "--root", "text"], "neither PEM"),
        (&["--pcrs", "image.pcrs", "--root", "two.pem"], "root certificate alone"),
    ] {
        let told = fails(2, &attest(&place, "http://127.0.0.1:1", arguments));
        assert!(told.contains(words), "{told}");
    }
}

#[test]
fn what_the_document_says_cannot_steer_the_terminal() {
    let nsm = Nsm::new();
    let place = place(&nsm);
    let reply = move |nonce: &[u8]| {
        let mut payload = nsm.payload(nonce);
        set(&mut payload, "module_id", Value::Text("i-1\x1b[2J\u{202e}".to_owned()));
        with_document(&nsm.sign(payload))
    };
    let output = succeeds(attest_answer(&place, reply.clone(), &WITH_ROOT));
    assert!(stdout(&output).contains("module i-1\\u{1b}[2J\\u{202e},"), "{}", stdout(&output));
    let output = succeeds(attest_answer(&place, reply, &[&WITH_ROOT[..], &["--json"]].concat()));
    assert!(stdout(&output).contains(r#""module_id":"i-1\u001b[2J\u202e""#), "{}", stdout(&output));
}
