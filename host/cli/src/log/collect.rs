//! `teemark log collect`: keeps the records of enclaves, and acknowledges them.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use event_loop::socket::{Listener, Stream};
use formats::address::Address;
use formats::attestation::BootNonce;
use formats::log::{Ack, Head, MAX_LINE, Record, parse_hello};
use formats::time::Utc;
use ring::signature::Ed25519KeyPair;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::chains::Took;
use super::files;
use super::kept::{self, Kept, Room, Undo};
use super::removal;
use crate::failure::Done;
use crate::private_key::{PrivateKey, Use};
use crate::terminal::say;

/// Most streams at once.
const STREAMS: usize = 256;
/// Bytes that are read at once; what they hold is written and synced together.
const AT_ONCE: usize = 256 << 10;
/// Most boots without a stream whose last lines stay in memory, so that their next stream begins at once.
const RESTING: usize = 16;
/// How long a relay may take to read an acknowledgement.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// Keep the records that enclaves send, a line each, in a folder for each boot and a file for each day, and acknowledge
/// what is on the disk, until a signal ends it.
///
/// It acknowledges records only if it has all of that boot from the first one on. What comes after a gap is kept for
/// `teemark log verify`, and never acknowledged.
///
/// It must not run on the parent: there, whoever the records are about could change them and acknowledge them. Let only
/// relays reach its port: it does not authenticate clients, and stores whatever it receives.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  teemark keygen --for collector --output collector.key --public-output collector.pub
  teemark log collect --into /var/lib/teemark-log --key collector.key
  teemark log collect --listen tcp:10.0.0.9:9002 --into logs --journald
  teemark log collect --into logs --key collector.key --keep-days 400 --max-bytes 50000000000

TEEMARK_AUDIT_KEYS in the image takes what collector.pub holds.
SIGTERM or Ctrl-C ends it with status 0; what it has acknowledged is on the disk.")]
pub(crate) struct Arguments {
    /// Where relays bring the streams
    #[arg(long, value_name = "ADDRESS", env = "LOG_COLLECT_LISTEN", default_value = "tcp:0.0.0.0:9002")]
    listen: Address,
    /// The folder for the files
    #[arg(long, value_name = "FOLDER", env = "LOG_COLLECT_INTO")]
    into: PathBuf,
    /// Sign acknowledgements with this key (keygen --for collector), as TEEMARK_AUDIT=required needs it
    #[arg(long, value_name = "FILE", env = "LOG_COLLECT_KEY")]
    key: Option<PathBuf>,
    /// Give each record to the journal too
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = "/run/systemd/journal/socket")]
    journald: Option<PathBuf>,
    /// Remove files older than this, except the beginning of a log still being written
    #[arg(long, value_name = "DAYS", env = "LOG_COLLECT_KEEP_DAYS", value_parser = clap::value_parser!(u64).range(2..))]
    keep_days: Option<u64>,
    /// How often files that are older than --keep-days are looked for
    #[arg(long, value_name = "SECONDS", hide = true, default_value_t = 3600,
        value_parser = clap::value_parser!(u64).range(1..))]
    remove_every: u64,
    /// Stop storing and acknowledging records once the files reach this size; what is stored is never removed for it
    #[arg(long, value_name = "BYTES", env = "LOG_COLLECT_MAX_BYTES", default_value_t = u64::MAX, hide_default_value = true)]
    max_bytes: u64,
    /// End a stream that brings nothing for so long; an enclave's brings a checkpoint each minute
    #[arg(long, value_name = "SECONDS", env = "LOG_COLLECT_IDLE", default_value_t = 180,
        value_parser = clap::value_parser!(u64).range(1..))]
    idle: u64,
}

/// A boot that streams are of; one of them at a time writes.
type OfBoot = Arc<Mutex<Boot>>;

#[derive(Default)]
struct Boot {
    /// Its files, once they are read.
    kept: Option<Kept>,
    /// What has to be removed before they are read again.
    undo: Option<Undo>,
}

struct Collector {
    into: PathBuf,
    key: Option<Ed25519KeyPair>,
    journal: Option<(UnixDatagram, PathBuf)>,
    idle: Duration,
    room: Arc<Room>,
    boots: Mutex<HashMap<[u8; 32], OfBoot>>,
}

/// A stream, once it has said of which boot it is.
struct Streamed {
    nonce: BootNonce,
    boot: OfBoot,
    /// The highest number so far.
    last: u64,
    /// Whether the last record could be acknowledged.
    whole: bool,
}

/// What came of some lines.
struct Outcome {
    /// The record up to which they are on the disk and may be acknowledged.
    head: Option<Head>,
    /// Why the stream ends, if it does.
    end: Result<()>,
    /// Whether the files have all that their chains do, so that they need not be read again.
    is_whole: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps records until SIGTERM or SIGINT.
///
/// # Errors
/// The address cannot be listened on, the folder cannot be made, or the key cannot be read.
pub(crate) fn run(arguments: &Arguments) -> Result<Done> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let Arguments { listen, into, key, journald, keep_days, remove_every, max_bytes, idle } = arguments;
    let key = key.as_deref().map(|path| PrivateKey::read(path, Use::Collector)?.collectors()).transpose()?;
    kept::make_folder(into).context("--into")?;
    let room = Arc::new(Room::count(into, *max_bytes)?);
    let journal = journald.clone().map(|path| UnixDatagram::unbound().map(|socket| (socket, path))).transpose()?;
    if let Some((socket, _)) = &journal {
        // A journal that is behind must not hold up acknowledgements.
        socket.set_nonblocking(true)?;
    }
    let listener = Listener::open(listen).with_context(|| format!("--listen {listen}"))?;
    let address = listener.address()?.to_string();
    let signs = if key.is_some() { "acknowledges" } else { "acknowledges without a signature" };
    let idle = Duration::from_secs(*idle);
    let collector = Collector { into: into.clone(), key, journal, idle, room, boots: Mutex::default() };
    let collector = Arc::new(collector);
    if let Some(days) = *keep_days {
        collector.remove(days);
        let (collector, every) = (collector.clone(), Duration::from_secs(*remove_every));
        thread::spawn(move || {
            loop {
                thread::sleep(every);
                collector.remove(days);
            }
        });
    }
    say(format_args!("log: {address} keeps records in {} and {signs}", into.display()));
    thread::spawn(move || collector.accept(&listener));
    signals.forever().next();
    Ok(Done::new("", json!({"listen": address, "into": into.to_string_lossy()})))
}

impl Collector {
    fn accept(self: &Arc<Self>, listener: &Listener) {
        let streams = Arc::new(());
        loop {
            let stream = match listener.accept() {
                Ok(stream) => stream,
                Err(e) => {
                    say(format_args!("log: no stream can be taken: {e}"));
                    thread::sleep(Duration::from_secs(1));
                    continue;
                }
            };
            if Arc::strong_count(&streams) > STREAMS {
                continue;
            }
            let (collector, place) = (self.clone(), streams.clone());
            thread::spawn(move || {
                let mut streamed = None;
                if let Err(e) = collector.serve(stream, &mut streamed) {
                    say(format_args!("log: a stream ends: {e:#}"));
                }
                if let Some(Streamed { nonce, boot, .. }) = streamed {
                    collector.leave(nonce, boot);
                }
                drop(place);
            });
        }
    }

    fn enter(&self, nonce: BootNonce) -> Streamed {
        let boot = lock(&self.boots).entry(*nonce.as_bytes()).or_default().clone();
        Streamed { nonce, boot, last: 0, whole: false }
    }

    /// Closes the file of a boot with its last stream.
    fn leave(&self, nonce: BootNonce, boot: OfBoot) {
        let mut boots = lock(&self.boots);
        // The map's own, and this one.
        if Arc::strong_count(&boot) > 2 {
            return;
        }
        let mut files = lock(&boot);
        if let Some(kept) = &mut files.kept {
            kept.close();
        }
        let resting = boots.values().filter(|boot| Arc::strong_count(boot) == 1).count();
        // What has to be removed is not to be forgotten.
        if resting >= RESTING && files.undo.is_none() {
            boots.remove(nonce.as_bytes());
        }
    }

    /// Removes the files of days that are longer ago.
    fn remove(&self, days: u64) {
        let before = Utc(Utc::now().0.saturating_sub(days.saturating_mul(86_400))).to_string()[..10].to_owned();
        let tell = |e| say(format_args!("log: --keep-days {days}: old files cannot be removed: {e:#}"));
        let folders = files::boot_folders(&self.into).unwrap_or_else(|e| {
            tell(e);
            Vec::new()
        });
        // Without their keys, what is left of a sealed log could not be opened. One folder's fault stops no other's removal.
        let in_folder = |folder: &Path| folder.display().to_string();
        let keeps = |folder: &&PathBuf| match removal::keep_keys(folder, &before).with_context(|| in_folder(folder)) {
            Ok(()) => true,
            Err(e) => {
                tell(e);
                false
            }
        };
        let folders: Vec<&PathBuf> = folders.iter().filter(keeps).collect();
        // No stream begins meanwhile.
        let mut boots = lock(&self.boots);
        boots.retain(|_, boot| Arc::strong_count(boot) > 1 || lock(boot).undo.is_some());
        for folder in folders {
            let name = folder.file_name().and_then(|name| BootNonce::from_hex(name.to_str()?));
            let streams = name.is_some_and(|nonce| boots.contains_key(nonce.as_bytes()));
            let removed = removal::remove_days(folder, &before, streams).with_context(|| in_folder(folder));
            removed.unwrap_or_else(tell);
        }
        self.room.count_again(&self.into).unwrap_or_else(tell);
    }

    /// Takes a stream until it ends.
    fn serve(&self, mut stream: Stream, streamed: &mut Option<Streamed>) -> Result<()> {
        set_socket_timeout(&stream, Timeout::Recv, Some(self.idle))?;
        set_socket_timeout(&stream, Timeout::Send, Some(WRITE_LIMIT))?;
        let mut buffer = Vec::new();
        let mut bytes = vec![0; AT_ONCE];
        loop {
            let read = match stream.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    bail!("it has brought nothing for {} s", self.idle.as_secs())
                }
                read => read?,
            };
            buffer.extend_from_slice(&bytes[..read]);
            let whole = buffer.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
            if buffer.len() - whole > MAX_LINE {
                bail!("a line of more than {MAX_LINE} bytes");
            }
            let mut lines = buffer[..whole].split_inclusive(|&b| b == b'\n').map(|line| &line[..line.len() - 1]);
            if streamed.is_none()
                && let Some(hello) = lines.next()
            {
                let nonce = parse_hello(hello).context("it is not the log of an enclave")?;
                *streamed = Some(self.enter(nonce));
            }
            if let Some(streamed) = streamed {
                let outcome = self.keep(streamed, lines)?;
                if let Some(head) = outcome.head {
                    let signed = Ack::to_be_signed(head, streamed.nonce);
                    let signature = self.key.as_ref().map(|key| key.sign(&signed).as_ref().to_vec());
                    stream.write_all(Ack { head, signature }.to_string().as_bytes())?;
                }
                outcome.end?;
            }
            buffer.drain(..whole);
        }
    }

    /// Keeps lines, as far as there is room for them.
    ///
    /// # Errors
    /// None of them may be on the disk.
    fn keep<'a>(&self, streamed: &mut Streamed, lines: impl Iterator<Item = &'a [u8]>) -> Result<Outcome> {
        let boot = streamed.boot.clone();
        let mut boot = lock(&boot);
        if let Some(undo) = &boot.undo {
            undo.run()?;
            boot.undo = None;
        }
        let kept = match &mut boot.kept {
            Some(kept) => kept,
            kept => kept.insert(Kept::open(&self.into, streamed.nonce, self.room.clone())?),
        };
        let result = self.keep_in(kept, streamed, lines).with_context(|| format!("boot {}", streamed.nonce));
        if result.is_err() {
            // What is in the file now is not known: it is read again.
            boot.undo = boot.kept.take().and_then(Kept::undo).filter(|undo| undo.run().is_err());
        }
        if !result.as_ref().is_ok_and(|outcome| outcome.is_whole) {
            boot.kept = None;
            self.room.count_again(&self.into)?;
        }
        result
    }

    fn keep_in<'a>(
        &self,
        kept: &mut Kept,
        streamed: &mut Streamed,
        lines: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Outcome> {
        let nonce = streamed.nonce;
        let mut outcome = Outcome { head: None, end: Ok(()), is_whole: true };
        let mut new = Vec::new();
        for line in lines {
            let Some(record) = Record::parse(line).filter(|_| line.len() < MAX_LINE) else {
                outcome.end = Err(anyhow!("boot {nonce}: not a record of a log"));
                break;
            };
            let number = record.head.number;
            let (took, end) = match kept.take(line, &record, number <= streamed.last, Utc::now()) {
                Ok(took) => took,
                Err(e) => {
                    // There is no room for this one; those before it are kept.
                    outcome.end = Err(e.context(format!("boot {nonce}: record {number} cannot be kept")));
                    outcome.is_whole = false;
                    kept.cut()?;
                    break;
                }
            };
            tell(nonce, number, took);
            if took.is_new() {
                new.push(line);
            }
            streamed.last = streamed.last.max(number);
            let was_whole = std::mem::replace(&mut streamed.whole, end.is_some());
            outcome.head = end.or(outcome.head);
            if was_whole && end.is_none() {
                outcome.end = Err(anyhow!(
                    "boot {nonce}: record {number} cannot be acknowledged; the enclave sends again what it still has"
                ));
                break;
            }
        }
        kept.sync()?;
        // Only now: what could not be synced comes again.
        new.into_iter().for_each(|line| self.tell_journal(nonce, line));
        Ok(outcome)
    }

    /// Gives a record to the journal (systemd.io/JOURNAL_NATIVE_PROTOCOL); what it does not take is in the file anyway.
    fn tell_journal(&self, boot: BootNonce, line: &[u8]) {
        let (Some((socket, path)), Some(record)) = (&self.journal, Record::parse(line)) else { return };
        let entry = format!(
            "MESSAGE={} {}\nPRIORITY=6\nSYSLOG_IDENTIFIER=teemark-enclave\nTEEMARK_BOOT={boot}\nTEEMARK_NUMBER={}\nTEEMARK_KIND={}\n",
            record.kind.name(),
            record.body,
            record.head.number,
            record.kind.name()
        );
        let _ = socket.send_to(entry.as_bytes(), path);
    }
}

/// Says what is not as it has to be about a record that came.
fn tell(nonce: BootNonce, number: u64, took: Took) {
    match took {
        Took::Next | Took::Known => {}
        Took::After(missing) => {
            say(format_args!("log: boot {nonce}: {missing} records before record {number} are missing"));
        }
        Took::Other => say(format_args!("log: boot {nonce}: record {number} does not follow the one before it")),
        Took::Again => say(format_args!("log: boot {nonce}: record {number} came a second time")),
    }
}
