//! Files and keys that are no longer needed are gone from the daemon's memory.
//!
//! These tests read /proc/PID/mem, which only root may: the daemon is not dumpable. Others are told that they did not run.

#[path = "support/needles.rs"]
mod needles;
mod support;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::attestation::BootNonce;
use formats::bundle::Outgoing;
use formats::digest::sha256;
use formats::file_keys::DeliveredKey;
use formats::files::{FileKey, FileKeys};
use formats::hpke::{PrivateKey, PublicKey};
use formats::sealed_bundle::{Destination, seal, v2};
use formats::state::Manifest;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::json;

use needles::{Needles, integers_of_rsa_key};
use support::*;

/// Where in the daemon's writable memory a secret stands.
fn found(daemon: &Daemon, needles: &Needles) -> Vec<String> {
    // A mapping of /proc/PID/maps is often several that lie beside each other, a thread's stack and a part of the heap. Where
    // one of them goes between the reading of that list and of the memory, neither can be read.
    let _stopped = Stopped::new(&daemon.process);
    let pid = daemon.process.child.id();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw"))) {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|hex| u64::from_str_radix(hex, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        memory.read_exact_at(&mut bytes, start).unwrap_or_else(|e| panic!("{line} cannot be read: {e}"));
        let mut at = 0;
        loop {
            // Most of it is stacks that were never used; a secret has no 4096 zeros in it.
            while bytes[at..].starts_with(&[0; 4096]) {
                at += 4096;
            }
            let used = bytes[at..].chunks(4096).take_while(|page| **page != [0; 4096]).map(<[u8]>::len).sum::<usize>();
            let Some((offset, name)) = needles.find(&bytes[at..at + used]) else {
                at += used;
                if at >= bytes.len() {
                    break;
                }
                continue;
            };
            at += offset;
            let shown = String::from_utf8_lossy(&bytes[at.saturating_sub(64)..bytes.len().min(at + 32)]).into_owned();
            found.push(format!("{name} at {:#x} in {line}: {shown:?}", start + at as u64));
            at += 4096;
            if at >= bytes.len() {
                break;
            }
        }
    }
    found
}

fn may_look(daemon: &Daemon) -> bool {
    match File::open(format!("/proc/{}/mem", daemon.process.child.id())) {
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            not_run("what is left in memory", "only root can read the daemon's");
            false
        }
        _ => true,
    }
}

/// Waits until every request and every handshake is over, not only answered.
fn rests(daemon: &Daemon) {
    let tasks = format!("/proc/{}/task", daemon.process.child.id());
    wait_for("the threads of requests and handshakes to end", || {
        let names = fs::read_dir(&tasks).unwrap().map(|task| fs::read_to_string(task.unwrap().path().join("comm")));
        let busy = |name: &str| matches!(name.trim(), "request" | "handshake");
        // A thread that ends between the two readings has no name.
        (!names.flatten().any(|name| busy(&name))).then_some(())
    });
}

/// Letters that occur nowhere else.
fn distinctive(length: usize) -> Vec<u8> {
    let random: [u8; 32] = ring::rand::generate(&ring::rand::SystemRandom::new()).unwrap().expose();
    let mut block = u64::from_ne_bytes(random[..8].try_into().unwrap()) | 1;
    let mut letter = || {
        block ^= block << 13;
        block ^= block >> 7;
        block ^= block << 17;
        b'a' + (block % 26) as u8
    };
    (0..length).map(|_| letter()).collect()
}

#[test]
fn a_decrypted_file_leaves_nothing_in_memory() {
    let certs = Certs::make();
    // The answer has nothing of the file in it, so whatever is found is the plaintext.
    let service = Service::start(&certs, &["--fault", "huge=100", "--fault", "slow=1"]);
    let daemon = Daemon::ready(&service, &certs);
    if !may_look(&daemon) {
        return;
    }
    let text = distinctive(100_000);
    let binary = [&distinctive(100_000)[..], b"\xff"].concat();
    let mut needles = Needles::default();
    needles.add_all_forms("text", &text);
    needles.add_all_forms("binary", &binary);
    let files = [&text, &binary].map(|plain| encrypt(&KEY, plain));

    // A request that is over before it was looked at says nothing.
    let under_way = wait_for("the plaintext in memory while it is needed", || {
        thread::scope(|scope| {
            let asked = scope.spawn(|| daemon.decrypt(&files[0], "f", "u"));
            let mut places = Vec::new();
            while places.is_empty() && !asked.is_finished() {
                places = found(&daemon, &needles);
            }
            assert_eq!(asked.join().unwrap().status, 200);
            Some(places).filter(|places| !places.is_empty())
        })
    });
    println!("while a request is under way: {} places", under_way.len());

    let mut wrong = files[0].clone();
    *wrong.last_mut().unwrap() ^= 1;
    assert_eq!(daemon.decrypt(&wrong, "f", "u").status, 422);
    for file in &files {
        assert_eq!(daemon.decrypt(file, "f", "u").status, 200);
        let body = json!({"file_id": "f", "user_id": "u", "encrypted_content": STANDARD.encode(file)});
        assert_eq!(daemon.post("/files/decrypt", body.to_string().as_bytes()).status, 200);
    }
    rests(&daemon);

    let mut marker = Needles::default();
    marker.add("the endpoint", format!("https://localhost:{}", service.port).as_bytes());
    assert!(!found(&daemon, &marker).is_empty(), "the search does not find what must be there");
    let left = found(&daemon, &needles);
    assert!(left.is_empty(), "{} pieces are left:\n{}", left.len(), left.join("\n"));
}

/// The client's key and a file key: as they were sent, and as they are used.
fn keys_in_force(certs: &Certs, file_key: &[u8; 32]) -> (Needles, Needles) {
    let pem = fs::read_to_string(certs.path("client.key")).unwrap();
    let (mut sent, mut used) = (Needles::default(), Needles::default());
    // Before line 8 there is the public modulus, which stands in the certificate too.
    pem.lines().skip(8).filter(|line| !line.starts_with('-')).for_each(|line| sent.add("PEM", line.as_bytes()));
    sent.add("base64 of PEM", &STANDARD.encode(&pem).as_bytes()[720..]);
    for (name, integer) in integers_of_rsa_key(&certs.path("client.key")) {
        sent.add(&format!("DER, {name}"), &integer);
        // ring computes with little-endian limbs.
        used.add(&format!("limbs, {name}"), &integer.iter().rev().copied().collect::<Vec<_>>());
    }
    sent.add("base64 of the file key", STANDARD.encode(file_key).as_bytes());
    // AES's first two round keys are the key (FIPS 197, 5.2).
    used.add("file key", file_key);
    (sent, used)
}

#[test]
fn replaced_keys_leave_nothing_in_memory_and_keys_in_force_only_what_is_computed_with() {
    let certs = Certs::make();
    let service = Service::start(&certs, &[]);
    let daemon = Setup::new(service.port).start();
    if !may_look(&daemon) {
        return;
    }
    let install = |byte: u8| {
        let key: [u8; 32] = std::array::from_fn(|i| i.to_le_bytes()[0].wrapping_mul(89).wrapping_add(byte) ^ 0x5a);
        let mut bundle = certs.bundle(service.port);
        bundle["FILE_KEYS"] = json!({"k": STANDARD.encode(key)});
        let answer = daemon.handshake(bundle.to_string().as_bytes());
        assert_eq!(answer["ok"], true, "{answer}");
        for _ in 0..3 {
            assert_eq!(daemon.decrypt(&encrypt(&key, b"a file"), "f", "u").status, 200);
        }
        rests(&daemon);
        keys_in_force(&certs, &key)
    };
    let (old_sent, old_used) = install(1);
    run(Command::new(repository().join("certs/make-certs.sh")).args(["--client-only", "--force"]).arg(certs.0.path()));
    let (new_sent, new_used) = install(2);
    assert!(!found(&daemon, &new_used).is_empty(), "the search does not find the keys in force");
    for (what, needles) in [("old key", old_used), ("old key as sent", old_sent), ("new key as sent", new_sent)] {
        let left = found(&daemon, &needles);
        assert!(left.is_empty(), "{what}: {} pieces are left:\n{}", left.len(), left.join("\n"));
    }
}

/// A daemon that takes bundles which this operator has sealed, before its first one.
struct Sealed {
    daemon: Daemon,
    service: Service,
    certs: Certs,
    operator: Ed25519KeyPair,
}

impl Sealed {
    /// `None` if its memory may not be read.
    fn start() -> Option<Sealed> {
        let certs = Certs::make();
        let service = Service::start(&certs, &[]);
        let operator = Ed25519KeyPair::from_seed_unchecked(&[5; 32]).unwrap();
        let public = STANDARD.encode(operator.public_key().as_ref());
        let setup = Setup::new(service.port).env("TEEMARK_HANDSHAKE", "sealed").env("TEEMARK_OPERATOR_KEYS", &public);
        // What a connection leaves behind has to be gone although the connection stays.
        let setup = setup.env("TEEMARK_WATERMARK_KEEPALIVE", "600s");
        let daemon = setup.start();
        may_look(&daemon).then_some(Sealed { daemon, service, certs, operator })
    }
}

#[test]
fn sealed_bundles_and_answers_leave_nothing_in_memory() {
    let Some(Sealed { certs, service, operator, daemon }) = Sealed::start() else { return };
    let key: [u8; 32] = std::array::from_fn(|i| i.to_le_bytes()[0].wrapping_mul(89) ^ 0xa5);
    let mut bundle = certs.bundle(service.port);
    bundle["FILE_KEYS"] = json!({"k": STANDARD.encode(key)});
    let sealed = seal(bundle.to_string().as_bytes(), &destination(&daemon), 1, &operator).unwrap().to_json();
    assert_eq!(daemon.handshake(sealed.as_bytes())["ok"], true);

    let text = distinctive(100_000);
    let (file, length) = (encrypt(&key, &text), text.len() + 28);
    let reply_key = PrivateKey::new(Box::new([7; 32]));
    for _ in 0..3 {
        let reply_key = STANDARD.encode(reply_key.public());
        let head = format!(
            "POST /files/f/decrypt?user_id=u HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\
             Teemark-Reply-Key: {reply_key}\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(request(daemon.public, &head, &file).status, 200);
    }
    rests(&daemon);
    let (mut sent, used) = keys_in_force(&certs, &key);
    assert!(!found(&daemon, &used).is_empty(), "the search does not find the keys in force");
    // Between the marks the service leaves the text as it is.
    sent.add("the text", &text);
    let left = found(&daemon, &sent);
    assert!(left.is_empty(), "{} pieces are left:\n{}", left.len(), left.join("\n"));
    let log = daemon.process.log();
    assert!(log.contains("handshake accepted"), "{log}");
    assert_eq!(sent.find(log.as_bytes()), None, "in the log:\n{log}");
}

#[test]
fn keys_that_come_by_the_public_listener_are_left_on_no_thread_that_goes_on() {
    let Some(Sealed { operator, daemon, service: _service, .. }) = Sealed::start() else { return };
    // One connection, so that one thread takes one bundle after the other and goes on.
    let mut stream = TcpStream::connect(daemon.public).unwrap();
    let mut install = |byte: u8| {
        let key: [u8; 32] = std::array::from_fn(|i| i.to_le_bytes()[0].wrapping_mul(89).wrapping_add(byte) ^ 0xa5);
        let delivered = DeliveredKey::new(Box::new(key), false);
        let keys: FileKeys = [("k".to_owned(), FileKey::from(&delivered))].into_iter().collect();
        let file_keys = Some([("k".to_owned(), delivered)].into_iter().collect());
        let bundle = Outgoing { file_keys, ..Outgoing::default() };
        let from = sha256(daemon.get("/state").text().as_bytes());
        let items = [("FILE_KEYS".to_owned(), keys.describe())].into();
        let manifest = Manifest { complete_at: None, from, items };
        let mut sealed = v2::seal(&bundle.to_json(), &manifest, &destination(&daemon), byte.into()).unwrap();
        sealed.line.sign(&operator);
        let bytes = sealed.to_bytes();
        let head = format!("POST /sealed-bundle HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", bytes.len());
        stream.write_all(&[head.as_bytes(), &bytes].concat()).unwrap();
        let answer = read_answer(&mut stream).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let (mut used, mut sent) = (Needles::default(), Needles::default());
        used.add("file key", &key);
        sent.add("base64 of the file key", STANDARD.encode(key).as_bytes());
        (used, sent)
    };
    let (old, old_sent) = install(1);
    assert_eq!(found(&daemon, &old).len(), 1, "in force, and nowhere else");
    let (new, new_sent) = install(2);
    assert_eq!((found(&daemon, &old).len(), found(&daemon, &new).len()), (0, 1));
    for sent in [old_sent, new_sent] {
        assert_eq!(found(&daemon, &sent), Vec::<String>::new());
    }
}

/// The keys of a daemon as its attestation document tells them; the user data is JSON in it.
fn destination(daemon: &Daemon) -> Destination {
    let answer = daemon.get("/get_attestation").json();
    let document = hex::decode(answer["attestation"].as_str().unwrap()).unwrap();
    let start = document.windows(8).position(|w| w == b"{\"allow_").unwrap();
    let end = start + document[start..].iter().position(|b| *b == b'}').unwrap();
    let told: serde_json::Value = serde_json::from_slice(&document[start..=end]).unwrap();
    let sealing_key = STANDARD.decode(told["sealing_key"].as_str().unwrap()).unwrap();
    let boot_nonce = hex::decode(told["boot_nonce"].as_str().unwrap()).unwrap();
    let sealing_key = PublicKey::from_bytes(sealing_key.try_into().unwrap()).unwrap();
    Destination { sealing_key, boot_nonce: BootNonce::from_bytes(boot_nonce.try_into().unwrap()) }
}
