//! Which records of a boot belong together.
//!
//! The collector cannot tell a genuine record from one that the parent made up: it knows the hash that a record says, not
//! the enclave's key. So whatever comes is kept, and each chain of records that fit each other is followed on its own. Only
//! a chain that is there from record 1 on, without a gap, is acknowledged: by the zero hash at its beginning each of its
//! hashes stands for exactly these records.

use std::collections::{HashMap, VecDeque};

use formats::digest::sha256;
use formats::log::{Head, Record};

/// Most chains that are followed.
const CHAINS: usize = 8;
/// So many of the last lines are known again. An enclave has 1 MiB of lines of at least 80 bytes to send again.
const KNOWN: usize = 16_384;

/// Records that fit each other.
struct Chain {
    id: u64,
    /// The last record.
    head: Head,
    /// Whether it is there from record 1 on.
    whole: bool,
}

/// A line that was taken.
struct Line {
    digest: [u8; 32],
    head: Head,
    /// Whether it is in a chain that is whole.
    whole: bool,
}

/// The chains of a boot, the one that went on last at the end.
#[derive(Default)]
pub(super) struct Chains {
    chains: Vec<Chain>,
    /// The chain of each of the last lines, by the line's hash, and these lines in their order.
    known: HashMap<[u8; 32], u64>,
    order: VecDeque<Line>,
    next: u64,
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Took {
    /// The next record of a chain.
    Next,
    /// It was there before.
    Known,
    /// So many records before it are missing.
    After(u64),
    /// The record with its number is another one, or the one before it is not the one that it follows.
    Other,
    /// It came a second time.
    Again,
}

impl Took {
    /// Whether the line is new, and has to be written.
    pub(super) fn is_new(self) -> bool {
        self != Took::Known
    }
}

impl Chains {
    /// Takes a line. `again` says that its number came before on the same stream, on which an enclave sends a record once.
    /// Also gives the end of the chain that it is in, if that may be acknowledged.
    pub(super) fn take(&mut self, line: &[u8], record: &Record<'_>, again: bool) -> (Took, Option<Head>) {
        let digest = *sha256(line).as_bytes();
        let known = self.known.get(&digest).copied();
        if again && known.is_some() {
            return (Took::Again, None);
        }
        // A chain that is whole goes on with a known line too, one that was taken after a gap that is filled by now.
        let goes_on = |chain: &Chain| record.follows(&chain.head) && (chain.whole || known.is_none());
        let whole = self.chains.iter().position(|chain| chain.whole && goes_on(chain));
        if let Some(at) = whole.or_else(|| self.chains.iter().position(goes_on)) {
            let mut chain = self.chains.remove(at);
            chain.head = record.head;
            self.remember(digest, &chain);
            let end = chain.whole.then_some(chain.head);
            self.chains.push(chain);
            return (known.map_or(Took::Next, |_| Took::Known), end);
        }
        if let Some(id) = known {
            let chain = self.chains.iter().find(|chain| chain.id == id && chain.whole);
            return (Took::Known, chain.map(|chain| chain.head));
        }
        let number = record.head.number;
        let before = self.chains.iter().map(|chain| chain.head.number).filter(|last| *last < number).max();
        let before = before.unwrap_or(0);
        // Beside another that goes on from the same record, and is perhaps made up.
        let whole = record.follows(&Head::default()) || self.branches(record);
        let took = match number - before - 1 {
            0 if whole && self.chains.is_empty() => Took::Next,
            0 => Took::Other,
            _ if self.chains.iter().any(|chain| chain.head.number >= number) => Took::Other,
            missing => Took::After(missing),
        };
        self.add(record.head, whole);
        if let Some(chain) = self.chains.pop() {
            self.remember(digest, &chain);
            self.chains.push(chain);
        }
        (took, whole.then_some(record.head))
    }

    /// Follows the chain that ends here.
    fn add(&mut self, head: Head, whole: bool) {
        if self.chains.len() == CHAINS {
            let least = self.chains.iter().position(|chain| !chain.whole).unwrap_or(0);
            self.chains.remove(least);
        }
        self.next += 1;
        self.chains.push(Chain { id: self.next, head, whole });
    }

    /// Whether a record goes on from one of the last ones of a chain that is whole.
    fn branches(&self, record: &Record<'_>) -> bool {
        self.order.iter().any(|line| line.whole && record.follows(&line.head))
    }

    fn remember(&mut self, digest: [u8; 32], chain: &Chain) {
        let &Chain { id, head, whole } = chain;
        if self.known.insert(digest, id).is_none() {
            self.order.push_back(Line { digest, head, whole });
        } else if let Some(line) = self.order.iter_mut().rev().find(|line| line.digest == digest) {
            line.whole |= whole;
        }
        if self.order.len() > KNOWN
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest.digest);
        }
    }

    /// The ends of the chains that are there from record 1 on.
    pub(super) fn ends(&self) -> impl Iterator<Item = Head> {
        self.chains.iter().filter(|chain| chain.whole).map(|chain| chain.head)
    }

    /// Has chains end here that are there from record 1 on, though their records may be gone by now.
    pub(super) fn set_ends(&mut self, ends: &[Head]) {
        let missing: Vec<Head> = ends.iter().copied().filter(|end| self.ends().all(|known| known != *end)).collect();
        for end in missing {
            self.add(end, true);
        }
    }

    /// Whether there are others too.
    pub(super) fn has_others(&self) -> bool {
        self.chains.iter().any(|chain| !chain.whole)
    }
}
