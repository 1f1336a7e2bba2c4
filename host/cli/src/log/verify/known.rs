//! The records of one start that are known again, within bounds that hold whatever the parent writes.

use std::collections::{HashMap, HashSet, VecDeque};

use formats::digest::{Sha256, sha256};
use formats::log::{Head, Record};

/// So many of the last lines are known again, to tell a replayed record from one that was inserted.
pub(super) const LINES: usize = 65_536;
/// After so many records since the last checkpoint, a second record of one number is no longer followed.
pub(super) const PARENTS: usize = 65_536;

/// The last lines, each by the first half of its hash.
#[derive(Default)]
pub(super) struct Lines {
    set: HashSet<[u8; 16]>,
    order: VecDeque<[u8; 16]>,
}

impl Lines {
    pub(super) fn add(&mut self, line: &[u8]) {
        let digest = Lines::digest(line);
        if !self.set.insert(digest) {
            return;
        }
        self.order.push_back(digest);
        if self.order.len() > LINES
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }

    pub(super) fn has(&self, line: &[u8]) -> bool {
        self.set.contains(&Lines::digest(line))
    }

    fn digest(line: &[u8]) -> [u8; 16] {
        *sha256(line).as_bytes().first_chunk().expect("SHA-256 has 32 bytes")
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}

/// The records since the last checkpoint, each of which another record may follow than the one that did.
#[derive(Default)]
pub(super) struct Parents(HashMap<u64, Vec<Parent>>);

#[derive(Clone, Copy)]
struct Parent {
    hash: Sha256,
    /// The branch that it is of.
    branch: u64,
}

impl Parents {
    /// A branch goes on with this record.
    pub(super) fn add(&mut self, Head { number, hash }: Head, branch: u64) {
        if self.0.len() < PARENTS {
            self.0.entry(number).or_default().push(Parent { hash, branch });
        }
    }

    /// The record that this one follows, and the branch that it is of.
    pub(super) fn of(&self, record: &Record<'_>) -> Option<(Head, u64)> {
        let number = record.head.number - 1;
        let parent = self.0.get(&number)?.iter().find(|parent| record.is_after(parent.hash))?;
        Some((Head { number, hash: parent.hash }, parent.branch))
    }

    /// Whether a record says this number and this hash.
    pub(super) fn has(&self, head: Head) -> bool {
        self.0.get(&head.number).is_some_and(|parents| parents.iter().any(|parent| parent.hash == head.hash))
    }

    /// The hash of a branch's record.
    pub(super) fn hash(&self, number: u64, branch: u64) -> Option<Sha256> {
        Some(self.0.get(&number)?.iter().find(|parent| parent.branch == branch)?.hash)
    }

    /// What came so far is decided.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}
