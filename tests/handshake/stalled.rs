//! Senders that stall.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use super::*;

/// The daemon's deadline for a bundle.
const DEADLINE: Duration = Duration::from_secs(10);

fn answer(stream: &mut UnixStream) -> Value {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
}

#[test]
fn senders_that_stall_hold_up_nobody_and_are_answered_by_the_deadline() {
    let certs = &*CERTS;
    let service = Service::start(certs, &[]);
    let daemon = Setup::new(service.port).start();
    let good = bundle(service.port, client(certs, "client"));
    let text = good.to_string();

    // Seven of the eight places: six stop somewhere, one of them with only the end of file missing.
    let start = Instant::now();
    let stalled: Vec<UnixStream> = [0, 1, 20, text.len() / 2, text.len() - 1, text.len()]
        .map(|sent| {
            let mut stream = UnixStream::connect(&daemon.secrets).unwrap();
            stream.write_all(&text.as_bytes()[..sent]).unwrap();
            stream
        })
        .into();
    // One sends a byte now and then for as long as it may: each byte alone is in time.
    let mut drip = UnixStream::connect(&daemon.secrets).unwrap();
    let dripping = thread::spawn({
        let mut sender = drip.try_clone().unwrap();
        move || {
            while sender.write_all(b" ").is_ok() {
                thread::sleep(Duration::from_millis(100));
            }
        }
    });

    // The next sender is served, and so is the one after it.
    accepted(&daemon, &good);
    assert_eq!(daemon.handshake(b"{}")["ok"], false);
    assert_eq!(decrypts(&daemon), 200);
    let waits = |stream: &UnixStream| {
        stream.set_nonblocking(true).unwrap();
        let nothing = (&*stream).read(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
        stream.set_nonblocking(false).unwrap();
        nothing
    };
    // On a machine that is slower than the deadline they have had their answer by now.
    if start.elapsed() < DEADLINE - Duration::from_secs(1) {
        assert!(stalled.iter().all(waits), "the good bundles waited for the stalled ones");
    }

    for mut stream in stalled {
        let answer = answer(&mut stream);
        assert_eq!((&answer["ok"], &answer["field"]), (&json!(false), &json!("bundle")), "{answer}");
        assert!(answer["error"].as_str().unwrap().contains("did not end within 10 s"), "{answer}");
        assert!(start.elapsed() > DEADLINE - Duration::from_secs(1), "cut after {:?}", start.elapsed());
    }
    let told = answer(&mut drip);
    assert!(told["error"].as_str().unwrap().contains("did not end within 10 s"), "{told}");
    drip.shutdown(Shutdown::Both).unwrap();
    dripping.join().unwrap();
    assert_eq!(decrypts(&daemon), 200);
}

#[test]
fn a_ninth_sender_is_told_to_try_again_and_is_served_once_another_is_gone() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Setup::new(service.port).start();
    let mut others: Vec<_> = (0..8).map(|_| UnixStream::connect(&daemon.secrets).unwrap()).collect();
    // The listener accepts senders in order, so these eight have their places.
    let told = daemon.handshake(b"{}");
    assert_eq!((&told["field"], told["ok"].clone()), (&json!("bundle"), json!(false)));
    assert!(told["error"].as_str().unwrap().contains("try again"), "{told}");

    drop(others.pop());
    wait_for("a free place", || {
        let answer = daemon.handshake(b"{}");
        answer["error"].as_str().unwrap().starts_with("has none of").then_some(())
    });
}
