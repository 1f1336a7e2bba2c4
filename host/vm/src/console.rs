//! What a machine writes to its serial line, line by line, each with the time when it was read.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A line without its end.
#[derive(Clone, Debug)]
pub struct Line {
    /// When its last byte was read, by this machine's clock.
    pub at: Instant,
    /// Its text, without control characters.
    pub text: String,
}

impl Line {
    /// The time since the guest kernel's start, if it is a line of that kernel (`[    1.252042] …`).
    pub fn kernel_time(&self) -> Option<Duration> {
        let (stamp, _) = self.text.strip_prefix('[')?.split_once(']')?;
        stamp.trim().parse().ok().map(Duration::from_secs_f64)
    }
}

/// A machine's console: all its lines so far. Clones are the same console.
#[derive(Clone)]
pub struct Console {
    name: &'static str,
    record: Arc<(Mutex<Record>, Condvar)>,
}

#[derive(Default)]
struct Record {
    lines: Vec<Line>,
    /// The machine has ended; no more lines will come.
    ended: bool,
}

impl Record {
    fn last(&self) -> &str {
        self.lines.last().map_or("none", |line| &line.text)
    }
}

impl Console {
    /// Reads `source` in a thread of its own until it ends. The lines also go to `file`, each with the seconds since
    /// now, and to standard error if `shown`.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn listen(name: &'static str, source: impl Read + Send + 'static, file: &Path, shown: bool) -> Result<Console> {
        let mut file = File::create(file).with_context(|| file.display().to_string())?;
        let console = Console { name, record: Arc::default() };
        let record = console.record.clone();
        let start = Instant::now();
        thread::Builder::new().name(name.into()).spawn(move || {
            let mut source = BufReader::new(source);
            let mut bytes = Vec::new();
            while source.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
                let line = Line { at: Instant::now(), text: text(&bytes) };
                bytes.clear();
                // A full disk is not a reason to stop reading.
                let _ = writeln!(file, "{:9.3} {}", line.at.duration_since(start).as_secs_f64(), line.text);
                if shown {
                    eprintln!("{name}| {}", line.text);
                }
                lock(&record.0).lines.push(line);
                record.1.notify_all();
            }
            lock(&record.0).ended = true;
            record.1.notify_all();
        })?;
        Ok(console)
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        self.name
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<Line> {
        lock(&self.record.0).lines.clone()
    }

    /// The number of lines so far, which is where later ones begin (see [`Console::wait_since`]).
    pub fn length(&self) -> usize {
        lock(&self.record.0).lines.len()
    }

    /// The first line so far that contains `text`.
    pub fn find(&self, text: &str) -> Option<Line> {
        lock(&self.record.0).lines.iter().find(|line| line.text.contains(text)).cloned()
    }

    /// The first line that contains `text`, if it is there already or comes within `limit`.
    ///
    /// # Errors
    /// No such line came, or the machine ended before.
    pub fn wait_for(&self, text: &str, limit: Duration) -> Result<Line> {
        self.wait_since(0, text, limit)
    }

    /// The same, among the lines from number `from` on.
    ///
    /// # Errors
    /// No such line came, or the machine ended before.
    pub fn wait_since(&self, from: usize, text: &str, limit: Duration) -> Result<Line> {
        let end = Instant::now() + limit;
        let mut next = from;
        let mut record = lock(&self.record.0);
        loop {
            if let Some(line) = record.lines[next..].iter().find(|line| line.text.contains(text)) {
                return Ok(line.clone());
            }
            next = record.lines.len();
            if record.ended {
                bail!("the {} ended without {text:?} on its console; its last line: {}", self.name, record.last());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (name, limit, last) = (self.name, limit.as_secs(), record.last());
                bail!("no {text:?} on the {name}'s console within {limit} s; its last line: {last}");
            }
            record = self.record.1.wait_timeout(record, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the machine has ended.
    ///
    /// # Errors
    /// It still runs after `limit`.
    pub fn wait_for_end(&self, limit: Duration) -> Result<()> {
        let record = lock(&self.record.0);
        let wait = self.record.1.wait_timeout_while(record, limit, |record| !record.ended);
        if !wait.unwrap_or_else(PoisonError::into_inner).0.ended {
            bail!("the {} still runs after {} s", self.name, limit.as_secs());
        }
        Ok(())
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line as text, without what moves a terminal's cursor: SeaBIOS clears the screen, and lines end with \r\n.
fn text(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut chars = String::from_utf8_lossy(bytes).into_owned().chars().collect::<Vec<_>>().into_iter().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' if chars.peek() == Some(&'[') => {
                chars.next();
                // A control sequence ends with its first letter (ECMA-48, 5.4).
                for c in chars.by_ref() {
                    if ('@'..='~').contains(&c) {
                        break;
                    }
                }
            }
            '\x1b' => drop(chars.next()),
            c if c.is_control() && c != '\t' => {}
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::pipe;

    fn console() -> (Console, impl Write, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let (near, far) = pipe().unwrap();
        (Console::listen("test", near, &folder.path().join("log"), false).unwrap(), far, folder)
    }

    const SOON: Duration = Duration::from_secs(120);

    #[test]
    fn a_line_is_found_whether_it_was_said_before_or_comes_later() {
        let (console, mut far, _folder) = console();
        far.write_all(b"one\r\ntwo\r\n").unwrap();
        assert_eq!(console.wait_for("wo", SOON).unwrap().text, "two");
        assert_eq!(console.wait_for("on", SOON).unwrap().text, "one");
        let later = thread::spawn({
            let console = console.clone();
            move || console.wait_since(2, "o", SOON).unwrap().text
        });
        far.write_all(b"zero").unwrap();
        drop(far);
        assert_eq!(later.join().unwrap(), "zero");
    }

    #[test]
    fn a_machine_that_ends_is_not_waited_for() {
        let (console, far, _folder) = console();
        drop(far);
        let error = console.wait_for("never", SOON).unwrap_err().to_string();
        assert!(error.contains("ended without"), "{error}");
        console.wait_for_end(SOON).unwrap();
    }

    #[test]
    fn a_line_that_does_not_come_in_time_is_named() {
        let (console, _far, _folder) = console();
        let error = console.wait_for("never", Duration::from_millis(20)).unwrap_err().to_string();
        assert!(error.contains("\"never\""), "{error}");
        assert!(console.wait_for_end(Duration::from_millis(20)).is_err());
    }

    #[test]
    fn what_moves_the_cursor_is_left_out() {
        assert_eq!(text(b"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS\tx\r\n"), "SeaBIOS\tx");
    }

    #[test]
    fn the_kernels_own_time_is_read_from_its_line() {
        let line = |text: &str| Line { at: Instant::now(), text: text.into() };
        assert_eq!(line("[    1.250000] Run /init").kernel_time(), Some(Duration::from_millis(1250)));
        assert_eq!(line("[INIT] starts").kernel_time(), None);
    }
}
