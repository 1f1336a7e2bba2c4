//! The audit trail: what is recorded, and what is not given without it.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{LazyLock, Mutex};
use std::thread;

use formats::base64;
use formats::digest::sha256;
use formats::log::{Ack, Boot, Dropped, Head, Kind};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use super::collector::{Collector, audits, keygen};
use super::support::issuer::{Issuer, claims};
use super::support::{
    Answer, Certs, Daemon, KEY, SOON, Service, Setup, encrypt, read_answer, request, succeeds, unspoilt, wait_for,
};
use super::{Taker, check_chain, record};

static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

/// A daemon with its service, and a collector that does not run yet.
pub(super) struct Scene {
    pub(super) daemon: Daemon,
    _service: Service,
    pub(super) collector: Collector,
    pub(super) file: Vec<u8>,
}

impl Scene {
    pub(super) fn new(settings: &[(&str, &str)]) -> Scene {
        Scene::with(settings, Collector::new())
    }

    fn with(settings: &[(&str, &str)], collector: Collector) -> Scene {
        let service = Service::start(&CERTS, &[]);
        let setup = Setup::new(service.port).env("TEEMARK_LOG_TO", &collector.address());
        let setup = setup.env("TEEMARK_AUDIT_KEYS", &collector.public).env("TEEMARK_FLEET", "fleet");
        let setup = setup.env("RUST_LOG", "info");
        let daemon = setup.envs(settings).start();
        let mut bundle = CERTS.full_bundle(service.port);
        bundle["GRANT_KEYS"] = Issuer::new().jwks();
        assert_eq!(daemon.handshake(bundle.to_string().as_bytes())["missing"], json!([]));
        let file = encrypt(&KEY, &b"A text that is long enough to be marked. ".repeat(40));
        Scene { daemon, _service: service, collector, file }
    }

    fn ask(&self, token: &str, id: &str) -> Answer {
        ask(self.daemon.public, &self.file, token, id)
    }

    /// A file that is given, and the request's id, which begins like this. Where records are required, one that the disk
    /// keeps for five seconds costs a request its file.
    fn given(&self, token: &str, id: &str) -> String {
        let mut tried = 0;
        wait_for("a file to be given", || {
            tried += 1;
            let id = format!("{id}-{tried}");
            let answer = self.ask(token, &id);
            if answer.status == 200 {
                return Some(id);
            }
            assert_eq!((answer.status, answer.code().as_str()), (503, "audit_unavailable"));
            None
        })
    }

    pub(super) fn is_ready(&self) -> Option<()> {
        (self.daemon.get("/ready").status == 200).then_some(())
    }
}

fn ask(public: std::net::SocketAddr, file: &[u8], token: &str, id: &str) -> Answer {
    let length = file.len();
    let head = format!(
        "POST /files/f/decrypt?user_id=alice HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: {id}\r\n\
         Content-Length: {length}\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    request(public, &head, file)
}

fn token(jti: &str) -> String {
    Issuer::new().token(&claims(jti))
}

const REQUIRED: &[(&str, &str)] = &[("TEEMARK_AUDIT", "required"), ("TEEMARK_GRANTS", "required")];

#[test]
fn each_decision_is_a_record_with_who_got_what_by_which_grant() {
    let mut scene = Scene::new(&[("TEEMARK_GRANTS", "required")]);
    scene.collector.start();
    let given = scene.ask(&token("one"), "given-1");
    assert_eq!(given.status, 200);
    // However many strangers come, and however often a used grant does.
    (0..40).for_each(|n| assert_eq!(scene.ask("x.y.z", &format!("junk-{n}")).code(), "grant_invalid"));
    (0..40).for_each(|n| assert_eq!(scene.ask(&token("one"), &format!("again-{n}")).code(), "grant_used"));
    let other = ask(scene.daemon.public, &encrypt(&[9; 32], b"x"), &token("two"), "broken-1");
    assert_eq!(other.code(), "decrypt_failed");
    assert_eq!(scene.daemon.handshake(b"{\"FILE_KEYS\": 7}")["ok"], false);
    assert_eq!(scene.daemon.get("/get_attestation?nonce=0badcafe").status, 200);
    scene.collector.wait_for("0badcafe", 1);
    let all = audits(&scene.collector.lines());
    let of = |name: &str, value: &str| -> Value {
        let found: Vec<_> = all.iter().filter(|record| record[name] == value).collect();
        assert_eq!(found.len(), 1, "{name} {value} in {all:?}");
        found[0].clone()
    };
    let record = of("request_id", "given-1");
    let expected = json!({
        "request": record["request"], "request_id": "given-1", "jti": "one", "kid": "own", "aud": "fleet",
        "file_id": "f", "user_id": "alice", "key_id": "k", "content_sha256": sha256(&scene.file), "given_sha256": sha256(&given.body),
        "watermarked": true, "sealed": false, "status": 200, "event": "given", "time_ms": record["time_ms"],
    });
    assert_eq!(record, expected);
    for (id, status, code, jti) in [
        ("again-1", 403, "grant_used", json!("one")),
        ("junk-0", 401, "grant_invalid", Value::Null),
        ("again-39", 403, "grant_used", json!("one")),
        ("broken-1", 422, "decrypt_failed", json!("two")),
    ] {
        let record = of("request_id", id);
        assert_eq!(
            (&record["event"], &record["status"], &record["code"]),
            (&json!("refused"), &json!(status), &json!(code))
        );
        assert_eq!(record["jti"], jti, "{record}");
    }
    assert_eq!(of("event", "bundle_accepted")["names"].as_array().unwrap().len(), 4);
    assert_eq!(of("event", "bundle_refused")["field"], "FILE_KEYS");
    assert_eq!(of("nonce", "0badcafe")["event"], "document");
    succeeds(scene.collector.verify(&["--development"]));
}

#[test]
fn requests_without_a_valid_grant_cannot_fill_the_trail_and_are_counted() {
    const ASKED: u64 = 50;
    let (recorded, left_out) = unspoilt("the records of the end", || {
        let mut scene = Scene::new(&[("TEEMARK_GRANTS", "required")]);
        scene.collector.start();
        scene.collector.wait_for(" boot ", 1);
        (0..ASKED).for_each(|_| assert_eq!(scene.ask("x.y.z", "s").status, 401));
        // Those of the last second are counted with the next checkpoint, though no other stranger comes.
        scene.daemon.stop().leaves("the records of the end", || {
            let lines = scene.collector.lines();
            let stopped = lines.iter().position(|line| line.ends_with("boot: stopped"))?;
            lines[stopped..].iter().find(|line| record(line).kind == Kind::Checkpoint)?;
            let all = audits(&lines);
            let recorded = all.iter().filter(|record| record["code"] == "grant_invalid").count() as u64;
            Some((recorded, all.iter().filter_map(|record| record["not_recorded_before"].as_u64()).sum::<u64>()))
        })
    });
    assert_eq!(recorded + left_out, ASKED, "{recorded} recorded");
}

/// Says, once it goes, that threads are to stop.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Expects a record in the collector's files that each of these was about to be given.
fn all_are_recorded(ids: &BTreeSet<String>, collector: &Collector) {
    let recorded: BTreeSet<String> = audits(&collector.lines())
        .iter()
        .filter(|record| record["event"] == "about_to_give")
        .map(|record| record["request_id"].as_str().unwrap().to_owned())
        .collect();
    let without: Vec<_> = ids.difference(&recorded).collect();
    assert!(without.is_empty(), "{} given, without a record: {without:?}", ids.len());
}

#[test]
fn no_answer_leaves_without_its_record_while_the_collector_is_killed_ten_times() {
    let mut scene = Scene::new(REQUIRED);
    assert_eq!(scene.daemon.get("/ready").json()["audit"], "no collector has acknowledged a record yet");
    let status = scene.daemon.get_admin("/admin/status").json();
    assert_eq!(status["audit_fault"], "no collector has acknowledged a record yet");
    assert_eq!((&status["ready"], &status["audit"]), (&json!(false), &json!("required")));
    scene.collector.start();
    wait_for("the daemon to be ready", || scene.is_ready());
    let (stop, given) = (AtomicBool::new(false), Mutex::new(BTreeSet::new()));
    let (public, file) = (scene.daemon.public, scene.file.clone());
    thread::scope(|scope| {
        // Also where an expectation fails: the scope waits for its threads.
        let ended = Ended(&stop);
        let asker = |name: &'static str| {
            let (stop, given, file) = (&stop, &given, &file);
            move || {
                for n in 0.. {
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    let id = format!("{name}-{n}");
                    let answer = ask(public, file, &token(&id), &id);
                    if answer.status == 200 {
                        given.lock().unwrap().insert(id);
                    } else {
                        assert_eq!((answer.status, answer.code().as_str()), (503, "audit_unavailable"));
                    }
                }
            }
        };
        for name in ["a", "b", "c"] {
            scope.spawn(asker(name));
        }
        let number = || given.lock().unwrap().len();
        for round in 0..10 {
            let before = number();
            wait_for("more answers", || (number() > before + 2 + round).then_some(()));
            scene.collector.kill();
            // Nobody writes to the files now, and whatever was answered has to be in them already.
            let answered = given.lock().unwrap().clone();
            all_are_recorded(&answered, &scene.collector);
            scene.collector.start();
        }
        let before = number();
        wait_for("answers after the last time", || (number() > before + 5).then_some(()));
        drop(ended);
    });
    let ids = given.into_inner().unwrap();
    assert!(ids.len() > 60, "{ids:?}");
    all_are_recorded(&ids, &scene.collector);
    // The second record of each comes too; nobody waits for it.
    scene.collector.wait_for("\"event\":\"given\"", ids.len());
    succeeds(scene.collector.verify(&["--development"]));
}

#[test]
fn without_a_collector_nothing_is_given_and_the_grant_and_the_memory_are_free_afterwards() {
    let mut scene = Scene::new(REQUIRED);
    scene.collector.start();
    wait_for("the daemon to be ready", || scene.is_ready());
    let left = scene.daemon.metric("teemark_memory_left_bytes");
    scene.collector.kill();
    let token = token("kept");
    let refused = scene.ask(&token, "waits");
    assert_eq!((refused.status, refused.code().as_str()), (503, "audit_unavailable"));
    assert_eq!(refused.field("Retry-After"), Some("5"));
    let ready = scene.daemon.get("/ready");
    assert!(ready.status == 503 && ready.json()["audit"].as_str().unwrap().contains("no collector has acknowledged"));
    // Now that this is known, no request is read any more, nor calls the service.
    let called = scene.daemon.metric("teemark_decrypt_seconds_count");
    assert_eq!(scene.ask(&token, "at-once").code(), "audit_unavailable");
    assert_eq!(scene.daemon.metric("teemark_decrypt_seconds_count"), called);
    assert_eq!(scene.daemon.metric("teemark_memory_left_bytes"), left);
    scene.collector.start();
    wait_for("the daemon to be ready again", || scene.is_ready());
    // The grant was good still.
    let id = scene.given(&token, "yes");
    scene.collector.wait_for("\"event\":\"given\"", 1);
    let of = |id: &str| -> Vec<Value> {
        let all = audits(&scene.collector.lines());
        all.into_iter().filter(|record| record["request_id"] == id).map(|record| record["event"].clone()).collect()
    };
    assert_eq!(of("waits"), ["about_to_give", "withheld"]);
    assert_eq!(of("at-once"), ["refused"]);
    assert_eq!(of(&id), ["about_to_give", "given"]);
}

#[test]
fn an_acknowledgement_counts_only_by_a_measured_key() {
    let mut scene = Scene::new(REQUIRED);
    // Another's key.
    let other = tempfile::tempdir().unwrap();
    keygen(other.path(), "collector");
    scene.collector.start_with(&other.path().join("collector.key"), &[]);
    scene.collector.wait_for(" boot ", 1);
    assert_eq!(scene.ask(&token("t"), "x").code(), "audit_unavailable");
    assert_eq!(scene.daemon.get("/ready").status, 503);
    scene.collector.kill();
    scene.collector.start();
    wait_for("the daemon to be ready", || scene.is_ready());
    scene.given(&token("t"), "y");
}

#[test]
fn where_records_are_required_none_that_is_not_acknowledged_goes_however_many_come() {
    let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let (taker, service) = (Taker::new(), Service::start(&CERTS, &[]));
    let setup = Setup::new(service.port).env("TEEMARK_LOG_TO", &taker.address()).env("TEEMARK_AUDIT", "required");
    let daemon = setup.env("TEEMARK_AUDIT_KEYS", &base64::encode(key.public_key())).env("RUST_LOG", "debug").start();
    assert_eq!(daemon.handshake(CERTS.full_bundle(service.port).to_string().as_bytes())["ok"], true);
    let mut taken = taker.accept();
    let mut answers = taken.reader.get_ref().try_clone().unwrap();
    let mut lines = taken.lines_until(|record| record.kind == Kind::Boot);
    let boot: Boot = serde_json::from_str(record(lines.last().unwrap()).body).unwrap();
    let mut acknowledge = |line: &str| {
        let head = record(line).head;
        let signature = key.sign(&Ack::to_be_signed(head, boot.boot_nonce)).as_ref().to_vec();
        answers.write_all(Ack { head, signature: Some(signature) }.to_string().as_bytes()).unwrap();
        head.number
    };
    let acked = acknowledge(lines.last().unwrap());
    let (send, sent) = channel();
    // It takes every record from here on, and acknowledges none.
    thread::spawn(move || while send.send(taken.line()).is_ok() {});
    let mut stream = TcpStream::connect(daemon.public).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    wait_for("records to be dropped", || {
        ask_in_vain(&mut stream, "/nothing", 500);
        let kept = daemon.get_admin("/admin/log?lines=10000").text();
        assert!(record(kept.lines().next().unwrap()).head.number <= acked + 1, "what is not acknowledged is gone");
        (daemon.metric("teemark_log_lines_dropped_total") > 0.0).then_some(())
    });
    let file = encrypt(&KEY, &b"A text that is long enough to be marked. ".repeat(40));
    assert_eq!(ask(daemon.public, &file, "", "x").code(), "audit_unavailable");

    wait_for("an answer once all is acknowledged", || {
        thread::scope(|scope| {
            let asker = scope.spawn(|| ask(daemon.public, &file, "", "y").status);
            while !asker.is_finished() {
                lines.extend(sent.try_iter());
                acknowledge(lines.last().unwrap());
                thread::yield_now();
            }
            (asker.join().unwrap() == 200).then_some(())
        })
    });
    check_chain(&lines, Head::default(), None);
    let told: Vec<Dropped> = lines
        .iter()
        .map(|line| record(line))
        .filter(|record| record.kind == Kind::Dropped)
        .map(|record| serde_json::from_str(record.body).unwrap())
        .collect();
    assert!(
        matches!(told[..], [Dropped::Lines { .. }, ..])
            && !told.iter().any(|told| matches!(told, Dropped::Records { .. })),
        "{told:?}"
    );
}

/// Asks for a path that does not exist, on one connection: a line in the log at level debug.
pub(super) fn ask_in_vain(stream: &mut TcpStream, path: &str, times: usize) {
    let id = "i".repeat(64);
    let one = format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {id}\r\n\r\n");
    for _ in 0..times {
        stream.write_all(one.as_bytes()).unwrap();
        assert_eq!(read_answer(stream).unwrap().status, 404);
    }
}
