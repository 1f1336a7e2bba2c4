//! The log as it leaves the enclave: to a collector, to standard error, and on the admin listener.

mod audit;
mod bundles;
mod collector;
mod forms;
mod hostile;
mod keeping;
mod last_words;
mod manipulations;
mod many;
mod reading;
mod stream;
#[path = "../support/mod.rs"]
mod support;
mod waiting;

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use formats::hpke::PrivateKey;
use formats::log::{Boot, Checkpoint, Head, Kind, Record, Segment, parse_hello};
use formats::signature::VerifyingKey;
use nix::sys::socket::{setsockopt, sockopt};
use support::{Daemon, Process, SOON, Setup, free_port, wait_for};

/// A daemon whose log says nowhere in the clear where it listens.
fn start_silently(setup: Setup) -> Daemon {
    let [public, admin] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let setup = setup.env("TEEMARK_PUBLIC", &format!("tcp:{public}")).env("TEEMARK_ADMIN", &format!("tcp:{admin}"));
    let process = Process::spawn(&mut setup.command(), setup.folder.path().join("log"));
    let (public, admin) = (public.parse().unwrap(), admin.parse().unwrap());
    for address in [public, admin] {
        wait_for("the daemon to listen", || TcpStream::connect(address).ok());
    }
    let secrets = setup.folder.path().join("secrets.sock");
    wait_for("the secrets listener", || std::os::unix::net::UnixStream::connect(&secrets).ok());
    Daemon { process, public, admin, secrets, folder: setup.folder }
}

/// The identity key of a running daemon.
fn identity(daemon: &Daemon) -> VerifyingKey {
    let pk = daemon.get("/health_check").json()["pk"].as_str().unwrap().to_owned();
    VerifyingKey::from_hex(&pk).unwrap()
}

/// Where a test takes the stream itself.
struct Taker(TcpListener);

impl Taker {
    fn new() -> Taker {
        Taker(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// One whose streams hold little that is not read.
    fn small() -> Taker {
        let taker = Taker::new();
        setsockopt(&taker.0, sockopt::RcvBuf, &4096).unwrap();
        taker
    }

    fn address(&self) -> String {
        format!("tcp:{}", self.0.local_addr().unwrap())
    }

    fn accept(&self) -> Taken {
        let (stream, _) = self.0.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        parse_hello(line.trim_end().as_bytes()).expect("a stream of the log");
        Taken { reader }
    }
}

/// A stream of the log.
struct Taken {
    reader: BufReader<TcpStream>,
}

impl Taken {
    fn line(&mut self) -> String {
        self.next_line().unwrap()
    }

    /// The next line; empty at the end.
    fn next_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        line.pop();
        Ok(line)
    }

    /// The lines up to the first for which this holds, which is the last of them.
    fn lines_until(&mut self, found: impl Fn(&Record<'_>) -> bool) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.line();
            let done = found(&record(&line));
            lines.push(line);
            if done {
                return lines;
            }
        }
    }

    fn say(&mut self, text: &str) {
        self.reader.get_mut().write_all(text.as_bytes()).unwrap();
    }
}

fn record(line: &str) -> Record<'_> {
    Record::parse(line.as_bytes()).unwrap_or_else(|| panic!("not a record: {line:?}"))
}

/// Checks that these are a chain from this head on, in which each checkpoint is the boot's. Returns the head.
fn check_chain(lines: &[String], mut head: Head, identity: Option<&VerifyingKey>) -> Head {
    let mut boot: Option<Boot> = None;
    for line in lines {
        let record = record(line);
        assert!(record.follows(&head), "{line}");
        match record.kind {
            Kind::Boot => boot = serde_json::from_str(record.body).unwrap(),
            Kind::Checkpoint => {
                let checkpoint: Checkpoint = serde_json::from_str(record.body).unwrap();
                let identity = identity.or(boot.as_ref().map(|boot| &boot.identity)).unwrap();
                assert!(checkpoint.is_by(identity) && checkpoint.head == head, "{line}");
            }
            _ => {}
        }
        head = record.head;
    }
    head
}

/// The bodies of sealed records, opened by their kind.
fn open(lines: &[String], key: &PrivateKey) -> Vec<(Kind, String)> {
    let mut segment = None;
    let mut opened = Vec::new();
    for line in lines {
        let record = record(line);
        match record.kind {
            Kind::Key => segment = Segment::open(record.body, record.head.number, key),
            Kind::Sealed => {
                let segment: &Segment = segment.as_ref().expect("a key for it");
                opened.push(segment.open_record(record.head.number, record.body).expect("it opens"));
            }
            kind => opened.push((kind, record.body.to_owned())),
        }
    }
    opened
}
