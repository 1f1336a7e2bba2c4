//! System calls of a request, by strace.
//!
//! How often the daemon has to read depends on how much has arrived. So each reading, writing and waiting call is held
//! up until everybody else has done what they can, and of several requests the one with the fewest calls counts:
//! whatever this machine is busy with can only add some.

use std::collections::BTreeMap;
use std::fs;

use tempfile::TempDir;

use crate::ATTEMPTS;
use crate::client;
use crate::material::{Material, Sample};
use crate::recorded::Figure;
use crate::support::{Daemon, wait_for};

/// Requests of which the fewest are taken; one before and one after them do not count.
const REQUESTS: usize = 4;

const READS: [&str; 5] = ["read", "readv", "recvfrom", "recvmsg", "pread64"];
const WRITES: [&str; 5] = ["write", "writev", "sendto", "sendmsg", "sendfile"];
const WAITS: [&str; 4] = ["epoll_wait", "epoll_pwait", "poll", "ppoll"];
const STARTS: [&str; 4] = ["clone", "clone3", "fork", "vfork"];
const OPENS: [&str; 10] =
    ["accept", "accept4", "socket", "socketpair", "open", "openat", "dup", "pipe2", "eventfd2", "epoll_create1"];

/// How long a call is held up, in microseconds, at each attempt: on a machine that is busy, the others need longer.
const HELD: [u32; ATTEMPTS] = [10_000, 30_000, 100_000];

/// A request's calls.
#[derive(Default)]
struct Calls {
    by_name: BTreeMap<String, u64>,
    read: u64,
    written: u64,
}

impl Calls {
    fn of(&self, names: &[&str]) -> u64 {
        names.iter().filter_map(|name| self.by_name.get(*name)).sum()
    }

    fn all(&self) -> u64 {
        self.by_name.values().sum()
    }
}

/// A daemon that is traced, and that reads and writes only once everybody else has done what they can.
pub(crate) struct Held {
    pub(crate) daemon: Daemon,
    folder: TempDir,
}

impl Held {
    /// Starts it by this command, for this attempt.
    pub(crate) fn start(material: &Material, by: &[&str], attempt: usize) -> Held {
        let folder = tempfile::tempdir().unwrap();
        // pread64 is of files, whose bytes are there; valgrind reads symbols by it.
        let mut held = [&READS[..], &WRITES, &WAITS].concat();
        held.retain(|name| *name != "pread64");
        let held = format!("--inject={}:delay_enter={}", held.join(","), HELD[attempt]);
        let trace = folder.path().join("trace");
        let strace = [
            "strace",
            "--daemonize", // so that the daemon is our child
            "--follow-forks",
            "--quiet=all",
            "--signal=none",
            "--string-limit=5",
            &held,
            "--output",
            trace.to_str().unwrap(),
        ];
        Held { daemon: material.daemon(&[&strace, by].concat()), folder }
    }

    /// The calls of each request, once the daemon has ended.
    fn requests(&self) -> Vec<Calls> {
        let trace = wait_for("the end of the trace", || {
            let trace = fs::read_to_string(self.folder.path().join("trace")).unwrap();
            trace.lines().any(|line| line.contains("exit_group(")).then_some(trace)
        });
        read(&trace)
    }
}

pub(crate) fn measure(material: &Material, sample: &Sample, attempt: usize) -> Vec<Figure> {
    let mut held = Held::start(material, &[], attempt);
    client::ask(&mut held.daemon, sample, REQUESTS + 2);
    let requests = held.requests();
    assert_eq!(requests.len(), REQUESTS + 2, "{sample}: every request begins with a read that shows POST");
    let fewest = requests[1..=REQUESTS].iter().min_by_key(|calls| calls.all()).expect("there are some");
    let names: Vec<String> = fewest.by_name.iter().map(|(name, n)| format!("{n} {name}")).collect();
    vec![
        Figure::new(sample, "system-calls", fewest.all()).with_detail(names.join(", ")),
        Figure::new(sample, "bytes-read", fewest.read),
        Figure::new(sample, "bytes-written", fewest.written),
        Figure::new(sample, "threads-started", fewest.of(&STARTS)),
        Figure::new(sample, "descriptors-opened", fewest.of(&OPENS)),
    ]
}

/// The calls of each request: from the read that has its first bytes to that of the next.
fn read(trace: &str) -> Vec<Calls> {
    let mut requests: Vec<Calls> = vec![];
    for line in trace.lines() {
        // Each line begins with the thread's number.
        let call = line.split_once(' ').map_or("", |(_, call)| call.trim_start());
        // A call that others interrupt has two lines; the second counts, which has the result.
        let name = match call.strip_prefix("<... ") {
            Some(resumed) => resumed.split(' ').next().unwrap_or_default(),
            None if call.ends_with("<unfinished ...>") => continue,
            None => call.split('(').next().unwrap_or_default(),
        };
        let is_read = READS.contains(&name);
        if is_read && call.contains("\"POST ") {
            requests.push(Calls::default());
        }
        let Some(calls) = requests.last_mut() else { continue };
        *calls.by_name.entry(name.to_owned()).or_default() += 1;
        let result =
            call.rsplit_once(" = ").and_then(|(_, result)| result.split(' ').next()?.parse().ok()).unwrap_or(0);
        if is_read {
            calls.read += result;
        } else if WRITES.contains(&name) {
            calls.written += result;
        }
    }
    requests
}
