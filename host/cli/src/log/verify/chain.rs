//! One chain of records: whether each fits the one before it, and whether the checkpoints in it are the enclave's.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::attestation::BootNonce;
use formats::digest::Sha256;
use formats::log::{Boot, Checkpoint, Dropped, Kind, Record};
use formats::signature::VerifyingKey;

use super::gaps::{Claim, Gaps};
use super::verdict::{Verdict, records};
use crate::attest::Expected;
use crate::log::files::DayEnd;

/// How old the last checkpoint may be for records after it to be waiting for the next, which comes within a minute.
pub(super) const YOUNG_MS: u64 = 180_000;

/// What is trusted beforehand, from which the rest is proven.
pub(super) struct Anchors<'a> {
    /// What an attestation document has to say.
    pub(super) expected: Option<Expected>,
    /// Identity keys that are known from elsewhere.
    pub(super) identities: &'a [VerifyingKey],
    pub(super) live: Option<&'a Live>,
}

/// A running enclave's signed word on its log.
pub(super) struct Live {
    pub(super) checkpoint: Checkpoint,
    pub(super) identity: VerifyingKey,
}

/// A chain of records, taken one after the other.
pub(super) struct Chain<'a> {
    pub(super) verdict: Verdict,
    gaps: Gaps,
    claims: Vec<Claim>,
    /// The first of the records up to the last one that fit each other.
    fitting: u64,
    /// The hash that the last record has by its content, if that is another one than it says.
    other: Option<Sha256>,
    /// Checkpoints from before the boot had a name.
    early: Vec<Signed>,
    anchors: &'a Anchors<'a>,
}

/// A checkpoint where it stands.
struct Signed {
    /// Its record's number.
    number: u64,
    checkpoint: Checkpoint,
    /// None if that record is missing.
    before: Option<Before>,
}

/// The hash of the record before one: as it says, and by its content if that is another one.
#[derive(Clone, Copy)]
struct Before {
    says: Sha256,
    is: Option<Sha256>,
}

impl Before {
    fn has(&self, hash: Sha256) -> bool {
        self.says == hash || self.is == Some(hash)
    }
}

impl<'a> Chain<'a> {
    pub(super) fn new(anchors: &'a Anchors<'a>, name: &str) -> Chain<'a> {
        Chain {
            verdict: Verdict::new(name.to_owned()),
            gaps: Gaps::default(),
            claims: Vec::new(),
            fitting: 1,
            other: None,
            early: Vec::new(),
            anchors,
        }
    }

    /// Takes the next record, and its line.
    pub(super) fn take(&mut self, record: &Record<'_>, line: &[u8]) {
        let (head, number) = (self.verdict.head, record.head.number);
        if number <= head.number {
            return self.out_of_place(record);
        }
        let before = Before { says: head.hash, is: self.other };
        self.verdict.records += 1;
        if number > head.number + 1 {
            self.gaps.add(head.number + 1, number - 1, line);
            (self.other, self.fitting) = (None, number);
        } else if record.is_after(head.hash) || self.other.is_some_and(|other| record.is_after(other)) {
            self.other = None;
        } else {
            // The next one was written after this one's content, or after the hash that it says.
            (self.other, self.fitting) = (Some(record.hash_after(head.hash)), number);
            self.verdict.find(format!("record {number} does not fit: it was changed, or record {} was", head.number));
        }
        self.verdict.remember(record.head);
        if self.anchors.live.is_some_and(|live| live.checkpoint.head.number == number) {
            self.verdict.live = Some(record.head.hash);
        }
        let followed = number == head.number + 1;
        self.verdict.head = record.head;
        self.content(record, followed.then_some(before));
    }

    /// A record whose number was there before, or was missing.
    fn out_of_place(&mut self, record: &Record<'_>) {
        let (verdict, number) = (&mut self.verdict, record.head.number);
        let last = verdict.head.number;
        if self.gaps.fill(number) {
            verdict.remember(record.head);
            verdict.find(format!("record {number} stands after record {last}: moved"));
        } else if verdict.has_had(record.head) {
            verdict.find(format!("record {number} stands again after record {last}: replayed"));
        } else if verdict.has_had_number(number) {
            verdict.find(format!("another record {number} stands after record {last}: put in"));
        } else {
            verdict.find(format!("another record {number} stands after record {last}: replayed or put in"));
        }
    }

    fn content(&mut self, record: &Record<'_>, before: Option<Before>) {
        let number = record.head.number;
        match record.kind {
            Kind::Boot => match serde_json::from_str::<Boot>(record.body) {
                Ok(boot) => self.boot(number, &boot),
                Err(_) => self.verdict.find(format!("record {number} does not say which boot this is")),
            },
            Kind::Document => self.document(record),
            Kind::Checkpoint => match serde_json::from_str(record.body) {
                Ok(checkpoint) => self.checkpoint(Signed { number, checkpoint, before }),
                Err(_) => self.verdict.find(format!("record {number} is not a checkpoint")),
            },
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

    fn boot(&mut self, number: u64, boot: &Boot) {
        let verdict = &mut self.verdict;
        // It comes again after a gap.
        if verdict.is_of(boot) {
            return;
        }
        if verdict.nonce.is_some() {
            return verdict.find(format!("record {number} begins another boot in the same chain"));
        }
        if BootNonce::from_hex(&verdict.name).is_some_and(|named| named != boot.boot_nonce) {
            verdict.find(format!("these are the records of boot {}, in another's folder", boot.boot_nonce));
        }
        verdict.nonce = Some(boot.boot_nonce);
        verdict.identity = Some(boot.identity);
        verdict.name = boot.boot_nonce.to_string();
        if self.anchors.identities.contains(&boot.identity) {
            verdict.by = "--identity";
        }
        if self.anchors.live.is_some_and(|live| live.identity == boot.identity) {
            verdict.by = "the running enclave's attestation";
        }
        for signed in std::mem::take(&mut self.early) {
            self.judge(signed, boot.boot_nonce, &boot.identity);
        }
    }

    fn document(&mut self, record: &Record<'_>) {
        let Some(expected) = &self.anchors.expected else { return };
        let (verdict, number) = (&mut self.verdict, record.head.number);
        let document = STANDARD.decode(record.body).unwrap_or_default();
        match expected.recorded(&document, &format!("boot {}", verdict.name)) {
            Ok(attested) => {
                if (Some(attested.identity()), Some(attested.boot_nonce())) == (verdict.identity, verdict.nonce) {
                    verdict.by = "the attestation document in it";
                } else {
                    verdict.find(format!("the attestation document in record {number} is of another boot"));
                }
            }
            Err(e) => verdict.find(format!("the attestation document in record {number} is refused: {e:#}")),
        }
    }

    fn checkpoint(&mut self, signed: Signed) {
        match (self.verdict.nonce, self.verdict.identity) {
            (Some(nonce), Some(identity)) => self.judge(signed, nonce, &identity),
            // After a gap at the beginning the boot has its name later.
            _ => self.early.push(signed),
        }
    }

    fn judge(&mut self, Signed { number, checkpoint, before }: Signed, nonce: BootNonce, identity: &VerifyingKey) {
        let verdict = &mut self.verdict;
        let since = verdict.signed.as_ref().map_or(1, |signed| signed.head.number.saturating_add(1));
        let (last, about) = (number - 1, checkpoint.head);
        if !checkpoint.is_by(identity) {
            verdict.find(format!(
                "the checkpoint in record {number} is forged: it is not signed by this boot's identity key"
            ));
        } else if checkpoint.boot_nonce != nonce {
            verdict.find(format!("the checkpoint in record {number} is of another boot"));
        } else if about.number != last {
            verdict.find(format!("the checkpoint in record {number} was moved: it is about record {}", about.number));
        } else if before.is_some_and(|before| !before.has(about.hash)) {
            verdict.find(format!(
                "records {since} to {last} are not those that the enclave signed, though their hashes fit each other"
            ));
        } else {
            verdict.signed = Some(checkpoint);
            let fitting = self.fitting;
            for claim in self.claims.extract_if(.., |claim| claim.by >= fitting) {
                self.gaps.explain(&claim, verdict);
            }
        }
    }

    /// There are no more records. These are the ends of the days whose files the collector may have removed.
    pub(super) fn end(mut self, days: &[DayEnd], now_ms: u64) -> Verdict {
        self.gaps.remove(days, &mut self.verdict);
        self.gaps.name(&self.claims, &mut self.verdict);
        self.unsigned(now_ms);
        let verdict = &mut self.verdict;
        if verdict.nonce.is_none() {
            verdict.find("no record says which boot this is, so nothing in it is signed".into());
        } else if self.anchors.expected.is_some() && verdict.by.is_empty() {
            verdict.find("no attestation document proves whose log this is".into());
        } else if !self.anchors.identities.is_empty() && verdict.by.is_empty() {
            verdict.find("its identity key is none of those that were given".into());
        }
        self.verdict
    }

    /// Records after the last checkpoint are signed by the next one, which comes within a minute.
    fn unsigned(&mut self, now_ms: u64) {
        let verdict = &mut self.verdict;
        let live = self.anchors.live.map(|live| &live.checkpoint).filter(|live| verdict.live == Some(live.head.hash));
        let live = live.filter(|live| verdict.nonce == Some(live.boot_nonce));
        let signed = live.or(verdict.signed.as_ref());
        let (to, time_ms) = signed.map_or((0, 0), |signed| (signed.head.number, signed.time_ms));
        // A checkpoint that is good needs no other.
        let own = verdict.signed.as_ref().is_some_and(|signed| signed.head.number + 1 == verdict.head.number);
        verdict.unsigned = if own { 0 } else { verdict.head.number.saturating_sub(to) };
        let is_young = now_ms.abs_diff(time_ms) < YOUNG_MS;
        if verdict.unsigned > 0 && !is_young && verdict.nonce.is_some() {
            let first = verdict.head.number + 1 - verdict.unsigned;
            let tail = records(first, verdict.head.number);
            verdict.find(format!(
                "no checkpoint has signed {tail}, and the next would have come long ago: nothing proves them"
            ));
        }
    }
}
