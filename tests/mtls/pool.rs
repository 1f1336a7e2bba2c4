//! Connections that are used again, and what happens when the service closes them meanwhile.

use std::sync::{Arc, Barrier};
use std::thread;

use crate::scripted::{MARKED, Scripted, Step};
use crate::*;

#[test]
fn two_calls_make_one_tls_handshake() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Daemon::ready(&service, &CERTS);
    assert_works(&daemon);
    assert_works(&daemon);
    assert_eq!(service.count("POST /api/watermark 200"), 2);
    assert_eq!(service.count("TLS handshake: client"), 1);
    assert_eq!(daemon.metric("teemark_tls_handshakes_total"), 1.0);
}

#[test]
fn after_an_error_answer_the_connection_is_used_again() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Daemon::ready(&service, &CERTS);
    assert_eq!(daemon.decrypt(&encrypt(&KEY, b"\xff\xfe"), "f", "u").status, 502);
    assert_works(&daemon);
    assert_eq!(service.count("POST /api/watermark"), 2);
    assert_eq!(service.count("TLS handshake: client"), 1, "{}", service.process.log());
}

/// So many calls at once, which must all succeed.
fn calls_at_once(daemon: &Daemon, calls: usize) {
    thread::scope(|scope| {
        let calls: Vec<_> = (0..calls).map(|_| scope.spawn(|| call(daemon))).collect();
        for call in calls {
            let answer = call.join().unwrap();
            assert_eq!(answer.status, 200, "{answer:?}\n{}", daemon.process.log());
        }
    });
}

#[test]
fn eight_calls_at_once_are_with_the_service_at_once() {
    // No call is answered before the eighth is there.
    let all = Arc::new(Barrier::new(8));
    let service = Scripted::start(move |_, _| {
        all.wait();
        Step::Answer
    });
    let setup = Setup::new(service.port).env("TEEMARK_TIMEOUT", "60s");
    let daemon = Daemon::ready_with(setup, service.port, &CERTS);
    for _ in 0..5 {
        calls_at_once(&daemon, 8);
    }
    assert_eq!(service.connections(), 8);
}

#[test]
fn a_service_restarted_between_calls_costs_no_request() {
    for signal in ["KILL", "TERM"] {
        let arguments = ["--fault", "slow=0.3"];
        let port = free_port();
        let mut service = Service::start_on(port, &CERTS, &arguments);
        let daemon = Daemon::ready(&service, &CERTS);
        assert_works(&daemon);
        service.process.signal(signal);
        service.process.child.wait().unwrap();
        service = Service::start_on(port, &CERTS, &arguments);
        assert_works(&daemon);

        calls_at_once(&daemon, 8);
        assert!(service.count("TLS handshake: client") > 1, "there are several pooled connections");
        service.process.signal(signal);
        service.process.child.wait().unwrap();
        service = Service::start_on(port, &CERTS, &arguments);
        calls_at_once(&daemon, 8);
        assert_eq!(service.count("POST /api/watermark 200"), 8, "none is asked twice");
    }
}

#[test]
fn a_connection_that_proves_closed_only_with_the_second_request_is_retried_on_a_new_one() {
    for (name, step) in [
        ("cut", (|| Step::Cut) as fn() -> Step),
        ("TLS close", || Step::Close),
        ("cut in the body", || Step::CutInBody),
    ] {
        let service = Scripted::start(move |connection, request| match (connection, request) {
            (0, 1) => step(),
            _ => Step::Answer,
        });
        let daemon = daemon_for(&[service.port]);
        let large = encrypt(&KEY, &CONTENT.as_bytes().repeat(40_000));
        for _ in 0..2 {
            let answer = daemon.decrypt(&large, "f", "u");
            assert_eq!((answer.status, answer.text().as_str()), (200, MARKED), "{name}: {}", daemon.process.log());
        }
        assert_eq!((service.requests(), service.connections()), (3, 2), "{name}");
        assert_eq!(daemon.metric("teemark_watermark_retries_total"), 1.0, "{name}");
    }
}

#[test]
fn connections_that_prove_closed_all_at_once_are_each_retried_on_a_new_one() {
    let all = Arc::new(Barrier::new(4));
    let service = Scripted::start(move |connection, request| match (connection, request) {
        // All four first calls are under way at once, so there are four connections; the same for their second calls.
        (0..4, 0) => {
            all.wait();
            Step::Answer
        }
        (0..4, _) => {
            all.wait();
            Step::Cut
        }
        _ => Step::Answer,
    });
    let setup = Setup::new(service.port).env("TEEMARK_TIMEOUT", "60s");
    let daemon = Daemon::ready_with(setup, service.port, &CERTS);
    calls_at_once(&daemon, 4);
    calls_at_once(&daemon, 4);
    assert_eq!(daemon.metric("teemark_watermark_retries_total"), 4.0);
    assert_eq!((service.requests(), service.connections()), (12, 8));
}

#[test]
fn a_call_is_retried_once_only() {
    let service = Scripted::start(|connection, request| match (connection, request) {
        (0, 0) => Step::Answer,
        _ => Step::Cut,
    });
    let daemon = daemon_for(&[service.port]);
    assert_eq!(call(&daemon).status, 200);
    assert_fails(&daemon);
    assert_eq!((service.requests(), service.connections()), (3, 2));
}

#[test]
fn a_new_connection_that_is_cut_is_not_retried() {
    let service = Scripted::start(|connection, _| if connection == 0 { Step::Cut } else { Step::Answer });
    let daemon = daemon_for(&[service.port]);
    assert_fails(&daemon);
    assert_eq!((service.requests(), service.connections()), (1, 1));
    assert_eq!(call(&daemon).status, 200);
}

#[test]
fn a_call_whose_answer_has_begun_is_not_retried() {
    for begun in [&b"H"[..], b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"status\":"] {
        let service = Scripted::start(move |connection, request| match (connection, request) {
            (0, 1) => Step::Bytes(begun),
            _ => Step::Answer,
        });
        let daemon = daemon_for(&[service.port]);
        assert_eq!(call(&daemon).status, 200);
        assert_fails(&daemon);
        assert_eq!((service.requests(), service.connections()), (2, 1), "{begun:?}");
        assert_eq!(call(&daemon).status, 200);
    }
}

#[test]
fn a_health_check_survives_a_stale_connection_too() {
    let service = Scripted::start(|connection, request| match (connection, request) {
        (0, 1) => Step::Cut,
        _ => Step::Answer,
    });
    let daemon = daemon_for(&[service.port]);
    assert_eq!(call(&daemon).status, 200);
    assert_eq!(daemon.get("/health_check").status, 200);
    assert_eq!(service.requests(), 3);
}
