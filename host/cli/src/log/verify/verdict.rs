//! What was found in the records of one boot, and how it is told.

use std::collections::VecDeque;

use formats::attestation::BootNonce;
use formats::digest::Sha256;
use formats::log::{Boot, Checkpoint, Head};
use formats::signature::VerifyingKey;
use formats::time::Utc;
use serde_json::{Value, json};

use crate::terminal::printable;

/// Most findings that are listed of one boot.
const MOST: usize = 100;
/// Of so many records the hashes are kept, to tell a replayed record from one that was put in.
const RECENT: usize = 65_536;

/// What was found in the records of one boot.
pub(super) struct Verdict {
    pub(super) name: String,
    pub(super) nonce: Option<BootNonce>,
    pub(super) identity: Option<VerifyingKey>,
    /// By what the identity is known; empty if it is not.
    pub(super) by: &'static str,
    pub(super) records: u64,
    /// The last record.
    pub(super) head: Head,
    /// The last records' hashes, the last one at the end.
    recent: VecDeque<Head>,
    /// The record here that the running enclave signs.
    pub(super) live: Option<Sha256>,
    /// The last checkpoint that is good.
    pub(super) signed: Option<Checkpoint>,
    /// Records after the last checkpoint, which nothing proves yet.
    pub(super) unsigned: u64,
    /// What is not as the enclave wrote it.
    pub(super) findings: Vec<String>,
    /// What the enclave itself says it dropped.
    pub(super) dropped: Vec<String>,
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

    pub(super) fn find(&mut self, finding: String) {
        if self.lists_another() {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }

    /// Whether the next finding is listed, not only counted.
    pub(super) fn lists_another(&self) -> bool {
        self.findings.len() < MOST
    }

    /// Whether this is the boot.
    pub(super) fn is_of(&self, boot: &Boot) -> bool {
        (self.nonce, self.identity) == (Some(boot.boot_nonce), Some(boot.identity))
    }

    pub(super) fn remember(&mut self, head: Head) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(head);
    }

    /// Whether this is one of the last records.
    pub(super) fn has_had(&self, head: Head) -> bool {
        self.recent.contains(&head)
    }

    /// Whether one of the last records has this number.
    pub(super) fn has_had_number(&self, number: u64) -> bool {
        self.recent.iter().any(|head| head.number == number)
    }

    pub(super) fn signed_to(&self) -> u64 {
        self.signed.as_ref().map_or(0, |signed| signed.head.number)
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
            Some(_) => self.signed = Some(live.clone()),
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
            "signed_at_ms": self.signed.as_ref().map(|signed| signed.time_ms),
            "dropped": self.dropped,
            "removed": self.removed,
            "findings": self.findings,
            "more_findings": self.more,
        })
    }

    pub(super) fn to_text(&self) -> String {
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

/// Records by their numbers, in words.
pub(super) fn records(from: u64, to: u64) -> String {
    if from == to { format!("record {from}") } else { format!("records {from} to {to}") }
}
