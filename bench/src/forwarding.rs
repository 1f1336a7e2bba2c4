//! Bytes through a forwarder: the daemon's (TEEMARK_FORWARD), `teemark expose`, socat, and one in Python. The forwarder is
//! on the server's core, both ends on the other.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::process::Process;
use crate::rounds::Pace;
use crate::server::{self, Program};

pub(crate) const STREAMS: [usize; 2] = [1, 64];
const CHUNK: usize = 256 << 10;
/// Until every stream runs.
const WARM_UP: Duration = Duration::from_millis(150);
/// When something has to have come through.
const LIMIT: Duration = Duration::from_secs(20);
/// Where the daemon's forwarder to the first allowed endpoint listens (docs/REFERENCE.md).
const FIRST_FORWARD: &str = "127.0.0.64";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Direction {
    /// To where the forwarder connects.
    Up,
    /// From there.
    Down,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Forwarded {
    pub(crate) program: String,
    pub(crate) streams: usize,
    pub(crate) direction: Direction,
    pub(crate) round: usize,
    /// CPU time of the forwarder a KiB, child processes included.
    pub(crate) cpu_ns: f64,
    pub(crate) mib_per_second: f64,
}

/// The one on the parent, on the daemon's event loop.
pub(crate) const EXPOSE: &str = "teemark expose";
const SOCAT_8K: &str = "socat, 8 KiB";
pub(crate) const SOCAT_64K: &str = "socat, 64 KiB";
const PYTHON: &str = "Python";

struct Forwarder {
    process: Process,
    address: SocketAddr,
    _folder: TempDir,
}

/// `own`: teemarkd's builds, and [`EXPOSE`].
pub(crate) fn run(own: &[Program], pace: Pace) -> Result<Vec<Forwarded>> {
    let mut names: Vec<_> = own.iter().map(|program| program.name.as_str()).collect();
    for (name, program) in [(SOCAT_8K, "socat"), (SOCAT_64K, "socat"), (PYTHON, "python3")] {
        if Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok() {
            names.push(name);
        } else {
            eprintln!("  {name} is left out: {program} is not installed");
        }
    }
    let mut all = Vec::new();
    for streams in STREAMS {
        for direction in [Direction::Up, Direction::Down] {
            for round in 0..pace.rounds {
                let mut turns = names.clone();
                if round % 2 == 1 {
                    turns.reverse();
                }
                for name in turns {
                    let (cpu_ns, mib_per_second) = through(own, name, streams, direction, pace.duration)
                        .with_context(|| format!("forwarding, {name}, {streams} streams {direction:?}"))?;
                    let program = name.to_owned();
                    all.push(Forwarded { program, streams, direction, round, cpu_ns, mib_per_second });
                }
            }
            let last = all.iter().rev().take(names.len());
            let shown: Vec<_> = last.map(|f| format!("{} {:.0}", f.program, f.cpu_ns)).collect();
            eprintln!("  {streams} streams, {direction:?}: {} ns a KiB", shown.join(", "));
        }
    }
    Ok(all)
}

/// CPU time a KiB, in nanoseconds, and MiB a second.
fn through(
    own: &[Program],
    name: &str,
    streams: usize,
    direction: Direction,
    duration: Duration,
) -> Result<(f64, f64)> {
    let sink = TcpListener::bind("127.0.0.1:0")?;
    let port = sink.local_addr()?.port();
    let forwarder = match own.iter().find(|program| program.name == name) {
        Some(program) if program.is_daemon() => start_daemon(&program.path, port)?,
        Some(program) => start_other(name, program.path.as_os_str(), port)?,
        None => start_other(name, OsStr::new(if name == PYTHON { "python3" } else { "socat" }), port)?,
    };
    let (received, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut ends = Vec::new();
    for _ in 0..streams {
        let near = TcpStream::connect(forwarder.address)?;
        let (far, _) = sink.accept()?;
        let (from, to) = if direction == Direction::Up { (near, far) } else { (far, near) };
        ends.extend([from.try_clone()?, to.try_clone()?]);
        let (received, stop) = (received.clone(), stop.clone());
        thread::spawn(move || send(from, &stop));
        thread::spawn(move || receive(to, &received));
    }
    thread::sleep(WARM_UP);
    let counts = || -> Result<_> { Ok((forwarder.process.cpu()?, received.load(Ordering::Relaxed), Instant::now())) };
    let before = counts()?;
    let after = loop {
        thread::sleep(duration);
        let now = counts()?;
        if now.1 > before.1 {
            break now;
        }
        ensure!(now.2 - before.2 < LIMIT, "nothing came through");
    };
    stop.store(true, Ordering::Relaxed);
    for end in ends {
        let _ = end.shutdown(std::net::Shutdown::Both);
    }
    let kib = (after.1 - before.1) as f64 / 1024.0;
    Ok(((after.0 - before.0).as_nanos() as f64 / kib, kib / 1024.0 / (after.2 - before.2).as_secs_f64()))
}

fn send(mut to: TcpStream, stop: &AtomicBool) {
    let chunk = vec![7; CHUNK];
    while !stop.load(Ordering::Relaxed) && to.write_all(&chunk).is_ok() {}
}

fn receive(mut from: TcpStream, received: &AtomicU64) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        received.fetch_add(n as u64, Ordering::Relaxed);
    }
}

fn start_daemon(daemon: &Path, sink: u16) -> Result<Forwarder> {
    let folder = tempfile::tempdir()?;
    let mut command = server::daemon(daemon, &format!("localhost:{sink}"), folder.path())?;
    command.env("TEEMARK_FORWARD", "on");
    listening(&command, format!("{FIRST_FORWARD}:{sink}").parse()?, folder)
}

fn start_other(name: &str, program: &OsStr, sink: u16) -> Result<Forwarder> {
    let folder = tempfile::tempdir()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let (from, to) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{sink}"));
    let mut command = Command::new(program);
    match name {
        EXPOSE => {
            command.args(["expose", "--admin", "", "--public", &from, "--public-target", &format!("tcp:{to}")]);
        }
        PYTHON => {
            command.args(["bench/forwarder.py", &port.to_string(), &sink.to_string()]);
        }
        _ => {
            command.args(["-b", if name == SOCAT_8K { "8192" } else { "65536" }]);
            command.arg(format!("TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,backlog=1024"));
            command.arg(format!("TCP:{to}"));
        }
    }
    listening(&command, SocketAddr::from(([127, 0, 0, 1], port)), folder)
}

/// Starts a forwarder, and waits until it listens, without a connection to it: each leads to the sink.
fn listening(command: &Command, address: SocketAddr, folder: TempDir) -> Result<Forwarder> {
    let process = Process::start(command, &folder.path().join("log"))?;
    let local = hex_address(address);
    for _ in 0..500 {
        let table = fs::read_to_string("/proc/net/tcp")?;
        // The local address, the other one, and the state: 0A is a listener.
        let mut listeners = table.lines().filter(|line| line.contains(" 00000000:0000 0A "));
        if listeners.any(|line| line.contains(&local)) {
            return Ok(Forwarder { process, address, _folder: folder });
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(anyhow::anyhow!("{address} does not listen: {}", fs::read_to_string(folder.path().join("log"))?))
}

/// As /proc/net/tcp writes it: in the machine's byte order.
fn hex_address(address: SocketAddr) -> String {
    let SocketAddr::V4(v4) = address else { unreachable!("only IPv4 is used") };
    format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port())
}
