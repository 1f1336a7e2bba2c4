//! The secrets listener: nonsense is answered, and nobody keeps a good bundle out for long.

use std::os::unix::net::UnixStream;

use super::*;

#[test]
fn nonsense_is_answered_and_changes_nothing() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Daemon::ready(&service, &CERTS);
    let large = format!("{{\"FILE_KEYS\":\"{}\"}}", "x".repeat(1 << 20));
    let deep = format!("{{\"FILE_KEYS\":{}", "[".repeat(500_000));
    for (bytes, reason) in [
        (&b""[..], "is empty"),
        (b"\x16\x03\x01\x02\x00", "is not JSON"),
        (b"\xfd\xfe", "is not UTF-8"),
        (b"GET / HTTP/1.1\r\n\r\n", "is not JSON"),
        (b"{\"FILE_KEYS\":", "is cut off"),
        (deep.as_bytes(), "is "),
        (large.as_bytes(), "is larger than 1048576 bytes"),
    ] {
        let answer = daemon.handshake(bytes);
        assert_eq!((&answer["ok"], &answer["field"]), (&false.into(), &"bundle".into()), "{reason}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(reason), "{reason}: {answer}");
    }
    let file = encrypt(&KEY, b"a file");
    assert_eq!(daemon.decrypt(&file, "f", "u").status, 200);
    assert_eq!(daemon.metric("teemark_panics_total"), 0.0);
}

#[test]
fn twenty_stalled_senders_do_not_keep_a_good_one_out() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Setup::new(service.port).start();
    let mut stalled: Vec<UnixStream> = (0..20)
        .map(|_| {
            let mut stream = UnixStream::connect(&daemon.secrets).unwrap();
            // A sender that is refused may find the stream closed.
            let _ = stream.write_all(b"{\"FILE_KEYS\":");
            stream
        })
        .collect();
    let bundle = CERTS.full_bundle(service.port).to_string();
    // As the operator's command line does: the answer says to try again.
    let accepted = wait_for("the good bundle to be taken", || {
        let answer = daemon.handshake(bundle.as_bytes());
        let refused = answer["error"].as_str().is_some_and(|e| e.contains("try again"));
        (!refused).then_some(answer)
    });
    assert_eq!(accepted["ok"], true, "{accepted}");
    for stream in &mut stalled {
        let mut answer = String::new();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("did not end within 10 s") || answer.contains("try again"), "{answer:?}");
    }
    assert_eq!(daemon.decrypt(&encrypt(&KEY, b"a file"), "f", "u").status, 200);
}
