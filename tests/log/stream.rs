//! TEEMARK_LOG_TO: a collector that is slow, gone, or not to be trusted.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use formats::base64;
use formats::digest::Sha256;
use formats::hpke::PrivateKey;
use formats::log::{Ack, Dropped, Head, Kind, Record};
use serde_json::json;

use super::support::{Setup, as_metric, free_port, unspoilt, wait_for};
use super::{Taker, check_chain, identity, open, record, start_silently};

/// A line in the log for each request, of some size: a path that does not exist, at level debug.
fn ask(daemon: &super::Daemon, times: usize) {
    (0..times).for_each(|_| assert_eq!(daemon.get("/nothing").status, 404));
}

#[test]
fn a_stream_that_breaks_goes_on_after_the_last_record_that_was_acknowledged() {
    let taker = Taker::new();
    let daemon = Setup::new(1).env("TEEMARK_LOG_TO", &taker.address()).start();
    let mut first = taker.accept();
    let lines = first.lines_until(|record| record.kind == Kind::Checkpoint);
    let acked = record(&lines[2]).head;
    check_chain(&lines, Head::default(), None);
    first.say(&Ack { head: acked, signature: None }.to_string());
    ask(&daemon, 20);
    drop(first);

    let mut second = taker.accept();
    let line = second.line();
    // It was acknowledged or not when the stream broke.
    let begins = record(&line).head.number;
    assert!(begins == 1 || begins == acked.number + 1, "{begins}");
    ask(&daemon, 1);
    let mut again = vec![line];
    while again.len() < lines.len() + 21 {
        again.push(second.line());
    }
    let before = if begins == 1 { Head::default() } else { acked };
    check_chain(&again, before, Some(&identity(&daemon)));
}

#[test]
fn a_collector_that_is_late_gets_what_is_left_and_is_told_what_is_gone() {
    let port = free_port();
    let daemon = Setup::new(1).env("TEEMARK_LOG_TO", &format!("tcp:127.0.0.1:{port}")).start();
    let gone = || {
        let first = daemon.get_admin("/admin/log?lines=10000").text();
        record(first.lines().next().unwrap()).head.number > 1
    };
    // More than the memory for it holds.
    wait_for("the first records to go", || {
        ask(&daemon, 200);
        gone().then_some(())
    });
    // It is known while nobody listens, so that an alarm can tell of it.
    let dropped = || daemon.metric("teemark_log_lines_dropped_total");
    assert!(dropped() > 0.0);
    let log = || daemon.get_admin("/admin/status").json()["log"].clone();
    let before = log();
    assert_eq!((&before["connected"], &before["acknowledged"]), (&json!(false), &json!(0)));
    let taker = Taker(TcpListener::bind(("127.0.0.1", port)).unwrap());
    let mut taken = taker.accept();
    let lines = taken.lines_until(|record| record.kind == Kind::Dropped);
    let told: Dropped = serde_json::from_str(record(lines.last().unwrap()).body).unwrap();
    let Dropped::Records { from: 1, last } = told else { panic!("{told:?}") };
    let first = record(&lines[0]);
    assert_eq!(first.head.number, last.number + 1);
    let head = check_chain(&lines, last, Some(&identity(&daemon)));
    let [gone, acknowledged] = [last, head].map(|head| as_metric(head.number.try_into().unwrap()));
    assert_eq!(dropped(), gone, "each is counted, once");
    taken.say(&Ack { head, signature: None }.to_string());
    let after = wait_for("the acknowledgement", || Some(log()).filter(|log| log["acknowledged"] == head.number));
    assert_eq!((&after["connected"], &after["to"]), (&json!(true), &json!(format!("tcp:127.0.0.1:{port}"))));
    assert!(after["last"].as_u64() >= Some(head.number), "{after}");
    for (metric, value) in [("connected", 1.0), ("last_acknowledged_record", acknowledged)] {
        assert_eq!(daemon.metric(&format!("teemark_log_{metric}")), value);
    }
    assert!(daemon.metric("teemark_log_last_record") >= acknowledged);
}

#[test]
fn without_a_collector_to_be_there_none_is_missed() {
    let daemon = Setup::new(1).env("TEEMARK_LOG_TO", "off").start();
    let log = daemon.get_admin("/admin/status").json()["log"].clone();
    assert_eq!(log, json!({"to": "off", "connected": false, "last": log["last"], "acknowledged": 0}));
    assert!(
        daemon.metric("teemark_log_last_record") >= log["last"].as_f64().unwrap() && log["last"].as_u64() > Some(5)
    );
    let metrics = daemon.get_admin("/metrics").text();
    assert!(!metrics.contains("teemark_log_connected") && !metrics.contains("acknowledged"), "{metrics}");
}

#[test]
fn what_is_left_of_a_sealed_log_can_be_opened() {
    let key = PrivateKey::new(Box::new([5; 32]));
    let port = free_port();
    let setup = Setup::new(1).env("TEEMARK_LOG_TO", &format!("tcp:127.0.0.1:{port}"));
    let daemon = start_silently(setup.env("TEEMARK_LOG_KEYS", &base64::encode(key.public())));
    wait_for("the first records to go", || {
        ask(&daemon, 200);
        let kept = daemon.get_admin("/admin/log?lines=10000").text();
        (record(kept.lines().next().unwrap()).head.number > 1).then_some(())
    });
    let taker = Taker(TcpListener::bind(("127.0.0.1", port)).unwrap());
    let lines = taker.accept().lines_until(|record| record.kind == Kind::Dropped);
    assert!(open(&lines, &key).len() > 1000);
}

#[test]
fn what_is_not_an_acknowledgement_of_what_was_sent_ends_the_stream_and_nothing_else() {
    let taker = Taker::new();
    let daemon = Setup::new(1).env("TEEMARK_LOG_TO", &taker.address()).start();
    let (garbage, long) = ("GET / HTTP/1.1\n".to_owned(), "x".repeat(5000));
    let forged = Ack { head: Head { number: 2, hash: Sha256::default() }, signature: None }.to_string();
    for answer in [garbage, long, forged] {
        let mut taken = taker.accept();
        taken.lines_until(|record| record.kind == Kind::Checkpoint);
        taken.say(&answer);
        // The daemon closes; what it had sent before is still read.
        let mut rest = Vec::new();
        let _ = taken.reader.read_to_end(&mut rest);
        assert_eq!(daemon.get("/health").status, 200);
    }
    let mut taken = taker.accept();
    let lines = taken.lines_until(|record| record.kind == Kind::Checkpoint);
    assert_eq!(record(&lines[0]).head.number, 1, "nothing was acknowledged");
    // A number from the future is ignored, whatever it may become.
    taken.say(&Ack { head: Head { number: u64::MAX, hash: Sha256::default() }, signature: None }.to_string());
    ask(&daemon, 1);
    taken.lines_until(|record| record.body.contains("unknown 404"));
}

#[test]
fn at_the_end_the_log_is_signed_and_goes_out() {
    let all = unspoilt("the last records", || {
        let taker = Taker::new();
        let mut daemon = Setup::new(1).env("TEEMARK_LOG_TO", &taker.address()).start();
        let mut taken = taker.accept();
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            loop {
                // A daemon that has no more time for acknowledgements resets the stream.
                let line = taken.next_line().unwrap_or_default();
                let Some(record) = Record::parse(line.as_bytes()) else { return (all, line) };
                // The end waits for that. Of the last one nobody may hear any more.
                let _ = write!(taken.reader.get_mut(), "{}", Ack { head: record.head, signature: None });
                all.push(line);
            }
        });
        let ended = daemon.stop();
        let (all, rest) = reader.join().unwrap();
        let said = all.iter().any(|line| line.ends_with("teemarkd::boot: stopped"));
        let is_whole = said && rest.is_empty() && record(all.last()?).kind == Kind::Checkpoint;
        assert!(is_whole || !ended.in_time(), "{rest:?} after {all:#?}");
        is_whole.then_some(all)
    });
    check_chain(&all, Head::default(), None);
}
