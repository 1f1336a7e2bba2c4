//! Abuse: whatever some clients do, the others keep getting their answers, and nothing is left behind.

#[path = "../support/mod.rs"]
mod support;

mod answers;
mod costs;
mod requests;
mod secrets;
mod shares;
mod waiting;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::*;

static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

const MIB: usize = 1 << 20;
/// The daemon's limit for a request's head, and for a pause in a body.
const LIMIT: Duration = Duration::from_secs(10);

/// For how long the daemon reads on after a refusal.
const LINGER: Duration = Duration::from_secs(5);

/// A daemon with its service, and what it held before any abuse.
struct Scene {
    daemon: Daemon,
    service: Service,
    file: Vec<u8>,
    threads: u64,
    descriptors: Option<usize>,
}

impl Scene {
    fn new(env: &[(&str, &str)], faults: &[&str]) -> Scene {
        let arguments: Vec<&str> = faults.iter().flat_map(|fault| ["--fault", fault]).collect();
        let service = Service::start(&CERTS, &arguments);
        let setup = Setup::new(service.port).env("TEEMARK_WATERMARK_KEEPALIVE", "1s").envs(env);
        let daemon = Daemon::ready_with(setup, service.port, &CERTS);
        let file = encrypt(&KEY, b"a file like any other\n");
        assert_eq!(daemon.decrypt(&file, "f", "u").status, 200);
        let (threads, descriptors) = (threads(&daemon), descriptors(&daemon));
        Scene { daemon, service, file, threads, descriptors }
    }

    fn public(&self) -> SocketAddr {
        self.daemon.public
    }

    /// Runs `abuse` while an ordinary client sends one file after another, each of which is served.
    fn during<T>(&self, abuse: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let client = scope.spawn(|| {
                let mut served = 0;
                while !over.load(Ordering::Acquire) || served < 3 {
                    let answer = self.daemon.decrypt(&self.file, "f", "u");
                    assert_eq!(answer.status, 200, "an ordinary request: {answer:?}");
                    served += 1;
                    thread::sleep(Duration::from_millis(10));
                }
                served
            });
            let _stop = Stop(&over);
            let result = abuse();
            over.store(true, Ordering::Release);
            let served = client.join().expect("the ordinary client is served");
            println!("{served} ordinary requests");
            result
        })
    }

    /// The daemon is as it was: no thread, descriptor or memory is held, and it works.
    fn ends_as_it_began(&self) {
        wait_for("the threads to end", || (threads(&self.daemon) <= self.threads + 2).then_some(()));
        if let Some(before) = self.descriptors {
            // Those to the service too: no call may use them any more (src/mtls, MutualTls::close_idle).
            wait_for("the descriptors to be closed", || {
                (descriptors(&self.daemon).unwrap() <= before + 2).then_some(())
            });
        }
        assert_eq!(self.daemon.metric("teemark_panics_total"), 0.0);
        assert_eq!(self.daemon.decrypt(&self.file, "f", "u").status, 200);
    }
}

/// Ends the ordinary client even if the abuse panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn threads(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process.child.id())).unwrap();
    status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap().trim().parse().unwrap()
}

/// Open descriptors. The daemon's folder in /proc belongs to root, since nobody may look into its memory.
fn descriptors(daemon: &Daemon) -> Option<usize> {
    match fs::read_dir(format!("/proc/{}/fd", daemon.process.child.id())) {
        Ok(entries) => Some(entries.count()),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            println!("SKIPPED: only root can count the daemon's descriptors");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(SOON * 2)).unwrap();
    stream
}

/// Waits until the daemon has closed this connection, and returns what it sent before.
fn until_closed(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Err(e) if e.kind() != ErrorKind::ConnectionReset => panic!("the connection is still open: {e}"),
        _ => String::from_utf8_lossy(&said).into_owned(),
    }
}

fn raw_head(length: usize) -> String {
    format!("POST /files/f/decrypt?user_id=u HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")
}
