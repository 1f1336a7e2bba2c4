//! The clean stop.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::*;
use crate::*;

/// Waits until the service has the daemon's connection: then its request is in flight.
fn wait_for_call(service: &Service) {
    wait_for("the call of the service", || (service.count("TLS handshake: client") > 0).then_some(()));
}

fn wait_for_exit(daemon: &mut Daemon) -> ExitStatus {
    wait_for("the daemon's end", || daemon.process.child.try_wait().unwrap())
}

#[test]
fn on_sigterm_the_request_under_way_gets_its_answer_and_no_new_one_is_taken() {
    let (service, mut daemon) = pair(&[]);
    let (public, admin) = (daemon.public, daemon.admin);
    let mut idle = TcpStream::connect(public).unwrap();
    idle.set_read_timeout(Some(SOON)).unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut idle).unwrap().text(), "Pong!");

    // The service does nothing before the test lets it. By then it has a connection, for which it is not given long.
    let memory_left = |daemon: &Daemon| daemon.metric("teemark_memory_left_bytes");
    let (all, file) = (memory_left(&daemon), encrypt(&KEY, b"a text"));
    assert_eq!(daemon.decrypt(&file, "f", "u").status, 200);
    wait_for("the memory to be back", || (memory_left(&daemon) == all).then_some(()));
    let stopped = Stopped::new(&service.process);

    let mut under_way = TcpStream::connect(public).unwrap();
    under_way.set_read_timeout(Some(SOON)).unwrap();
    // It would be kept alive if the daemon did not stop.
    write!(under_way, "POST /files/f/decrypt?user_id=u HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", file.len())
        .unwrap();
    under_way.write_all(&file).unwrap();
    wait_for("the request to be in flight", || (memory_left(&daemon) < all).then_some(()));
    daemon.process.signal("TERM");

    assert_eq!(idle.read_to_end(&mut Vec::new()).unwrap(), 0, "the idle connection is closed");
    for address in [public, admin] {
        wait_for("a refused connection", || TcpStream::connect(address).is_err().then_some(()));
    }
    assert!(daemon.process.child.try_wait().unwrap().is_none(), "it waits for the request");
    drop(stopped);
    let answer = read_answer(&mut under_way).expect("the request under way is answered");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(extract(&answer.body), json!({"file_id": "f", "user_id": "u"}));
    assert_eq!(field(&answer, "Connection"), Some("close"));
    drop(under_way);
    assert_eq!(wait_for_exit(&mut daemon).code(), Some(0));
    assert!(daemon.process.log().contains("SIGTERM"), "{}", daemon.process.log());
}

#[test]
fn a_daemon_with_nothing_to_do_stops_at_once_on_either_signal() {
    for signal in ["TERM", "INT"] {
        let mut daemon = Setup::new(1).start();
        daemon.process.signal(signal);
        assert_eq!(wait_for_exit(&mut daemon).code(), Some(0), "{signal}");
        assert!(!daemon.process.log().contains("connections cut"), "{}", daemon.process.log());
    }
}

#[test]
fn a_request_that_lasts_beyond_10_seconds_does_not_hold_the_stop_up() {
    let service = Service::start(&CERTS, &["--fault", "slow=60"]);
    let mut daemon = Daemon::ready(&service, &CERTS);
    let public = daemon.public;
    let file = encrypt(&KEY, b"a text");
    let under_way = thread::spawn(move || {
        let mut stream = TcpStream::connect(public).unwrap();
        let head =
            format!("POST /files/f/decrypt?user_id=u HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", file.len());
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&file)).unwrap();
        read_answer(&mut stream)
    });
    wait_for_call(&service);
    let start = Instant::now();
    daemon.process.signal("TERM");
    assert_eq!(wait_for_exit(&mut daemon).code(), Some(0));
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(9), "{took:?}");
    assert!(under_way.join().unwrap().is_none(), "no answer is made up");
    assert!(daemon.process.log().contains("connections cut because they did not finish within 10 s: 1"));
}
