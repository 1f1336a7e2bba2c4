//! A service that is slow: TEEMARK_TIMEOUT bounds a call from its first step to its last byte.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::scripted::{Scripted, Step};
use crate::*;

/// The daemon's time limit of a call: far more than a good service takes, on a loaded machine too.
const TIMEOUT: &str = "5s";

/// A daemon that may reach the good service too.
fn daemon(port: u16, good: &Service) -> Daemon {
    let mut setup = Setup::new(port).env("TEEMARK_TIMEOUT", TIMEOUT);
    setup.allowed.push_str(&format!("  - localhost:{}\n", good.port));
    Daemon::ready_with(setup, port, &CERTS)
}

/// The call ends with 504 when its time is over; right after, a good service is used.
fn assert_too_slow(port: u16) {
    unspoilt("a good call in time", || {
        let good = Service::start(&CERTS, &[]);
        let daemon = daemon(port, &good);
        let start = Instant::now();
        let answer = call(&daemon);
        let took = start.elapsed();
        assert_refused(&daemon, &answer, 504, "watermark_timeout");
        assert!(took >= Duration::from_millis(4900), "{took:?}");
        turn_to(&daemon, good.port);
        works(&daemon)
    });
}

/// The daemon returns the marked file; `None` if the call's time did not suffice.
fn works(daemon: &Daemon) -> Option<()> {
    let answer = Some(call(daemon)).filter(|answer| answer.status != 504)?;
    assert_marked(daemon, &answer);
    Some(())
}

#[test]
fn a_service_that_is_slow_past_the_time_out_gives_504() {
    let service = Service::start(&CERTS, &["--fault", "slow=60"]);
    assert_too_slow(service.port);
}

#[test]
fn a_slow_call_spoils_no_later_call_of_the_same_service() {
    unspoilt("a good call in time", || {
        let service = Service::start(&CERTS, &["--fault", "slow=60", "--fault", "first=1"]);
        let setup = Setup::new(service.port).env("TEEMARK_TIMEOUT", TIMEOUT);
        let daemon = Daemon::ready_with(setup, service.port, &CERTS);
        assert_refused(&daemon, &call(&daemon), 504, "watermark_timeout");
        // If the connection were reused, the answer of the first call would come now, or nothing: each time.
        works(&daemon)?;
        assert_eq!(service.count("TLS handshake: client"), 2);
        Some(())
    });
}

#[test]
fn a_service_that_trickles_its_answer_gives_504() {
    let service = Scripted::start(|_, _| Step::Trickle);
    assert_too_slow(service.port);
}

/// A TCP server that treats each connection like this.
fn tcp(serve: impl Fn(TcpStream) + Send + Sync + Copy + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    port
}

#[test]
fn a_service_that_accepts_and_says_nothing_gives_504() {
    assert_too_slow(tcp(|stream| {
        thread::sleep(SOON * 2);
        drop(stream);
    }));
}

#[test]
fn a_service_that_trickles_through_the_tls_handshake_gives_504() {
    assert_too_slow(tcp(|mut stream| {
        // The beginning of a handshake record of 16 KiB (RFC 8446, 5.1), which would take half an hour at this rate.
        let record = [0x16, 3, 3, 0x3f, 0xff, 2, 0, 0x3f, 0xfb].into_iter().chain(std::iter::repeat(0));
        for byte in record {
            if stream.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }));
}
