//! What was found in the records of one boot, and how it is told.

use formats::attestation::BootNonce;
use formats::digest::Sha256;
use formats::log::{Boot, Checkpoint, Head};
use formats::signature::VerifyingKey;
use formats::time::Utc;
use serde_json::{Value, json};

use crate::terminal::printable;

/// Most findings that are listed of one boot.
pub(super) const MOST: usize = 100;

/// How much reason there is to take a chain for the enclave's: whether its identity is known, whether the running enclave
/// signs it, how far it is signed, and how long it is.
pub(super) type Trust = (bool, bool, u64, u64);

/// The last record that a good checkpoint signs, and when it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SignedTo {
    pub(super) number: u64,
    pub(super) time_ms: u64,
}

/// What was found in the records of one boot.
#[derive(Clone)]
pub(super) struct Verdict {
    pub(super) name: String,
    pub(super) nonce: Option<BootNonce>,
    pub(super) identity: Option<VerifyingKey>,
    /// By what the identity is known; empty if it is not.
    pub(super) by: &'static str,
    pub(super) records: u64,
    /// The last record.
    pub(super) head: Head,
    /// The record here that the running enclave signs.
    pub(super) live: Option<Sha256>,
    /// The last checkpoint that is good.
    pub(super) last_signed: Option<SignedTo>,
    /// The last one before the first finding: up to there everything is as the enclave wrote it.
    pub(super) signed: Option<SignedTo>,
    /// Records after the last checkpoint, which nothing proves yet.
    pub(super) unsigned: u64,
    /// What is not as the enclave wrote it.
    pub(super) findings: Vec<String>,
    /// Those that are about checkpoints which the enclave did not sign so.
    forged: Vec<String>,
    /// What the enclave itself says it dropped, and how much of it is not listed.
    pub(super) dropped: Vec<String>,
    more_dropped: usize,
    /// What the collector removed.
    pub(super) removed: Vec<String>,
    /// Findings that are not listed.
    more: usize,
}

impl Verdict {
    pub(super) fn new(name: String) -> Verdict {
        Verdict {
            name,
            nonce: None,
            identity: None,
            by: "",
            records: 0,
            head: Head::default(),
            live: None,
            last_signed: None,
            signed: None,
            unsigned: 0,
            findings: Vec::new(),
            forged: Vec::new(),
            dropped: Vec::new(),
            more_dropped: 0,
            removed: Vec::new(),
            more: 0,
        }
    }

    /// The verdict on a boot whose folder has this name, and holds no file of records.
    pub(super) fn without_files(name: String) -> Verdict {
        let nonce = BootNonce::from_hex(&name);
        let mut verdict = Verdict { nonce, ..Verdict::new(name) };
        verdict.find("its folder holds no *.log file: all of its records are missing".into());
        verdict
    }

    /// Something is wrong that comes after all records so far: what the last checkpoint signs is proven, and no later one
    /// proves more.
    pub(super) fn find(&mut self, finding: String) {
        if self.lists_another() {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }

    /// How many findings there are.
    pub(super) fn count(&self) -> u64 {
        (self.findings.len() + self.more) as u64
    }

    /// Whether the next finding is listed, not only counted.
    pub(super) fn lists_another(&self) -> bool {
        self.findings.len() < MOST
    }

    /// Whether this is the boot.
    pub(super) fn is_of(&self, boot: &Boot) -> bool {
        (self.nonce, self.identity) == (Some(boot.boot_nonce), Some(boot.identity))
    }

    /// Something is wrong with records after those that were proven by then.
    pub(super) fn find_since(&mut self, since: Option<SignedTo>, finding: String) {
        self.signed = self.signed.min(since);
        self.find(finding);
    }

    /// A checkpoint is not the enclave's, or not here.
    pub(super) fn find_forged(&mut self, finding: String) {
        if self.forged.len() < MOST {
            self.forged.push(finding.clone());
        }
        self.find(finding);
    }

    /// What was forged in a chain that stood beside this one.
    pub(super) fn take_over(&mut self, other: &Verdict) {
        let forged: Vec<_> = other.forged.iter().filter(|finding| !self.forged.contains(finding)).cloned().collect();
        forged.into_iter().for_each(|finding| self.find_forged(finding));
    }

    /// A good checkpoint signs all records up to one.
    pub(super) fn sign(&mut self, signed: SignedTo) {
        self.last_signed = Some(signed);
        if self.findings.is_empty() {
            self.signed = Some(signed);
        }
    }

    /// The enclave says that it dropped something.
    pub(super) fn drop(&mut self, dropped: String) {
        if self.dropped.len() < MOST {
            self.dropped.push(dropped);
        } else {
            self.more_dropped += 1;
        }
    }

    /// The records that no checkpoint has signed.
    pub(super) fn tail(&self) -> String {
        records(self.head.number + 1 - self.unsigned, self.head.number)
    }

    pub(super) fn signed_to(&self) -> u64 {
        self.signed.map_or(0, |signed| signed.number)
    }

    /// Whether the record that a checkpoint is about is here.
    pub(super) fn has(&self, checkpoint: &Checkpoint) -> bool {
        self.nonce == Some(checkpoint.boot_nonce) && self.head.number >= checkpoint.head.number
    }

    /// Compares with what the running enclave has signed.
    pub(super) fn compare(&mut self, live: &Checkpoint) {
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
            Some(_) => self.sign(SignedTo { number, time_ms: live.time_ms }),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "boot_nonce": self.nonce,
            "identity": self.identity,
            "identity_known_by": (!self.by.is_empty()).then_some(self.by),
            "records": self.records,
            "last": self.head.number,
            "signed_to": self.signed_to(),
            "unsigned": self.unsigned,
            "signed_at_ms": self.signed.map(|signed| signed.time_ms),
            "dropped": self.dropped,
            "more_dropped": self.more_dropped,
            "removed": self.removed,
            "findings": self.findings,
            "more_findings": self.more,
        })
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = format!("boot {}: {} records", printable(&self.name), self.records);
        match self.signed {
            Some(SignedTo { number, time_ms }) => {
                text.push_str(&format!(", proven up to record {number}, signed at {}", Utc(time_ms / 1000)));
            }
            None => text.push_str(", none of them proven"),
        }
        match (self.by, &self.identity) {
            ("", Some(identity)) => text.push_str(&format!("; WARNING: identity {identity} is not attested")),
            (by, _) if !by.is_empty() => text.push_str(&format!("; identity known by {by}")),
            _ => {}
        }
        text.push('\n');
        if self.unsigned > 0 {
            text.push_str(&format!("  not proven: {}, which no checkpoint has signed\n", self.tail()));
        }
        for removed in &self.removed {
            text.push_str(&format!("  removed by the collector: {}\n", printable(removed)));
        }
        for dropped in &self.dropped {
            text.push_str(&format!("  dropped by the enclave: {dropped}\n"));
        }
        if self.more_dropped > 0 {
            text.push_str(&format!("  dropped by the enclave: {} more times\n", self.more_dropped));
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

/// Records by their numbers, in words.
pub(super) fn records(from: u64, to: u64) -> String {
    if from == to { format!("record {from}") } else { format!("records {from} to {to}") }
}
