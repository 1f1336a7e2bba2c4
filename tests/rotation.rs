//! Rotation under load: new bundles arrive while clients work.

mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use support::*;

const CLIENTS: usize = 32;

/// Client certificates `client0`, `client1` … of one root.
fn certificates(number: usize) -> Certs {
    let certs = Certs::with_root();
    for i in 0..number {
        certs.client(&format!("client{i}"));
    }
    certs
}

fn certificates_item(certs: &Certs, i: usize) -> Value {
    json!({
        "client_cert": certs.read(&format!("client{i}.crt")),
        "client_key": certs.read(&format!("client{i}.key")),
        "ca_cert": certs.read("ca.crt"),
    })
}

/// A whole bundle with the certificate `client{i}`.
fn bundle(certs: &Certs, port: u16, i: usize) -> Value {
    json!({
        "MTLS_CLIENT_CERT_JSON": certificates_item(certs, i),
        "ECS_WATERMARK_ENDPOINT": format!("https://localhost:{port}"),
        "FILE_KEYS": {"k": STANDARD.encode(KEY)},
    })
}

fn rotate(daemon: &Daemon, bundle: &Value) {
    let answer = daemon.handshake(bundle.to_string().as_bytes());
    assert_eq!(answer["ok"], true, "{answer}");
}

/// The clients' serial numbers in the service's lines about requests, in order.
fn serials(service: &Service) -> Vec<String> {
    let log = service.process.log();
    // The last line may still be incomplete.
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let requests = whole.lines().filter(|line| line.starts_with("POST /api/watermark"));
    requests.map(|line| line.rsplit_once("client serial=").unwrap().1.to_owned()).collect()
}

#[test]
fn while_32_clients_work_ten_bundles_arrive_two_of_them_bad_and_no_request_fails() {
    let certs = certificates(11);
    // A little slow, so that requests are in flight at every rotation.
    let service = Service::start(&certs, &["--fault", "slow=0.02"]);
    let daemon = Setup::new(service.port).start();
    rotate(&daemon, &bundle(&certs, service.port, 0));

    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let more_requests = |number: usize| {
        let before = done.load(Ordering::Relaxed);
        wait_for("more requests", || (done.load(Ordering::Relaxed) >= before + number).then_some(()));
    };
    let file = encrypt(&KEY, b"a text to mark");
    thread::scope(|scope| {
        let _stops_them = Stop(&stop);
        for i in 0..CLIENTS {
            let (daemon, file, stop, done) = (&daemon, &file, &stop, &done);
            scope.spawn(move || {
                let user = format!("user-{i}");
                while !stop.load(Ordering::Relaxed) {
                    let answer = daemon.decrypt(file, "file", &user);
                    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
                    assert!(answer.body.len() > b"a text to mark".len(), "not marked");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        more_requests(CLIENTS);
        for i in 1..=10 {
            let mut next = bundle(&certs, service.port, i);
            let bad = i == 4 || i == 8;
            if bad {
                // The previous bundle's key.
                next["MTLS_CLIENT_CERT_JSON"]["client_key"] = certificates_item(&certs, i - 1)["client_key"].clone();
            }
            let answer = daemon.handshake(next.to_string().as_bytes());
            assert_eq!(answer["ok"], !bad, "{answer}");
            if bad {
                assert_eq!(answer["field"], "MTLS_CLIENT_CERT_JSON.client_key");
                more_requests(CLIENTS);
            } else {
                let serial = certs.serial(&format!("client{i}"));
                wait_for("the service to see the new certificate", || {
                    serials(&service).contains(&serial).then_some(())
                });
            }
        }
        more_requests(CLIENTS);
    });

    let good = [0, 1, 2, 3, 5, 6, 7, 9, 10].map(|i| certs.serial(&format!("client{i}")));
    let seen = serials(&service);
    let mut order: Vec<&String> = Vec::new();
    for serial in &seen {
        if !order.contains(&serial) {
            order.push(serial);
        }
    }
    assert_eq!(order, good.iter().collect::<Vec<_>>(), "each certificate in its turn, and no other");
    for serial in &good {
        assert!(service.count(&format!(", serial={serial}, sha256=")) > 0);
    }
    let lines = service.count("TLS handshake: client CN=client");
    assert_eq!(lines, service.count("TLS handshake"), "every TLS handshake succeeded");
    assert_eq!(as_metric(lines), daemon.metric("teemark_tls_handshakes_total"));
    assert_eq!(daemon.metric("teemark_handshakes_accepted_total"), 9.0);
    assert_eq!(daemon.metric("teemark_handshakes_refused_total"), 2.0);
    assert_eq!(daemon.metric("teemark_watermark_retries_total"), 0.0);
    let answered = daemon.metric("teemark_requests_total{route=\"decrypt_raw\",code=\"200\"}");
    assert_eq!(answered, as_metric(done.load(Ordering::Relaxed)), "every request was counted by its client");
}

/// Ends the clients even if an assertion fails, since the scope would otherwise wait for them forever.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_next_request_after_the_answer_is_made_under_the_new_certificate() {
    let certs = certificates(5);
    let service = Service::start(&certs, &[]);
    let daemon = Setup::new(service.port).start();
    let mut expected = Vec::new();
    // There and back: an old identity can return.
    for i in [0, 1, 2, 3, 4, 0, 4] {
        rotate(&daemon, &bundle(&certs, service.port, i));
        for _ in 0..2 {
            assert_eq!(daemon.decrypt(&encrypt(&KEY, b"a text"), "file", "user").status, 200);
            expected.push(certs.serial(&format!("client{i}")));
        }
        // The service may write its line a moment after its answer.
        wait_for("the service's line", || (serials(&service).len() == expected.len()).then_some(()));
        assert_eq!(serials(&service), expected);
    }
    assert_eq!(service.count("TLS handshake"), 7, "one connection for each identity");
}

#[test]
fn a_request_at_the_service_finishes_on_the_old_identity_while_the_next_begins_on_the_new_one() {
    let certs = certificates(2);
    let service = Service::start(&certs, &["--fault", "slow=15", "--fault", "first=1"]);
    let daemon = Setup::new(service.port).start();
    rotate(&daemon, &bundle(&certs, service.port, 0));
    let [old, new] = [0, 1].map(|i| certs.serial(&format!("client{i}")));
    thread::scope(|scope| {
        let under_way = scope.spawn(|| daemon.decrypt(&encrypt(&KEY, b"a text"), "file", "user"));
        wait_for("the first request to reach the service", || {
            (service.count(&format!(", serial={old}, ")) == 1).then_some(())
        });
        // Another certificate and another key: the request in flight needs the old ones.
        let mut next = bundle(&certs, service.port, 1);
        next["FILE_KEYS"] = json!({"k": STANDARD.encode([7; 32])});
        rotate(&daemon, &next);
        assert!(!under_way.is_finished(), "the request was over before the rotation");
        assert_eq!(daemon.decrypt(&encrypt(&[7; 32], b"a text"), "file", "user").status, 200);
        assert_eq!(under_way.join().unwrap().status, 200);
    });
    wait_for("both lines", || (serials(&service).len() == 2).then_some(()));
    assert_eq!(BTreeSet::from_iter(serials(&service)), BTreeSet::from([old, new]));
    assert_eq!(service.count("TLS handshake"), 2, "the old connection served to its end");
}

/// The answer to a request during whose body `meanwhile` happens.
fn held_open(daemon: &Daemon, path: &str, body: &[u8], meanwhile: impl FnOnce()) -> Answer {
    let free = daemon.metric("teemark_memory_left_bytes");
    let mut slow = TcpStream::connect(daemon.public).unwrap();
    slow.set_read_timeout(Some(SOON)).unwrap();
    write!(slow, "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
    let (first, second) = body.split_at(body.len() / 2);
    slow.write_all(first).unwrap();
    // Memory is reserved for it once it has begun.
    wait_for("the request to begin", || (daemon.metric("teemark_memory_left_bytes") < free).then_some(()));
    meanwhile();
    slow.write_all(second).unwrap();
    read_answer(&mut slow).unwrap()
}

#[test]
fn a_request_that_is_held_open_gets_no_file_under_a_key_that_was_taken_out_meanwhile() {
    let certs = certificates(1);
    let service = Service::start(&certs, &[]);
    let daemon = Setup::new(service.port).start();
    rotate(&daemon, &bundle(&certs, service.port, 0));
    let file = encrypt(&KEY, b"a text that takes its time");
    let content = STANDARD.encode(&file);
    let json = json!({"file_id": "file", "user_id": "user", "encrypted_content": content}).to_string();
    for (path, body) in [("/files/file/decrypt?user_id=user", &file[..]), ("/files/decrypt", json.as_bytes())] {
        let answer = held_open(&daemon, path, body, || {
            rotate(&daemon, &json!({"FILE_KEYS": {"k": STANDARD.encode([7; 32])}}));
        });
        assert_eq!((answer.status, answer.code().as_str()), (422, "decrypt_failed"), "{path}: {answer:?}");
        // The same as for a new request.
        assert_eq!(daemon.post(path, body).status, 422);
        rotate(&daemon, &json!({"FILE_KEYS": {"k": STANDARD.encode(KEY)}}));
    }
    assert_eq!(service.count("POST"), 0, "the service was asked for nothing");
}

#[test]
fn a_request_whose_body_is_still_coming_is_marked_under_what_is_in_force_once_it_is_there() {
    let certs = certificates(2);
    let [before, after] = [Service::start(&certs, &[]), Service::start(&certs, &[])];
    let mut setup = Setup::new(before.port);
    setup.allowed = format!("endpoints:\n  - localhost:{}\n  - localhost:{}\n", before.port, after.port);
    let daemon = setup.start();
    rotate(&daemon, &bundle(&certs, before.port, 0));
    let file = encrypt(&KEY, b"a text that takes its time");
    // Another certificate, another endpoint, the key under another id: none of them loses the request.
    let mut next = bundle(&certs, after.port, 1);
    next["FILE_KEYS"] = json!({"the same key by another id": STANDARD.encode(KEY)});
    let answer = held_open(&daemon, "/files/file/decrypt?user_id=user", &file, || rotate(&daemon, &next));
    assert_eq!(answer.status, 200, "{answer:?}");
    wait_for("the request's line", || (serials(&after) == [certs.serial("client1")]).then_some(()));
    assert_eq!(before.count("TLS handshake"), 0);
}
