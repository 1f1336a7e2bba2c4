//! `teemark log verify`: whether the records of a boot are as the enclave wrote them, and all there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
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
use formats::time::Utc;
use serde_json::{Value, json};

use super::files;
use crate::attest::{Expected, Purpose, Trust};
use crate::daemon::{self, Cacert};
use crate::failure::{Done, Failure};
use crate::terminal::{printable, say};

/// How long records that the enclave has signed may take to arrive in the files.
const ARRIVAL: Duration = Duration::from_secs(10);
/// Most findings that are listed of one boot.
const MOST: usize = 100;

/// Check that records are as the enclave wrote them, in order and all there, and name what is not.
///
/// A boot's checkpoints count if its identity key signed them. That key is proven by the attestation document in the log
/// itself (--pcrs, or --development), by a running enclave (--attested), or given (--identity). What an enclave wrote after
/// its last checkpoint here is not signed yet, and what the parent withheld after it cannot be missed, unless the enclave
/// still runs and is asked (--attested).
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
    let expected = arguments.trust.as_ref().map(Trust::expected).transpose()?;
    let live = arguments.attested.as_deref().map(|url| arguments.live(url, expected.as_ref())).transpose()?;
    let checker = Checker { expected, identities: &arguments.identity, live: live.as_ref() };
    let start = Instant::now();
    let boots = loop {
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
            .with_context(|| format!("{url} answers with something else than a checkpoint"))?;
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
    /// Each record's hash by its number.
    hashes: HashMap<u64, Sha256>,
    signed: Option<Checkpoint>,
    /// What is not as the enclave wrote it.
    findings: Vec<String>,
    /// What the enclave itself says it dropped.
    dropped: Vec<String>,
    more: usize,
}

/// Records that are missing, and the one after them, which cannot be checked alone.
struct Gap {
    from: u64,
    to: u64,
    next: Vec<u8>,
}

impl Checker<'_> {
    fn check(&self, files: &[PathBuf]) -> Result<Verdict> {
        let name =
            files[0].parent().and_then(|folder| folder.file_name()).map(|name| name.to_string_lossy().into_owned());
        let mut check = Check {
            verdict: Verdict::new(name.unwrap_or_default()),
            gaps: Vec::new(),
            other: None,
            stray: None,
            early: Vec::new(),
            checker: self,
        };
        for path in files {
            let mut file = BufReader::new(File::open(path).with_context(|| path.display().to_string())?);
            let (mut number, mut line) = (0, Vec::new());
            while file.read_until(b'\n', &mut line)? > 0 {
                number += 1;
                if line.pop_if(|last| *last == b'\n').is_none() {
                    // It is being written.
                    break;
                }
                match Record::parse(&line) {
                    Some(record) => check.record(&record, &line),
                    None => check.verdict.find(format!("line {number} of {} is not a record", path.display())),
                }
                line.clear();
            }
        }
        Ok(check.end())
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
    /// The hash that the last record has by its content, if that is another one than it says.
    other: Option<Sha256>,
    /// The last record of another chain that stands here too.
    stray: Option<Head>,
    /// Checkpoints from before the boot had a name, with their records' numbers.
    early: Vec<(u64, Checkpoint, Option<Before>)>,
    checker: &'a Checker<'a>,
}

impl Check<'_> {
    fn record(&mut self, record: &Record<'_>, line: &[u8]) {
        let (head, number) = (self.verdict.head, record.head.number);
        if self.stray.is_some_and(|stray| record.follows(&stray)) {
            self.stray = Some(record.head);
            return;
        }
        if number <= head.number {
            return self.out_of_place(record);
        }
        let before = Before { says: head.hash, is: self.other };
        self.verdict.records += 1;
        if number > head.number + 1 {
            self.gaps.push(Gap { from: head.number + 1, to: number - 1, next: line.to_vec() });
            self.other = None;
        } else if record.is_after(head.hash) || self.other.is_some_and(|other| record.is_after(other)) {
            self.other = None;
        } else {
            // The next one was written after this one's content, or after the hash that it says.
            self.other = Some(record.hash_after(head.hash));
            self.verdict.find(format!("record {number} does not fit: it was changed, or record {} was", head.number));
        }
        self.verdict.hashes.insert(number, record.head.hash);
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
                self.gaps.insert(at, Gap { from: number + 1, to, next: next.clone() });
            }
            if from < number {
                self.gaps.insert(at, Gap { from, to: number - 1, next });
            }
            self.verdict.hashes.insert(number, record.head.hash);
            return self.verdict.find(format!("record {number} stands after record {last}: moved"));
        }
        let known = self.verdict.hashes.get(&number);
        if number == 1 {
            self.stray = Some(record.head);
            self.verdict.find(format!("another chain begins after record {last}: of another start, or replayed"));
        } else if known == Some(&record.head.hash) {
            self.verdict.find(format!("record {number} stands again after record {last}: replayed"));
        } else {
            self.verdict.find(format!("another record {number} stands after record {last}: put in"));
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
                Ok(Dropped::Records { from, last }) => self.explained(from, last),
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
        }
    }

    /// The enclave says that it dropped these records.
    fn explained(&mut self, from: u64, last: Head) {
        let mut left = Vec::new();
        for gap in std::mem::take(&mut self.gaps) {
            if gap.from < from || gap.to > last.number {
                left.push(gap);
                continue;
            }
            self.verdict.dropped.push(format!("records {} to {}, which nobody took in time", gap.from, gap.to));
            let fits = Record::parse(&gap.next).is_some_and(|next| next.is_after(last.hash));
            if gap.to == last.number && !fits {
                self.verdict.find(format!("record {} does not fit: it was changed", gap.to + 1));
            }
        }
        self.gaps = left;
    }

    fn end(mut self) -> Verdict {
        for Gap { from, to, .. } in &self.gaps {
            let finding = if from == to {
                format!("record {from} is missing")
            } else {
                format!("records {from} to {to} are missing")
            };
            self.verdict.find(finding);
        }
        if self.verdict.nonce.is_none() {
            self.verdict.find("no record says which boot this is, so nothing in it is signed".into());
        } else if self.checker.expected.is_some() && self.verdict.by.is_empty() {
            self.verdict.find("no attestation document proves whose log this is".into());
        } else if !self.checker.identities.is_empty() && self.verdict.by.is_empty() {
            self.verdict.find("its identity key is none of those that were given".into());
        }
        self.verdict
    }
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
            hashes: HashMap::new(),
            signed: None,
            findings: Vec::new(),
            dropped: Vec::new(),
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

    /// Whether the record that a checkpoint is about is here.
    fn has(&self, checkpoint: &Checkpoint) -> bool {
        self.nonce == Some(checkpoint.boot_nonce) && self.head.number >= checkpoint.head.number
    }

    /// Compares with what the running enclave has signed.
    fn compare(&mut self, live: &Checkpoint) {
        let number = live.head.number;
        let here = self.hashes.get(&number).copied();
        match here {
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
            "signed_to": self.signed.as_ref().map_or(0, |signed| signed.head.number),
            "signed_at_ms": self.signed.as_ref().map(|signed| signed.time_ms),
            "dropped": self.dropped,
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
        let unsigned = self.head.number.saturating_sub(self.signed.as_ref().map_or(0, |signed| signed.head.number));
        if unsigned > 1 {
            text.push_str(&format!("  the last {unsigned} records are not signed yet\n"));
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
