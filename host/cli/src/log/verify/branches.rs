//! The records of one start. Where there are several records of one number, each is followed as a branch of its own until
//! a checkpoint tells which of them the enclave wrote.

use formats::log::{Head, Record};

use super::chain::{Anchors, Chain};
use super::known::{Lines, Parents};
use super::verdict::{SignedTo, Trust, Verdict, records};
use crate::log::files::DayEnd;

/// Most branches at once.
pub(super) const BRANCHES: usize = 8;

/// The branches of one start.
pub(super) struct Branches<'a> {
    /// At least one.
    branches: Vec<Branch<'a>>,
    /// The next branch's name.
    next: u64,
    lines: Lines,
    parents: Parents,
}

struct Branch<'a> {
    chain: Chain<'a>,
    id: u64,
    fork: Option<Fork>,
}

/// Where a branch began.
#[derive(Clone)]
struct Fork {
    /// Its first record.
    first: Head,
    /// The branches that it goes on from, each with the number at which the next of them began, or this one.
    from: Vec<(u64, u64)>,
    /// The last record before it in the files.
    after: u64,
    /// What was proven then.
    signed: Option<SignedTo>,
}

impl<'a> Branches<'a> {
    /// What was found before it began is in the verdict.
    pub(super) fn new(anchors: &'a Anchors<'a>, verdict: Verdict) -> Branches<'a> {
        let first = Branch { chain: Chain::new(anchors, verdict), id: 0, fork: None };
        Branches { branches: vec![first], next: 1, lines: Lines::default(), parents: Parents::default() }
    }

    /// Whether this is the next record.
    pub(super) fn go_on_with(&self, record: &Record<'_>) -> bool {
        self.next_of(record).is_some()
    }

    fn next_of(&self, record: &Record<'_>) -> Option<usize> {
        self.branches.iter().position(|branch| record.follows(&branch.chain.head()))
    }

    /// The longest branch.
    fn longest(&self) -> usize {
        let branches = (0..self.branches.len()).rev();
        branches.max_by_key(|at| self.branches[*at].chain.head().number).unwrap_or_default()
    }

    /// The last record's number.
    pub(super) fn last(&self) -> u64 {
        self.branches[self.longest()].chain.head().number
    }

    /// How much reason there is to take this start for the enclave's.
    pub(super) fn trust(&self) -> Trust {
        self.branches.iter().map(|branch| branch.chain.trust()).max().unwrap_or_default()
    }

    /// Something was found that is about all branches.
    pub(super) fn find(&mut self, finding: &str) {
        self.branches.iter_mut().for_each(|branch| branch.chain.find(finding));
    }

    /// Takes the next record, and its line.
    pub(super) fn take(&mut self, record: &Record<'_>, line: &[u8]) {
        if let Some(at) = self.next_of(record) {
            return self.add(at, record, line);
        }
        let (number, last) = (record.head.number, self.last());
        if self.lines.has(line) {
            self.find(&format!("record {number} comes again after record {last}: it was replayed"));
        } else if self.fork(record, line, last) {
            // It is followed as a branch.
        } else if number > last {
            self.add(self.longest(), record, line);
        } else {
            self.out_of_place(record, line, last);
        }
    }

    fn add(&mut self, at: usize, record: &Record<'_>, line: &[u8]) {
        let branch = &mut self.branches[at];
        let is_signed = branch.chain.take(record, line);
        let id = branch.id;
        self.lines.add(line);
        if is_signed {
            self.decide(at);
        }
        self.parents.add(record.head, id);
    }

    /// Follows another record than the one that stands after the same record. Gives whether it can.
    fn fork(&mut self, record: &Record<'_>, line: &[u8], last: u64) -> bool {
        let Some((parent, of)) = self.parents.of(record) else { return false };
        if self.parents.has(record.head) {
            // With the same hash, which is this one's by its content, and so not the other's.
            let number = record.head.number;
            self.find(&format!("a second record {number} comes after record {last}, and fits: the first was changed"));
            self.lines.add(line);
            self.branches.iter_mut().for_each(|branch| branch.chain.trust_hash(record.head));
            return true;
        }
        let Some(of) = self.branches.iter().find(|branch| branch.id == of) else { return false };
        if self.branches.len() == BRANCHES {
            return false;
        }
        let Some(chain) = of.chain.back_to(parent) else { return false };
        let mut from = of.fork.as_ref().map(|fork| fork.from.clone()).unwrap_or_default();
        from.push((of.id, record.head.number));
        let fork = Fork { first: record.head, from, after: last, signed: chain.signed() };
        self.branches.push(Branch { chain, id: self.next, fork: Some(fork) });
        self.next += 1;
        self.add(self.branches.len() - 1, record, line);
        true
    }

    /// A record that comes too late, or should not be here.
    fn out_of_place(&mut self, record: &Record<'_>, line: &[u8], last: u64) {
        let number = record.head.number;
        let longest = self.longest();
        if self.branches[longest].chain.fill(number, number, last) {
            return self.lines.add(line);
        }
        let known = number.saturating_add(super::known::LINES as u64) > last;
        let how = if known { "inserted" } else { "replayed or inserted" };
        self.find(&format!("a second record {number} comes after record {last}: it was {how}"));
    }

    /// The enclave has signed this branch, so the others are not its own.
    fn decide(&mut self, at: usize) {
        let mut branches = std::mem::take(&mut self.branches);
        let mut signed = branches.swap_remove(at);
        let is_proven = signed.chain.is_known();
        // Another identity's word proves nothing unless that identity is known.
        let is_lost = |other: &Branch<'_>| is_proven || signed.chain.is_of_same_boot(&other.chain);
        let (lost, left): (Vec<_>, Vec<_>) = branches.into_iter().partition(is_lost);
        lost.iter().for_each(|lost| self.lose(&mut signed, lost, true));
        self.branches = left;
        if is_proven && self.branches.is_empty() {
            self.parents.clear();
            signed.chain.forget_earlier();
        }
        self.branches.insert(0, signed);
    }

    /// Names the records of a branch that are not in the one that is kept.
    fn lose(&self, kept: &mut Branch<'_>, lost: &Branch<'_>, is_decided: bool) {
        let of_kept = kept.fork.as_ref().and_then(|fork| fork.from.iter().find(|(id, _)| *id == lost.id));
        let (from, fork) = match (of_kept, &lost.fork, &kept.fork) {
            (Some((_, from)), _, Some(fork)) => (*from, fork.clone()),
            (_, Some(fork), _) => (fork.first.number, fork.clone()),
            // One of two branches began later.
            _ => return,
        };
        let to = lost.chain.head().number;
        if of_kept.is_none() && kept.chain.fill(from, to, fork.after) {
            return;
        }
        let hash = self.parents.hash(from, lost.id).map_or(String::new(), |hash| hash.to_string()[..16].to_owned());
        let names = records(from, to);
        let finding = match (is_decided, from == to) {
            (true, true) => format!("{names} with hash {hash}… was inserted: the enclave signed another {names}"),
            (true, false) => {
                format!("{names}, the first with hash {hash}…, were inserted: the enclave signed others")
            }
            (false, true) => format!("{names} is here twice, and no checkpoint tells yet which one was inserted"),
            (false, false) => format!("{names} are here twice, and no checkpoint tells yet which were inserted"),
        };
        kept.chain.take_over(&lost.chain, fork.signed, finding);
    }

    /// There are no more records.
    pub(super) fn end(mut self, days: &[DayEnd], now_ms: u64) -> Verdict {
        let branches = (0..self.branches.len()).rev();
        let at = branches.max_by_key(|at| self.branches[*at].chain.trust()).unwrap_or_default();
        let mut kept = self.branches.swap_remove(at);
        let branches = std::mem::take(&mut self.branches);
        let signed = kept.chain.signs_to();
        for lost in &branches {
            let first = lost.fork.as_ref().or(kept.fork.as_ref()).map_or(0, |fork| fork.first.number);
            self.lose(&mut kept, lost, signed >= first);
        }
        kept.chain.end(days, now_ms)
    }

    /// How many lines, records, branches and gaps it holds.
    #[cfg(test)]
    pub(super) fn holds(&self) -> [usize; 4] {
        let gaps = self.branches.iter().map(|branch| branch.chain.gaps()).max().unwrap_or_default();
        [self.lines.len(), self.parents.len(), self.branches.len(), gaps]
    }
}
