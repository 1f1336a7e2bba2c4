//! Why a start failed, as the collector has it.

use std::net::TcpListener;

use formats::log::{Boot, Head, Kind, Record};

use super::collector::Collector;
use super::support::{Process, Setup, wait_for};
use super::{check_chain, record};

/// Has the log's thread come late to its stream, which is still connecting when the daemon is about to end.
const LATE: [&str; 8] =
    ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=?poll,?ppoll", "-einject=?poll,?ppoll:delay_enter=50000"];

/// What the collector has of a daemon that does not start.
fn last_words(collector: &Collector, setup: Setup) -> Vec<String> {
    let setup = setup.env("TEEMARK_LOG_TO", &collector.address()).by(&LATE);
    let mut process = Process::spawn(&mut setup.command(), setup.folder.path().join("log"));
    let status = wait_for("the daemon's end", || process.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(1), "{}", process.log());
    // It has ended, so nothing comes any more but what is on its way.
    collector.wait_for("teemarkd cannot go on: ", 1);
    collector.lines()
}

fn has(lines: &[String], kind: Kind) -> bool {
    lines.iter().filter_map(|line| Record::parse(line.as_bytes())).any(|record| record.kind == kind)
}

#[test]
fn why_a_start_failed_before_there_were_keys_reaches_the_collector_and_nothing_signs_it() {
    let mut collector = Collector::new();
    collector.start();
    let mut setup = Setup::new(1);
    setup.allowed = "endpoints:\n  - not a host\n".into();
    let lines = last_words(&collector, setup);
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
    let mut collector = Collector::new();
    collector.start();
    let setup = Setup::new(1).env("TEEMARK_PUBLIC", &format!("tcp:{}", taken.local_addr().unwrap()));
    let lines = last_words(&collector, setup);
    let words = "teemarkd cannot go on: public listener, tcp:127.0.0.1:";
    let at = lines.iter().position(|line| line.contains(words)).unwrap_or_else(|| panic!("{lines:?}"));
    let lines = wait_for("the record after it", || Some(collector.lines()).filter(|lines| lines.len() > at + 1));
    assert_eq!(record(&lines[at + 1]).kind, Kind::Checkpoint, "it is signed");
    let boot = lines.iter().map(|line| record(line)).find(|record| record.kind == Kind::Boot).expect("its name");
    let boot: Boot = serde_json::from_str(boot.body).unwrap();
    check_chain(&lines, Head::default(), Some(&boot.identity));
}
