//! `teemark log collect`: keeps the records of enclaves, and acknowledges them.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use event_loop::socket::{Listener, Stream};
use formats::address::Address;
use formats::attestation::BootNonce;
use formats::log::{Ack, MAX_LINE, Record, parse_hello};
use formats::time::Utc;
use ring::signature::Ed25519KeyPair;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::files::{Kept, Took};
use crate::failure::Done;
use crate::private_key::{PrivateKey, Use};
use crate::terminal::say;

/// Most streams at once.
const STREAMS: usize = 256;
/// Bytes that are read at once; what they hold is written and synced together.
const AT_ONCE: usize = 256 << 10;

/// Keep the records that enclaves send, a line each, in a folder for each boot and a file for each day, and acknowledge
/// what is on the disk, until a signal ends it.
///
/// It must not run on the parent: there, whoever the records are about could change them and acknowledge them. Let only
/// relays reach its port.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  teemark keygen --for collector --output collector.key --public-output collector.pub
  teemark log collect --into /var/lib/teemark-log --key collector.key
  teemark log collect --listen tcp:10.0.0.9:9002 --into logs --journald

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
}

/// The files of a boot, once there are any; one stream at a time writes to them.
type OfBoot = Arc<Mutex<Option<Kept>>>;

struct Collector {
    into: PathBuf,
    key: Option<Ed25519KeyPair>,
    journal: Option<(UnixDatagram, PathBuf)>,
    boots: Mutex<HashMap<[u8; 32], OfBoot>>,
}

/// Keeps records until SIGTERM or SIGINT.
///
/// # Errors
/// The address cannot be listened on, the folder cannot be made, or the key cannot be read.
pub(crate) fn run(arguments: &Arguments) -> Result<Done> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let Arguments { listen, into, key, journald } = arguments;
    let key = key.as_deref().map(|path| PrivateKey::read(path, Use::Collector)?.collectors()).transpose()?;
    std::fs::create_dir_all(into).with_context(|| format!("--into {}", into.display()))?;
    let journal = journald.clone().map(|path| UnixDatagram::unbound().map(|socket| (socket, path))).transpose()?;
    if let Some((socket, _)) = &journal {
        // A journal that is behind must not hold up acknowledgements.
        socket.set_nonblocking(true)?;
    }
    let listener = Listener::open(listen).with_context(|| format!("--listen {listen}"))?;
    let address = listener.address()?.to_string();
    let signs = if key.is_some() { "acknowledges" } else { "acknowledges without a signature" };
    say(format_args!("log: {address} keeps records in {} and {signs}", into.display()));
    let collector = Arc::new(Collector { into: into.clone(), key, journal, boots: Mutex::default() });
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
                    thread::sleep(std::time::Duration::from_secs(1));
                    continue;
                }
            };
            if Arc::strong_count(&streams) > STREAMS {
                continue;
            }
            let (collector, place) = (self.clone(), streams.clone());
            thread::spawn(move || {
                if let Err(e) = collector.serve(stream) {
                    say(format_args!("log: a stream ends: {e:#}"));
                }
                drop(place);
            });
        }
    }

    fn boot(&self, boot: BootNonce) -> OfBoot {
        let mut boots = self.boots.lock().unwrap_or_else(PoisonError::into_inner);
        boots.entry(*boot.as_bytes()).or_default().clone()
    }

    /// Takes a stream until it ends.
    fn serve(&self, mut stream: Stream) -> Result<()> {
        let mut buffer = Vec::new();
        let mut boot: Option<(BootNonce, OfBoot)> = None;
        let mut bytes = vec![0; AT_ONCE];
        loop {
            let read = match stream.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            buffer.extend_from_slice(&bytes[..read]);
            let whole = buffer.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
            if buffer.len() - whole > MAX_LINE {
                bail!("a line of more than {MAX_LINE} bytes");
            }
            let mut lines = buffer[..whole].split_inclusive(|&b| b == b'\n').map(|line| &line[..line.len() - 1]);
            if boot.is_none()
                && let Some(hello) = lines.next()
            {
                let nonce = parse_hello(hello).context("it is not the log of an enclave")?;
                boot = Some((nonce, self.boot(nonce)));
            }
            if let Some((nonce, kept)) = &boot {
                let ack = self.keep(*nonce, &mut kept.lock().unwrap_or_else(PoisonError::into_inner), lines)?;
                if let Some(ack) = ack {
                    stream.write_all(ack.to_string().as_bytes())?;
                }
            }
            buffer.drain(..whole);
        }
    }

    /// Keeps lines, and acknowledges them once they are on the disk.
    fn keep<'a>(
        &self,
        boot: BootNonce,
        kept: &mut Option<Kept>,
        lines: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Option<Ack>> {
        let mut some = false;
        let kept = match kept {
            Some(kept) => kept,
            None => kept.insert(Kept::open(&self.into, boot)?),
        };
        let mut took = Ok(());
        for line in lines {
            match kept.take(line, Utc::now()) {
                Ok(Took::Known) => {}
                Ok(Took::Written) => self.tell_journal(boot, line),
                Ok(Took::After(missing)) => {
                    say(format_args!(
                        "log: boot {boot}: {missing} records before record {} are missing",
                        kept.head().number
                    ));
                    self.tell_journal(boot, line);
                }
                Err(e) => {
                    took = Err(e.context(format!("boot {boot}")));
                    break;
                }
            }
            some = true;
        }
        kept.sync()?;
        took?;
        let head = kept.head();
        let signed = Ack::to_be_signed(head, boot);
        let signature = self.key.as_ref().map(|key| key.sign(&signed).as_ref().to_vec());
        Ok(some.then_some(Ack { head, signature }))
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
