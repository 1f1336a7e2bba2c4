//! Connections that are reused, and what happens when the service closes them meanwhile.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

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
fn an_idle_connection_is_given_up_before_the_service_does() {
    let service = Service::start(&CERTS, &[]);
    let setup = Setup::new(service.port).env("TEEMARK_WATERMARK_KEEPALIVE", "1s");
    let daemon = Daemon::ready_with(setup, service.port, &CERTS);
    assert_works(&daemon);
    thread::sleep(Duration::from_millis(1100));
    assert_works(&daemon);
    assert_eq!(service.count("TLS handshake: client"), 2);
}

#[test]
fn after_an_error_answer_the_connection_is_used_again() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Daemon::ready(&service, &CERTS);
    assert_eq!(daemon.decrypt(&encrypt(&KEY, b"\xff\xfe"), "f", "u").status, 422);
    assert_works(&daemon);
    assert_eq!(service.count("POST /api/watermark"), 2);
    assert_eq!(service.count("TLS handshake: client"), 1, "{}", service.process.log());
}

/// Makes this many calls at once, which must all succeed.
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
fn a_session_is_resumed_within_an_identity_and_never_after_a_rotation() {
    let service = Scripted::start(|_, _| Step::Last);
    let daemon = Daemon::ready_with(Setup::new(service.port), service.port, &CERTS);
    for earlier in 0..3 {
        assert_eq!(call(&daemon).status, 200);
        assert_eq!((service.connections(), service.resumed()), (earlier + 1, earlier));
    }
    // The same certificates once more are a new identity all the same.
    assert_eq!(daemon.handshake(CERTS.bundle(service.port).to_string().as_bytes())["ok"], true);
    assert_eq!(call(&daemon).status, 200);
    assert_eq!((service.connections(), service.resumed()), (4, 2));
}

#[test]
fn as_many_connections_are_kept_as_calls_were_made() {
    const CALLS: usize = 48;
    let all = Arc::new(Barrier::new(CALLS));
    let service = Scripted::start(move |_, _| {
        all.wait();
        Step::Answer
    });
    let setup = Setup::new(service.port).env("TEEMARK_TIMEOUT", "60s").env("TEEMARK_WATERMARK_KEEPALIVE", "60s");
    let daemon = Daemon::ready_with(setup, service.port, &CERTS);
    calls_at_once(&daemon, CALLS);
    calls_at_once(&daemon, CALLS);
    assert_eq!(service.connections(), CALLS);
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
fn a_call_is_not_repeated_once_its_file_was_on_the_way() {
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
        assert_eq!(call(&daemon).text(), MARKED);
        let large = encrypt(&KEY, &CONTENT.as_bytes().repeat(40_000));
        assert_refused(&daemon, &daemon.decrypt(&large, "f", "u"), 502, "watermark_failed");
        assert_eq!((service.requests(), service.connections()), (2, 1), "{name}: the file went out twice");
        assert_eq!(call(&daemon).text(), MARKED, "{name}");
        assert_eq!(daemon.metric("teemark_watermark_retries_total"), 0.0, "{name}");
    }
}

/// A health check has no body, so the whole request may be sent again.
#[test]
fn a_call_is_repeated_once_only() {
    unspoilt("a health check in time", || {
        let service = Scripted::start(|connection, request| match (connection, request) {
            (0, 0) => Step::Answer,
            _ => Step::Cut,
        });
        let daemon = daemon_for(&[service.port]);
        assert_eq!(call(&daemon).status, 200);
        assert_eq!(daemon.health_in_time()?.json()["watermark"]["healthy"], false);
        assert_eq!(service.requests(), 3);
        assert_eq!(daemon.metric("teemark_watermark_retries_total"), 1.0);
        Some(())
    });
}

/// The second answer comes with the first, or in the pause before the next request.
#[test]
fn an_answer_that_nobody_asked_for_reaches_no_request() {
    for late in [false, true] {
        let met = Arc::new(Barrier::new(2));
        let of_service = met.clone();
        let service = Scripted::start(move |connection, _| match (connection, late) {
            (0, false) => Step::Twice,
            (0, true) => Step::AgainLater(of_service.clone()),
            _ => Step::Answer,
        });
        let daemon = daemon_for(&[service.port]);
        assert_eq!(call(&daemon).text(), MARKED);
        if late {
            met.wait(); // the first answer has been read
            met.wait(); // the second has been sent
        }
        assert_eq!(call(&daemon).text(), MARKED, "the answer of another request");
        assert_eq!((service.requests(), service.connections()), (2, 2), "late: {late}");
    }
}

#[test]
fn a_call_on_a_new_connection_that_is_cut_is_not_repeated() {
    let service = Scripted::start(|connection, _| if connection == 0 { Step::Cut } else { Step::Answer });
    let daemon = daemon_for(&[service.port]);
    assert_fails(&daemon);
    assert_eq!((service.requests(), service.connections()), (1, 1));
    assert_eq!(call(&daemon).status, 200);
}

#[test]
fn a_call_whose_answer_has_begun_is_not_repeated() {
    for begun in [&b"H"[..], b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"status\":"] {
        let service = Scripted::start(move |connection, request| match (connection, request) {
            (0, 1) => Step::Bytes(begun.to_vec()),
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
    unspoilt("a health check in time", || {
        let service = Scripted::start(|connection, request| match (connection, request) {
            (0, 1) => Step::Cut,
            _ => Step::Answer,
        });
        let daemon = daemon_for(&[service.port]);
        assert_eq!(call(&daemon).status, 200);
        let answer = daemon.health_in_time()?;
        assert_eq!(answer.json()["watermark"]["healthy"], true, "{answer:?}");
        assert_eq!(service.requests(), 3);
        Some(())
    });
}

/// A health check has no body, so it can be held between its head and its repeat.
#[test]
fn a_call_is_repeated_under_what_is_in_force_by_then() {
    unspoilt("a health check in time", || {
        let turned = Arc::new(Barrier::new(2));
        let of_service = turned.clone();
        let before = Scripted::start(move |connection, request| match (connection, request) {
            (0, 1) => {
                of_service.wait();
                Step::Cut
            }
            _ => Step::Answer,
        });
        let after = Scripted::start(|_, _| Step::Answer);
        let daemon = daemon_for(&[before.port, after.port]);
        assert_eq!(call(&daemon).text(), MARKED);
        let answer = thread::scope(|scope| {
            let check = scope.spawn(|| daemon.health_in_time());
            wait_for("its head to arrive", || (before.requests() == 2 || check.is_finished()).then_some(()));
            if before.requests() == 2 {
                turn_to(&daemon, after.port);
                turned.wait(); // the connection is closed
            }
            check.join().unwrap()
        })?;
        assert_eq!(answer.json()["watermark"]["healthy"], true, "{answer:?}\n{}", daemon.process.log());
        assert_eq!((before.requests(), after.requests()), (2, 1));
        Some(())
    });
}
