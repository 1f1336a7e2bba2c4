//! The log: lines wait in a bounded queue for one thread that writes them to standard error.
//!
//! Perhaps nobody reads standard error, and a full pipe blocks its writer. So no request waits for its log line: if the
//! queue is full, the line is dropped and counted, and the next line that gets through says how many were.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use event_loop::threads;

use crate::metrics::METRICS;

/// Most bytes of lines that wait.
const MOST: usize = 1 << 20;
/// How long the first line waits for others, which are then written at once: under load, waking a thread and a system
/// call for each line took a fifth of a small request's time.
const GATHERING: Duration = Duration::from_millis(5);
/// How long the end of the process waits for the remaining lines.
const AT_THE_END: Duration = Duration::from_secs(1);

/// The queue as a writer: each write is one line.
#[derive(Clone)]
pub struct Queue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    dropped: u64,
    /// Whether the thread is at work, and looks for new lines by itself.
    writing: bool,
    /// Whether somebody waits for the last line.
    finishing: bool,
}

impl Queue {
    /// Starts a thread that writes the queue's lines to `out`.
    ///
    /// # Errors
    /// The system has no threads left.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Queue> {
        let queue = Queue(Arc::default());
        let lines = queue.clone();
        threads::start("log", move || lines.write_to(out))?;
        Ok(queue)
    }

    /// Waits until all lines are written, at most a second.
    pub fn finish(&self) {
        let pending = |state: &mut State| !state.lines.is_empty() || state.writing;
        let mut state = self.state();
        state.finishing = true;
        drop(self.0.changed.wait_timeout_while(state, AT_THE_END, pending));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.state();
        if state.bytes + line.len() > MOST {
            state.dropped += 1;
            METRICS.log_lines_dropped.add(1);
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line.to_vec());
        // While it writes, the thread checks for new lines by itself; for earlier ones it has been woken.
        if !state.writing && state.lines.len() == 1 {
            drop(state);
            self.0.changed.notify_all();
        }
    }

    fn write_to(&self, mut out: impl Write) {
        loop {
            let waited = self.0.changed.wait_while(self.state(), |state| state.lines.is_empty());
            let mut state = waited.unwrap_or_else(PoisonError::into_inner);
            state.writing = true;
            if !state.finishing {
                drop(state);
                thread::sleep(GATHERING);
                state = self.state();
            }
            let mut lines = std::mem::take(&mut state.lines).into_iter().collect::<Vec<_>>().concat();
            let bytes = lines.len();
            match std::mem::take(&mut state.dropped) {
                0 => {}
                n => lines.extend_from_slice(format!("{n} lines of the log were dropped before this\n").as_bytes()),
            }
            drop(state);
            // There is nowhere to report an error.
            let _ = out.write_all(&lines);
            let mut state = self.state();
            state.bytes -= bytes;
            state.writing = false;
            if state.finishing {
                self.0.changed.notify_all();
            }
        }
    }
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Standard error that nobody reads before the test does.
    struct Pipe {
        written: Sender<Vec<u8>>,
        read: Receiver<()>,
    }

    impl Write for Pipe {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.read.recv();
            let _ = self.written.send(line.to_vec());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_that_nobody_reads_blocks_nobody_and_says_afterwards_what_was_lost() {
        let ((written, lines), (reader, read)) = (channel(), channel());
        let mut queue = Queue::start(Pipe { written, read }).unwrap();
        let line = [b'x'; 1024];
        let before = METRICS.log_lines_dropped.get();
        for _ in 0..3000 {
            queue.write_all(&line).unwrap();
        }
        let dropped = METRICS.log_lines_dropped.get() - before;
        assert!((3000 - 1026..3000).contains(&dropped), "{dropped}");
        drop(reader);
        queue.finish();
        // On a slow machine the first lines are gathered while more are dropped, so it is told in parts; and finish() does not
        // wait for the last.
        let (mut written, mut told) = (0, 0);
        while written + told < 3000 {
            let part =
                lines.recv_timeout(Duration::from_secs(60)).expect("more lines, or more of them told as dropped");
            let text = String::from_utf8(part).unwrap();
            written += text.bytes().filter(|b| *b == b'x').count() as u64 / 1024;
            let said = text.lines().filter_map(|line| line.strip_suffix(" lines of the log were dropped before this"));
            told += said.map(|line| line.trim_start_matches('x').parse::<u64>().unwrap()).sum::<u64>();
        }
        assert_eq!((written, told), (3000 - dropped, dropped));
    }
}
