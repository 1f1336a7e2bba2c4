//! Taking a daemon out of service.

use std::io::{self, Write};
use std::net::TcpStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::*;
use crate::*;

/// A request to /admin/drain.
fn ask(daemon: &Daemon, method: &str, query: &str) -> Answer {
    let head = format!("{method} /admin/drain{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    request(daemon.admin, &head, b"")
}

/// As somebody at the parent types it.
#[test]
fn curl_drains_with_post_alone() {
    let daemon = Setup::new(1).start();
    let curl = |method: &str, path: &str, to| {
        let mut curl = std::process::Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "120", "-i", "-X", method])
            .arg(format!("http://{to}{path}"));
        String::from_utf8(run(&mut curl)).unwrap().to_ascii_lowercase()
    };
    let drained = curl("POST", "/admin/drain?seconds=1", daemon.admin);
    assert!(
        drained.starts_with("http/1.1 200 ") && drained.ends_with(r#"{"drained":true,"in_flight":0}"#),
        "{drained}"
    );
    assert!(drained.contains("\r\nconnection: close\r\n"), "{drained}");
    assert_eq!(daemon.get_admin("/admin/status").json()["draining"], true);
    let back = curl("DELETE", "/admin/drain", daemon.admin);
    assert!(back.starts_with("http/1.1 200 "), "{back}");
    // A body that is wanted is not taken to be empty.
    for (path, to) in [("/sealed-bundle", daemon.public), ("/admin/update-secrets", daemon.admin)] {
        let refused = curl("POST", path, to);
        assert!(refused.starts_with("http/1.1 411 ") && refused.contains("length_required"), "{path}: {refused}");
    }
}

/// Begins a drain, and waits until it is in force.
fn drain(daemon: &Daemon, query: &'static str) -> JoinHandle<Answer> {
    let admin = daemon.admin;
    let waits = thread::spawn(move || {
        let head = format!("POST /admin/drain{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        request(admin, &head, b"")
    });
    wait_for("/ready to be 503", || (daemon.get("/ready").status == 503).then_some(()));
    waits
}

/// Sends a file on a connection that stays open.
fn send(stream: &mut TcpStream, file: &[u8]) {
    try_send(stream, file).unwrap();
}

fn try_send(stream: &mut TcpStream, file: &[u8]) -> io::Result<()> {
    let length = file.len();
    write!(stream, "POST /files/f/decrypt?user_id=u HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")?;
    stream.write_all(file)
}

fn connect(daemon: &Daemon) -> TcpStream {
    let stream = TcpStream::connect(daemon.public).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

#[test]
fn while_it_drains_requests_are_served_each_as_the_last_of_its_connection_and_then_refused() {
    let (_service, daemon) = pair(&[]);
    let file = encrypt(&KEY, b"a text");
    let drains = loop {
        let mut kept = connect(&daemon);
        send(&mut kept, &file);
        let before = read_answer(&mut kept).unwrap();
        assert_eq!((before.status, field(&before, "Connection")), (200, None));

        let start = Instant::now();
        let drains = drain(&daemon, "?seconds=600");
        assert_eq!(daemon.get("/ready").json(), json!({"ready": false, "missing": [], "draining": true}));
        let during = try_send(&mut kept, &file).ok().and_then(|()| read_answer(&mut kept));
        if start.elapsed() < Duration::from_secs(5) {
            let during = during.expect("an answer");
            assert_eq!((during.status, field(&during, "Connection")), (200, Some("close")));
            break drains;
        }
        // On a machine as busy as that, it may have been drained already.
        ask(&daemon, "DELETE", "");
        drains.join().unwrap();
    };
    let answer = drains.join().unwrap();
    assert_eq!((answer.status, answer.json()), (200, json!({"drained": true, "in_flight": 0})));
    for refused in [daemon.decrypt(&file, "f", "u"), decrypt_json(&daemon, &file), daemon.get("/get_attestation")] {
        assert_error(&refused, 503, "drained");
        assert_eq!(field(&refused, "Retry-After"), Some("1"));
    }
    assert_eq!((daemon.get("/ready").status, daemon.get("/health").status), (503, 200));
    let health = daemon.get("/health_check");
    assert_eq!((health.status, &health.json()["ready"]), (200, &json!(false)));
    // A strict caller asks whether to send requests here, and there is nothing else that keeps them off.
    let strict = || daemon.get("/health_check?strict=1");
    let well = wait_for("a check that finds all well", || Some(strict()).filter(|a| a.json()["status"] == "healthy"));
    assert_eq!((well.status, &well.json()["ready"]), (503, &json!(false)));
    let status = daemon.get_admin("/admin/status").json();
    assert_eq!((&status["ready"], &status["draining"]), (&json!(false), &json!(true)));
    assert_eq!(ask(&daemon, "POST", "").json(), json!({"drained": true, "in_flight": 0}), "it is already");

    assert_eq!(ask(&daemon, "DELETE", "").status, 200);
    let mut kept = connect(&daemon);
    send(&mut kept, &file);
    let after = read_answer(&mut kept).unwrap();
    assert_eq!((after.status, field(&after, "Connection"), daemon.get("/ready").status), (200, None, 200));
    wait_for("a strict check that is passed again", || (strict().status == 200).then_some(()));
}

#[test]
fn a_drain_ends_once_the_request_in_flight_has_its_answer() {
    let (service, daemon) = pair(&["--fault", "slow=8"]);
    let mut client = connect(&daemon);
    send(&mut client, &encrypt(&KEY, b"a text"));
    wait_for("the call of the service", || (service.count("TLS handshake: client") > 0).then_some(()));
    let answer = ask(&daemon, "POST", "?seconds=600");
    assert_eq!(answer.json(), json!({"drained": true, "in_flight": 0}));
    client.set_nonblocking(true).unwrap();
    assert_eq!(client.peek(&mut [0]).unwrap(), 1, "the answer has been sent");
    client.set_nonblocking(false).unwrap();
    assert_eq!(read_answer(&mut client).unwrap().status, 200);
}

#[test]
fn a_drain_whose_time_is_up_tells_what_is_in_flight_and_one_that_is_taken_back_ends() {
    let (service, daemon) = pair(&["--fault", "slow=60"]);
    let mut client = connect(&daemon);
    send(&mut client, &encrypt(&KEY, b"a text"));
    wait_for("the call of the service", || (service.count("TLS handshake: client") > 0).then_some(()));
    assert_eq!(ask(&daemon, "POST", "?seconds=1").json(), json!({"drained": false, "in_flight": 1}));
    assert_eq!(ask(&daemon, "DELETE", "").status, 200);
    let drains = drain(&daemon, "?seconds=600");
    assert_eq!(ask(&daemon, "DELETE", "").status, 200);
    assert_eq!(drains.join().unwrap().json()["drained"], false);
    assert_eq!(daemon.get("/ready").status, 200);
}

#[test]
fn a_drain_takes_1_to_600_seconds() {
    let daemon = Setup::new(1).start();
    for query in ["?seconds=0", "?seconds=601", "?seconds=-1", "?seconds=x", "?seconds=", "?seconds=1&seconds=2"] {
        assert_error(&ask(&daemon, "POST", query), 400, "invalid_request");
    }
    let answer = ask(&daemon, "GET", "");
    assert_error(&answer, 405, "method_not_allowed");
    assert_eq!(field(&answer, "Allow"), Some("POST, DELETE"));
    assert_eq!(daemon.get_admin("/admin/status").json()["draining"], false);
}

#[test]
fn the_parents_script_drains_and_puts_back_and_the_unit_calls_it() {
    let (_service, daemon) = pair(&[]);
    let script = |arguments: &[&str]| {
        let mut script = std::process::Command::new(repository().join("host/deploy/drain.sh"));
        run(script.args(arguments).env("EXPOSE_ADMIN", daemon.admin.to_string()))
    };
    let drained = r#"{"drained":true,"in_flight":0}"#;
    assert_eq!(String::from_utf8(script(&[])).unwrap(), drained.repeat(2));
    assert_error(&daemon.decrypt(&encrypt(&KEY, b"a text"), "f", "u"), 503, "drained");
    script(&["--back"]);
    assert_eq!(daemon.decrypt(&encrypt(&KEY, b"a text"), "f", "u").status, 200);
    let unit = std::fs::read_to_string(repository().join("host/deploy/systemd/teemark-expose.service")).unwrap();
    for line in
        ["ExecStop=-/usr/local/libexec/teemark/drain.sh", "ExecStartPost=-/usr/local/libexec/teemark/drain.sh --back"]
    {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
}
