//! Sealed bundles of version 2 and the state that they change, as whoever writes another client would make them: what the
//! enclave attests is what it serves, and a bundle takes effect in its state only, whole, and signed by enough operators.

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::attestation::UserData;
use formats::bundle::{Outgoing, Received};
use formats::certificates::Parts;
use formats::digest::{Sha256, sha256};
use formats::file_keys::{DeliveredKey, DeliveredKeys};
use formats::files::{FileKey, FileKeys};
use formats::items::{ENDPOINT, FILE_KEYS, FILE_KEYS_ADD, FILE_KEYS_REMOVE};
use formats::sealed_bundle::Destination;
use formats::sealed_bundle::v2::{self, SealedBundle};
use formats::state::{Item, Items, Manifest, State};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use support::*;

static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

/// An enclave with three operators, who are the bytes 1 to 3.
struct Scene {
    daemon: Daemon,
    service: Service,
}

fn operator(byte: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[byte; 32]).unwrap()
}

fn scene(threshold: usize) -> Scene {
    scene_with(threshold, &[])
}

fn scene_with(threshold: usize, settings: &[(&str, &str)]) -> Scene {
    let keys: Vec<String> = [1, 2, 3].map(|byte| STANDARD.encode(operator(byte).public_key())).into();
    let service = Service::start(&CERTS, &[]);
    let setup = Setup::new(service.port)
        .env("TEEMARK_HANDSHAKE", "sealed")
        .env("TEEMARK_OPERATOR_KEYS", &keys.join(","))
        .env("TEEMARK_OPERATOR_THRESHOLD", &threshold.to_string());
    Scene { daemon: setup.envs(settings).start(), service }
}

fn key(byte: u8) -> DeliveredKey {
    DeliveredKey::new(Box::new([byte; 32]), false)
}

/// Keys that are called like their bytes.
fn keys(bytes: impl IntoIterator<Item = u8>) -> DeliveredKeys {
    bytes.into_iter().map(|byte| (format!("k{byte}"), key(byte))).collect()
}

fn expanded(DeliveredKeys(keys): &DeliveredKeys) -> FileKeys {
    keys.iter().map(|(id, key)| (id.clone(), FileKey::from(key))).collect()
}

fn add(bytes: impl IntoIterator<Item = u8>) -> Outgoing {
    Outgoing { file_keys_add: Some(keys(bytes)), ..Outgoing::default() }
}

/// The bundle's items, described, but for certificates.
fn items(bundle: &Outgoing) -> Items {
    let received = Received::parse_v2(&bundle.to_json()).unwrap();
    let removed = |ids: &BTreeSet<String>| Item::removed(ids.iter().map(String::as_str));
    let items = [
        (ENDPOINT, received.service.as_ref().map(Item::service)),
        (FILE_KEYS, received.file_keys.as_ref().map(|keys| expanded(keys).describe())),
        (FILE_KEYS_ADD, received.added_file_keys.as_ref().map(|keys| expanded(keys).describe())),
        (FILE_KEYS_REMOVE, received.removed_file_keys.as_ref().map(removed)),
    ];
    items.into_iter().filter_map(|(name, item)| Some((name.to_owned(), item?))).collect()
}

impl Scene {
    fn user_data(&self) -> UserData {
        // The module's turns are few.
        let answer = wait_for("a document", || Some(self.daemon.get("/get_attestation")).filter(|a| a.status == 200));
        let document = answer.json()["attestation"].as_str().unwrap().to_owned();
        let document = hex::decode(document).unwrap();
        let at = |text: &[u8]| document.windows(text.len()).position(|part| part == text).unwrap();
        let start = at(b"{\"allow_list_sha256\"");
        let end = start + document[start..].iter().position(|byte| *byte == b'}').unwrap() + 1;
        UserData::parse(&document[start..end]).unwrap()
    }

    fn state(&self) -> Sha256 {
        self.user_data().state_sha256.unwrap()
    }

    fn counter(&self) -> u64 {
        self.user_data().in_force().counter
    }

    /// A bundle for the state in force, with the next counter, signed by these operators.
    fn sealed(&self, bundle: &Outgoing, signers: &[u8]) -> SealedBundle {
        self.sealed_with(bundle, signers, |_| {})
    }

    fn sealed_with(&self, bundle: &Outgoing, signers: &[u8], alter: impl Fn(&mut Manifest)) -> SealedBundle {
        self.sealed_as(bundle, signers, self.counter() + 1, alter)
    }

    fn sealed_as(
        &self,
        bundle: &Outgoing,
        signers: &[u8],
        counter: u64,
        alter: impl Fn(&mut Manifest),
    ) -> SealedBundle {
        let user_data = self.user_data();
        let to = Destination { sealing_key: user_data.sealing_key, boot_nonce: user_data.boot_nonce };
        let from = user_data.state_sha256.unwrap();
        let mut manifest = Manifest { complete_at: None, from, items: items(bundle) };
        alter(&mut manifest);
        let mut sealed = v2::seal(&bundle.to_json(), &manifest, &to, counter).unwrap();
        signers.iter().for_each(|byte| sealed.line.sign(&operator(*byte)));
        sealed
    }

    fn post(&self, sealed: &SealedBundle) -> Answer {
        self.daemon.post("/sealed-bundle", &sealed.to_bytes())
    }

    fn accepted(&self, sealed: &SealedBundle) -> Value {
        let answer = self.post(sealed);
        assert_eq!((answer.status, &answer.json()["ok"]), (200, &json!(true)), "{}", answer.text());
        assert_eq!(self.counter(), sealed.line.counter);
        answer.json()
    }

    /// The bundle is refused for this field, and nothing has changed.
    fn refused(&self, sealed: &SealedBundle, field: &str) {
        let before = (self.counter(), self.state(), self.daemon.get("/state").text());
        let answer = self.post(sealed);
        assert_eq!((answer.status, answer.json()["field"].as_str()), (400, Some(field)), "{}", answer.text());
        assert_eq!((self.counter(), self.state(), self.daemon.get("/state").text()), before);
    }
}

#[test]
fn the_state_that_is_served_is_the_one_that_is_attested() {
    let scene = scene(1);
    let served = || scene.daemon.get("/state");
    assert_eq!((served().text(), scene.state()), (r#"{"items":{}}"#.into(), State::default().sha256()));
    let bundle = Outgoing {
        ecs_watermark_endpoint: Some(format!("https://localhost:{}/", scene.service.port)),
        file_keys: Some(keys([1, 2])),
        ..Outgoing::default()
    };
    let answer = scene.accepted(&scene.sealed(&bundle, &[1]));
    assert_eq!(answer["updated"], json!(["ECS_WATERMARK_ENDPOINT", "FILE_KEYS"]));
    assert_eq!(answer["missing"], json!(["MTLS_CLIENT_CERT_JSON"]));
    let state = served();
    assert_eq!(state.field("content-type"), Some("application/json"));
    assert_eq!(sha256(&state.body), scene.state());
    assert_eq!(State::parse(&state.body).unwrap(), State { items: items(&bundle) });
    // It names keys, and holds none.
    assert!(state.text().contains(r#""ids":["k1","k2"]"#) && !state.text().contains(&STANDARD.encode([1; 32])));
    assert!(scene.daemon.process.has_logged(format!("signed by {}", STANDARD.encode(operator(1).public_key()))));
}

#[test]
fn a_plain_handshake_changes_the_state_too_and_a_certificate_is_described_by_what_is_in_its_files() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Daemon::ready(&service, &CERTS);
    let scene = Scene { daemon, service };
    let state = State::parse(&scene.daemon.get("/state").body).unwrap();
    assert_eq!(state.sha256(), scene.state());
    let certificates = &state.items["MTLS_CLIENT_CERT_JSON"];
    let line = "for part in client_cert:client.crt client_key:client.key ca_cert:ecs-ca.crt; do
        printf '\"%s\":\"%s\",' \"${part%%:*}\" \"$(base64 -w 0 \"${part##*:}\")\"; done | sed 's/,$//; s/^/{/; s/$/}/' |
        tr -d '\\n' | sha256sum | cut -d ' ' -f 1";
    let sum = bash(&scene.daemon.folder.path().join("certs"), line);
    assert_eq!(certificates.sha256.to_string(), sum.trim());
    let line = "date -u -d \"$(openssl x509 -in client.crt -noout -enddate | cut -d = -f 2)\" +%FT%TZ";
    assert_eq!(certificates.not_after.as_deref(), Some(bash(CERTS.0.path(), line).trim()));
}

#[test]
fn keys_come_and_go_one_by_one_in_the_state_that_they_change_and_in_no_other() {
    let scene = scene(1);
    let bundle = Outgoing { file_keys: Some(keys([1])), ..Outgoing::default() };
    scene.accepted(&scene.sealed(&bundle, &[1]));
    // A parent leaves one of two changes out.
    let first = scene.sealed(&add([2]), &[1]);
    let second = scene.sealed_with(&add([3]), &[1], |manifest| manifest.from = sha256(b"the state after the first"));
    scene.refused(&second, "manifest.from");
    scene.accepted(&first);
    scene.refused(&first, "sealed_bundle_v2.counter");
    scene.refused(&scene.sealed(&add([2, 4]), &[1]), "FILE_KEYS_ADD");
    let remove = |id: &str| Outgoing { file_keys_remove: [id.to_owned()].into(), ..Outgoing::default() };
    scene.refused(&scene.sealed(&remove("k9"), &[1]), "FILE_KEYS_REMOVE");
    // In one bundle a key is replaced.
    let replaces = Outgoing { file_keys_add: Some([("k1".to_owned(), key(7))].into_iter().collect()), ..remove("k1") };
    let answer = scene.accepted(&scene.sealed(&replaces, &[1]));
    assert_eq!(answer["updated"], json!(["FILE_KEYS_ADD", "FILE_KEYS_REMOVE"]));
    let expected: FileKeys =
        [("k1", 7), ("k2", 2)].map(|(id, byte)| (id.to_owned(), FileKey::from(&key(byte)))).into_iter().collect();
    assert_eq!(State::parse(&scene.daemon.get("/state").body).unwrap().items[FILE_KEYS], expected.describe());
    scene.accepted(&scene.sealed(&remove("k1"), &[1]));
    scene.refused(&scene.sealed(&remove("k2"), &[1]), "FILE_KEYS_REMOVE");
}

#[test]
fn a_key_that_comes_by_itself_opens_files_and_one_that_has_gone_opens_none() {
    let scene = scene(1);
    let mut whole = Outgoing { file_keys: Some(keys([1])), ..Outgoing::default() };
    whole.ecs_watermark_endpoint = Some(format!("https://localhost:{}", scene.service.port));
    whole.mtls_client_cert_json = Some(certificates());
    // The certificate's description is the enclave's own: the test of the plain handshake holds it against openssl.
    let described = described_certificates();
    let sealed = scene.sealed_with(&whole, &[1], |manifest| {
        manifest.items.insert("MTLS_CLIENT_CERT_JSON".into(), described.clone());
    });
    assert_eq!(scene.accepted(&sealed)["missing"], json!([]));
    let decrypt = |byte: u8| {
        let file = encrypt(&[byte; 32], &b"a text ".repeat(20));
        let answer = scene.daemon.post(&format!("/files/f/decrypt?user_id=u&key_id=k{byte}"), &file);
        (answer.status, if answer.status == 200 { String::new() } else { answer.code() })
    };
    assert_eq!(decrypt(2), (404, "unknown_key".into()));
    scene.accepted(&scene.sealed(&add([2]), &[1]));
    assert_eq!((decrypt(1).0, decrypt(2).0), (200, 200));
    let remove = Outgoing { file_keys_remove: ["k1".to_owned()].into(), ..Outgoing::default() };
    scene.accepted(&scene.sealed(&remove, &[1]));
    assert_eq!((decrypt(1), decrypt(2).0), ((404, "unknown_key".into()), 200));
}

/// MTLS_CLIENT_CERT_JSON of these tests' certificates.
fn certificates() -> String {
    let files = ["client.crt", "client.key", "ecs-ca.crt"].map(|name| std::fs::read(CERTS.path(name)).unwrap());
    formats::certificates::write(&Parts(files))
}

/// What an enclave says of these tests' certificates.
fn described_certificates() -> Item {
    let service = Service::start(&CERTS, &[]);
    let state = State::parse(&Daemon::ready(&service, &CERTS).get("/state").body).unwrap();
    state.items["MTLS_CLIENT_CERT_JSON"].clone()
}

#[test]
fn as_many_operators_have_to_sign_as_the_image_says() {
    let scene = scene(2);
    for too_few in [&[][..], &[1], &[1, 1], &[1, 9]] {
        scene.refused(&scene.sealed(&add([1]), too_few), "sealed_bundle_v2.signatures");
    }
    // A bundle of version 1 has one.
    let user_data = scene.user_data();
    let to = Destination { sealing_key: user_data.sealing_key, boot_nonce: user_data.boot_nonce };
    let old = formats::sealed_bundle::seal(&add([1]).to_json(), &to, 1, &operator(1)).unwrap();
    let answer = scene.daemon.handshake(old.to_json().as_bytes());
    assert!(answer["error"].as_str().unwrap().contains("TEEMARK_OPERATOR_THRESHOLD"), "{answer}");
    scene.accepted(&scene.sealed(&add([1]), &[3, 1]));
    scene.accepted(&scene.sealed(&add([2]), &[1, 2, 3]));
}

#[test]
fn a_bundle_is_refused_whole_where_an_item_is_not_what_the_manifest_says() {
    let scene = scene(1);
    let bundle = Outgoing { file_keys: Some(keys([1, 2])), ..Outgoing::default() };
    let other = items(&Outgoing { file_keys: Some(keys([1, 3])), ..Outgoing::default() });
    scene.refused(&scene.sealed_with(&bundle, &[1], |manifest| manifest.items = other.clone()), "FILE_KEYS");
    scene.refused(&scene.sealed_with(&bundle, &[1], |manifest| manifest.items.clear()), "FILE_KEYS");
    let more = scene.sealed_with(&bundle, &[1], |manifest| {
        manifest.items.insert("GRANT_KEYS".into(), other["FILE_KEYS"].clone());
    });
    scene.refused(&more, "GRANT_KEYS");
    // The endpoint that the signers see is the one that is used, and has to be on the allow list all the same.
    let elsewhere = Outgoing { ecs_watermark_endpoint: Some("https://attacker.example".into()), ..Outgoing::default() };
    scene.refused(&scene.sealed(&elsewhere, &[1]), "ECS_WATERMARK_ENDPOINT");
    scene.accepted(&scene.sealed(&bundle, &[1]));
}

#[test]
fn until_the_last_of_several_bundles_has_come_the_enclave_is_not_ready() {
    let scene = scene(1);
    let mut whole = Outgoing { file_keys: Some(keys([1])), ..Outgoing::default() };
    whole.mtls_client_cert_json = Some(certificates());
    whole.ecs_watermark_endpoint = Some(format!("https://localhost:{}", scene.service.port));
    let described = described_certificates();
    let mut state = State { items: items(&whole) };
    state.items.insert("MTLS_CLIENT_CERT_JSON".into(), described.clone());
    state.items.insert(FILE_KEYS.into(), expanded(&keys([1, 2])).describe());
    let at = state.sha256();
    let bundle = scene.sealed_with(&whole, &[1], |manifest| {
        manifest.items.insert("MTLS_CLIENT_CERT_JSON".into(), described.clone());
        manifest.complete_at = Some(at);
    });
    scene.accepted(&bundle);
    let ready = scene.daemon.get("/ready");
    assert_eq!((ready.status, &ready.json()["complete_at"]), (503, &json!(at)), "{}", ready.text());
    assert_eq!(ready.json()["missing"], json!([]));
    // A bundle of somebody who knows nothing of it changes nothing about it.
    let rotated = Outgoing { file_keys: Some(keys([1])), ..Outgoing::default() };
    scene.accepted(&scene.sealed(&rotated, &[2]));
    assert_eq!(scene.daemon.get("/ready").json()["complete_at"], json!(at));
    assert_eq!(scene.daemon.get_admin("/admin/status").json()["complete_at"], json!(at));
    scene.accepted(&scene.sealed_with(&add([2]), &[1], |manifest| manifest.complete_at = Some(at)));
    let ready = scene.daemon.get("/ready");
    assert_eq!((scene.state(), ready.status), (at, 200), "{}", ready.text());
    assert!(ready.json()["complete_at"].is_null());
    // Whoever gives up such a series names the state that the next bundle leads to.
    scene.accepted(&scene.sealed_with(&add([3]), &[1], |manifest| manifest.complete_at = Some(sha256(b"never"))));
    assert_eq!(scene.daemon.get("/ready").status, 503);
    state.items.insert(FILE_KEYS.into(), expanded(&keys([1, 2, 3, 4])).describe());
    let at = state.sha256();
    scene.accepted(&scene.sealed_with(&add([4]), &[1], |manifest| manifest.complete_at = Some(at)));
    assert_eq!((scene.state(), scene.daemon.get("/ready").status), (at, 200));
}

#[test]
fn senders_of_the_public_listener_who_send_no_line_keep_nobody_out() {
    let scene = scene(1);
    let idle: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = TcpStream::connect(scene.daemon.public).unwrap();
            stream.write_all(b"POST /sealed-bundle HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n{").unwrap();
            stream
        })
        .collect();
    scene.accepted(&scene.sealed(&add([1]), &[1]));
    let answer = scene.daemon.handshake(&scene.sealed(&add([2]), &[1]).to_bytes());
    assert_eq!(answer["ok"], true, "{answer}");
    drop(idle);
}

#[test]
fn keys_for_which_there_is_no_memory_are_refused_before_they_are_expanded() {
    const MEMORY: u64 = 64 << 10;
    let scene = scene_with(1, &[("TEEMARK_MEMORY", "64MiB")]);
    let many: DeliveredKeys = (0..100_000).map(|n| (format!("{n:x}"), key(1))).collect();
    let whole = Outgoing { file_keys: Some(many), ..Outgoing::default() };
    scene.refused(&scene.sealed(&whole, &[1]), "FILE_KEYS");
    // The daemon stays under five quarters of TEEMARK_MEMORY.
    let peak = scene.daemon.process.memory("VmHWM");
    assert!(peak < MEMORY / 4 * 5, "{peak} KiB");
    assert_eq!(scene.daemon.metric("teemark_memory_left_bytes"), as_metric(64 << 20));
}

#[test]
fn the_handshakes_listener_takes_version_2_too_and_the_public_one_takes_nothing_else() {
    let scene = scene(1);
    let answer = scene.daemon.handshake(&scene.sealed(&add([1]), &[1]).to_bytes());
    assert_eq!((&answer["ok"], scene.counter()), (&json!(true), 1), "{answer}");
    let user_data = scene.user_data();
    let to = Destination { sealing_key: user_data.sealing_key, boot_nonce: user_data.boot_nonce };
    let old = formats::sealed_bundle::seal(br#"{"FILE_KEYS":{}}"#, &to, 2, &operator(1)).unwrap();
    for other in [old.to_json().as_bytes(), br#"{"FILE_KEYS":{}}"#, b"", b"\n", &[b'x'; 40_000]] {
        let answer = scene.daemon.post("/sealed-bundle", other);
        assert_eq!((answer.status, &answer.json()["field"]), (400, &json!("bundle")), "{}", answer.text());
    }
    assert_eq!(scene.daemon.get("/sealed-bundle").status, 405);
}

#[test]
fn nothing_after_the_line_is_read_before_its_signatures_verify() {
    let scene = scene(1);
    let sealed = scene.sealed(&add([1]), &[9]);
    let length = sealed.to_bytes().len();
    // Only the line is sent, and the answer comes all the same.
    let head = format!("POST /sealed-bundle HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    let mut stream = TcpStream::connect(scene.daemon.public).unwrap();
    stream.write_all(&[head.as_bytes(), sealed.line.to_json().as_bytes()].concat()).unwrap();
    let answer = read_answer(&mut stream).unwrap();
    assert_eq!((answer.status, &answer.json()["field"]), (400, &json!("sealed_bundle_v2.signatures")));
    let mut stream = UnixStream::connect(&scene.daemon.secrets).unwrap();
    stream.write_all(sealed.line.to_json().as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    assert!(answer.contains("sealed_bundle_v2.signatures"), "{answer}");
}

#[test]
fn a_signed_line_has_one_transfer_at_a_time_and_leaves_its_place_to_other_senders() {
    let scene = scene(1);
    let sealed = scene.sealed(&add([1]), &[1]);
    let length = sealed.to_bytes().len();
    let begin = || {
        let head = format!("POST /sealed-bundle HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        let mut stream = TcpStream::connect(scene.daemon.public).unwrap();
        stream.write_all(&[head.as_bytes(), sealed.line.to_json().as_bytes()].concat()).unwrap();
        stream
    };
    let left = || scene.daemon.metric("teemark_memory_left_bytes");
    let all = left();
    let mut first = begin();
    // It has memory for what follows once the transfer is its own.
    wait_for("the first transfer to begin", || (left() < all).then_some(()));
    // The parent replays the line: whichever comes second is told to try again.
    let mut second = begin();
    second.shutdown(Shutdown::Write).unwrap();
    let again = read_answer(&mut second).expect("an answer");
    assert_eq!((again.status, again.field("retry-after")), (429, Some("1")), "{}", again.text());
    // Another counter has the other place, and takes effect before the first has ended.
    scene.accepted(&scene.sealed_as(&add([2]), &[1], 5, |_| {}));
    first.write_all(&[&sealed.manifest[..], &sealed.ciphertext].concat()).unwrap();
    let late = read_answer(&mut first).unwrap();
    assert_eq!((late.status, &late.json()["field"]), (400, &json!("sealed_bundle_v2.counter")), "{}", late.text());
}

#[test]
fn a_hundred_thousand_keys_are_taken_in_the_memory_that_is_set_aside_and_one_more_is_not() {
    let scene = scene(1);
    let (left, resident) = (scene.daemon.metric("teemark_memory_left_bytes"), scene.daemon.process.memory("VmRSS"));
    let many = |range: std::ops::Range<u32>| -> DeliveredKeys {
        range
            .map(|n| {
                let mut bytes = Box::new([0; 32]);
                bytes[..4].copy_from_slice(&n.to_be_bytes());
                (format!("creator-{n}"), DeliveredKey::new(bytes, false))
            })
            .collect()
    };
    let whole = Outgoing { file_keys: Some(many(0..100_000)), ..Outgoing::default() };
    scene.accepted(&scene.sealed(&whole, &[1]));
    // Once what it took to read them is returned, some seconds later.
    let set_aside = left - scene.daemon.metric("teemark_memory_left_bytes");
    assert!(set_aside < 90e6, "{set_aside}");
    wait_for("the memory that the bundle took", || {
        let grown = scene.daemon.process.memory("VmRSS") - resident;
        (as_metric(usize::try_from(grown).unwrap() * 1024) < set_aside).then_some(())
    });
    let item = State::parse(&scene.daemon.get("/state").body).unwrap().items[FILE_KEYS].clone();
    assert_eq!((item.count, item.ids, item.ids_sha256.is_some()), (Some(100_000), None, true));
    let one_more = Outgoing { file_keys_add: Some(many(100_000..100_001)), ..Outgoing::default() };
    scene.refused(&scene.sealed(&one_more, &[1]), "FILE_KEYS_ADD");
    let swap = Outgoing { file_keys_remove: ["creator-7".to_owned()].into(), ..one_more };
    scene.accepted(&scene.sealed(&swap, &[1]));
}
