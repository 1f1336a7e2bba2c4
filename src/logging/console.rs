//! Standard error, which is the enclave's console. Perhaps nobody reads it: then it takes nothing, and nobody waits for it.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use formats::log::{Kind, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::lock;
use super::ring::Ring;
use crate::metrics::METRICS;

/// Bytes that a pipe which is ready for writing takes without waiting (PIPE_BUF, pipe(7)).
const AT_ONCE: usize = 4096;
/// Bytes of lines that are taken from the ring at once.
const ENOUGH: usize = 64 << 10;

/// Writes records to a stream that may not take them.
pub(super) struct Console<W> {
    out: W,
    /// Whether records are shown as they are, and not only the daemon's own lines.
    whole: bool,
    /// The next record.
    next: u64,
    /// What is being written, and how much of it was.
    pending: Vec<u8>,
    written: usize,
    /// Lines of the ring, in memory that is used again.
    lines: Vec<u8>,
    /// Whether writing has failed, so that nothing more is tried.
    broken: bool,
}

impl<W: Write + AsFd> Console<W> {
    pub(super) fn new(out: W, whole: bool) -> Console<W> {
        Console { out, whole, next: 1, pending: Vec::new(), written: 0, lines: Vec::new(), broken: false }
    }

    /// Writes what the stream takes now. `missed` counts records that went before they could be written.
    pub(super) fn write(&mut self, ring: &Mutex<Ring>, missed: bool) {
        while !self.broken && self.fill(ring, missed) {
            let mut ready = [PollFd::new(self.out.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut ready, PollTimeout::ZERO).unwrap_or(0) == 0 {
                return;
            }
            let end = self.pending.len().min(self.written + AT_ONCE);
            match self.out.write(&self.pending[self.written..end]) {
                Ok(n) if n > 0 => self.written += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                // There is nowhere to report it.
                _ => self.broken = true,
            }
        }
    }

    /// Whether there is something to be written.
    pub(super) fn is_behind(&self, ring: &Ring) -> bool {
        !self.broken && (self.written < self.pending.len() || self.next <= ring.last())
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.out.as_fd()
    }

    fn fill(&mut self, ring: &Mutex<Ring>, missed: bool) -> bool {
        if self.written < self.pending.len() {
            return true;
        }
        self.pending.clear();
        self.written = 0;
        let ring = lock(ring);
        let gone = ring.gone().number;
        if self.next <= gone {
            let lost = gone + 1 - self.next;
            if missed {
                METRICS.log_lines_dropped.add(lost);
            }
            self.pending.extend_from_slice(format!("{lost} lines of the log were dropped before this\n").as_bytes());
            self.next = gone + 1;
        }
        while self.pending.is_empty() && self.next <= ring.last() {
            self.lines.clear();
            self.next = ring.copy(self.next, ENOUGH, &mut self.lines);
            for line in self.lines.split_inclusive(|&b| b == b'\n') {
                match Record::parse(line.trim_ascii_end()) {
                    Some(record) if record.kind == Kind::Log => {
                        self.pending.extend_from_slice(record.body.as_bytes());
                        self.pending.push(b'\n');
                    }
                    _ if self.whole => self.pending.extend_from_slice(line),
                    _ => {}
                }
            }
        }
        !self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeWriter, Read, pipe};
    use std::sync::Arc;

    use formats::log::Head;

    use super::*;

    /// A pipe that is written to only while the ring is free for others.
    struct Unlocked(PipeWriter, Arc<Mutex<Ring>>);

    impl Write for Unlocked {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            assert!(self.1.try_lock().is_ok(), "requests would wait for the console");
            self.0.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            self.0.flush()
        }
    }

    impl AsFd for Unlocked {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    #[test]
    fn a_console_that_nobody_reads_holds_up_nobody_and_says_afterwards_what_it_missed() {
        let (mut reader, writer) = pipe().unwrap();
        let ring = Arc::new(Mutex::new(Ring::default()));
        let (mut console, mut head) = (Console::new(Unlocked(writer, ring.clone()), false), Head::default());
        let mut line = Vec::new();
        for n in 0..5000 {
            line.clear();
            head.write(Kind::Log, format!("{n} {}", "x".repeat(990)).as_bytes(), &mut line);
            lock(&ring).push(&line, head.hash, false);
            // It returns, though nobody reads.
            console.write(&ring, true);
        }
        assert!(console.is_behind(&lock(&ring)));
        let (read, mut all) = (
            std::thread::spawn(move || {
                let mut all = String::new();
                reader.read_to_string(&mut all).map(|_| all)
            }),
            String::new(),
        );
        while console.is_behind(&lock(&ring)) {
            console.write(&ring, true);
            std::thread::yield_now();
        }
        drop(console);
        all.push_str(&read.join().unwrap().unwrap());
        let lines: Vec<&str> = all.lines().collect();
        let told: usize = lines
            .iter()
            .filter_map(|l| l.strip_suffix(" lines of the log were dropped before this"))
            .map(|n| n.parse::<usize>().unwrap())
            .sum();
        let numbers: Vec<usize> = lines.iter().filter_map(|line| line.split_once(" x")?.0.parse().ok()).collect();
        assert!(numbers.is_sorted() && numbers.first() == Some(&0) && numbers.last() == Some(&4999));
        assert_eq!(numbers.len() + told, 5000);
        assert!(told > 1000, "{told}");
    }

    #[test]
    fn only_the_daemons_own_lines_are_shown_unless_records_are() {
        for whole in [false, true] {
            let (mut reader, writer) = pipe().unwrap();
            let (mut console, ring, mut head) =
                (Console::new(writer, whole), Mutex::new(Ring::default()), Head::default());
            let mut all = Vec::new();
            for (kind, body) in [(Kind::Log, "a line"), (Kind::Audit, "{}"), (Kind::Sealed, "AAAA")] {
                let mut line = Vec::new();
                head.write(kind, body.as_bytes(), &mut line);
                lock(&ring).push(&line, head.hash, false);
                all.push(String::from_utf8(line).unwrap());
            }
            console.write(&ring, true);
            drop(console);
            let mut shown = String::new();
            reader.read_to_string(&mut shown).unwrap();
            let expected = if whole { format!("a line\n{}{}", all[1], all[2]) } else { "a line\n".to_owned() };
            assert_eq!(shown, expected);
        }
    }
}
