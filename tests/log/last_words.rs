//! Why a start failed, as the collector has it.

use std::net::TcpListener;
use std::time::Instant;

use formats::log::{Boot, Head, Kind, Record};

use super::collector::Collector;
use super::support::{Process, Setup, unspoilt};
use super::{check_chain, record};

/// Has the log's thread come late to its stream, which is still connecting when the daemon is about to end.
const LATE: [&str; 8] =
    ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=?poll,?ppoll", "-einject=?poll,?ppoll:delay_enter=50000"];

/// A collector, and what it has of a daemon that does not start, once this is found in it.
fn last_words(setup: impl Fn() -> Setup, found: impl Fn(&[String]) -> bool) -> (Collector, Vec<String>) {
    unspoilt("why it did not start", || {
        let mut collector = Collector::new();
        collector.start();
        let setup = setup().env("TEEMARK_LOG_TO", &collector.address()).by(&LATE);
        let since = Instant::now();
        let mut process = Process::spawn(&mut setup.command(), setup.folder.path().join("log"));
        let ended = process.end(since);
        assert_eq!(ended.status.code(), Some(1), "{}", process.log());
        // Nothing comes any more but what is on its way.
        let lines = ended.leaves("its last words", || Some(collector.lines()).filter(|lines| found(lines)))?;
        Some((collector, lines))
    })
}

/// The record of why the daemon cannot go on.
fn why(lines: &[String]) -> Option<usize> {
    lines.iter().position(|line| line.contains("teemarkd cannot go on: "))
}

fn has(lines: &[String], kind: Kind) -> bool {
    lines.iter().filter_map(|line| Record::parse(line.as_bytes())).any(|record| record.kind == kind)
}

#[test]
fn why_a_start_failed_before_there_were_keys_reaches_the_collector_and_nothing_signs_it() {
    let setup = || {
        let mut setup = Setup::new(1);
        setup.allowed = "endpoints:\n  - not a host\n".into();
        setup
    };
    let (collector, lines) = last_words(setup, |lines| why(lines).is_some());
    check_chain(&lines, Head::default(), None);
    assert!(lines.iter().any(|line| line.contains("teemarkd cannot go on: allow list: ")), "{lines:?}");
    assert!(!has(&lines, Kind::Boot) && !has(&lines, Kind::Checkpoint), "{lines:?}");
    let verified = collector.verify(&["--development"]);
    let told = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(!verified.status.success() && told.contains("no record says which boot this is"), "{told}");
}

#[test]
fn why_a_start_failed_right_after_the_keys_were_made_reaches_the_collector() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let setup = || Setup::new(1).env("TEEMARK_PUBLIC", &format!("tcp:{}", taken.local_addr().unwrap()));
    // It, and the record after it.
    let (_collector, lines) = last_words(setup, |lines| why(lines).is_some_and(|at| lines.len() > at + 1));
    let words = "teemarkd cannot go on: public listener, tcp:127.0.0.1:";
    let at = lines.iter().position(|line| line.contains(words)).unwrap_or_else(|| panic!("{lines:?}"));
    assert_eq!(record(&lines[at + 1]).kind, Kind::Checkpoint, "it is signed");
    let boot = lines.iter().map(|line| record(line)).find(|record| record.kind == Kind::Boot).expect("its name");
    let boot: Boot = serde_json::from_str(boot.body).unwrap();
    check_chain(&lines, Head::default(), Some(&boot.identity));
}
