//! The log: records that wait for one thread, which numbers, chains and seals them, keeps the last ones in memory, and
//! writes them to standard error and to a collector.
//!
//! Perhaps nobody reads standard error, and a hostile parent carries the stream to the collector. So no request waits for
//! its log lines: what finds no room is dropped and counted, and the next record that gets through says how much was.
//!
//! ```text
//! queue     records that wait for the thread; requests meet only this one's lock
//! ring      the last records as lines
//! console   standard error
//! stream    TEEMARK_LOG_TO
//! ```

mod console;
mod queue;
mod ring;
mod stream;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ::ring::rand::{SecureRandom, SystemRandom};
use event_loop::threads;
use formats::address::Address;
use formats::attestation::BootNonce;
use formats::base64;
use formats::log::{Ack, Boot, Checkpoint, Head, Kind, Segment};
use formats::signature::VerifyingKey;
use formats::time::now_ms;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::net::link;
use crate::settings::{Audit, LogForm, LogSettings};
use console::Console;
use queue::{Entry, Queue};
use ring::Ring;
use stream::{Judge, Outgoing};

/// How long the first record waits for others, which are then written at once: under load, waking a thread and a system
/// call for each line took a fifth of a small request's time.
const GATHERING: Duration = Duration::from_millis(5);
/// How long the end of the process waits for the remaining records.
const AT_THE_END: Duration = Duration::from_secs(2);
/// How long a request waits for the acknowledgement of its record.
const ACK_LIMIT: Duration = Duration::from_secs(5);
/// Longest line of the daemon, in bytes.
const LONGEST: usize = 16 << 10;
/// How often a checkpoint is signed.
pub const CHECKPOINTS: Duration = Duration::from_secs(60);
/// What begins a line that stays in the clear: the checklist's, which tells nothing of a request.
const RUN_SH: &[u8] = b"[RUN_SH] ";

/// The name of the log's thread.
const THREAD: &str = "log";
/// Most bytes of the last records.
pub const MOST_KEPT: usize = ring::MOST;

static LOG: OnceLock<Log> = OnceLock::new();

/// The process's log. Without one, nothing is recorded.
pub fn log() -> Option<&'static Log> {
    LOG.get()
}

/// A running log.
#[derive(Clone)]
pub struct Log(Arc<Shared>);

struct Shared {
    settings: LogSettings,
    ack_limit: Duration,
    queue: Mutex<Queue>,
    /// Everything was written, while somebody waits for that.
    written: Condvar,
    ring: Mutex<Ring>,
    acked: Mutex<Acked>,
    acks: Condvar,
    /// Whether the stream to the collector is open.
    connected: AtomicBool,
    wake: UnixStream,
    /// The enclave's keys, once they are made.
    boot: OnceLock<Begun>,
}

/// Signs with the enclave's identity key.
pub type Sign = Box<dyn Fn(&[u8]) -> [u8; 64] + Send + Sync>;

/// Whose log it is.
pub struct Author {
    /// The boot.
    pub boot_nonce: BootNonce,
    /// The key that signs checkpoints.
    pub identity: VerifyingKey,
    /// The attestation document that shows that it is, if there is a module.
    pub document: Option<Vec<u8>>,
    /// Signs with it.
    pub sign: Sign,
}

/// The boot has a name.
struct Begun {
    boot_nonce: BootNonce,
    /// None of a daemon that ends before its keys are made.
    sign: Option<Sign>,
    /// The records that say which boot this is. They come again where others are missing: they may be among those.
    names: Vec<(Kind, Vec<u8>)>,
}

impl Begun {
    /// Signs the log up to this record.
    fn checkpoint(&self, head: Head) -> Option<Checkpoint> {
        Some(Checkpoint::new(self.boot_nonce, head, now_ms(), self.sign.as_ref()?))
    }
}

/// What collectors have acknowledged.
#[derive(Default)]
struct Acked {
    /// The last record.
    number: u64,
    /// Since when there is one that they have not, or since the last acknowledgement.
    since: Option<Instant>,
    /// How many requests wait for an acknowledgement.
    waiting: usize,
    /// Whether one has waited in vain since the last one came.
    in_vain: bool,
}

/// Whether a record was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledged {
    /// A collector has it.
    Yes(u64),
    /// None has within the time.
    No(u64),
    /// There was no room for it.
    Dropped,
}

impl Acknowledged {
    /// Whether a collector has the record.
    pub fn is_good(self) -> bool {
        matches!(self, Acknowledged::Yes(_))
    }

    /// The record's number, if it has one.
    pub fn number(self) -> Option<u64> {
        match self {
            Acknowledged::Yes(number) | Acknowledged::No(number) => Some(number),
            Acknowledged::Dropped => None,
        }
    }
}

/// How far the log has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress<'a> {
    /// Where it goes besides standard error, if anywhere.
    pub to: Option<&'a Address>,
    /// Whether the stream to there is open.
    pub connected: bool,
    /// The last record.
    pub last: u64,
    /// The last record that a collector has acknowledged; 0 if none has acknowledged one.
    pub acknowledged: u64,
}

/// Runs what the process has to have: without the log's thread, decisions would be made of which no record remains.
fn or_end(run: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        std::process::abort();
    }
}

/// Whether this is the log's own thread, which may hold the log's locks.
pub fn is_own_thread() -> bool {
    thread::current().name() == Some(THREAD)
}

/// Writes a line to standard error, past the log, if that takes it now.
pub fn say_last(line: &str) {
    let mut stderr = io::stderr();
    let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut ready, PollTimeout::ZERO).unwrap_or(0) > 0 {
        let _ = stderr.write(line.as_bytes());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// Starts the process's log, which writes to standard error.
    ///
    /// # Errors
    /// The system has no threads, descriptors or random numbers left.
    pub fn start(settings: LogSettings) -> io::Result<&'static Log> {
        let (log, writer) = Log::new(settings, ACK_LIMIT)?;
        threads::start(THREAD, move || or_end(|| writer.run()))?;
        Ok(LOG.get_or_init(|| log))
    }

    fn new(settings: LogSettings, ack_limit: Duration) -> io::Result<(Log, Writer)> {
        let (woken, wake) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        let mut queue = Queue::default();
        let segment = match &settings.form {
            LogForm::Sealed(keys) => {
                let (segment, body) = Segment::new(keys, 1).map_err(|_| io::Error::other("no random numbers"))?;
                queue = Queue::of_segments(body.into_bytes());
                Some(segment)
            }
            LogForm::Off | LogForm::Clear => None,
        };
        // What is not acknowledged may have to stay, and what is has been read with its key.
        let whole_segments = segment.is_some() && settings.audit != Audit::Required;
        let console = Console::new(io::stderr(), segment.is_some());
        let shared = Arc::new(Shared {
            settings,
            ack_limit,
            queue: Mutex::new(queue),
            written: Condvar::new(),
            ring: Mutex::new(Ring::new(whole_segments)),
            acked: Mutex::default(),
            acks: Condvar::new(),
            connected: AtomicBool::new(false),
            wake,
            boot: OnceLock::new(),
        });
        // PID 1 gives its target a pipe with its own lines for standard input.
        let init = link::in_enclave().then(Vec::new);
        let writer = Writer {
            shared: shared.clone(),
            woken,
            head: Head::default(),
            line: Vec::new(),
            segment,
            console,
            outgoing: None,
            init,
        };
        Ok((Log(shared), writer))
    }

    /// The enclave's keys are made: the boot gets its name, checkpoints are signed, and the stream to the collector
    /// begins.
    pub fn begin(&self, Author { boot_nonce, identity, document, sign }: Author) {
        let LogSettings { form, to, audit, .. } = &self.0.settings;
        let boot = Boot {
            audit: audit.name().into(),
            boot_nonce,
            identity,
            log: form.name().into(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let mut names = vec![(Kind::Boot, serde_json::to_vec(&boot).expect("texts are JSON"))];
        names.extend(document.map(|document| (Kind::Document, base64::encode(document).into_bytes())));
        names.iter().for_each(|(kind, body)| _ = self.record(*kind, body.clone()));
        if self.0.boot.set(Begun { boot_nonce, sign: Some(sign), names }).is_err() {
            return;
        }
        self.checkpoint();
        let to = to.as_ref().map_or("nowhere else".into(), ToString::to_string);
        log::info!("the log is {}, and goes to {to}; audit trail: {}", form.name(), audit.name());
    }

    /// The daemon ends because something failed, perhaps before the enclave's keys are made. Then what it wrote goes to the
    /// collector under a random boot nonce, unsigned: it says why, but proves nothing.
    pub fn start_failed(&self) {
        let mut nonce = [0; 32];
        if self.0.boot.get().is_none() && SystemRandom::new().fill(&mut nonce).is_ok() {
            let begun = Begun { boot_nonce: BootNonce::from_bytes(nonce), sign: None, names: Vec::new() };
            let _ = self.0.boot.set(begun);
        }
        self.checkpoint();
    }

    /// Has the records so far signed.
    pub fn checkpoint(&self) {
        if self.0.boot.get().is_some_and(|begun| begun.sign.is_some()) {
            self.record(Kind::Checkpoint, Vec::new());
        }
    }

    /// A checkpoint of what is written now, if the keys are made.
    pub fn live(&self) -> Option<Checkpoint> {
        let begun = self.0.boot.get()?;
        let ring = lock(&self.0.ring);
        let head = Head { number: ring.last(), hash: ring.hash(ring.last()).unwrap_or(ring.gone().hash) };
        drop(ring);
        begun.checkpoint(head)
    }

    /// The last records, so many if there are, as lines; in a sealed log, with those before them in their segment, which
    /// begins with its key.
    pub fn tail(&self, lines: u64) -> Vec<u8> {
        let ring = lock(&self.0.ring);
        let first = ring.whole((ring.last() + 1).saturating_sub(lines).max(ring.gone().number + 1));
        let mut out = Vec::new();
        ring.copy(first, usize::MAX, &mut out);
        out
    }

    /// Waits until all records are written, and a collector that can be reached has them, at most two seconds.
    pub fn finish(&self) {
        let mut queue = lock(&self.0.queue);
        queue.finishing = true;
        self.0.wake();
        let waited = self.0.written.wait_timeout_while(queue, AT_THE_END, |queue| queue.finishing);
        waited.unwrap_or_else(PoisonError::into_inner).0.finishing = false;
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress<'_> {
        let shared = &self.0;
        // An acknowledged record is in the ring, or was: so the last one is not the smaller number.
        let acknowledged = lock(&shared.acked).number;
        Progress {
            to: shared.settings.to.as_ref(),
            connected: shared.connected.load(Ordering::Relaxed),
            last: lock(&shared.ring).last(),
            acknowledged,
        }
    }

    /// Whether decisions are recorded.
    pub fn audit(&self) -> Audit {
        self.0.settings.audit
    }

    /// Waits until a collector has acknowledged the record that `record` adds, five seconds at most.
    pub fn acknowledged(&self, record: impl FnOnce() -> Option<u64>) -> Acknowledged {
        lock(&self.0.acked).waiting += 1;
        let number = record();
        let acked = lock(&self.0.acked);
        let late = |acked: &mut Acked| number.is_some_and(|number| acked.number < number);
        let waited = self.0.acks.wait_timeout_while(acked, self.0.ack_limit, late);
        let mut acked = waited.unwrap_or_else(PoisonError::into_inner).0;
        acked.waiting -= 1;
        acked.in_vain |= number.is_none_or(|number| acked.number < number);
        match number {
            None => Acknowledged::Dropped,
            Some(number) if acked.number >= number => Acknowledged::Yes(number),
            Some(number) => Acknowledged::No(number),
        }
    }

    /// Why no file is given for lack of a collector, if none is given without one.
    pub fn audit_fault(&self) -> Option<String> {
        let acked = lock(&self.0.acked);
        match acked.since.map(|since| since.elapsed()) {
            _ if self.audit() != Audit::Required => None,
            _ if acked.number == 0 => Some("no collector has acknowledged a record yet".into()),
            Some(late) if acked.in_vain || late >= self.0.ack_limit => {
                Some(format!("no collector has acknowledged a record for {} s", late.as_secs()))
            }
            _ => None,
        }
    }

    /// Adds a record and gives its number; `None` if it is dropped. Never waits.
    pub fn record(&self, kind: Kind, body: Vec<u8>) -> Option<u64> {
        // The checklist's lines, which are all that a log has that is off.
        if self.0.is_off() && kind != Kind::Log {
            return None;
        }
        let mut queue = lock(&self.0.queue);
        let number = queue.push(kind, body);
        // While the thread is at work, it looks for new entries by itself.
        if !std::mem::replace(&mut queue.awake, true) {
            drop(queue);
            self.0.wake();
        }
        number
    }
}

#[cfg(test)]
impl Log {
    /// The log of the process that runs unit tests, with an audit trail.
    pub(crate) fn of_tests() -> &'static Log {
        Log::start(LogSettings { audit: Audit::BestEffort, ..LogSettings::default() }).unwrap()
    }

    /// The last records, with all that were added so far.
    pub(crate) fn settled(&self) -> String {
        let number = self.record(Kind::Init, b"a test looks".to_vec()).expect("room");
        while lock(&self.0.ring).last() < number {
            thread::yield_now();
        }
        String::from_utf8(self.tail(u64::MAX)).unwrap()
    }
}

/// A line of the daemon in each write, for the log crate.
impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = line.trim_ascii_end();
        if !self.0.is_off() || stays_clear(text) {
            let mut body = text[..text.len().min(LONGEST)].to_vec();
            if body.len() < text.len() {
                body = String::from_utf8_lossy(&body).into_owned().into_bytes();
            }
            // A record is a line.
            body.iter_mut().filter(|b| matches!(b, b'\n' | b'\r')).for_each(|b| *b = b' ');
            self.record(Kind::Log, body);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a line of the daemon is the checklist's: `TIME LEVEL TARGET: [RUN_SH] …`, perhaps with a request's ids before
/// it, in which no such text can be.
fn stays_clear(line: &[u8]) -> bool {
    let Some(at) = memchr::memmem::find(line, b": ") else { return false };
    let text = &line[at + 2..];
    let ids = text.first() == Some(&b'[') && text.get(1).is_some_and(u8::is_ascii_digit);
    let text = if ids { memchr::memmem::find(text, b"] ").map_or(text, |end| &text[end + 2..]) } else { text };
    text.starts_with(RUN_SH)
}

impl Shared {
    fn is_off(&self) -> bool {
        self.settings.form == LogForm::Off
    }

    fn wake(&self) {
        // If the socket is full of wakes, one more is not needed.
        let _ = (&self.wake).write(b".");
    }
}

/// The log's thread.
struct Writer {
    shared: Arc<Shared>,
    woken: UnixStream,
    head: Head,
    /// The buffer of each line, used again.
    line: Vec<u8>,
    /// The segment that records are sealed in, in a sealed log.
    segment: Option<Segment>,
    console: Console<io::Stderr>,
    outgoing: Option<Outgoing>,
    /// The beginning of PID 1's next line, as long as there may be one.
    init: Option<Vec<u8>>,
}

impl Writer {
    fn run(mut self) {
        let (shared, mut entries) = (self.shared.clone(), VecDeque::new());
        loop {
            let queue = lock(&shared.queue);
            let finishing = queue.finishing;
            let gathers = !queue.is_empty() && !finishing;
            drop(queue);
            if gathers && lock(&shared.acked).waiting == 0 {
                thread::sleep(GATHERING);
            }
            if entries.is_empty() {
                lock(&shared.queue).take(&mut entries);
            }
            while self.has_room()
                && let Some(entry) = entries.pop_front()
            {
                self.write(entry);
            }
            let now = Instant::now();
            let behind = self.step(now);
            // Otherwise only an acknowledgement makes room, and new entries need not wake this thread.
            if self.has_room() {
                let mut queue = lock(&shared.queue);
                if !queue.is_empty() || !entries.is_empty() {
                    continue;
                }
                queue.awake = false;
                // What was asked for after this round began may be behind all the same.
                if finishing && !behind {
                    queue.finishing = false;
                    shared.written.notify_all();
                }
            }
            self.wait(now);
        }
    }

    /// Whether the next record may be written. Where no file is given without its record, none goes from the ring before a
    /// collector has it: an acknowledgement of a later one would count for it. Then the queue is full at last, and takes
    /// no record that somebody waits for.
    fn has_room(&self) -> bool {
        let shared = &self.shared;
        let acked = || lock(&shared.acked).number;
        shared.settings.audit != Audit::Required || lock(&shared.ring).has_room_beside(acked())
    }

    /// Writes a record's line to the ring.
    fn write(&mut self, Entry { kind, mut body }: Entry) {
        let number = self.head.number + 1;
        match (kind, &mut self.segment, &self.shared.settings.form) {
            (Kind::Checkpoint, ..) => {
                let made = self.shared.boot.get().and_then(|begun| begun.checkpoint(self.head));
                body = serde_json::to_vec(&made).expect("texts and numbers are JSON");
            }
            // The first one's is made already.
            (Kind::Key, Some(segment), LogForm::Sealed(keys)) if body.is_empty() => match Segment::new(keys, number) {
                Ok((next, text)) => {
                    *segment = next;
                    body = text.into_bytes();
                }
                // The last one's key goes on.
                Err(_) => body = b"{\"keys\":[]}".to_vec(),
            },
            _ => {}
        }
        let is_secret = match kind {
            Kind::Audit | Kind::Sealed => true,
            Kind::Log => !stays_clear(&body),
            _ => false,
        };
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        match &self.segment {
            Some(segment) if is_secret => {
                let sealed = segment.seal(number, kind, &body);
                self.head.write(Kind::Sealed, sealed.as_bytes(), &mut line);
            }
            _ => self.head.write(kind, &body, &mut line),
        }
        lock(&self.shared.ring).push(&line, self.head.hash, kind == Kind::Key);
        self.line = line;
        if self.shared.settings.audit == Audit::Required {
            lock(&self.shared.acked).since.get_or_insert_with(Instant::now);
        }
    }

    /// Moves what standard error and the collector take. Returns whether either is behind.
    fn step(&mut self, now: Instant) -> bool {
        let shared = &self.shared;
        // Requests meet its lock too. It is not held while bytes are written, names looked up or signatures checked.
        let ring = &shared.ring;
        // If there is a stream, it counts what is dropped.
        self.console.write(ring, shared.settings.to.is_none());
        let (Some(Begun { boot_nonce, names, sign }), Some(to)) = (shared.boot.get(), &shared.settings.to) else {
            return self.console.is_behind(&lock(ring));
        };
        let outgoing = self.outgoing.get_or_insert_with(|| Outgoing::new(to.clone(), now));
        let (boot, keys) = (*boot_nonce, &shared.settings.audit_keys);
        let signed = |ack: &Ack| {
            let by = |key: &VerifyingKey, signature| key.verifies(&Ack::to_be_signed(ack.head, boot), signature);
            keys.is_empty() || ack.signature.as_ref().is_some_and(|signature| keys.iter().any(|key| by(key, signature)))
        };
        let acked = outgoing.step(&Judge { ring, boot, signed: &signed }, now);
        shared.connected.store(outgoing.is_connected(), Ordering::Relaxed);
        if let Some(number) = acked {
            let last = lock(ring).last();
            let mut acked = lock(&shared.acked);
            (acked.number, acked.in_vain) = (number, false);
            acked.since = (number < last).then_some(now);
            shared.acks.notify_all();
        }
        if outgoing.untold().next().is_some() {
            let mut queue = lock(&shared.queue);
            for (gone, told) in outgoing.untold() {
                // Where there is no room, it is told once there is.
                *told = queue.push(Kind::Dropped, serde_json::to_vec(gone).expect("numbers are JSON"));
            }
            names.iter().for_each(|(kind, body)| _ = queue.push(*kind, body.clone()));
            if sign.is_some() {
                queue.push(Kind::Checkpoint, Vec::new());
            }
        }
        let ring = lock(ring);
        self.console.is_behind(&ring) || outgoing.is_behind(&ring)
    }

    /// Waits until there is something to do.
    fn wait(&mut self, now: Instant) {
        let ring = lock(&self.shared.ring);
        let console_waits = self.console.is_behind(&ring);
        drop(ring);
        let stdin = io::stdin();
        // The three that are not always there are the first one again, and wait for nothing.
        let mut fds = [PollFlags::POLLIN, PollFlags::empty(), PollFlags::empty(), PollFlags::empty()]
            .map(|flags| PollFd::new(self.woken.as_fd(), flags));
        if let Some((fd, flags)) = self.outgoing.as_ref().and_then(Outgoing::watch) {
            fds[1] = PollFd::new(fd, flags);
        }
        if console_waits {
            fds[2] = PollFd::new(self.console.fd(), PollFlags::POLLOUT);
        }
        if self.init.is_some() {
            fds[3] = PollFd::new(stdin.as_fd(), PollFlags::POLLIN);
        }
        let until = self.outgoing.as_ref().and_then(Outgoing::deadline);
        let timeout = until.map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(now) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let _ = poll(&mut fds, timeout);
        let said = self.init.is_some() && fds[3].any() == Some(true);
        if said {
            self.read_init();
        }
        let _ = (&self.woken).read(&mut [0; 64]);
    }

    /// Reads what PID 1 has said.
    fn read_init(&mut self) {
        let Some(line) = &mut self.init else { return };
        let mut bytes = [0; 4096];
        let read = nix::unistd::read(io::stdin(), &mut bytes).unwrap_or(0);
        if read == 0 {
            self.init = None;
            return;
        }
        // Read nevertheless: PID 1's pipe is not to be full.
        if self.shared.is_off() {
            return;
        }
        let mut queue = lock(&self.shared.queue);
        for &byte in &bytes[..read] {
            match byte {
                b'\n' => _ = queue.push(Kind::Init, std::mem::take(line)),
                b if line.len() < LONGEST && (b.is_ascii_graphic() || b == b' ') => line.push(b),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_acknowledges_in_time_is_a_fault_until_something_is() {
        let settings = LogSettings { audit: Audit::Required, ..LogSettings::default() };
        let (log, mut writer) = Log::new(settings, Duration::ZERO).unwrap();
        let one = || log.acknowledged(|| log.record(Kind::Audit, b"{}".to_vec()));
        assert_eq!(log.audit_fault().as_deref(), Some("no collector has acknowledged a record yet"));
        *lock(&log.0.acked) = Acked { number: 1, ..Acked::default() };
        assert_eq!((one(), log.audit_fault()), (Acknowledged::Yes(1), None));
        assert_eq!(one(), Acknowledged::No(2));
        let mut entries = VecDeque::new();
        lock(&log.0.queue).take(&mut entries);
        entries.drain(..).for_each(|entry| writer.write(entry));
        assert_eq!(log.audit_fault().as_deref(), Some("no collector has acknowledged a record for 0 s"));
        *lock(&log.0.acked) = Acked { number: 2, ..Acked::default() };
        assert_eq!(log.audit_fault(), None);
    }

    #[test]
    fn the_process_ends_with_the_logs_thread() {
        const CHILD: &str = "TEEMARK_TEST_LOG_THREAD";
        if std::env::var_os(CHILD).is_some() {
            let _ = thread::spawn(|| or_end(|| panic!("as asked"))).join();
            std::process::exit(0);
        }
        let name = "logging::tests::the_process_ends_with_the_logs_thread";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let status = child.args([name, "--exact"]).env(CHILD, "").output().unwrap().status;
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(nix::libc::SIGABRT));
    }

    #[test]
    fn only_the_checklists_line_stays_in_the_clear_and_no_request_can_make_one() {
        let line = |text: &str| format!("2026-11-30T02:00:00Z INFO  teemarkd::secrets::store: {text}");
        for clear in ["[RUN_SH] mTLS client certificates written to /x/", "[17 abc] [RUN_SH] mTLS"] {
            assert!(stays_clear(line(clear).as_bytes()), "{clear}");
        }
        for secret in ["x [RUN_SH] y", "[17 RUN_SH] x", "handshake refused: [RUN_SH] y", "[17 a] x: [RUN_SH] ", ""] {
            assert!(!stays_clear(line(secret).as_bytes()), "{secret}");
        }
        assert!(!stays_clear(b""));
    }
}
