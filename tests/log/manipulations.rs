//! What a hostile parent, or anybody else who holds the files, can do to them: `teemark log verify` names it.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use formats::digest::Sha256;
use formats::log::{Checkpoint, Head, Kind, Record};
use ring::signature::Ed25519KeyPair;
use tempfile::TempDir;

use super::collector::{Collector, lines_of, lines_of_boot, verify};
use super::record;
use super::support::{Daemon, Setup, fails, printed, unspoilt, wait_for};

/// In the line of each request for a path that does not exist.
const MISSED: &str = "unknown 404";

/// The genuine records of two boots, of which the second still runs.
struct Genuine {
    collector: Collector,
    daemon: Daemon,
    boots: [(String, Vec<String>); 2],
}

/// The records of a scene whose programs have ended.
static BOOTS: LazyLock<[(String, Vec<String>); 2]> = LazyLock::new(|| Genuine::new().boots);

impl Genuine {
    fn new() -> Genuine {
        unspoilt("the first boot's last record", Genuine::if_all_arrives)
    }

    fn if_all_arrives() -> Option<Genuine> {
        let mut collector = Collector::new();
        collector.start();
        let boot = |collector: &Collector| {
            let setup = Setup::new(1).env("TEEMARK_LOG_TO", &collector.address());
            let daemon = setup.start();
            (0..20).for_each(|_| assert_eq!(daemon.get("/nothing").status, 404));
            daemon
        };
        let known = |collector: &Collector| -> Vec<String> {
            let Ok(entries) = fs::read_dir(collector.files()) else { return Vec::new() };
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        boot(&collector).stop().leaves("its last record", || {
            let lines = lines_of(&collector.files());
            let stopped = lines.iter().any(|line| line.ends_with("boot: stopped"));
            (stopped && record(lines.last()?).kind == Kind::Checkpoint).then_some(())
        })?;
        let of_first = (known(&collector)[0].clone(), collector.lines());
        let daemon = boot(&collector);
        let second = wait_for("the second boot's records", || {
            let name = known(&collector).into_iter().find(|name| *name != of_first.0)?;
            let lines = lines_of_boot(&collector.files().join(&name));
            (lines.iter().filter(|line| line.contains(MISSED)).count() == 20).then_some((name, lines))
        });
        Some(Genuine { collector, daemon, boots: [of_first, second] })
    }
}

/// The first boot's records, after something was done to them.
fn with(change: impl FnOnce(&mut Vec<String>)) -> (TempDir, PathBuf) {
    let (name, lines) = &BOOTS[0];
    let mut lines = lines.clone();
    change(&mut lines);
    write(name, &lines)
}

fn write(name: &str, lines: &[String]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let boot = folder.path().join(name);
    fs::create_dir(&boot).unwrap();
    fs::write(boot.join("2026-11-30.log"), lines.join("\n") + "\n").unwrap();
    let path = folder.path().to_owned();
    (folder, path)
}

/// Where a record in the middle is, of which all before and after it are lines of the daemon.
fn middle(lines: &[String]) -> usize {
    lines.iter().position(|line| line.contains(MISSED)).unwrap() + 8
}

#[track_caller]
fn names(what: &(TempDir, PathBuf), words: &str) {
    fails(1, &verify(&what.1, &["--development"]), words);
}

fn number(line: &str) -> u64 {
    record(line).head.number
}

#[test]
fn genuine_records_verify_over_restarts_and_against_the_running_enclave() {
    let Genuine { collector, daemon, .. } = Genuine::new();
    let url = format!("http://{}", daemon.public);
    let text = printed(collector.verify(&["--development", "--attested", &url]));
    assert_eq!(text.matches("; identity known by ").count(), 2, "{text}");
    // The same as an object.
    let output = collector.verify(&["--development", "--json"]);
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(object["boots"].as_array().unwrap().iter().all(|boot| boot["findings"].as_array().unwrap().is_empty()));
    // Without anything to trust nothing is proven, whatever fits.
    fails(2, &verify(&with(|_| {}).1, &[]), "nothing proves that an enclave wrote this log");
    let output = verify(&with(|_| {}).1, &["--identity", &"7".repeat(64)]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("none of those that were given"));
}

#[test]
fn a_record_that_was_dropped_is_named() {
    let mut gone = 0;
    let dropped = with(|lines| gone = number(&lines.remove(middle(lines))));
    names(&dropped, &format!("record {gone} is missing"));
    let beginning = with(|lines| drop(lines.drain(..3)));
    names(&beginning, "records 1 to 3 are missing");
}

#[test]
fn records_that_were_moved_are_named() {
    let mut at = 0;
    let moved = with(|lines| {
        at = middle(lines);
        lines.swap(at, at + 1);
    });
    names(&moved, &format!("record {} comes after record {}: it was moved", at + 1, at + 2));
}

#[test]
fn a_record_that_was_edited_is_named_also_if_its_hash_was_made_to_fit() {
    let mut at = 0;
    let edited = with(|lines| {
        at = middle(lines);
        lines[at] = lines[at].replace(MISSED, "unknown 200");
    });
    names(&edited, &format!("record {} does not fit: it was changed", at + 1));
    // Only its hash, right before a checkpoint, which signs the true one: nothing else is wrong.
    let rehashed = with(|lines| {
        at = lines.len() - 2;
        let digit = if lines[at].ends_with("boot: stopped") { lines[at].find(' ').unwrap() + 1 } else { 0 };
        let other = if &lines[at][digit..=digit] == "0" { "1" } else { "0" };
        lines[at].replace_range(digit..=digit, other);
    });
    let output = verify(&rehashed.1, &["--development"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.matches("WRONG").count() == 1 && told.contains(&format!("record {} does not fit", at + 1)), "{told}");
    // All hashes after it as well: they fit each other, and not what was signed.
    let rewritten = with(|lines| {
        at = middle(lines);
        let mut head = record(&lines[at - 1]).head;
        for line in &mut lines[at..] {
            let (kind, body) = (record(line).kind, record(line).body.replace(MISSED, "unknown 200"));
            let mut written = Vec::new();
            head.write(kind, body.as_bytes(), &mut written);
            *line = String::from_utf8(written).unwrap().trim_end().to_owned();
        }
    });
    names(&rewritten, "are not those that the enclave signed, though their hashes fit each other");
}

#[test]
fn records_that_were_replayed_are_named() {
    let mut at = 0;
    let replayed = with(|lines| {
        at = middle(lines);
        lines.insert(at + 4, lines[at].clone());
    });
    names(&replayed, &format!("record {} comes again after record {}: it was replayed", at + 1, at + 4));
    let (name, lines) = &BOOTS[0];
    let twice = write(name, lines);
    fs::create_dir(twice.1.join("f".repeat(64))).unwrap();
    fs::write(twice.1.join("f".repeat(64)).join("2026-11-30.log"), lines.join("\n") + "\n").unwrap();
    names(&twice, "in another's folder");
}

#[test]
fn a_restart_that_is_passed_off_as_one_boot_is_named() {
    let restarted = with(|lines| lines.extend(BOOTS[1].1.clone()));
    names(&restarted, "another chain begins after record");
}

#[test]
fn a_log_that_was_cut_is_named_while_the_enclave_runs() {
    let Genuine { daemon, boots: [_, (name, lines)], collector: _collector } = Genuine::new();
    let cut = write(&name, &lines[..lines.len() - 5]);
    let url = format!("http://{}", daemon.public);
    let output = verify(&cut.1, &["--development", "--attested", &url]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && told.contains("the end is missing: records"), "{told}");
    // A whole boot.
    let output = verify(&with(|_| {}).1, &["--development", "--attested", &url]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("none of its records are here"));
}

#[test]
fn a_record_that_was_put_in_is_named_by_its_hash_before_and_after_the_genuine_one() {
    for place in [0, 1, 4] {
        let (mut at, mut hash) = (0, String::new());
        let put_in = with(|lines| {
            at = middle(lines);
            let made_up = given_after(&lines[at - 1]);
            hash = record(&made_up).head.hash.to_string()[..16].to_owned();
            lines.insert(at + place, made_up);
        });
        names(&put_in, &format!("record {0} with hash {hash}… was inserted: the enclave signed another", at + 1));
    }
    names(&with(|lines| lines.insert(4, "a line".into())), "line 5 of");
}

/// A made-up record that somebody was given a file, after this one.
fn given_after(line: &str) -> String {
    let mut head = record(line).head;
    let mut made_up = Vec::new();
    head.write(Kind::Audit, b"{\"event\":\"given\"}", &mut made_up);
    String::from_utf8(made_up).unwrap().trim_end().to_owned()
}

#[test]
fn what_no_checkpoint_has_signed_does_not_read_as_proven_and_nothing_after_a_finding_does() {
    let signed = |lines: &[String], from: usize| {
        let at = lines[from..].iter().rposition(|line| record(line).kind == Kind::Checkpoint).map(|at| at + from);
        serde_json::from_str::<Checkpoint>(record(&lines[at.unwrap()]).body).unwrap().head.number
    };
    // Records that the parent made up, at the end.
    let mut last = 0;
    let made_up = with(|lines| {
        last = number(&lines[lines.len() - 1]);
        (0..500).for_each(|_| lines.push(given_after(&lines[lines.len() - 1])));
    });
    let output = verify(&made_up.1, &["--development"]);
    let (text, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let last_made_up = last + 500;
    if output.status.success() {
        assert!(text.contains(&format!("proven up to record {}, ", last - 1)), "{text}");
        assert!(text.contains(&format!("not proven: records {last} to {last_made_up}, which no checkpoint")), "{text}");
    } else {
        // The enclave's last checkpoint is three minutes old by now, on a machine that is busy.
        let overdue = format!("no checkpoint has signed records {last} to {last_made_up}, and the next one is overdue");
        assert!(told.contains(&overdue), "{told}");
    }
    // One that was changed, with a checkpoint before and after it.
    let mut before = 0;
    let edited = with(|lines| {
        let at = middle(lines);
        before = signed(&lines[..at], 0);
        assert!(signed(lines, at) > at as u64);
        lines[at] = lines[at].replace(MISSED, "unknown 200");
    });
    let output = verify(&edited.1, &["--development", "--json"]);
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &object["boots"][0]["signed_to"]), (Some(1), &before.into()), "{object}");
}

#[test]
fn a_checkpoint_that_was_forged_or_moved_is_named() {
    let last = |lines: &[String]| lines.len() - 1;
    let forged = with(|lines| {
        let at = last(lines);
        let genuine: Checkpoint = serde_json::from_str(record(&lines[at]).body).unwrap();
        let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
        let sign = |bytes: &[u8]| key.sign(bytes).as_ref().try_into().unwrap();
        let forged = Checkpoint::new(genuine.boot_nonce, genuine.head, genuine.time_ms, sign);
        replace(lines, at, &serde_json::to_string(&forged).unwrap());
    });
    names(&forged, "is forged: it is not signed by this boot's identity key");
    let moved = with(|lines| {
        let at = last(lines);
        let first = lines.iter().find(|line| record(line).kind == Kind::Checkpoint).unwrap();
        let body = record(first).body.to_owned();
        replace(lines, at, &body);
    });
    names(&moved, "was moved: it is about record");
}

/// The record at `at` with this body, and a hash that fits.
fn replace(lines: &mut [String], at: usize, body: &str) {
    let mut head: Head = record(&lines[at - 1]).head;
    let mut line = Vec::new();
    head.write(record(&lines[at]).kind, body.as_bytes(), &mut line);
    lines[at] = String::from_utf8(line).unwrap().trim_end().to_owned();
    assert!(Record::parse(lines[at].as_bytes()).is_some_and(|record| record.head.hash != Sha256::default()));
}

#[test]
fn what_the_enclave_says_it_dropped_is_told_and_only_that_may_be_missing() {
    let mut collector = Collector::new();
    let daemon = Setup::new(1).env("TEEMARK_LOG_TO", &collector.address()).start();
    // The collector is late, and the boot's own records are gone by then.
    wait_for("the first records to go", || {
        (0..200).for_each(|_| assert_eq!(daemon.get("/nothing").status, 404));
        let tail = daemon.get_admin("/admin/log?lines=10000").text();
        (number(tail.lines().next().unwrap()) > 100).then_some(())
    });
    collector.start();
    collector.wait_for(" boot ", 1);
    let name = fs::read_dir(collector.files()).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
    let lines = wait_for("a checkpoint after it", || {
        let lines = lines_of_boot(&collector.files().join(&name));
        let boot = lines.iter().position(|line| record(line).kind == Kind::Boot)?;
        lines[boot..].iter().any(|line| record(line).kind == Kind::Checkpoint).then_some(lines)
    });
    let text = printed(verify(&write(&name, &lines).1, &["--development"]));
    let dropped = format!("dropped by the enclave: records 1 to {}, says record ", number(&lines[0]) - 1);
    assert!(text.contains(&dropped) && text.contains("proven up to record"), "{text}");
    // One more at the beginning, and the first that is left, changed.
    let first = number(&lines[0]);
    names(&write(&name, &lines[1..]), &format!("record {first} is missing"));
    let mut changed = lines.clone();
    changed[0] = changed[0].replacen(" log ", " log x", 1);
    names(&write(&name, &changed), &format!("record {first} does not fit: it was changed"));
}
