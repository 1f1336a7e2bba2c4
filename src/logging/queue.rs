//! Records that wait for the log's thread.

use std::collections::VecDeque;

use formats::log::{Dropped, Kind};

use crate::metrics::METRICS;

/// Most bytes that wait.
const MOST: usize = 1 << 20;
/// Longest body of a record, in bytes: sealed, and with what stands before it, its line has at most `MAX_LINE`.
const LONGEST: usize = 45 << 10;
/// Most records of a segment: so many at most have to be read to open the next one. One that is longer than a share counts
/// for more, so that the ring has several segments.
const SEGMENT_RECORDS: usize = 64;
const SHARE: usize = 4 << 10;

/// A record that waits. It has its number already: the one after that of the entry before it.
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) body: Vec<u8>,
}

/// Records that wait. What finds no room is dropped and counted, and the next record says how many were.
#[derive(Default)]
pub(super) struct Queue {
    entries: VecDeque<Entry>,
    bytes: usize,
    dropped: u64,
    /// The last number that was given out.
    last: u64,
    /// How many more records the segment may have, in a sealed log.
    left: Option<usize>,
    /// Whether the thread is at work, and looks for new entries by itself.
    pub(super) awake: bool,
    /// Whether somebody waits for everything to be written.
    pub(super) finishing: bool,
}

impl Queue {
    /// The queue of a sealed log, whose first segment has this key. The others' keys are records without a body.
    pub(super) fn of_segments(key: Vec<u8>) -> Queue {
        let mut queue = Queue { left: Some(SEGMENT_RECORDS), ..Queue::default() };
        queue.add(Kind::Key, key);
        queue
    }

    /// Adds a record and gives its number; `None` if it is dropped.
    pub(super) fn push(&mut self, kind: Kind, body: Vec<u8>) -> Option<u64> {
        if body.len() > LONGEST || self.bytes + body.len() > MOST {
            self.dropped += 1;
            METRICS.log_lines_dropped.add(1);
            return None;
        }
        if self.dropped > 0 {
            let dropped = Dropped::Lines { lines: std::mem::take(&mut self.dropped) };
            self.add_in_segment(Kind::Dropped, serde_json::to_vec(&dropped).expect("a number is JSON"));
        }
        Some(self.add_in_segment(kind, body))
    }

    fn add_in_segment(&mut self, kind: Kind, body: Vec<u8>) -> u64 {
        let cost = 1 + body.len() / SHARE;
        if self.left.is_some_and(|left| left < cost) {
            self.left = Some(SEGMENT_RECORDS);
            self.add(Kind::Key, Vec::new());
        }
        self.left = self.left.map(|left| left - cost);
        self.add(kind, body)
    }

    fn add(&mut self, kind: Kind, body: Vec<u8>) -> u64 {
        self.bytes += body.len();
        self.entries.push_back(Entry { kind, body });
        self.last += 1;
        self.last
    }

    /// Takes all that waits, and leaves this empty queue, whose memory is used again.
    pub(super) fn take(&mut self, empty: &mut VecDeque<Entry>) {
        self.bytes = 0;
        std::mem::swap(&mut self.entries, empty);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use formats::hpke::PrivateKey;
    use formats::log::{Head, MAX_LINE, Segment};

    use super::*;

    #[test]
    fn no_line_is_longer_than_a_collector_reads() {
        let (mut queue, mut entries) = (Queue::default(), VecDeque::new());
        assert_eq!(queue.push(Kind::Audit, vec![b'x'; LONGEST + 1]), None);
        assert_eq!(queue.push(Kind::Audit, vec![b'x'; LONGEST]), Some(2));
        queue.take(&mut entries);
        let key = PrivateKey::new(Box::new([5; 32])).public();
        let (segment, _) = Segment::new(&[key], 1).unwrap();
        let (mut head, mut line) = (Head { number: u64::MAX - 2, ..Head::default() }, Vec::new());
        let sealed = segment.seal(u64::MAX - 1, Kind::Checkpoint, &entries[1].body);
        head.write(Kind::Sealed, sealed.as_bytes(), &mut line);
        assert!(line.len() <= MAX_LINE, "{}", line.len());
    }

    #[test]
    fn a_segment_has_few_records_and_fewer_if_they_are_long() {
        let (mut queue, mut entries) = (Queue::of_segments(b"first".to_vec()), VecDeque::new());
        (0..130).for_each(|_| _ = queue.push(Kind::Log, b"x".to_vec()));
        (0..10).for_each(|_| _ = queue.push(Kind::Log, vec![b'x'; LONGEST]));
        queue.take(&mut entries);
        let keys: Vec<_> = (1..).zip(&entries).filter(|(_, entry)| entry.kind == Kind::Key).map(|(n, _)| n).collect();
        assert_eq!(keys, [1, 66, 131, 139]);
        assert_eq!(queue.push(Kind::Log, Vec::new()), Some(entries.len() as u64 + 1));
    }

    #[test]
    fn what_finds_no_room_is_counted_in_the_next_record_that_does() {
        let mut queue = Queue::default();
        let push = |queue: &mut Queue| queue.push(Kind::Log, vec![b'x'; 1 << 10]);
        let numbers: Vec<_> = (0..3000).filter_map(|_| push(&mut queue)).collect();
        assert_eq!(numbers, (1..=1024).collect::<Vec<_>>());
        let mut entries = VecDeque::new();
        queue.take(&mut entries);
        assert_eq!(entries.len(), 1024);
        entries.clear();
        assert_eq!(push(&mut queue), Some(1026));
        queue.take(&mut entries);
        assert_eq!(entries.iter().map(|entry| entry.kind).collect::<Vec<_>>(), [Kind::Dropped, Kind::Log]);
        let told: Dropped = serde_json::from_slice(&entries[0].body).unwrap();
        assert_eq!(told, Dropped::Lines { lines: 3000 - 1024 });
        assert_eq!(push(&mut queue), Some(1027), "it is told once");
    }
}
