//! The audit trail of bundles: who signed one, and what became of it.

use std::io::Write;
use std::net::TcpStream;
use std::sync::LazyLock;

use formats::attestation::UserData;
use formats::base64;
use formats::digest::Sha256;
use formats::sealed_bundle::{Destination, seal, v2};
use formats::state::{Items, Manifest};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use super::collector::audits;
use super::support::{Answer, Certs, Daemon, SOON, Service, Setup, read_answer, wait_for};

static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

/// An enclave that takes what one operator signs.
struct Scene {
    operator: Ed25519KeyPair,
    /// The public half of his key.
    signer: String,
    daemon: Daemon,
    to: Destination,
    /// SHA-256 of its state, which is empty.
    state: Sha256,
    service: Service,
}

impl Scene {
    fn new() -> Scene {
        let operator = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
        let signer = base64::encode(operator.public_key());
        let service = Service::start(&CERTS, &[]);
        let setup = Setup::new(service.port).env("TEEMARK_HANDSHAKE", "sealed").env("TEEMARK_OPERATOR_KEYS", &signer);
        let daemon = setup.start();
        let document = hex::decode(daemon.get("/get_attestation").json()["attestation"].as_str().unwrap()).unwrap();
        let start = document.windows(20).position(|part| part == b"{\"allow_list_sha256\"").unwrap();
        let end = start + document[start..].iter().position(|byte| *byte == b'}').unwrap() + 1;
        let told = UserData::parse(&document[start..end]).unwrap();
        let to = Destination { sealing_key: told.sealing_key, boot_nonce: told.boot_nonce };
        Scene { operator, signer, daemon, to, state: told.state_sha256.unwrap(), service }
    }

    /// The only record of this event for which this holds.
    fn recorded(&self, event: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut found = wait_for(event, || {
            let text = self.daemon.get_admin("/admin/log?lines=10000").text();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            let found: Vec<_> =
                audits(&lines).into_iter().filter(|record| record["event"] == event && is(record)).collect();
            (!found.is_empty()).then_some(found)
        });
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    fn sealed_v2(&self, bundle: &str, from: Sha256, counter: u64) -> v2::SealedBundle {
        let manifest = Manifest { complete_at: None, from, items: Items::new() };
        let mut sealed = v2::seal(bundle.as_bytes(), &manifest, &self.to, counter).unwrap();
        sealed.line.sign(&self.operator);
        sealed
    }

    /// Sends this to the public listener, as a request of this id.
    fn post(&self, body: &[u8], id: &str) -> Answer {
        let mut stream = TcpStream::connect(self.daemon.public).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let length = body.len();
        let head = format!(
            "POST /sealed-bundle HTTP/1.1\r\nHost: x\r\nX-Request-Id: {id}\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        read_answer(&mut stream).unwrap()
    }
}

#[test]
fn a_sealed_bundle_is_recorded_with_who_signed_it_its_counter_and_the_state_by_it() {
    let scene = Scene::new();
    let bundle = CERTS.full_bundle(scene.service.port).to_string();
    let sealed = seal(bundle.as_bytes(), &scene.to, 7, &scene.operator).unwrap();
    assert_eq!(scene.daemon.handshake(sealed.to_json().as_bytes())["ok"], true);
    let accepted = scene.recorded("bundle_accepted", |_| true);
    assert_eq!(accepted["signers"], json!([scene.signer]));
    assert_eq!((&accepted["counter"], &accepted["bundle_sha256"]), (&json!(7), &json!(sealed.id().sha256)));
    assert_eq!(accepted["names"].as_array().unwrap().len(), 3);
    let state = accepted["state_sha256"].clone();
    assert!(state.as_str().unwrap().len() == 64 && state != json!(scene.state), "{state}");
    // Again: nothing is opened.
    assert_eq!(scene.daemon.handshake(sealed.to_json().as_bytes())["ok"], false);
    let refused = scene.recorded("bundle_refused", |_| true);
    assert_eq!((&refused["field"], &refused["counter"]), (&json!("sealed_bundle.counter"), &json!(7)));
    assert_eq!((&refused["signers"], &refused["names"]), (&json!([scene.signer]), &Value::Null));
    // By HTTP, with the ids of the request.
    let keys = json!({"FILE_KEYS_REMOVE": ["k"], "FILE_KEYS_ADD": {"l": base64::encode([9; 32])}}).to_string();
    let from = Sha256::from_hex(state.as_str().unwrap()).unwrap();
    let answer = scene.post(&scene.sealed_v2(&keys, from, 8).to_bytes(), "by-http");
    assert_eq!(answer.status, 400, "its manifest says nothing of the keys: {answer:?}");
    let refused = scene.recorded("bundle_refused", |record| record["request_id"] == "by-http");
    assert_eq!(refused["names"], json!(["FILE_KEYS_ADD", "FILE_KEYS_REMOVE"]));
    assert_eq!((&refused["signers"], &refused["counter"]), (&json!([scene.signer]), &json!(8)));
    assert_eq!(refused["state_sha256"], state, "it stays in force");
}

#[test]
fn of_a_bundle_that_is_refused_all_that_is_known_is_recorded() {
    let scene = Scene::new();
    let refused = |field: &str| scene.recorded("bundle_refused", |record| record["field"] == field);
    let wrong = json!({"FILE_KEYS": 7, "GRANT_KEYS": {"keys": []}, "other": 1}).to_string();
    let sealed = seal(wrong.as_bytes(), &scene.to, 3, &scene.operator).unwrap();
    assert_eq!(scene.daemon.handshake(sealed.to_json().as_bytes())["ok"], false);
    let opened = refused("FILE_KEYS");
    assert_eq!((&opened["signers"], &opened["counter"]), (&json!([scene.signer]), &json!(3)));
    assert_eq!(opened["bundle_sha256"], json!(sealed.id().sha256));
    assert_eq!(opened["names"], json!(["FILE_KEYS", "GRANT_KEYS"]));
    assert_eq!(opened["state_sha256"], json!(scene.state));

    let stranger = Ed25519KeyPair::from_seed_unchecked(&[2; 32]).unwrap();
    let sealed = seal(wrong.as_bytes(), &scene.to, 4, &stranger).unwrap();
    assert_eq!(scene.daemon.handshake(sealed.to_json().as_bytes())["ok"], false);
    let strange = refused("sealed_bundle.signature");
    assert!(
        ["signers", "counter", "bundle_sha256", "names", "state_sha256"].iter().all(|name| strange[name].is_null())
    );

    // The public listener: a line that anybody may have seen, and what is none.
    let old = scene.sealed_v2(&wrong, scene.state, 0);
    assert_eq!(scene.post(&old.to_bytes(), "old").status, 400);
    let old = refused("sealed_bundle_v2.counter");
    assert_eq!(
        (&old["request_id"], &old["signers"], &old["counter"]),
        (&json!("old"), &json!([scene.signer]), &json!(0))
    );
    assert_eq!(scene.post(b"{\"FILE_KEYS\": {}}\n", "none").status, 400);
    let none = refused("bundle");
    assert_eq!((&none["request_id"], &none["signers"]), (&json!("none"), &Value::Null));
}

#[test]
fn bundles_without_a_good_line_cannot_fill_the_trail() {
    let scene = Scene::new();
    let line = format!("{{\"sealed_bundle_v2\": {{\"{}\": 1}}}}\n", "x".repeat(12 << 10));
    let records = wait_for("one that is only counted", || {
        (0..20).for_each(|_| assert_eq!(scene.post(line.as_bytes(), "junk").status, 400));
        let text = scene.daemon.get_admin("/admin/log?lines=10000").text();
        let records = audits(&text.lines().map(str::to_owned).collect::<Vec<_>>());
        records.iter().any(|record| record["not_recorded_before"].as_u64() > Some(0)).then_some(records)
    });
    let of_junk: Vec<_> = records.iter().filter(|record| record["request_id"] == "junk").collect();
    assert!(of_junk.len() >= 10, "{records:?}");
    for record in of_junk {
        assert_eq!(record["event"], "bundle_refused");
        assert!(record.to_string().len() < 2048, "{record}");
    }
}
