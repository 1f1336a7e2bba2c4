//! That a request does not wait for the log: the daemon's system calls while it gives files and a collector reads, and while
//! none does and records are dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;

use serde_json::json;

use super::audit::ask_in_vain;
use super::support::{Certs, Daemon, KEY, SOON, Service, Setup, encrypt, read_answer, unspoilt, wait_for};
use super::{Taken, Taker};

static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

/// Files that are given while system calls are counted.
const COUNTED: usize = 1000;
/// How many calls more than expected are taken for this machine's: a thread that meets another at a lock waits for it.
const FEW: usize = 20;

/// Calls that give a process memory, which wait for nobody. How many there are depends on which threads serve.
const OF_MEMORY: [&str; 5] = ["brk", "madvise", "mmap", "mprotect", "munmap"];

/// A system call.
struct Call {
    /// The thread's name, and its id.
    thread: String,
    /// The call as strace shows it, both halves if there are two, with descriptors as what they lead to.
    text: String,
}

impl Call {
    /// The calls in strace's lines, `ID<NAME> CALL`. A line that others interrupted comes in two halves: the call's
    /// result is in the second one, which is the next line of that thread.
    fn parse_all(lines: &[&str]) -> Vec<Call> {
        let mut calls: Vec<Call> = Vec::new();
        // By the thread's id, which call.
        let mut unfinished: BTreeMap<&str, usize> = BTreeMap::new();
        for (thread, text) in lines.iter().filter_map(|line| line.split_once("> ")) {
            let (id, text) = (thread.split('<').next().unwrap(), text.trim_start());
            if let Some(half) = text.strip_prefix("<... ") {
                // What began before these lines is not among them.
                if let (Some(at), Some((_, rest))) = (unfinished.remove(id), half.split_once(" resumed>")) {
                    calls[at].text.push_str(rest);
                }
                continue;
            }
            if text.ends_with("<unfinished ...>") {
                unfinished.insert(id, calls.len());
            }
            calls.push(Call { thread: thread.to_owned(), text: text.to_owned() });
        }
        calls
    }

    fn name(&self) -> &str {
        self.text.split('(').next().unwrap()
    }

    fn is_of(&self, name: &str) -> bool {
        self.thread.split_once('<').is_some_and(|(_, comm)| comm == name)
    }
}

/// What the daemon calls from the first of the counted requests to the last.
struct Trace {
    calls: Vec<Call>,
    /// The descriptors that were set to never block, by then.
    never_blocks: BTreeSet<String>,
    /// What connections with clients and with the service have in their descriptors.
    own: [String; 3],
    /// What the log's stream has.
    log: String,
}

/// Counts the files that were given, by the records to the end of the stream.
fn count_given(mut taken: Taken, given: &AtomicUsize) {
    let lines = std::iter::from_fn(|| Some(taken.line()).filter(|line| !line.is_empty()));
    lines.filter(|line| line.contains("\"event\":\"given\"")).for_each(|_| _ = given.fetch_add(1, Ordering::AcqRel));
}

/// Traces a daemon that gives files while a collector reads, or while none does.
fn trace(reads: bool) -> Trace {
    let (taker, service) = (Taker::small(), Service::start(&CERTS, &[]));
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let strace = [
        "strace",
        "--daemonize",
        "--follow-forks",
        "--quiet=all",
        "--signal=none",
        "--decode-pids=comm",
        "--decode-fds=all",
        "--output",
        trace.to_str().unwrap(),
    ];
    let setup = Setup::new(service.port).by(&strace).env("TEEMARK_LOG_TO", &taker.address()).env("RUST_LOG", "debug");
    let mut daemon = setup.start();
    assert_eq!(daemon.handshake(CERTS.full_bundle(service.port).to_string().as_bytes())["missing"], json!([]));
    let mut taken = taker.accept();
    taken.lines_until(|record| record.body.contains("handshake accepted"));
    let file = encrypt(&KEY, &b"A text that is long enough to be marked. ".repeat(40));
    let mut stream = TcpStream::connect(daemon.public).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let dropped = |daemon: &Daemon| daemon.metric("teemark_log_lines_dropped_total");
    let given = Arc::new(AtomicUsize::new(0));
    let counted = given.clone();
    let (unread, reader) = match reads {
        true => (None, Some(thread::spawn(move || count_given(taken, &counted)))),
        false => (Some(taken), None),
    };
    if !reads {
        // Until the pipe is full, and the memory for records too.
        wait_for("records to be dropped", || {
            ask_in_vain(&mut stream, "/before", 500);
            (dropped(&daemon) > 0.0).then_some(())
        });
    }
    let before = dropped(&daemon);
    let length = file.len();
    for n in 0..COUNTED {
        let head = format!(
            "POST /files/counted/decrypt?user_id=alice HTTP/1.1\r\nHost: x\r\nX-Request-Id: c-{n}\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(&[head.as_bytes(), &file].concat()).unwrap();
        assert_eq!(read_answer(&mut stream).unwrap().status, 200);
    }
    assert_eq!(dropped(&daemon) > before, !reads);
    drop(stream);
    if reads {
        // Before the end, which would wait for them two seconds only.
        wait_for("the record of each", || (given.load(Ordering::Acquire) >= COUNTED).then_some(()));
    }
    daemon.stop();
    drop(unread);
    if let Some(reader) = reader {
        reader.join().unwrap();
        assert_eq!(given.load(Ordering::Acquire), COUNTED, "each has its record");
    }
    let text = wait_for("the end of the trace", || {
        let text = std::fs::read_to_string(&trace).unwrap();
        text.contains("exit_group(").then_some(text)
    });
    let lines: Vec<&str> = text.lines().collect();
    let counted = |line: &&str| line.contains("POST /files/counted");
    let first = lines.iter().position(counted).expect("the first request that is counted");
    let last = lines.iter().rposition(counted).expect("the last one");
    Trace {
        calls: Call::parse_all(&lines[first..last]),
        never_blocks: lines[..last]
            .iter()
            .filter_map(|line| Some(line.split_once("ioctl(")?.1.split_once(", FIONBIO, [1]")?.0.to_owned()))
            .collect(),
        // The daemon's connections with clients, and to the service.
        own: [
            format!("127.0.0.1:{}->", daemon.public.port()),
            format!("127.0.0.1:{}->", daemon.admin.port()),
            format!("->127.0.0.1:{}]", service.port),
        ],
        log: taker.address().replace("tcp:", "->") + "]",
    }
}

#[test]
fn while_the_log_goes_nowhere_a_request_for_a_file_waits_for_nothing_of_it() {
    for reads in [false, true] {
        // A thread that loses the processor with a lock has the others wait, the more the busier the machine is: the
        // fewest waits of several traces count. A request that waits for the log does so each time.
        unspoilt("a trace with few waits at locks", || {
            let (locks, handed_over) = waits_at_locks(&trace(reads), reads);
            println!("reads: {reads}, {locks} waits at locks, {handed_over} requests handed over");
            (locks <= handed_over + FEW).then_some(())
        });
    }
}

/// How often a thread of the requests or the event loop waited at a lock, and how often a request was handed over. They
/// waited for nothing else.
fn waits_at_locks(trace: &Trace, reads: bool) -> (usize, usize) {
    let (mut others, mut pools) = (BTreeMap::new(), BTreeSet::new());
    let (mut given, mut wakes, mut handed_over, mut locks) = (0, 0, 0, 0);
    for call in &trace.calls {
        let Call { text, .. } = call;
        if !call.is_of("request") && !call.is_of("event loop") {
            continue;
        }
        let writes_to_stderr = call.name().starts_with("write") && text.contains("(2<");
        assert!(!writes_to_stderr && !text.contains(&trace.log), "only the log's thread writes the log: {text}");
        given += usize::from(text.contains("HTTP/1.1 200 OK"));
        if text.contains("\".\", 1") {
            // The byte that wakes a thread.
            let to = text.split_once('(').unwrap().1.split_once(", ").unwrap().0;
            assert!(trace.never_blocks.contains(to), "{text}");
            wakes += 1;
        } else if call.name() == "futex" {
            let (address, rest) = text.split_once('(').unwrap().1.split_once(", ").unwrap();
            if rest.contains("tv_sec") {
                pools.insert(address);
                handed_over += 1;
            } else if rest.contains("WAIT") && !rest.contains("EAGAIN") {
                // With EAGAIN it came back at once: the lock was free again.
                locks += 1;
            }
        } else if call.is_of("request")
            && !OF_MEMORY.contains(&call.name())
            && !trace.own.iter().any(|own| text.contains(own))
        {
            *others.entry(call.name()).or_default() += 1;
        }
    }
    assert!(given >= COUNTED - 2 && wakes > 0, "{given} given, {wakes} wakes");
    // With a time limit a thread waits for its next request, with the others of its listener.
    assert!(pools.len() <= 2, "reads: {reads}, {pools:?}");
    assert!(others.values().all(|times: &usize| *times <= FEW), "reads: {reads}, {others:?}");
    (locks, handed_over)
}
