//! `vsock-storm CID COUNT ROUNDS PORT…`: opens COUNT connections at once to a port of the machine with this CID, which
//! runs it too, asks for something on those that open, and hangs up. Then it waits until the other has done the same and
//! vsock works again, for ROUNDS rounds, one port after the other. If port 3000, teemarkd's, is among them, it has to serve a
//! client during each storm on another port, and after each round. A storm on its own port takes all its places.
//!
//! For the scenario `vsock` of tests/vm. Nothing of it is in an image that is shipped.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, VsockAddr, connect, send, socket};
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

/// Where each of the two tells how many rounds it has done.
const ROUNDS_DONE: u32 = 5000;
/// The daemon's public port.
const PUBLIC: u32 = 3000;
/// Time for all of a storm's connections to open, be refused, or run into vsock's own limit of 2 s.
const STORM: Duration = Duration::from_secs(3);
const REQUEST: &[u8] = b"GET /health_check HTTP/1.1\r\nHost: enclave\r\n\r\n";

fn main() -> Result<()> {
    let arguments: Vec<u32> = std::env::args().skip(1).map(|word| word.parse()).collect::<Result<_, _>>()?;
    let [peer, count, rounds, ports @ ..] = &arguments[..] else { bail!("vsock-storm CID COUNT ROUNDS PORT…") };
    ensure!(!ports.is_empty(), "vsock-storm: no port");
    let files = u64::from(*count) + 100;
    setrlimit(Resource::RLIMIT_NOFILE, files, files).context("the limit of open files")?;
    let done = Arc::new(AtomicU8::new(0));
    tell(done.clone())?;
    println!("[STORM] begins");
    until("the other side", || rounds_of(*peer).map(drop))?;
    for (round, port) in (1..=u8::try_from(*rounds)?).zip(ports.iter().cycle()) {
        let (asked, served) = storm(*peer, *port, *count, ports.contains(&PUBLIC) && *port != PUBLIC);
        done.store(round, Ordering::Release);
        until("the other side", || {
            ensure!(rounds_of(*peer)? >= round, "it is still at it");
            Ok(())
        })?;
        if ports.contains(&PUBLIC) {
            until("teemarkd", || is_served(*peer))?;
        }
        println!("[STORM] round {round}: alive after {asked} connections to port {port}, {served} answers meanwhile");
    }
    println!("[STORM] end: alive");
    // For the other side, which may still ask.
    loop {
        thread::park();
    }
}

/// Opens this many connections, as far as the system lets it, and holds them until teemarkd has served a client, if one is
/// to be. Returns how many connections and how many answers there were.
fn storm(peer: u32, port: u32, count: u32, client: bool) -> (usize, usize) {
    let (begun, over) = (Barrier::new(2), AtomicBool::new(false));
    thread::scope(|scope| {
        let client = client.then(|| scope.spawn(|| be_served(peer, &begun, &over)));
        let begin = || {
            if client.is_some() {
                begun.wait();
            }
        };
        let sockets = connections(peer, port, count, begin);
        over.store(true, Ordering::Release);
        let answers = client.map_or(0, |client| client.join().expect("no panic"));
        (sockets.len(), answers)
    })
}

/// Asks teemarkd until the storm is over and there was an answer. Returns how many there were.
fn be_served(peer: u32, begun: &Barrier, over: &AtomicBool) -> usize {
    let mut answers = 0;
    begun.wait();
    while answers == 0 || !over.load(Ordering::Acquire) {
        let _ = until("teemarkd, in the storm", || is_served(peer));
        answers += 1;
    }
    answers
}

/// The connections, whose first requests are sent once most have opened or failed. Calls `half` when half of them have been
/// begun.
fn connections(peer: u32, port: u32, count: u32, half: impl FnOnce()) -> Vec<OwnedFd> {
    let address = VsockAddr::new(peer, port);
    let open = |_| -> Option<OwnedFd> {
        let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).ok()?;
        matches!(connect(socket.as_raw_fd(), &address), Ok(()) | Err(Errno::EINPROGRESS)).then_some(socket)
    };
    let mut sockets: Vec<OwnedFd> = (0..count / 2).filter_map(open).collect();
    half();
    sockets.extend((count / 2..count).filter_map(open));
    thread::sleep(STORM);
    for socket in &sockets {
        // Those that were refused fail.
        let _ = send(socket.as_raw_fd(), REQUEST, MsgFlags::MSG_NOSIGNAL);
    }
    sockets
}

/// Tells everyone who connects how many rounds are done.
fn tell(done: Arc<AtomicU8>) -> Result<()> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, ROUNDS_DONE).context("listening")?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(&[done.load(Ordering::Acquire)]);
        }
    });
    Ok(())
}

fn connection(peer: u32, port: u32) -> Result<VsockStream> {
    let stream = VsockStream::connect_with_cid_port(peer, port)?;
    stream.set_read_timeout(Some(STORM))?;
    Ok(stream)
}

fn rounds_of(peer: u32) -> Result<u8> {
    let mut rounds = [0];
    connection(peer, ROUNDS_DONE)?.read_exact(&mut rounds)?;
    Ok(rounds[0])
}

fn is_served(peer: u32) -> Result<()> {
    let mut stream = connection(peer, PUBLIC)?;
    stream.write_all(REQUEST)?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"HTTP/1.1 200", "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// Tries until it succeeds, and prints a line for each failure, of which there is one a second at most. Whoever reads
/// them decides how many are too many.
fn until(what: &str, mut done: impl FnMut() -> Result<()>) -> Result<()> {
    while let Err(e) = done() {
        println!("[STORM] waiting for {what}: {e:#}");
        thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}
