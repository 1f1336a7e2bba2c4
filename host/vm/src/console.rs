//! What a machine says on its serial line, line by line, each with the moment when it was heard.

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
    /// By this machine's clock, when its last byte came.
    pub at: Instant,
    pub text: String,
}

impl Line {
    /// The guest kernel's own time of a line that it printed (`[    1.252042] …`), since its start.
    pub fn kernel_time(&self) -> Option<Duration> {
        let (stamp, _) = self.text.strip_prefix('[')?.split_once(']')?;
        stamp.trim().parse().ok().map(Duration::from_secs_f64)
    }
}

/// A machine's console: everything it said so far. Clones are the same console.
#[derive(Clone)]
pub struct Console {
    name: &'static str,
    heard: Arc<(Mutex<Heard>, Condvar)>,
}

#[derive(Default)]
struct Heard {
    lines: Vec<Line>,
    /// The machine is gone; nothing more will come.
    ended: bool,
}

impl Heard {
    fn last(&self) -> &str {
        self.lines.last().map_or("none", |line| &line.text)
    }
}

impl Console {
    /// Listens to `source` in a thread of its own until it ends. The lines go to `file` too, with the seconds since
    /// now, and to standard error where `shown`.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn listen(name: &'static str, source: impl Read + Send + 'static, file: &Path, shown: bool) -> Result<Console> {
        let mut file = File::create(file).with_context(|| file.display().to_string())?;
        let console = Console { name, heard: Arc::default() };
        let heard = console.heard.clone();
        let start = Instant::now();
        thread::Builder::new().name(name.into()).spawn(move || {
            let mut source = BufReader::new(source);
            let mut bytes = Vec::new();
            while source.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
                let line = Line { at: Instant::now(), text: text(&bytes) };
                bytes.clear();
                // A full disk is no reason to stop listening.
                let _ = writeln!(file, "{:9.3} {}", line.at.duration_since(start).as_secs_f64(), line.text);
                if shown {
                    eprintln!("{name}| {}", line.text);
                }
                lock(&heard.0).lines.push(line);
                heard.1.notify_all();
            }
            lock(&heard.0).ended = true;
            heard.1.notify_all();
        })?;
        Ok(console)
    }

    /// Whose it is.
    pub fn name(&self) -> &str {
        self.name
    }

    /// Everything so far.
    pub fn lines(&self) -> Vec<Line> {
        lock(&self.heard.0).lines.clone()
    }

    /// How many lines there are; what is said from now on begins there (see [`Console::wait_since`]).
    pub fn length(&self) -> usize {
        lock(&self.heard.0).lines.len()
    }

    /// The first line so far that holds `text`.
    pub fn find(&self, text: &str) -> Option<Line> {
        lock(&self.heard.0).lines.iter().find(|line| line.text.contains(text)).cloned()
    }

    /// The first line that holds `text`, said already or within `limit`.
    ///
    /// # Errors
    /// It did not come, or the machine ended before.
    pub fn wait_for(&self, text: &str, limit: Duration) -> Result<Line> {
        self.wait_since(0, text, limit)
    }

    /// The same among the lines from number `from` on.
    ///
    /// # Errors
    /// It did not come, or the machine ended before.
    pub fn wait_since(&self, from: usize, text: &str, limit: Duration) -> Result<Line> {
        let end = Instant::now() + limit;
        let mut next = from;
        let mut heard = lock(&self.heard.0);
        loop {
            if let Some(line) = heard.lines[next..].iter().find(|line| line.text.contains(text)) {
                return Ok(line.clone());
            }
            next = heard.lines.len();
            if heard.ended {
                bail!("the {} ended without {text:?} on its console; its last line: {}", self.name, heard.last());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (name, limit, last) = (self.name, limit.as_secs(), heard.last());
                bail!("no {text:?} on the {name}'s console within {limit} s; its last line: {last}");
            }
            heard = self.heard.1.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the machine has said its last.
    ///
    /// # Errors
    /// It still runs after `limit`.
    pub fn wait_for_end(&self, limit: Duration) -> Result<()> {
        let heard = lock(&self.heard.0);
        let wait = self.heard.1.wait_timeout_while(heard, limit, |heard| !heard.ended);
        if !wait.unwrap_or_else(PoisonError::into_inner).0.ended {
            bail!("the {} still runs after {} s", self.name, limit.as_secs());
        }
        Ok(())
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line as text, without what moves a terminal's cursor: SeaBIOS clears the screen, a serial line ends with \r\n.
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

    const SOON: Duration = Duration::from_secs(30);

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
    fn a_line_that_does_not_come_is_named_after_its_time() {
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
