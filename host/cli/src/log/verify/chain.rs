//! One chain of records: whether each fits the one before it, and whether the checkpoints in it are the enclave's.

use std::collections::VecDeque;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::attestation::BootNonce;
use formats::digest::Sha256;
use formats::log::{Boot, Checkpoint, Dropped, Head, Kind, Record};
use formats::signature::VerifyingKey;

use super::gaps::{Claim, Gaps};
use super::verdict::{MOST, SignedTo, Trust, Verdict, records};
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

/// So many earlier states are kept for records that follow an earlier one than the last.
const EARLIER: usize = 16;

/// A chain of records, taken one after the other.
pub(super) struct Chain<'a> {
    state: State,
    /// How it was before each of the last records that changed more than the head, since the last checkpoint.
    earlier: VecDeque<State>,
    anchors: &'a Anchors<'a>,
}

/// What is known after a record.
#[derive(Clone)]
struct State {
    verdict: Verdict,
    gaps: Gaps,
    claims: Vec<Claim>,
    /// The first of the records up to the last one that fit each other.
    fitting: u64,
    /// The hash that the last record has by its content, if that is another one than it says.
    other: Option<Sha256>,
    /// Checkpoints from before the boot had a name.
    early: Vec<Signed>,
    /// The last record that changed more than the head.
    since: u64,
}

/// A checkpoint where it stands.
#[derive(Clone)]
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
    /// What was found before it began is in the verdict.
    pub(super) fn new(anchors: &'a Anchors<'a>, verdict: Verdict) -> Chain<'a> {
        let (gaps, claims, early) = (Gaps::default(), Vec::new(), Vec::new());
        let state = State { verdict, gaps, claims, fitting: 1, other: None, early, since: 0 };
        Chain { state, earlier: VecDeque::new(), anchors }
    }

    /// The last record.
    pub(super) fn head(&self) -> Head {
        self.state.verdict.head
    }

    /// How far everything is proven.
    pub(super) fn signed(&self) -> Option<SignedTo> {
        self.state.verdict.signed
    }

    /// Whether it is known whose boot it is.
    pub(super) fn is_known(&self) -> bool {
        !self.state.verdict.by.is_empty()
    }

    pub(super) fn is_of_same_boot(&self, other: &Chain<'_>) -> bool {
        let key = |chain: &Chain<'_>| chain.state.verdict.nonce.zip(chain.state.verdict.identity);
        key(self).is_some() && key(self) == key(other)
    }

    /// The last record that the enclave has signed, whatever was found before it.
    pub(super) fn signs_to(&self) -> u64 {
        let live = self.state.live(self.anchors).map_or(0, |live| live.head.number);
        self.state.verdict.last_signed.map_or(0, |signed| signed.number).max(live)
    }

    /// How much reason there is to take it for the enclave's.
    pub(super) fn trust(&self) -> Trust {
        let live = self.state.live(self.anchors).is_some();
        (self.is_known(), live, self.signs_to(), self.head().number)
    }

    /// Takes the next record, or one after a gap, and its line. Gives whether it is a checkpoint that is good.
    pub(super) fn take(&mut self, record: &Record<'_>, line: &[u8]) -> bool {
        let is_plain = matches!(record.kind, Kind::Key | Kind::Sealed | Kind::Log | Kind::Init | Kind::Audit)
            && record.follows(&self.head());
        if !is_plain {
            // Where more is wrong than is listed, it does not matter which of two records is.
            if self.state.verdict.lists_another() {
                self.earlier.push_back(self.state.clone());
            } else {
                self.earlier.clear();
            }
            if self.earlier.len() > EARLIER {
                self.earlier.pop_front();
            }
            self.state.since = record.head.number;
        }
        self.state.take(record, line, self.anchors)
    }

    /// The chain as it was when this was its last record; none if that is not known any more.
    pub(super) fn back_to(&self, head: Head) -> Option<Chain<'a>> {
        let states: Vec<&State> = self.earlier.iter().chain([&self.state]).collect();
        let at = states.iter().rposition(|state| state.since <= head.number)?;
        let mut state = states[at].clone();
        let verdict = &mut state.verdict;
        if verdict.head != head {
            verdict.records -= verdict.head.number.checked_sub(head.number)?;
            (verdict.head, state.other) = (head, None);
        }
        if self.anchors.live.is_some_and(|live| live.checkpoint.head.number > head.number) {
            verdict.live = None;
        }
        let earlier = self.earlier.iter().take(at).cloned().collect();
        Some(Chain { state, earlier, anchors: self.anchors })
    }

    /// No record is taken any more that follows an earlier one than the last.
    pub(super) fn forget_earlier(&mut self) {
        self.earlier.clear();
    }

    /// The next record follows the hash that this one says, if it is the last one.
    pub(super) fn trust_hash(&mut self, head: Head) {
        if self.state.verdict.head == head {
            self.state.other = None;
        }
    }

    /// Something was found now that is not about this chain alone.
    pub(super) fn find(&mut self, finding: &str) {
        for state in self.earlier.iter_mut().chain([&mut self.state]) {
            state.verdict.find(finding.to_owned());
        }
    }

    /// These records come after this one. Gives whether they were missing until then.
    pub(super) fn fill(&mut self, from: u64, to: u64, after: u64) -> bool {
        let State { verdict, gaps, .. } = &mut self.state;
        let Some(since) = gaps.fill(from, to, verdict) else { return false };
        let moved = if from == to { "comes after it: it was moved" } else { "come after it: they were moved" };
        let moved = moved.replace(" it:", &format!(" record {after}:"));
        verdict.find_since(since, format!("{} {moved}", records(from, to)));
        true
    }

    /// The records of another chain are not the enclave's; since this they stood beside those of this one.
    pub(super) fn take_over(&mut self, other: &Chain<'_>, since: Option<SignedTo>, finding: String) {
        self.state.verdict.find_since(since, finding);
        self.state.verdict.take_over(&other.state.verdict);
    }

    /// There are no more records. These are the ends of the days whose files the collector may have removed.
    pub(super) fn end(self, days: &[DayEnd], now_ms: u64) -> Verdict {
        self.state.end(days, now_ms, self.anchors)
    }

    #[cfg(test)]
    pub(super) fn gaps(&self) -> usize {
        self.state.gaps.len()
    }
}

impl State {
    fn take(&mut self, record: &Record<'_>, line: &[u8], anchors: &Anchors<'_>) -> bool {
        let (head, number) = (self.verdict.head, record.head.number);
        let before = Before { says: head.hash, is: self.other };
        self.verdict.records += 1;
        if number > head.number + 1 {
            self.gaps.add(head.number + 1, number - 1, line, &mut self.verdict);
            (self.other, self.fitting) = (None, number);
        } else if record.is_after(head.hash) || self.other.is_some_and(|other| record.is_after(other)) {
            self.other = None;
        } else {
            // The next one was written after this one's content, or after the hash that it says.
            (self.other, self.fitting) = (Some(record.hash_after(head.hash)), number);
            self.verdict.find(format!("record {number} does not fit: it was changed, or record {} was", head.number));
        }
        if anchors.live.is_some_and(|live| live.checkpoint.head.number == number) {
            self.verdict.live = Some(record.head.hash);
        }
        let followed = number == head.number + 1;
        self.verdict.head = record.head;
        self.content(record, followed.then_some(before), anchors)
    }

    fn content(&mut self, record: &Record<'_>, before: Option<Before>, anchors: &Anchors<'_>) -> bool {
        let number = record.head.number;
        match record.kind {
            Kind::Boot => match serde_json::from_str::<Boot>(record.body) {
                Ok(boot) => self.boot(number, &boot, anchors),
                Err(_) => self.verdict.find(format!("record {number} does not say which boot this is")),
            },
            Kind::Document => self.document(record, anchors),
            Kind::Checkpoint => match serde_json::from_str(record.body) {
                Ok(checkpoint) => return self.checkpoint(Signed { number, checkpoint, before }),
                Err(_) => self.verdict.find(format!("record {number} is not a checkpoint")),
            },
            Kind::Dropped => match serde_json::from_str(record.body) {
                Ok(Dropped::Lines { lines }) => {
                    self.verdict.drop(format!("{lines} lines before record {number}, which had no number yet"));
                }
                Ok(Dropped::Records { from, last }) if self.claims.len() < MOST => {
                    self.claims.push(Claim { by: number, from, last });
                }
                Ok(Dropped::Records { .. }) => {
                    self.verdict
                        .find(format!("record {number} is one of more than {MOST} that no checkpoint has signed"));
                }
                Err(_) => self.verdict.find(format!("record {number} does not say what was dropped")),
            },
            _ => {}
        }
        false
    }

    fn boot(&mut self, number: u64, boot: &Boot, anchors: &Anchors<'_>) {
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
        if anchors.identities.contains(&boot.identity) {
            verdict.by = "--identity";
        }
        if anchors.live.is_some_and(|live| live.identity == boot.identity) {
            verdict.by = "the running enclave's attestation";
        }
        for signed in std::mem::take(&mut self.early) {
            self.judge(signed, boot.boot_nonce, &boot.identity);
        }
    }

    fn document(&mut self, record: &Record<'_>, anchors: &Anchors<'_>) {
        let Some(expected) = &anchors.expected else { return };
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

    fn checkpoint(&mut self, signed: Signed) -> bool {
        match (self.verdict.nonce, self.verdict.identity) {
            (Some(nonce), Some(identity)) => return self.judge(signed, nonce, &identity),
            // After a gap at the beginning the boot has its name later.
            _ if self.early.len() < MOST => self.early.push(signed),
            _ => self.verdict.find(format!("record {} is a checkpoint of no boot", signed.number)),
        }
        false
    }

    /// Gives whether the checkpoint is good.
    fn judge(
        &mut self,
        Signed { number, checkpoint, before }: Signed,
        nonce: BootNonce,
        identity: &VerifyingKey,
    ) -> bool {
        let verdict = &mut self.verdict;
        let since = verdict.last_signed.map_or(1, |signed| signed.number.saturating_add(1));
        let (last, about) = (number - 1, checkpoint.head);
        if !checkpoint.is_by(identity) {
            verdict.find_forged(format!(
                "the checkpoint in record {number} is forged: it is not signed by this boot's identity key"
            ));
        } else if checkpoint.boot_nonce != nonce {
            verdict.find_forged(format!("the checkpoint in record {number} is of another boot"));
        } else if about.number != last {
            verdict.find_forged(format!(
                "the checkpoint in record {number} was moved: it is about record {}",
                about.number
            ));
        } else if before.is_some_and(|before| !before.has(about.hash)) {
            verdict.find(format!(
                "records {since} to {last} are not those that the enclave signed, though their hashes fit each other"
            ));
        } else {
            let fitting = self.fitting;
            for claim in self.claims.extract_if(.., |claim| claim.by >= fitting) {
                self.gaps.explain(&claim, verdict);
            }
            verdict.sign(SignedTo { number: about.number, time_ms: checkpoint.time_ms });
            return true;
        }
        false
    }

    /// The running enclave's word, if it is about this boot and the record is here that it signs.
    fn live<'a>(&self, anchors: &Anchors<'a>) -> Option<&'a Checkpoint> {
        let live = anchors.live.map(|live| &live.checkpoint).filter(|live| self.verdict.live == Some(live.head.hash));
        live.filter(|live| self.verdict.nonce == Some(live.boot_nonce))
    }

    fn end(mut self, days: &[DayEnd], now_ms: u64, anchors: &Anchors<'_>) -> Verdict {
        self.gaps.remove(days, &mut self.verdict);
        self.gaps.name(&self.claims, &mut self.verdict);
        self.unsigned(now_ms, anchors);
        let verdict = &mut self.verdict;
        if verdict.nonce.is_none() {
            verdict.find_since(None, "no record says which boot this is, so nothing in it is signed".into());
        } else if anchors.expected.is_some() && verdict.by.is_empty() {
            verdict.find_since(None, "no attestation document proves whose log this is".into());
        } else if !anchors.identities.is_empty() && verdict.by.is_empty() {
            verdict.find_since(None, "its identity key is none of those that were given".into());
        }
        self.verdict
    }

    /// Records after the last checkpoint are signed by the next one, which comes within a minute.
    fn unsigned(&mut self, now_ms: u64, anchors: &Anchors<'_>) {
        let live = self.live(anchors).map(|live| SignedTo { number: live.head.number, time_ms: live.time_ms });
        let verdict = &mut self.verdict;
        let signed = live.or(verdict.last_signed);
        let SignedTo { number: to, time_ms } = signed.unwrap_or_default();
        // A checkpoint that is good needs no other.
        let own = verdict.last_signed.is_some_and(|signed| signed.number + 1 == verdict.head.number);
        verdict.unsigned = if own { 0 } else { verdict.head.number.saturating_sub(to) };
        let is_young = now_ms.abs_diff(time_ms) < YOUNG_MS;
        if verdict.unsigned > 0 && !is_young && verdict.nonce.is_some() {
            verdict.find(format!(
                "no checkpoint has signed {}, and the next one is overdue, so nothing proves them",
                verdict.tail()
            ));
        }
    }
}
