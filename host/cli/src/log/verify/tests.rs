//! Records as an enclave writes them, and what is found after somebody has changed them.

use formats::attestation::BootNonce;
use formats::log::{Dropped, Head, Kind, Record};
use ring::signature::{Ed25519KeyPair, KeyPair};

use super::chain::YOUNG_MS;
use super::*;
use crate::log::files::DayEnd;

const NONCE: BootNonce = BootNonce::from_bytes([3; 32]);
const SIGNED_MS: u64 = 1_764_460_800_000;

fn key() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[5; 32]).unwrap()
}

fn identity_key() -> VerifyingKey {
    VerifyingKey::from_hex(&hex::encode(key().public_key().as_ref())).unwrap()
}

/// The log of a boot, as an enclave writes it.
#[derive(Default)]
struct Log {
    head: Head,
    lines: Vec<String>,
}

impl Log {
    fn new() -> Log {
        let mut log = Log::default();
        let boot = json!({
            "audit": "required", "boot_nonce": NONCE, "identity": identity_key(), "log": "clear", "version": "0",
        });
        log.add(Kind::Boot, &boot.to_string());
        log.checkpoint();
        log
    }

    fn add(&mut self, kind: Kind, body: &str) {
        let mut line = Vec::new();
        self.head.write(kind, body.as_bytes(), &mut line);
        self.lines.push(String::from_utf8(line).unwrap());
    }

    fn add_some(&mut self, times: usize) {
        (0..times).for_each(|_| self.add(Kind::Log, "x"));
    }

    fn checkpoint(&mut self) {
        let sign = |bytes: &[u8]| key().sign(bytes).as_ref().try_into().unwrap();
        let checkpoint = Checkpoint::new(NONCE, self.head, SIGNED_MS, sign);
        self.add(Kind::Checkpoint, &serde_json::to_string(&checkpoint).unwrap());
    }

    /// What the enclave says when these records are gone.
    fn dropped(&mut self, from: u64, number: u64) {
        let index = usize::try_from(number).unwrap() - 1;
        let last = Record::parse(self.lines[index].trim_end().as_bytes()).unwrap().head;
        self.add(Kind::Dropped, &serde_json::to_string(&Dropped::Records { from, last }).unwrap());
    }
}

/// What is found in these lines, so long after the last checkpoint; beside what the collector wrote down of days.
fn verdict(lines: &[String], later_ms: u64, days: &[DayEnd]) -> Verdict {
    let anchors = Anchors { expected: None, identities: &[identity_key()], live: None };
    let mut checker = Checker::new(&anchors, "a folder");
    for (i, line) in lines.iter().enumerate() {
        checker.take(line.trim_end().as_bytes(), format_args!("line {} of a file", i + 1));
    }
    checker.end(days, SIGNED_MS + later_ms)
}

fn found(lines: &[String]) -> Vec<String> {
    verdict(lines, 1000, &[]).findings
}

#[test]
fn what_the_enclave_dropped_is_told_once_it_has_signed_that_it_did() {
    let mut log = Log::new();
    log.add_some(10);
    // No collector took 4 to 12.
    log.dropped(4, 12);
    let unsigned: Vec<_> = [&log.lines[..3], &log.lines[12..]].concat();
    assert_eq!(found(&unsigned).len(), 1);
    assert!(found(&unsigned)[0].starts_with("records 4 to 12 are missing; record 13 says"), "{:?}", found(&unsigned));
    log.checkpoint();
    let signed: Vec<_> = [&log.lines[..3], &log.lines[12..]].concat();
    let verdict = verdict(&signed, 1000, &[]);
    assert_eq!((verdict.findings.len(), verdict.dropped.len()), (0, 1), "{:?}", verdict.findings);
}

#[test]
fn a_record_after_a_gap_that_no_known_hash_leads_to_is_named() {
    let mut log = Log::new();
    log.add_some(10);
    log.dropped(4, 12);
    log.checkpoint();
    // It took all of them but 5, and 6 was changed.
    let mut lines = log.lines.clone();
    lines[5] = lines[5].replace(" log x", " log y");
    lines.remove(4);
    assert_eq!(found(&lines), ["record 6 cannot be checked: the one before it is missing"]);
}

#[test]
fn records_that_no_checkpoint_signs_are_named_once_one_would_have_come() {
    let mut log = Log::new();
    log.add_some(5);
    log.checkpoint();
    assert_eq!(verdict(&log.lines, 10 * YOUNG_MS, &[]).findings, [""; 0]);
    log.add_some(500);
    let young = verdict(&log.lines, YOUNG_MS - 1, &[]);
    assert_eq!((young.findings.len(), young.unsigned), (0, 501));
    assert_eq!(young.to_json()["unsigned"], 501);
    let old = verdict(&log.lines, YOUNG_MS, &[]).findings;
    assert!(old.len() == 1 && old[0].starts_with("no checkpoint has signed records 8 to 508"), "{old:?}");
}

#[test]
fn a_made_up_chain_beside_the_genuine_one_is_named_and_the_genuine_one_verified() {
    let mut genuine = Log::new();
    genuine.add_some(5);
    genuine.checkpoint();
    let mut made_up = Log::default();
    made_up.add_some(3);
    let (first, rest) = made_up.lines.split_at(1);
    let lines: Vec<_> = [first, &genuine.lines, rest].concat();
    let verdict = verdict(&lines, 1000, &[]);
    assert_eq!(verdict.findings, ["another chain begins after record 1: of another start, replayed, or made up"]);
    assert_eq!((verdict.records, verdict.signed_to()), (8, 7));
}

#[test]
fn what_the_collector_removed_is_told_and_what_follows_it_is_checked() {
    let mut log = Log::new();
    log.add_some(10);
    log.checkpoint();
    let end = Record::parse(log.lines[8].trim_end().as_bytes()).unwrap().head;
    let days = [DayEnd { day: "2025-11-29".to_owned(), head: end }];
    let mut lines = [&log.lines[..2], &log.lines[9..]].concat();
    let whole = verdict(&lines, 1000, &days);
    assert_eq!(
        (&whole.findings[..], &whole.removed[..]),
        (&[][..], &["records 3 to 9, of 2025-11-29 and before".to_owned()][..])
    );
    lines[2] = lines[2].replace(" log x", " log y");
    assert_eq!(verdict(&lines, 1000, &days).findings, ["records 3 to 9 are missing"]);
    assert_eq!(found(&lines), ["records 3 to 9 are missing"]);
}

#[test]
fn records_that_were_moved_replayed_or_put_in_are_named_and_those_after_them_are_still_checked() {
    let mut log = Log::new();
    log.add_some(5);
    log.checkpoint();
    let with = |at: usize, line: &str| {
        let mut lines = log.lines.clone();
        lines.insert(at, line.to_owned());
        lines
    };
    assert_eq!(found(&with(5, &log.lines[3])), ["record 4 stands again after record 5: replayed"]);
    let other = log.lines[3].replace(&log.lines[3][2..10], "01234567");
    assert_eq!(found(&with(5, &other)), ["another record 4 stands after record 5: put in"]);
    let mut moved = with(6, &log.lines[3]);
    moved.remove(3);
    assert_eq!(found(&moved), ["record 4 stands after record 6: moved"]);
    assert_eq!(verdict(&moved, 1000, &[]).signed_to(), 7);
}

#[test]
fn a_record_that_was_changed_is_named_and_so_is_a_chain_that_the_enclave_did_not_sign() {
    let mut log = Log::new();
    log.add_some(5);
    log.checkpoint();
    let mut lines = log.lines.clone();
    lines[3] = lines[3].replace(" log x", " log y");
    assert_eq!(found(&lines), ["record 4 does not fit: it was changed, or record 3 was"]);
    // All hashes anew after the change, and the checkpoint that was there.
    let mut forged = Log::new();
    forged.add_some(3);
    forged.add(Kind::Log, "y");
    forged.add_some(1);
    forged.add(Kind::Checkpoint, log.lines[7].trim_end().split_once(" checkpoint ").unwrap().1);
    assert_eq!(
        found(&forged.lines),
        ["records 2 to 7 are not those that the enclave signed, though their hashes fit each other"]
    );
}
