//! The records of one boot, which may be of several chains: the enclave's own, and those that somebody put beside it.

use std::fmt::Arguments;

use formats::log::Record;

use super::chain::{Anchors, Chain};
use super::verdict::Verdict;
use crate::log::files::DayEnd;

/// Most chains of one boot that are followed.
const CHAINS: usize = 8;

/// Checks the lines of one boot, in their order.
pub(super) struct Checker<'a> {
    anchors: &'a Anchors<'a>,
    /// What the boot is called until a record says which it is.
    name: String,
    /// At least one.
    chains: Vec<Chain<'a>>,
    /// The chain that the last record is in.
    at: usize,
    /// Those of the first chain's findings that are about all of them.
    of_all: Vec<String>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(anchors: &'a Anchors<'a>, name: &str) -> Checker<'a> {
        let chains = vec![Chain::new(anchors, name)];
        Checker { anchors, name: name.to_owned(), chains, at: 0, of_all: Vec::new() }
    }

    /// Takes the next line, without its end. `place` is where it stands, for messages.
    pub(super) fn take(&mut self, line: &[u8], place: Arguments<'_>) {
        let Some(record) = Record::parse(line) else {
            return self.find(format!("{place} is not a record"));
        };
        let after = self.chains[self.at].verdict.head.number;
        if let Some(chain) = self.chains.iter().position(|chain| record.follows(&chain.verdict.head)) {
            self.at = chain;
        } else if record.head.number == 1 && after > 0 {
            self.find(format!("another chain begins after record {after}: of another start, replayed, or made up"));
            if self.chains.len() < CHAINS {
                self.chains.push(Chain::new(self.anchors, &self.name));
            }
            self.at = self.chains.len() - 1;
        }
        self.chains[self.at].take(&record, line);
    }

    fn find(&mut self, finding: String) {
        let first = &mut self.chains[0].verdict;
        if first.lists_another() {
            self.of_all.push(finding.clone());
        }
        first.find(finding);
    }

    /// There are no more lines. The verdict is on the chain of which the enclave signed most; what was found of another
    /// is not this one's fault. `days` is what the collector wrote down of the boot's days.
    pub(super) fn end(mut self, days: &[DayEnd], now_ms: u64) -> Verdict {
        let signed = |chain: &Chain<'_>| (!chain.verdict.by.is_empty(), chain.verdict.signed_to());
        let at = (0..self.chains.len()).rev().max_by_key(|at| signed(&self.chains[*at])).unwrap_or_default();
        let mut chain = self.chains.swap_remove(at);
        if at > 0 {
            chain.verdict.findings.splice(0..0, self.of_all);
        }
        chain.end(days, now_ms)
    }
}
