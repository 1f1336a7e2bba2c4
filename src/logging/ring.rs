//! The last records, as lines, in a bounded memory.

use std::collections::VecDeque;

use formats::digest::Sha256;
use formats::log::{Head, MAX_LINE};

/// Most bytes of lines.
pub(super) const MOST: usize = 1 << 20;

/// The last records. The oldest ones go first.
#[derive(Default)]
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    /// Where each record's line ends, counted from the first record on, and its hash.
    records: VecDeque<(u64, Sha256)>,
    /// The last record that is gone, and how many bytes are.
    gone: Head,
    gone_bytes: u64,
    /// The records that begin a segment.
    keys: VecDeque<u64>,
    /// Whether a segment goes as a whole: what is left of it could not be opened.
    whole_segments: bool,
}

impl Ring {
    pub(super) fn new(whole_segments: bool) -> Ring {
        Ring { whole_segments, ..Ring::default() }
    }

    /// Adds the next record's line, which may begin a segment.
    pub(super) fn push(&mut self, line: &[u8], hash: Sha256, is_key: bool) {
        while self.bytes.len() + line.len() > MOST || self.is_cut() {
            let Some((end, hash)) = self.records.pop_front() else { break };
            self.gone = Head { number: self.gone.number + 1, hash };
            self.keys.pop_front_if(|key| *key <= self.gone.number);
            self.bytes.drain(..self.at(end));
            self.gone_bytes = end;
        }
        if is_key {
            self.keys.push_back(self.last() + 1);
        }
        self.bytes.extend(line);
        self.records.push_back((self.gone_bytes + self.bytes.len() as u64, hash));
    }

    /// Whether the beginning of the first segment is gone, and there is another.
    fn is_cut(&self) -> bool {
        self.whole_segments && self.keys.front().is_some_and(|key| *key > self.gone.number + 1)
    }

    /// Where to begin so that record `number` can be opened: with its segment, or where the next one begins.
    pub(super) fn whole(&self, number: u64) -> u64 {
        self.keys.iter().rfind(|key| **key <= number).or(self.keys.front()).copied().unwrap_or(number)
    }

    /// Whether the next record, however long, finds room without the records after this one.
    pub(super) fn has_room_beside(&self, after: u64) -> bool {
        let end = self.index(after).and_then(|i| self.records.get(i)).map_or(0, |(end, _)| self.at(*end));
        self.bytes.len() - end + MAX_LINE <= MOST
    }

    /// The last record that is gone; the first one that is there comes after it.
    pub(super) fn gone(&self) -> Head {
        self.gone
    }

    /// The last record.
    pub(super) fn last(&self) -> u64 {
        self.gone.number + self.records.len() as u64
    }

    /// The hash of a record that is there.
    pub(super) fn hash(&self, number: u64) -> Option<Sha256> {
        self.index(number).and_then(|i| self.records.get(i)).map(|(_, hash)| *hash)
    }

    /// Appends lines to `out`, from record `number` on: at least one if there is one, and no more after `enough` bytes.
    /// Returns the number of the next one.
    pub(super) fn copy(&self, number: u64, enough: usize, out: &mut Vec<u8>) -> u64 {
        let Some(first) = self.index(number) else { return number };
        let start = first.checked_sub(1).map_or(0, |before| self.at(self.records[before].0));
        let more = self.records.range(first..).take_while(|(end, _)| self.at(*end) - start < enough).count();
        let last = (first + more).min(self.records.len().saturating_sub(1));
        let Some((end, _)) = self.records.get(last).filter(|_| first < self.records.len()) else { return number };
        let (one, two) = self.bytes.as_slices();
        let (start, end) = (start, self.at(*end));
        out.extend_from_slice(&one[start.min(one.len())..end.min(one.len())]);
        out.extend_from_slice(&two[start.saturating_sub(one.len())..end.saturating_sub(one.len())]);
        number + (last - first) as u64 + 1
    }

    fn index(&self, number: u64) -> Option<usize> {
        number.checked_sub(self.gone.number + 1).and_then(|i| usize::try_from(i).ok())
    }

    /// A place in `bytes`.
    fn at(&self, place: u64) -> usize {
        usize::try_from(place - self.gone_bytes).expect("it is within MOST")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: u64) -> Vec<u8> {
        format!("{n} {}\n", "x".repeat(usize::try_from(n * 7919 % 3000).unwrap())).into_bytes()
    }

    #[test]
    fn a_segment_goes_as_a_whole_and_a_look_begins_with_one() {
        let (mut whole, mut cut) = (Ring::new(true), Ring::new(false));
        for n in 1..5000 {
            for ring in [&mut whole, &mut cut] {
                ring.push(&line(n), formats::digest::sha256(b""), n % 64 == 1);
                assert!(ring.bytes.len() <= MOST && ring.last() == n);
            }
            assert_eq!(whole.gone().number % 64, 0, "the first record begins a segment");
        }
        let gone = cut.gone().number;
        assert!(gone % 64 > 0 && whole.gone().number == gone.next_multiple_of(64));
        for ring in [&whole, &cut] {
            assert_eq!(ring.whole(4993 - 1), 4993 - 64);
            assert_eq!(ring.whole(ring.gone().number + 1), gone.next_multiple_of(64) + 1);
        }
        assert_eq!(Ring::default().whole(7), 7);
    }

    #[test]
    fn there_is_room_as_long_as_what_is_to_stay_leaves_some() {
        let mut ring = Ring::default();
        let hash = formats::digest::sha256(b"");
        let long = vec![b'x'; MAX_LINE];
        let room = (1..=100)
            .take_while(|_| {
                ring.has_room_beside(0) && {
                    ring.push(&long, hash, false);
                    true
                }
            })
            .count();
        assert_eq!((room, ring.gone().number), (MOST / MAX_LINE, 0));
        assert!(!ring.has_room_beside(0) && ring.has_room_beside(1));
        ring.push(&long, hash, false);
        assert_eq!(ring.gone().number, 1);
        assert!(!ring.has_room_beside(1) && ring.has_room_beside(2) && ring.has_room_beside(ring.last()));
    }

    #[test]
    fn the_last_records_are_there_in_order_whatever_has_gone() {
        let mut ring = Ring::default();
        let hash = |n: u64| formats::digest::sha256(&n.to_be_bytes());
        for n in 1..5000 {
            ring.push(&line(n), hash(n), false);
            assert!(ring.bytes.len() <= MOST && ring.last() == n);
        }
        let gone = ring.gone();
        assert!(gone.number > 1000 && gone.hash == hash(gone.number));
        assert_eq!((ring.hash(gone.number), ring.hash(gone.number + 1)), (None, Some(hash(gone.number + 1))));
        let (mut all, mut next, mut parts) = (Vec::new(), gone.number + 1, 0);
        while next < 5000 {
            next = ring.copy(next, 10_000, &mut all);
            parts += 1;
        }
        assert_eq!(all, (gone.number + 1..5000).flat_map(line).collect::<Vec<_>>());
        assert!(
            parts > 50
                && ring.copy(5000, 10_000, &mut all) == 5000
                && ring.copy(gone.number, 1, &mut all) == gone.number
        );
    }
}
