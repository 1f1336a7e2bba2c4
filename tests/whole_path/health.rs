//! /health_check: its status, the endpoints, the service, and what happens when one hangs.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::socket::{Backlog, listen};

use crate::support::*;
use crate::*;

const STRICT: &str = "/health_check?strict=1";

/// What an answer tells of endpoints and service. It tells whether the daemon is ready too, and its identity key.
fn findings(answer: &Answer, daemon: &Daemon) -> Value {
    let mut findings = answer.json();
    let members = findings.as_object_mut().unwrap();
    assert_eq!(members.remove("ready"), Some(daemon.get("/ready").json()["ready"].take()));
    let pk = members.remove("pk").unwrap();
    assert!(daemon.process.has_logged(format!("identity key {}", pk.as_str().unwrap())), "{pk}");
    findings
}

#[test]
fn health_check_is_200_as_long_as_the_daemon_lives_unless_it_is_asked_to_be_strict() {
    let (service, daemon) = pair(&["--fault", "unhealthy"]);
    let unwell = daemon.health(|answer| answer.json()["watermark"].get("error").is_none());
    assert_eq!((unwell.status, &unwell.json()["ready"]), (503, &json!(true)));
    for path in ["/health_check", "/health_check?strict=0"] {
        assert_eq!(daemon.get(path).status, 200);
    }
    assert_error(&daemon.get("/health_check?strict=yes"), 400, "invalid_request");
    drop(service);
    let waits = Setup::new(1).start();
    let answer = waits.get("/health_check");
    assert_eq!(
        (answer.status, &answer.json()["ready"], &answer.json()["status"]),
        (200, &json!(false), &json!("unhealthy"))
    );
}

#[test]
fn health_check_tells_a_service_that_is_well() {
    let (service, daemon) = pair(&[]);
    let answer = daemon.health(|answer| answer.status == 200);
    let endpoints = json!({format!("localhost:{}", service.port): true});
    let well = json!({"status": "healthy", "endpoints_status": endpoints, "watermark": {"healthy": true}});
    assert_eq!(findings(&answer, &daemon), well);
    assert!(service.count("GET /health 200") >= 1, "it is asked over mutual TLS");
}

#[test]
fn health_check_tells_a_service_that_is_unwell() {
    let (service, daemon) = pair(&["--fault", "unhealthy"]);
    let answer = daemon.health(|answer| answer.json()["watermark"].get("error").is_none());
    let endpoints = json!({format!("localhost:{}", service.port): true});
    let unwell = json!({"status": "unhealthy", "endpoints_status": endpoints, "watermark": {"healthy": false}});
    assert_eq!((answer.status, findings(&answer, &daemon)), (503, unwell));
}

#[test]
fn health_check_tells_a_service_that_is_down() {
    let (service, daemon) = pair(&[]);
    let endpoint = format!("localhost:{}", service.port);
    drop(service);
    let answer = daemon.get(STRICT);
    assert_eq!((answer.status, &answer.json()["status"]), (503, &json!("unhealthy")), "{answer:?}");
    assert_eq!(answer.json()["endpoints_status"], json!({endpoint: false}));
    let watermark = &answer.json()["watermark"];
    assert!(watermark["healthy"] == false && watermark["error"].as_str().is_some_and(|e| !e.is_empty()), "{watermark}");
}

#[test]
fn health_check_before_the_handshake_says_what_is_missing() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Setup::new(service.port).start();
    let endpoints = json!({format!("localhost:{}", service.port): true});
    let answer = daemon.health(|answer| answer.json()["endpoints_status"] == endpoints);
    assert_eq!(answer.status, 503);
    assert!(answer.json()["watermark"]["error"].as_str().unwrap().contains("FILE_KEYS"), "{answer:?}");
}

#[test]
fn the_result_of_a_health_check_is_kept_for_5_seconds() {
    unspoilt("health checks in time", || {
        let (service, daemon) = pair(&["--fault", "unhealthy", "--fault", "first=1"]);
        let start = Instant::now();
        assert_eq!(daemon.health_in_time()?.status, 503);
        // The service is healthy again at once; the daemon does not ask it.
        let asked_again = wait_for("a new check", || match daemon.health_in_time() {
            Some(answer) => (answer.status == 200).then(|| Some(start.elapsed())),
            None => Some(None),
        })?;
        assert!(asked_again >= Duration::from_secs(5), "{asked_again:?}");
        assert_eq!(service.count("GET /health"), 2);
        Some(())
    });
}

/// An endpoint that nobody can reach: its queue of connections is full, and the kernel drops new ones.
struct Hole {
    port: u16,
    _listener: TcpListener,
    _in_its_queue: TcpStream,
}

impl Hole {
    fn new() -> Hole {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        Hole { port, _in_its_queue: TcpStream::connect(("127.0.0.1", port)).unwrap(), _listener: listener }
    }
}

#[test]
fn an_endpoint_that_hangs_is_reported_and_does_not_keep_the_others_or_the_service_from_being_probed() {
    let service = Service::start(&CERTS, &[]);
    let holes = [(); 5].map(|()| Hole::new());
    let mut setup = Setup::new(service.port);
    holes.iter().for_each(|hole| setup.allowed += &format!("  - 127.0.0.1:{}\n", hole.port));
    let daemon = Daemon::ready_with(setup, service.port, &CERTS);
    let answer = daemon.health(|answer| answer.json()["watermark"]["healthy"] == true);
    assert_eq!((answer.status, &answer.json()["status"]), (503, &json!("unhealthy")));
    let mut endpoints = json!({format!("localhost:{}", service.port): true});
    holes.iter().for_each(|hole| endpoints[format!("127.0.0.1:{}", hole.port)] = json!(false));
    assert_eq!(answer.json()["endpoints_status"], endpoints);
}

#[test]
fn a_service_that_takes_the_connection_and_says_nothing_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let daemon = Daemon::ready_with(Setup::new(port), port, &CERTS);
    let answer = daemon.get(STRICT);
    assert_eq!(answer.status, 503);
    let error = answer.json()["watermark"]["error"].as_str().unwrap().to_owned();
    // By its own limit; on a busy machine by that of the whole check.
    assert!(error.contains("did not answer in time") || error.contains("not answered within"), "{answer:?}");
}
