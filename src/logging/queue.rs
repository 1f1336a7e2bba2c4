//! Records that wait for the log's thread.

use std::collections::VecDeque;

use formats::log::{Dropped, Kind};

use crate::metrics::METRICS;

/// Most bytes that wait.
const MOST: usize = 1 << 20;
/// Longest body of a record, in bytes: sealed, and with what stands before it, its line has at most `MAX_LINE`.
const LONGEST: usize = 45 << 10;

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
    /// Whether the thread is at work, and looks for new entries by itself.
    pub(super) awake: bool,
    /// Whether somebody waits for everything to be written.
    pub(super) finishing: bool,
}

impl Queue {
    /// Adds a record and gives its number; `None` if it is dropped.
    pub(super) fn push(&mut self, kind: Kind, body: Vec<u8>) -> Option<u64> {
        if body.len() > LONGEST || self.bytes + body.len() > MOST {
            self.dropped += 1;
            METRICS.log_lines_dropped.add(1);
            return None;
        }
        if self.dropped > 0 {
            let dropped = Dropped::Lines { lines: std::mem::take(&mut self.dropped) };
            self.add(Kind::Dropped, serde_json::to_vec(&dropped).expect("a number is JSON"));
        }
        Some(self.add(kind, body))
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
