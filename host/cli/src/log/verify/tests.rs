//! Records as an enclave writes them, and what is found after somebody has changed them.

use std::sync::Arc;

use formats::attestation::BootNonce;
use formats::log::{Dropped, Head, Kind, Record};
use formats::time::Utc;
use ring::signature::{Ed25519KeyPair, KeyPair};

use super::chain::YOUNG_MS;
use super::*;
use crate::log::files::DayEnd;
use crate::log::kept::{Kept, Room};
use crate::log::removal::remove_days;

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
    assert_eq!((young.findings.len(), young.unsigned, young.signed_to()), (0, 501, 7));
    assert!(
        young.to_text().contains("not proven: records 8 to 508, which no checkpoint has signed"),
        "{}",
        young.to_text()
    );
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
    // The verdict is on the genuine one, of which nothing is proven: there are two records of each number.
    assert_eq!((verdict.records, verdict.head.number, verdict.signed_to()), (8, 8, 0));
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
fn what_the_collector_leaves_of_a_log_after_it_removed_days_verifies() {
    let root = tempfile::tempdir().unwrap();
    let room = Arc::new(Room::count(root.path(), u64::MAX).unwrap());
    let mut kept = Kept::open(root.path(), NONCE, room).unwrap();
    let mut log = Log::new();
    for day in 0..5 {
        log.add_some(5);
        log.checkpoint();
        for line in log.lines.drain(..) {
            let (line, now) = (line.trim_end().as_bytes(), Utc(SIGNED_MS / 1000 + day * 86_400));
            kept.take(line, &Record::parse(line).unwrap(), false, now).unwrap();
        }
    }
    let folder = root.path().join(NONCE.to_string());
    let anchors = Anchors { expected: None, identities: &[identity_key()], live: None };
    let verdict = || check(&files::of_boot(&folder).unwrap(), &anchors, SIGNED_MS + 1000).unwrap();
    assert_eq!((verdict().findings, verdict().signed_to()), (vec![], 31));
    let mut removed = Vec::new();
    for (before, to) in [("2025-12-01", 8), ("2025-12-03", 20)] {
        remove_days(&folder, before, true).unwrap();
        assert_eq!((verdict().findings, verdict().signed_to()), (vec![], 31));
        removed.extend(verdict().removed);
        assert!(removed.last().unwrap().starts_with(&format!("records 3 to {to}, of ")), "{removed:?}");
    }
    assert_eq!(removed.len(), 2);
}

#[test]
fn what_is_missing_within_a_day_was_not_removed_by_the_collector_whatever_days_says() {
    let mut log = Log::new();
    for _ in 0..6 {
        log.add_some(3);
        log.checkpoint();
    }
    // Records 1 to 2 are the beginning, and each four after them end with a checkpoint.
    let end = |number: usize| Record::parse(log.lines[number - 1].trim_end().as_bytes()).unwrap().head;
    let folder = tempfile::tempdir().unwrap();
    let anchors = Anchors { expected: None, identities: &[identity_key()], live: None };
    let judge = |days: &[(&str, &[(usize, usize)])], ends: &[(&str, usize)]| {
        let folder = tempfile::tempdir_in(folder.path()).unwrap();
        for (day, parts) in days {
            let lines: String = parts.iter().map(|&(from, to)| log.lines[from - 1..to].concat()).collect();
            std::fs::write(folder.path().join(format!("{day}.log")), lines).unwrap();
        }
        let ends = ends.iter().map(|(day, number)| DayEnd { day: (*day).to_owned(), head: end(*number) }.to_string());
        std::fs::write(folder.path().join(files::DAYS), ends.collect::<String>()).unwrap();
        let verdict = check(&files::of_boot(folder.path()).unwrap(), &anchors, SIGNED_MS + 1000).unwrap();
        (verdict.findings, verdict.removed.len())
    };
    let missing =
        |names: &[&str]| (names.iter().map(|name| format!("records {name} are missing")).collect::<Vec<_>>(), 0);
    // Within a file.
    let within = [("2025-11-30", &[(1, 6), (9, 14), (17, 26)][..])];
    for ends in [[("2098-01-01", 8), ("2099-01-01", 16)], [("2025-11-28", 8), ("2025-11-29", 16)]] {
        assert_eq!(judge(&within, &ends), missing(&["7 to 8", "15 to 16"]));
    }
    // Between two files: only of a day between them.
    let between = [("2025-11-28", &[(1, 10)][..]), ("2025-11-30", &[(15, 26)])];
    for (day, removed) in [
        ("2025-11-27", false),
        ("2025-11-28", false),
        ("2025-11-29", true),
        ("2025-11-30", false),
        ("2098-01-01", false),
    ] {
        let expected = if removed { (vec![], 1) } else { missing(&["11 to 14"]) };
        assert_eq!(judge(&between, &[(day, 14)]), expected, "{day}");
    }
    // The first day too, if no more than the beginning is left of it.
    let beginning = [("2025-11-28", &[(1, 2)][..]), ("2025-11-29", &[(15, 26)])];
    assert_eq!(judge(&beginning, &[("2025-11-28", 14)]), (vec![], 1));
    // Not of a later one.
    let later = [("2025-11-27", &[(1, 6)][..]), ("2025-11-28", &[(7, 10)]), ("2025-11-29", &[(15, 26)])];
    assert_eq!(judge(&later, &[("2025-11-28", 14)]), missing(&["11 to 14"]));
}

#[test]
fn a_boot_without_files_is_a_finding_and_no_boot_at_all_is_refused() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join(NONCE.to_string())).unwrap();
    let anchors = Anchors { expected: None, identities: &[identity_key()], live: None };
    let verdicts = verdicts(&[root.path().to_owned()], &anchors, SIGNED_MS).unwrap();
    let text = verdicts[0].to_text();
    assert!(text.starts_with(&format!("boot {NONCE}: 0 records, none of them proven\n  WRONG: its folder")), "{text}");
    assert!(report(verdicts, None).is_err());
    let none = report(Vec::new(), None).err().unwrap().to_string();
    assert!(none.contains("no boot"), "{none}");
}

#[test]
fn a_removed_day_is_told_without_what_acts_on_a_terminal() {
    let mut verdict = Verdict::new("a folder".to_owned());
    verdict.removed.push("records 3 to 9, of \x1b[2J and before".to_owned());
    assert!(verdict.to_text().contains("of \\u{1b}[2J and before\n"), "{}", verdict.to_text());
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
    assert_eq!(found(&with(5, &log.lines[3])), ["record 4 comes again after record 5: it was replayed"]);
    let other = log.lines[3].replace(&log.lines[3][2..10], "01234567");
    assert_eq!(found(&with(5, &other)), ["a second record 4 comes after record 5: it was inserted"]);
    let mut moved = with(6, &log.lines[3]);
    moved.remove(3);
    assert_eq!(found(&moved), ["record 4 comes after record 6: it was moved"]);
    // Several.
    let verdict = verdict(&[&log.lines[..3], &log.lines[5..7], &log.lines[3..5], &log.lines[7..]].concat(), 1000, &[]);
    assert_eq!(verdict.findings, ["records 4 to 5 come after record 7: they were moved"]);
    assert_eq!((verdict.head.number, verdict.signed_to()), (8, 1));
}

/// Lines that go on from the end of these, of another content than the enclave's.
fn made_up(lines: &[String], kinds: &[Kind]) -> Vec<String> {
    let head = Record::parse(lines[lines.len() - 1].trim_end().as_bytes()).unwrap().head;
    let mut log = Log { head, lines: Vec::new() };
    kinds.iter().for_each(|kind| log.add(*kind, "made up"));
    log.lines
}

/// The beginning of a record's hash.
fn hash(line: &str) -> &str {
    &line.split(' ').nth(1).unwrap()[..16]
}

#[test]
fn of_two_records_of_one_number_the_next_checkpoint_tells_which_one_was_inserted_wherever_it_stands() {
    let mut log = Log::new();
    log.add_some(5);
    log.checkpoint();
    log.add_some(1);
    let (before, after) = log.lines.split_at(3);
    for kinds in [&[Kind::Audit][..], &[Kind::Audit; 3], &[Kind::Audit; 9], &[Kind::Checkpoint], &[Kind::Dropped; 2]] {
        let put_in = made_up(before, kinds);
        let expected = match kinds.len() {
            1 => format!("record 4 with hash {}… was inserted: the enclave signed another record 4", hash(&put_in[0])),
            n => format!(
                "records 4 to {}, the first with hash {}…, were inserted: the enclave signed others",
                3 + n,
                hash(&put_in[0])
            ),
        };
        let first = [before, &put_in, after].concat();
        let last = [before, &after[..3], &put_in, &after[3..]].concat();
        for lines in [first, last] {
            let verdict = verdict(&lines, 1000, &[]);
            assert_eq!((&verdict.findings, verdict.signed_to()), (&vec![expected.clone()], 1));
            assert_eq!((verdict.head, verdict.records), (log.head, 9), "the genuine records are those that count");
        }
    }
    // Before there is a checkpoint nothing tells.
    let lines = [before, &made_up(before, &[Kind::Audit]), &after[..3]].concat();
    assert_eq!(found(&lines), ["record 4 is here twice, and no checkpoint tells yet which one was inserted"]);
}

#[test]
fn a_changed_record_before_the_genuine_one_is_the_one_that_is_blamed() {
    let mut log = Log::new();
    log.add_some(5);
    log.checkpoint();
    let mut lines = log.lines.clone();
    lines.insert(3, log.lines[3].replace(" log x", " log y"));
    let verdict = verdict(&lines, 1000, &[]);
    assert_eq!(
        verdict.findings,
        [
            "record 4 does not fit: it was changed, or record 3 was",
            "a second record 4 comes after record 4, and fits: the first was changed"
        ]
    );
    assert_eq!((verdict.head, verdict.signed_to()), (log.head, 1));
    // With a hash that is not the genuine one's either.
    lines[3] = lines[3].replace(hash(&lines[3]), "0123456789abcdef");
    let wrong = "record 4 with hash 0123456789abcdef… was inserted: the enclave signed another record 4";
    assert_eq!(found(&lines), [wrong]);
}

#[test]
fn records_that_somebody_signs_with_a_key_of_his_own_do_not_displace_the_enclaves() {
    let mut genuine = Log::default();
    genuine.add_some(1);
    let start = genuine.lines.clone();
    let of_enclave = Log::new();
    let body = |line: &String| Record::parse(line.trim_end().as_bytes()).unwrap().body.to_owned();
    genuine.add(Kind::Boot, &body(&of_enclave.lines[0]));
    genuine.add_some(3);
    genuine.checkpoint();
    // The same beginning, with another identity that signs.
    let stranger = Ed25519KeyPair::from_seed_unchecked(&[6; 32]).unwrap();
    let identity = VerifyingKey::from_hex(&hex::encode(stranger.public_key().as_ref())).unwrap();
    let head = Record::parse(start[0].trim_end().as_bytes()).unwrap().head;
    let mut made_up = Log { head, lines: Vec::new() };
    made_up.add(Kind::Boot, &body(&of_enclave.lines[0]).replace(&identity_key().to_string(), &identity.to_string()));
    let sign = |bytes: &[u8]| stranger.sign(bytes).as_ref().try_into().unwrap();
    let checkpoint = Checkpoint::new(NONCE, made_up.head, SIGNED_MS, sign);
    made_up.add(Kind::Checkpoint, &serde_json::to_string(&checkpoint).unwrap());
    let (made_up, genuine_lines) = (&made_up.lines, &genuine.lines[1..]);
    let at_once = [&start[..], made_up, genuine_lines].concat();
    let between = [&start[..], &made_up[..1], &genuine_lines[..2], &made_up[1..], &genuine_lines[2..]].concat();
    for lines in [at_once, between] {
        let verdict = verdict(&lines, 1000, &[]);
        assert_eq!((verdict.identity, verdict.head), (Some(identity_key()), genuine.head));
        let inserted = format!("records 2 to 3, the first with hash {}…, were inserted", hash(&made_up[0]));
        assert!(verdict.findings.len() == 1 && verdict.findings[0].starts_with(&inserted), "{:?}", verdict.findings);
    }
}

#[test]
fn what_is_proven_ends_with_the_last_checkpoint_before_the_first_finding() {
    let mut log = Log::new();
    for _ in 0..3 {
        log.add_some(3);
        log.checkpoint();
    }
    // Checkpoints 2, 6, 10 and 14 sign 1, 5, 9 and 13.
    assert_eq!(verdict(&log.lines, 1000, &[]).signed_to(), 13);
    let changed = |at: usize, line: Option<String>| {
        let mut lines = log.lines.clone();
        lines.splice(at..=at, line);
        verdict(&lines, 1000, &[])
    };
    for (at, signed_to) in [(2, 1), (3, 1), (7, 5), (11, 9)] {
        let edited = changed(at, Some(log.lines[at].replace(" log x", " log y")));
        assert_eq!((edited.findings.len(), edited.signed_to()), (1, signed_to), "{:?}", edited.findings);
        assert_eq!(edited.to_json()["signed_to"], signed_to);
        let missing = changed(at, None);
        assert_eq!((missing.findings.len(), missing.signed_to()), (1, signed_to), "{:?}", missing.findings);
        let text = missing.to_text();
        assert!(text.contains(&format!("proven up to record {signed_to}, ")), "{text}");
        let junk = changed(at, Some("x".into()));
        assert_eq!(junk.signed_to(), signed_to, "{:?}", junk.findings);
    }
    // What is explained later is no finding.
    let mut log = Log::new();
    log.add_some(10);
    log.checkpoint();
    log.dropped(4, 6);
    log.checkpoint();
    let lines = [&log.lines[..3], &log.lines[6..]].concat();
    let verdict = verdict(&lines, 1000, &[]);
    assert_eq!((verdict.findings.len(), verdict.signed_to()), (0, 14), "{:?}", verdict.findings);
}

#[test]
fn what_is_held_is_bounded_whatever_is_in_the_files() {
    let log = Log::new();
    let head = log.head;
    let anchors = Anchors { expected: None, identities: &[identity_key()], live: None };
    let long = "x".repeat(MAX_LINE - 200);
    let mut number = 2;
    let mut gap = || {
        number += 2;
        format!("{number} {} log {long}", "ab".repeat(32))
    };
    let mut last = head;
    let mut next = || {
        let mut line = Vec::new();
        last.write(Kind::Log, b"x", &mut line);
        String::from_utf8(line).unwrap()
    };
    let mut times = 0;
    let mut second = || {
        times += 1;
        let (mut line, mut head) = (Vec::new(), head);
        head.write(Kind::Log, format!("{times}").as_bytes(), &mut line);
        String::from_utf8(line).unwrap()
    };
    let dropped = format!("3 {} dropped {{\"lines\":1}}", "ab".repeat(32));
    let mut hostile: [(&str, usize, &mut dyn FnMut() -> String); 4] = [
        ("gaps", 1000, &mut gap),
        ("records", 2 * known::LINES, &mut next),
        ("second records", 1000, &mut second),
        ("what was dropped", 1000, &mut || dropped.clone()),
    ];
    for (what, times, line) in &mut hostile {
        let mut checker = Checker::new(&anchors, "a folder");
        log.lines.iter().for_each(|line| checker.take(line.trim_end().as_bytes(), format_args!("")));
        for _ in 0..*times {
            checker.take(line().trim_end().as_bytes(), format_args!("a line"));
        }
        let [lines, parents, branches, gaps] = checker.holds();
        assert!(lines <= known::LINES && parents <= known::PARENTS + branches::BRANCHES, "{what}: {lines} {parents}");
        assert!(branches <= branches::BRANCHES && gaps <= verdict::MOST, "{what}: {branches} {gaps}");
        let verdict = checker.end(&[], SIGNED_MS);
        assert!(verdict.findings.len() <= verdict::MOST && verdict.dropped.len() <= verdict::MOST, "{what}");
    }
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
