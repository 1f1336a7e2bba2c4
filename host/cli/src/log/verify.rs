//! `teemark log verify`: whether the records of a boot are as the enclave wrote them, and complete.

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::attestation::BootNonce;
use formats::digest::Sha256;
use formats::log::{Boot, Checkpoint, Dropped, Head, Kind, MAX_LINE, Record};
use formats::signature::VerifyingKey;
use formats::time::{Utc, now_ms};
use serde_json::{Value, json};

use super::files::{self, DayEnd, Lines};
use crate::attest::{Expected, Purpose, Trust};
use crate::daemon::{self, Cacert};
use crate::failure::{Done, Failure};
use crate::terminal::{printable, say};

/// How long records that the enclave has signed may take to arrive in the files.
const ARRIVAL: Duration = Duration::from_secs(10);
/// Most findings that are listed of one boot.
const MOST: usize = 100;
/// How old the last checkpoint may be for records after it to be waiting for the next, which comes within a minute.
const YOUNG_MS: u64 = 180_000;
/// Of so many records the hashes are kept, to tell a replayed record from one that was put in.
const RECENT: usize = 65_536;
/// Most chains of one boot that are followed.
const CHAINS: usize = 8;

/// Check that records are as the enclave wrote them, in order and complete, and name what is not.
///
/// A boot's checkpoints count if its identity key signed them. That key is proven by the attestation document in the log
/// itself (--pcrs, or --development), by a running enclave (--attested), or given (--identity). Records after the last
/// checkpoint are signed by the next one, within a minute; if none came, nothing proves them, and they are named. What the
/// parent withheld after the last checkpoint cannot be missed, nor a boot of which it withheld everything, unless that
/// enclave still runs and is asked (--attested).
///
/// Exit status 0: everything here is proven to be as the enclave wrote it. 1: something is not, or is missing. Files that
/// the collector removed (--keep-days) are told and are no fault: the hash that the rest follows stands in its file `days`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  teemark log verify /var/lib/teemark-log --pcrs teemark.pcrs
  teemark log verify /var/lib/teemark-log --pcrs teemark.pcrs --attested http://127.0.0.1:3000
  teemark log verify 2026-11-29.log 2026-11-30.log --identity HEX")]
pub(crate) struct Arguments {
    /// A collector's folder, the folder of one boot, or the files of one boot in their order
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    trust: Option<Trust>,
    /// An identity key in hex that a boot may have, known from elsewhere
    #[arg(long, value_name = "HEX", value_parser = identity)]
    identity: Vec<VerifyingKey>,
    /// The public address of an enclave that runs: nothing of its log may be missing at the end
    #[arg(long, value_name = "URL", value_parser = daemon::endpoint)]
    attested: Option<String>,
    #[command(flatten)]
    cacert: Cacert,
}

fn identity(text: &str) -> Result<VerifyingKey, String> {
    VerifyingKey::from_hex(text).ok_or_else(|| "not an Ed25519 key: 64 hex digits".to_owned())
}

/// A running enclave's signed word on its log.
struct Live {
    checkpoint: Checkpoint,
    identity: VerifyingKey,
}

/// Verifies the records.
///
/// # Errors
/// Something is missing, changed, or not signed by who it has to be; a file cannot be read.
pub(crate) fn run(arguments: &Arguments) -> Result<Done> {
    if arguments.trust.is_none() && arguments.identity.is_empty() {
        bail!(Failure::usage(
            "verify needs --pcrs FILE, --development or --identity HEX: without one of them nothing proves that an \
             enclave wrote this log"
        ));
    }
    let expected = arguments.trust.as_ref().map(Trust::expected).transpose()?;
    let live = arguments.attested.as_deref().map(|url| arguments.live(url, expected.as_ref())).transpose()?;
    let mut checker = Checker { expected, identities: &arguments.identity, live: live.as_ref(), now_ms: 0 };
    let start = Instant::now();
    let boots = loop {
        checker.now_ms = now_ms();
        let mut boots = Vec::new();
        for files in files::boots(&arguments.paths)? {
            boots.push(checker.check(&files)?);
        }
        // The enclave's last records may still be on their way.
        let arrived = live.as_ref().is_none_or(|live| boots.iter().any(|boot| boot.has(&live.checkpoint)));
        if arrived || start.elapsed() > ARRIVAL {
            break boots;
        }
        thread::sleep(Duration::from_millis(200));
    };
    report(boots, live.as_ref())
}

fn report(mut boots: Vec<Verdict>, live: Option<&Live>) -> Result<Done> {
    if let Some(live) = live {
        match boots.iter_mut().find(|boot| boot.nonce == Some(live.checkpoint.boot_nonce)) {
            Some(boot) => boot.compare(&live.checkpoint),
            None => bail!(Failure::refused(
                "log_refused",
                format!("boot {}: the enclave runs, and none of its records is here", live.checkpoint.boot_nonce)
            )),
        }
    }
    for (i, boot) in boots.iter().enumerate() {
        if boot.nonce.is_some() && boots[..i].iter().any(|other| other.nonce == boot.nonce) {
            boots[i]
                .findings
                .push("stands here a second time: another start is missing, or this one was copied".into());
            break;
        }
    }
    let object = json!({"boots": boots.iter().map(Verdict::to_json).collect::<Vec<_>>()});
    let text: String = boots.iter().map(Verdict::to_text).collect();
    let wrong: usize = boots.iter().map(|boot| boot.findings.len()).sum();
    if wrong == 0 {
        return Ok(Done::new(text, object));
    }
    for line in text.lines() {
        say(line);
    }
    let failure = Failure::refused("log_refused", format!("the log is not as the enclave wrote it: {wrong} findings"));
    Err(failure.with("boots", object["boots"].clone()).into())
}

impl Arguments {
    fn live(&self, url: &str, expected: Option<&Expected>) -> Result<Live> {
        let Some(expected) = expected else {
            bail!(Failure::usage("--attested needs --pcrs FILE (or --development): which image is expected there?"));
        };
        let daemon = self.cacert.daemon(url)?;
        let (attested, _) = expected.attest(&daemon, Purpose::Look)?;
        let answer = daemon.get("/log/checkpoint", MAX_LINE as u64)?;
        let checkpoint: Checkpoint = serde_json::from_slice(&answer)
            .with_context(|| format!("{url} answers with something other than a checkpoint"))?;
        if checkpoint.boot_nonce != attested.boot_nonce || !checkpoint.is_by(&attested.identity) {
            bail!(Failure::refused(
                "log_refused",
                format!("{url}: the checkpoint is not signed by the attested enclave")
            ));
        }
        Ok(Live { checkpoint, identity: attested.identity })
    }
}

/// What records are checked against.
struct Checker<'a> {
    expected: Option<Expected>,
    identities: &'a [VerifyingKey],
    live: Option<&'a Live>,
    now_ms: u64,
}

/// What was found in the records of one boot.
struct Verdict {
    name: String,
    nonce: Option<BootNonce>,
    identity: Option<VerifyingKey>,
    /// By what the identity is known.
    by: &'static str,
    records: u64,
    head: Head,
    /// The last records' hashes, the last one at the end.
    recent: VecDeque<Head>,
    /// The record here that the running enclave signs.
    live: Option<Sha256>,
    signed: Option<Checkpoint>,
    /// Records after the last checkpoint, which nothing proves yet.
    unsigned: u64,
    /// What is not as the enclave wrote it.
    findings: Vec<String>,
    /// What the enclave itself says it dropped.
    dropped: Vec<String>,
    /// What the collector removed.
    removed: Vec<String>,
    more: usize,
}

/// Records that are missing, and the one after them, which cannot be checked alone; none if that is missing for another
/// reason.
struct Gap {
    from: u64,
    to: u64,
    next: Option<Vec<u8>>,
}

/// What a record says was dropped. It counts once a checkpoint has signed that record.
struct Claim {
    /// The record's number.
    by: u64,
    from: u64,
    last: Head,
}

impl Checker<'_> {
    fn check(&self, files: &[PathBuf]) -> Result<Verdict> {
        let folder = files[0].parent();
        let name = folder.and_then(|folder| folder.file_name()).map(|name| name.to_string_lossy().into_owned());
        let (name, days) = (name.unwrap_or_default(), folder.map(files::days).unwrap_or_default());
        let mut chains = vec![Check::new(self, &name)];
        // The chain that the last record is in.
        let mut at = 0;
        for path in files {
            let mut lines = Lines::new(File::open(path).with_context(|| path.display().to_string())?);
            let mut number = 0;
            while let Some(line) = lines.next().with_context(|| path.display().to_string())? {
                number += 1;
                let Some(record) = Record::parse(line) else {
                    chains[0].verdict.find(format!("line {number} of {} is not a record", path.display()));
                    continue;
                };
                if let Some(chain) = chains.iter().position(|chain| record.follows(&chain.verdict.head)) {
                    at = chain;
                } else if record.head.number == 1 && chains[at].verdict.head.number > 0 {
                    let after = chains[at].verdict.head.number;
                    chains[0].verdict.find(format!(
                        "another chain begins after record {after}: of another start, replayed, or made up"
                    ));
                    if chains.len() < CHAINS {
                        chains.push(Check::new(self, &name));
                    }
                    at = chains.len() - 1;
                }
                chains[at].record(&record, line);
            }
        }
        // The one that the enclave signed most of. What was found of another is not this one's fault.
        let findings = std::mem::take(&mut chains[0].verdict.findings);
        let several = chains.len() > 1;
        let best = |check: &Check<'_>| (!check.verdict.by.is_empty(), check.verdict.signed_to());
        let at = (0..chains.len()).rev().max_by_key(|at| best(&chains[*at])).unwrap_or_default();
        let mut chosen = chains.swap_remove(at);
        if at == 0 || !several {
            chosen.verdict.findings.splice(0..0, findings);
        } else {
            let other = |finding: &String| finding.starts_with("another chain begins") || finding.starts_with("line ");
            chosen.verdict.findings.splice(0..0, findings.into_iter().filter(other));
        }
        Ok(chosen.end(&days))
    }
}

/// The hash of the record before one: as it says, and by its content if that is another one.
#[derive(Clone, Copy)]
struct Before {
    says: Sha256,
    is: Option<Sha256>,
}

struct Check<'a> {
    verdict: Verdict,
    gaps: Vec<Gap>,
    claims: Vec<Claim>,
    /// The first of the records up to the last one that fit each other.
    fitting: u64,
    /// The hash that the last record has by its content, if that is another one than it says.
    other: Option<Sha256>,
    /// Checkpoints from before the boot had a name, with their records' numbers.
    early: Vec<(u64, Checkpoint, Option<Before>)>,
    checker: &'a Checker<'a>,
}

impl<'a> Check<'a> {
    fn new(checker: &'a Checker<'a>, name: &str) -> Check<'a> {
        let verdict = Verdict::new(name.to_owned());
        Check { verdict, gaps: Vec::new(), claims: Vec::new(), fitting: 1, other: None, early: Vec::new(), checker }
    }

    fn record(&mut self, record: &Record<'_>, line: &[u8]) {
        let (head, number) = (self.verdict.head, record.head.number);
        if number <= head.number {
            return self.out_of_place(record);
        }
        let before = Before { says: head.hash, is: self.other };
        self.verdict.records += 1;
        if number > head.number + 1 {
            self.gaps.push(Gap { from: head.number + 1, to: number - 1, next: Some(line.to_vec()) });
            (self.other, self.fitting) = (None, number);
        } else if record.is_after(head.hash) || self.other.is_some_and(|other| record.is_after(other)) {
            self.other = None;
        } else {
            // The next one was written after this one's content, or after the hash that it says.
            (self.other, self.fitting) = (Some(record.hash_after(head.hash)), number);
            self.verdict.find(format!("record {number} does not fit: it was changed, or record {} was", head.number));
        }
        self.verdict.remember(record.head);
        if self.checker.live.is_some_and(|live| live.checkpoint.head.number == number) {
            self.verdict.live = Some(record.head.hash);
        }
        let followed = number == head.number + 1;
        self.verdict.head = record.head;
        self.content(record, before, followed);
    }

    /// A record whose number was there before, or was missing.
    fn out_of_place(&mut self, record: &Record<'_>) {
        let number = record.head.number;
        let last = self.verdict.head.number;
        if let Some(at) = self.gaps.iter().position(|gap| (gap.from..=gap.to).contains(&number)) {
            let Gap { from, to, next } = self.gaps.remove(at);
            if number < to {
                self.gaps.insert(at, Gap { from: number + 1, to, next });
            }
            if from < number {
                self.gaps.insert(at, Gap { from, to: number - 1, next: None });
            }
            self.verdict.remember(record.head);
            return self.verdict.find(format!("record {number} stands after record {last}: moved"));
        }
        if self.verdict.has_had(record.head) {
            self.verdict.find(format!("record {number} stands again after record {last}: replayed"));
        } else if self.verdict.recent.iter().any(|head| head.number == number) {
            self.verdict.find(format!("another record {number} stands after record {last}: put in"));
        } else {
            self.verdict.find(format!("another record {number} stands after record {last}: replayed or put in"));
        }
    }

    fn content(&mut self, record: &Record<'_>, before: Before, followed: bool) {
        let number = record.head.number;
        match record.kind {
            Kind::Boot => match serde_json::from_str::<Boot>(record.body) {
                // It comes again after a gap.
                Ok(boot) if self.verdict.is_of(&boot) => {}
                Ok(_) if self.verdict.nonce.is_some() => {
                    self.verdict.find(format!("record {number} begins another boot in the same chain"));
                }
                Ok(boot) => {
                    if BootNonce::from_hex(&self.verdict.name).is_some_and(|named| named != boot.boot_nonce) {
                        self.verdict
                            .find(format!("these are the records of boot {}, in another's folder", boot.boot_nonce));
                    }
                    self.verdict.nonce = Some(boot.boot_nonce);
                    self.verdict.identity = Some(boot.identity);
                    self.verdict.name = boot.boot_nonce.to_string();
                    if self.checker.identities.contains(&boot.identity) {
                        self.verdict.by = "--identity";
                    }
                    if self.checker.live.is_some_and(|live| live.identity == boot.identity) {
                        self.verdict.by = "the running enclave's attestation";
                    }
                    for (number, checkpoint, before) in std::mem::take(&mut self.early) {
                        self.judge(number, checkpoint, before, boot.boot_nonce, &boot.identity);
                    }
                }
                Err(_) => self.verdict.find(format!("record {number} does not say which boot this is")),
            },
            Kind::Document => self.document(record),
            Kind::Checkpoint => self.checkpoint(record, followed.then_some(before)),
            Kind::Dropped => match serde_json::from_str(record.body) {
                Ok(Dropped::Lines { lines }) => {
                    self.verdict.dropped.push(format!("{lines} lines before record {number}, which had no number yet"));
                }
                Ok(Dropped::Records { from, last }) => self.claims.push(Claim { by: number, from, last }),
                Err(_) => self.verdict.find(format!("record {number} does not say what was dropped")),
            },
            _ => {}
        }
    }

    fn document(&mut self, record: &Record<'_>) {
        let Some(expected) = &self.checker.expected else { return };
        let number = record.head.number;
        let document = STANDARD.decode(record.body).unwrap_or_default();
        match expected.recorded(&document, &format!("boot {}", self.verdict.name)) {
            Ok(attested) => {
                if (Some(attested.identity()), Some(attested.boot_nonce()))
                    == (self.verdict.identity, self.verdict.nonce)
                {
                    self.verdict.by = "the attestation document in it";
                } else {
                    self.verdict.find(format!("the attestation document in record {number} is of another boot"));
                }
            }
            Err(e) => self.verdict.find(format!("the attestation document in record {number} is refused: {e:#}")),
        }
    }

    fn checkpoint(&mut self, record: &Record<'_>, before: Option<Before>) {
        let number = record.head.number;
        let Ok(checkpoint) = serde_json::from_str::<Checkpoint>(record.body) else {
            return self.verdict.find(format!("record {number} is not a checkpoint"));
        };
        match (self.verdict.nonce, self.verdict.identity) {
            (Some(nonce), Some(identity)) => self.judge(number, checkpoint, before, nonce, &identity),
            // After a gap at the beginning the boot has its name later.
            _ => self.early.push((number, checkpoint, before)),
        }
    }

    fn judge(
        &mut self,
        number: u64,
        checkpoint: Checkpoint,
        before: Option<Before>,
        nonce: BootNonce,
        identity: &VerifyingKey,
    ) {
        let verdict = &mut self.verdict;
        let since = verdict.signed.as_ref().map_or(1, |signed| signed.head.number.saturating_add(1));
        if !checkpoint.is_by(identity) {
            verdict.find(format!(
                "the checkpoint in record {number} is forged: it is not signed by this boot's identity key"
            ));
        } else if checkpoint.boot_nonce != nonce {
            verdict.find(format!("the checkpoint in record {number} is of another boot"));
        } else if checkpoint.head.number != number - 1 {
            verdict.find(format!(
                "the checkpoint in record {number} was moved: it is about record {}",
                checkpoint.head.number
            ));
        } else if before
            .is_some_and(|Before { says, is }| says != checkpoint.head.hash && is != Some(checkpoint.head.hash))
        {
            verdict.find(format!(
                "records {since} to {} are not those that the enclave signed, though their hashes fit each other",
                number - 1
            ));
        } else {
            verdict.signed = Some(checkpoint);
            let signed = self.fitting;
            for claim in self.claims.extract_if(.., |claim| claim.by >= signed).collect::<Vec<_>>() {
                self.explained(&claim);
            }
        }
    }

    /// The enclave says, and has signed, that it dropped these records.
    fn explained(&mut self, Claim { by, from, last }: &Claim) {
        let mut left = Vec::new();
        for Gap { from: first, to, next } in std::mem::take(&mut self.gaps) {
            let (start, end) = (first.max(*from), to.min(last.number));
            if start > end {
                left.push(Gap { from: first, to, next });
                continue;
            }
            self.verdict
                .dropped
                .push(format!("{}, says record {by}: no collector took them in time", records(start, end)));
            if first < start {
                left.push(Gap { from: first, to: start - 1, next: None });
            }
            if end < to {
                left.push(Gap { from: end + 1, to, next });
            } else if let Some(next) = next {
                let record = Record::parse(&next);
                if to < last.number {
                    // Of what was not all dropped the hash before it is not known.
                    self.verdict.find(format!("record {} cannot be checked: the one before it is missing", to + 1));
                } else if !record.is_some_and(|record| record.is_after(last.hash)) {
                    self.verdict.find(format!("record {} does not fit: it was changed", to + 1));
                }
            }
        }
        self.gaps = left;
    }

    /// The collector has removed the records of days that it was not to keep.
    fn removed(&mut self, days: &[DayEnd]) {
        let mut removed = Vec::new();
        self.gaps.retain(|Gap { from, to, next }| {
            let next = next.as_ref().and_then(|next| Record::parse(next));
            let by = days.iter().find(|end| next.is_some_and(|next| next.follows(&end.head)));
            removed.extend(by.map(|end| format!("{}, of {} and before", records(*from, *to), end.day)));
            by.is_none()
        });
        self.verdict.removed = removed;
    }

    fn end(mut self, days: &[DayEnd]) -> Verdict {
        self.removed(days);
        for Gap { from, to, .. } in &self.gaps {
            let are = if from == to { "is" } else { "are" };
            let claimed = self.claims.iter().find(|claim| claim.from <= *to && *from <= claim.last.number);
            let claim = claimed.map_or(String::new(), |claim| {
                format!("; record {} says that the enclave dropped them, and no checkpoint has signed it", claim.by)
            });
            self.verdict.find(format!("{} {are} missing{claim}", records(*from, *to)));
        }
        self.unsigned();
        if self.verdict.nonce.is_none() {
            self.verdict.find("no record says which boot this is, so nothing in it is signed".into());
        } else if self.checker.expected.is_some() && self.verdict.by.is_empty() {
            self.verdict.find("no attestation document proves whose log this is".into());
        } else if !self.checker.identities.is_empty() && self.verdict.by.is_empty() {
            self.verdict.find("its identity key is none of those that were given".into());
        }
        self.verdict
    }

    /// Records after the last checkpoint are signed by the next one, which comes within a minute.
    fn unsigned(&mut self) {
        let verdict = &mut self.verdict;
        let live = self.checker.live.map(|live| &live.checkpoint).filter(|live| verdict.live == Some(live.head.hash));
        let live = live.filter(|live| verdict.nonce == Some(live.boot_nonce));
        let signed = live.or(verdict.signed.as_ref());
        let (to, time_ms) = signed.map_or((0, 0), |signed| (signed.head.number, signed.time_ms));
        // A checkpoint that is good needs no other.
        let own = verdict.signed.as_ref().is_some_and(|signed| signed.head.number + 1 == verdict.head.number);
        verdict.unsigned = if own { 0 } else { verdict.head.number.saturating_sub(to) };
        let is_young = self.checker.now_ms.abs_diff(time_ms) < YOUNG_MS;
        if verdict.unsigned > 0 && !is_young && verdict.nonce.is_some() {
            let first = verdict.head.number + 1 - verdict.unsigned;
            let tail = records(first, verdict.head.number);
            verdict.find(format!(
                "no checkpoint has signed {tail}, and the next would have come long ago: nothing proves them"
            ));
        }
    }
}

fn records(from: u64, to: u64) -> String {
    if from == to { format!("record {from}") } else { format!("records {from} to {to}") }
}

impl Verdict {
    fn new(name: String) -> Verdict {
        Verdict {
            name,
            nonce: None,
            identity: None,
            by: "",
            records: 0,
            head: Head::default(),
            recent: VecDeque::new(),
            live: None,
            signed: None,
            unsigned: 0,
            findings: Vec::new(),
            dropped: Vec::new(),
            removed: Vec::new(),
            more: 0,
        }
    }

    fn find(&mut self, finding: String) {
        if self.findings.len() < MOST {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }

    /// Whether this is the boot.
    fn is_of(&self, boot: &Boot) -> bool {
        (self.nonce, self.identity) == (Some(boot.boot_nonce), Some(boot.identity))
    }

    fn remember(&mut self, head: Head) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(head);
    }

    /// Whether this is one of the last records.
    fn has_had(&self, head: Head) -> bool {
        self.recent.contains(&head)
    }

    fn signed_to(&self) -> u64 {
        self.signed.as_ref().map_or(0, |signed| signed.head.number)
    }

    /// Whether the record that a checkpoint is about is here.
    fn has(&self, checkpoint: &Checkpoint) -> bool {
        self.nonce == Some(checkpoint.boot_nonce) && self.head.number >= checkpoint.head.number
    }

    /// Compares with what the running enclave has signed.
    fn compare(&mut self, live: &Checkpoint) {
        let number = live.head.number;
        match self.live {
            // It is in a gap, which is named.
            None if number <= self.head.number => {}
            None => self.find(format!(
                "the end is missing: records {} to {number} are not here, and the enclave has written them",
                self.head.number + 1
            )),
            Some(hash) if hash != live.head.hash => {
                self.find(format!("record {number} is not the one that the running enclave signs"));
            }
            Some(_) => self.signed = Some(live.clone()),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "boot_nonce": self.nonce,
            "identity": self.identity,
            "identity_known_by": (!self.by.is_empty()).then_some(self.by),
            "records": self.records,
            "last": self.head.number,
            "signed_to": self.signed_to(),
            "unsigned": self.unsigned,
            "signed_at_ms": self.signed.as_ref().map(|signed| signed.time_ms),
            "dropped": self.dropped,
            "removed": self.removed,
            "findings": self.findings,
            "more_findings": self.more,
        })
    }

    fn to_text(&self) -> String {
        let mut text = format!("boot {}: {} records", printable(&self.name), self.records);
        match &self.signed {
            Some(Checkpoint { head, time_ms, .. }) => {
                text.push_str(&format!(", signed up to record {} at {}", head.number, Utc(time_ms / 1000)));
            }
            None => text.push_str(", none of them signed"),
        }
        match (self.by, &self.identity) {
            ("", Some(identity)) => text.push_str(&format!("; WARNING: identity {identity} is not attested")),
            (by, _) if !by.is_empty() => text.push_str(&format!("; identity known by {by}")),
            _ => {}
        }
        text.push('\n');
        if self.unsigned > 0 {
            text.push_str(&format!("  not signed yet: the last {}\n", self.unsigned));
        }
        for removed in &self.removed {
            text.push_str(&format!("  removed by the collector: {removed}\n"));
        }
        for dropped in &self.dropped {
            text.push_str(&format!("  dropped by the enclave: {dropped}\n"));
        }
        for finding in &self.findings {
            text.push_str(&format!("  WRONG: {}\n", printable(finding)));
        }
        if self.more > 0 {
            text.push_str(&format!("  WRONG: {} more findings\n", self.more));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::{Ed25519KeyPair, KeyPair};

    use super::*;

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

    /// What is found in these lines, so long after the last checkpoint; beside the collector's file of days.
    fn verdict(lines: &[String], later_ms: u64, days: &str) -> Verdict {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("2025-11-30.log");
        std::fs::write(&file, lines.concat()).unwrap();
        std::fs::write(folder.path().join("days"), days).unwrap();
        let identities = [identity_key()];
        let checker = Checker { expected: None, identities: &identities, live: None, now_ms: SIGNED_MS + later_ms };
        checker.check(&[file]).unwrap()
    }

    fn found(lines: &[String]) -> Vec<String> {
        verdict(lines, 1000, "").findings
    }

    #[test]
    fn what_the_enclave_dropped_is_told_once_it_has_signed_that_it_did() {
        let mut log = Log::new();
        log.add_some(10);
        // No collector took 4 to 12.
        log.dropped(4, 12);
        let unsigned: Vec<_> = [&log.lines[..3], &log.lines[12..]].concat();
        assert_eq!(found(&unsigned).len(), 1);
        assert!(
            found(&unsigned)[0].starts_with("records 4 to 12 are missing; record 13 says"),
            "{:?}",
            found(&unsigned)
        );
        log.checkpoint();
        let signed: Vec<_> = [&log.lines[..3], &log.lines[12..]].concat();
        let verdict = verdict(&signed, 1000, "");
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
        assert_eq!(verdict(&log.lines, 10 * YOUNG_MS, "").findings, [""; 0]);
        log.add_some(500);
        let young = verdict(&log.lines, YOUNG_MS - 1, "");
        assert_eq!((young.findings.len(), young.unsigned), (0, 501));
        assert_eq!(young.to_json()["unsigned"], 501);
        let old = verdict(&log.lines, YOUNG_MS, "").findings;
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
        let verdict = verdict(&lines, 1000, "");
        assert_eq!(verdict.findings, ["another chain begins after record 1: of another start, replayed, or made up"]);
        assert_eq!((verdict.records, verdict.signed_to()), (8, 7));
    }

    #[test]
    fn what_the_collector_removed_is_told_and_what_follows_it_is_checked() {
        let mut log = Log::new();
        log.add_some(10);
        log.checkpoint();
        let end = Record::parse(log.lines[8].trim_end().as_bytes()).unwrap().head;
        let days = format!("2025-11-29 {} {}\n", end.number, end.hash);
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
}
