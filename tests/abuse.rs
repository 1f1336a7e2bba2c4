//! Abuse: whatever some clients do, the others keep getting their answers, and nothing stays behind.

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::*;

static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

const MIB: usize = 1 << 20;
/// Longest time that an ordinary request may take beside any abuse: as long as no abuser's time is over. Where many
/// connect at once, TCP itself may take three seconds of it (tcp(7), tcp_syn_retries).
const PATIENCE: Duration = Duration::from_secs(8);
/// The daemon's limit for a request's head, and for a pause in a body; a loaded machine may take some seconds more.
const LIMIT: Duration = Duration::from_secs(10);
const SLACK: Duration = Duration::from_secs(20);

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
        let setup = env.iter().fold(Setup::new(service.port), |setup, (name, value)| setup.env(name, value));
        let daemon = Daemon::ready_with(setup, service.port, &CERTS);
        let file = encrypt(&KEY, b"a file like any other\n");
        assert_eq!(daemon.decrypt(&file, "f", "u").status, 200);
        let (threads, descriptors) = (threads(&daemon), descriptors(&daemon));
        Scene { daemon, service, file, threads, descriptors }
    }

    fn public(&self) -> SocketAddr {
        self.daemon.public
    }

    /// Runs `abuse` while an ordinary client sends file after file and looks at the clock.
    fn beside<T>(&self, abuse: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let client = scope.spawn(|| {
                let (mut served, mut longest) = (0, Duration::ZERO);
                while !over.load(Ordering::Acquire) || served < 3 {
                    let start = Instant::now();
                    let answer = self.daemon.decrypt(&self.file, "f", "u");
                    assert_eq!(answer.status, 200, "an ordinary request: {answer:?}");
                    longest = longest.max(start.elapsed());
                    served += 1;
                    thread::sleep(Duration::from_millis(10));
                }
                (served, longest)
            });
            let machine = scope.spawn(|| standstill(&over));
            let _stop = Stop(&over);
            let result = abuse();
            over.store(true, Ordering::Release);
            let (served, longest) = client.join().expect("the ordinary client is served");
            let stood = machine.join().unwrap();
            println!(
                "{served} ordinary requests, the longest took {longest:.0?}; the machine stood still for {stood:.0?}"
            );
            assert!(
                longest < PATIENCE + stood,
                "an ordinary request took {longest:?}, of which the machine took {stood:?}"
            );
            result
        })
    }

    /// The daemon is what it was: no thread, no descriptor and no memory is held, and it works.
    fn ends_as_it_began(&self) {
        wait_for("the threads to end", || (threads(&self.daemon) <= self.threads + 2).then_some(()));
        if let Some(before) = self.descriptors {
            // 32 connections to the service are kept for the next requests (src/mtls, POOLED).
            wait_for("the descriptors to be closed", || {
                (descriptors(&self.daemon).unwrap() <= before + 32 + 2).then_some(())
            });
        }
        assert_eq!(self.daemon.metric("teemark_panics_total"), 0.0);
        assert_eq!(self.daemon.decrypt(&self.file, "f", "u").status, 200);
    }
}

/// How long this machine let a thread wait that did nothing but sleep.
fn standstill(over: &AtomicBool) -> Duration {
    const USUAL: Duration = Duration::from_millis(100);
    let mut stood = Duration::ZERO;
    while !over.load(Ordering::Acquire) {
        let start = Instant::now();
        thread::sleep(USUAL / 10);
        stood += start.elapsed().saturating_sub(USUAL);
    }
    stood
}

/// Ends the ordinary client also where the abuse panics.
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

/// Open descriptors. The daemon's folder is root's alone, since nobody may look into its memory.
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

/// Waits until the daemon has closed this connection, and gives what it said before.
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

#[test]
fn two_hundred_connections_that_say_nothing_are_closed_after_ten_seconds() {
    let scene = Scene::new(&[], &[]);
    scene.beside(|| {
        let start = Instant::now();
        let mut silent: Vec<TcpStream> = (0..200).map(|_| connect(scene.public())).collect();
        let last = Instant::now();
        assert_eq!(until_closed(&mut silent[0]), "");
        assert!(start.elapsed() >= LIMIT, "closed early, after {:?}", start.elapsed());
        silent.iter_mut().for_each(|stream| assert_eq!(until_closed(stream), ""));
        assert!(last.elapsed() < LIMIT + SLACK, "closed late, after {:?}", last.elapsed());
    });
    scene.ends_as_it_began();
}

#[test]
fn of_300_silent_connections_the_oldest_give_way_to_those_that_come_later() {
    let scene = Scene::new(&[("TEEMARK_MAX_CONNECTIONS", "256")], &[]);
    scene.beside(|| {
        let start = Instant::now();
        let mut silent: Vec<TcpStream> = (0..300).map(|_| connect(scene.public())).collect();
        silent[..44].iter_mut().for_each(|stream| assert_eq!(until_closed(stream), ""));
        assert!(start.elapsed() < LIMIT, "the oldest did not give way, they ran out of time");
        let newest = silent.last_mut().unwrap();
        newest.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(read_answer(newest).expect("the newest is served").body, b"Pong!");
    });
    scene.ends_as_it_began();
}

#[test]
fn a_head_of_a_byte_a_second_is_cut_after_ten_seconds_with_408() {
    let scene = Scene::new(&[], &[]);
    scene.beside(|| {
        let slow = || {
            let mut stream = connect(scene.public());
            let start = Instant::now();
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            for byte in b"GET / HTTP/1.1\r\nX-Slow: yes\r\n\r\n".chunks(1) {
                stream.write_all(byte).unwrap();
                if stream.peek(&mut [0]).is_ok() {
                    break;
                }
            }
            let took = start.elapsed();
            stream.set_read_timeout(Some(SOON)).unwrap();
            assert_eq!(read_answer(&mut stream).expect("an answer").status, 408);
            assert!(took >= LIMIT - Duration::from_secs(1) && took < LIMIT + SLACK, "cut after {took:?}");
        };
        thread::scope(|scope| (0..20).for_each(|_| drop(scope.spawn(slow))));
    });
    scene.ends_as_it_began();
}

#[test]
fn a_body_that_stops_half_way_is_cut_after_ten_seconds_with_408_and_one_that_ends_is_dropped() {
    let scene = Scene::new(&[], &[]);
    scene.beside(|| {
        let send = || {
            let mut stream = connect(scene.public());
            stream.write_all(format!("{}half", raw_head(1000)).as_bytes()).unwrap();
            stream
        };
        let mut stalled: Vec<TcpStream> = (0..50).map(|_| send()).collect();
        for i in 0..50 {
            let mut stream = send();
            if i % 2 == 0 {
                stream.shutdown(Shutdown::Write).unwrap();
                let said = until_closed(&mut stream);
                assert!(!said.starts_with("HTTP/1.1 200"), "{said}");
            }
        }
        for stream in &mut stalled {
            assert_eq!(read_answer(stream).expect("an answer").status, 408);
        }
    });
    scene.ends_as_it_began();
}

#[test]
fn every_malformed_request_gets_its_refusal() {
    let scene = Scene::new(&[("TEEMARK_MAX_FILE", "1MiB")], &[]);
    let post = |path: &str, fields: &str, body: &[u8]| {
        [format!("POST {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n").as_bytes(), body].concat()
    };
    let json = |body: &[u8]| post("/files/decrypt", &format!("Content-Length: {}\r\n", body.len()), body);
    let chunked = |body: &[u8]| post("/files/decrypt", "Transfer-Encoding: chunked\r\n", body);
    let raw = "/files/f/decrypt?user_id=u";
    let deep = format!("{{\"file_id\":{}", "[".repeat(500_000));
    let cases: Vec<(&str, u16, Vec<u8>)> = vec![
        ("100,000 fields", 431, format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100_000)).into()),
        ("a field of 1 MiB", 431, format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(MIB)).into()),
        ("a path of 1 MiB", 431, format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(MIB)).into()),
        ("bad UTF-8 in JSON", 400, json(b"{\"file_id\":\"\xff\xfe\"}")),
        ("bad UTF-8 in the path", 400, b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("bad UTF-8, percent-encoded", 400, post("/files/%ff/decrypt?user_id=u", "Content-Length: 0\r\n", b"")),
        ("deep JSON", 400, json(deep.as_bytes())),
        ("two equal lengths", 400, post(raw, "Content-Length: 3\r\nContent-Length: 3\r\n", b"abc")),
        ("two lengths", 400, post(raw, "Content-Length: 3\r\nContent-Length: 30\r\n", b"abc")),
        ("a negative length", 400, post(raw, "Content-Length: -3\r\n", b"abc")),
        ("a length past 64 bits", 413, post(raw, "Content-Length: 18446744073709551617\r\n", b"abc")),
        ("a huge length", 413, post(raw, "Content-Length: 18446744073709551615\r\n", b"abc")),
        ("a length and chunks", 400, post(raw, "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
        ("no length", 411, post(raw, "", b"")),
        ("a chunk size that is none", 400, chunked(b"zz\r\nabc\r\n0\r\n\r\n")),
        ("a negative chunk size", 400, chunked(b"-3\r\nabc\r\n0\r\n\r\n")),
        ("a chunk longer than its size", 400, chunked(b"1\r\nabc\r\n0\r\n\r\n")),
        ("a huge chunk", 413, chunked(b"ffffffffffffffff\r\nabc")),
        ("an endless chunk line", 400, chunked(&b"1".repeat(MIB))),
        ("an endless trailer", 400, chunked(&[b"0\r\nA: ", &b"x".repeat(MIB)[..]].concat())),
        ("the start of a TLS handshake", 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("HTTP/2", 400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("nonsense", 400, b"\0\0\0\0\r\n\r\n".to_vec()),
        ("5 MiB, refused by its head", 413, post(raw, "Content-Length: 5242880\r\n", &vec![b'x'; 5 * MIB])),
        ("3 MiB, refused while it comes", 413, post(raw, "Content-Length: 3145728\r\n", &vec![b'x'; 3 * MIB])),
    ];
    scene.beside(|| {
        for (what, status, bytes) in cases {
            let mut stream = connect(scene.public());
            // All of it is taken before the answer is read: a reset in between would destroy the answer.
            stream.write_all(&bytes).unwrap_or_else(|e| panic!("{what}: cannot be sent: {e}"));
            let answer = read_answer(&mut stream).unwrap_or_else(|| panic!("{what}: no answer"));
            assert_eq!(answer.status, status, "{what}: {answer:?}");
            assert!(!answer.code().is_empty(), "{what}: {answer:?}");
        }
    });
    scene.ends_as_it_began();
}

#[test]
fn requests_in_one_write_are_answered_in_their_order() {
    let scene = Scene::new(&[], &[]);
    let mut stream = connect(scene.public());
    let pair = "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(pair.repeat(50).as_bytes()).unwrap();
    for n in 0..50 {
        assert_eq!(read_answer(&mut stream).unwrap_or_else(|| panic!("no answer {n}")).body, b"Pong!");
        assert_eq!(read_answer(&mut stream).unwrap().json()["status"], "alive");
    }
    scene.ends_as_it_began();
}

#[test]
fn a_body_longer_than_announced_does_not_cost_the_request_its_answer() {
    let scene = Scene::new(&[], &[]);
    scene.beside(|| {
        for excess in [&b"\0\0\0\0 more than was announced\r\n\r\n"[..], b"GET /%ff HTTP/1.1\r\n\r\n"] {
            let mut stream = connect(scene.public());
            stream.write_all(&[raw_head(scene.file.len()).as_bytes(), &scene.file, excess].concat()).unwrap();
            assert_eq!(read_answer(&mut stream).expect("the answer of the request before").status, 200);
            assert_eq!(read_answer(&mut stream).expect("the refusal of what came after it").status, 400);
        }
    });
    scene.ends_as_it_began();
}

#[test]
fn a_client_that_half_closes_after_its_request_gets_its_whole_answer_however_slowly_it_reads() {
    let scene = Scene::new(&[], &[]);
    let large = encrypt(&KEY, &vec![b'x'; 4 * MIB]);
    scene.beside(|| {
        let mut stream = connect(scene.public());
        stream.write_all(raw_head(large.len()).as_bytes()).and_then(|()| stream.write_all(&large)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut left = read_head(&mut stream);
        assert!(left > 4 * MIB, "{left}");
        let mut buffer = vec![0; 256 << 10];
        while left > 0 {
            // The daemon is the faster of the two, so its last bytes wait for this client.
            thread::sleep(Duration::from_millis(5));
            let n = stream.read(&mut buffer).unwrap();
            assert!(n > 0, "the answer broke off {left} bytes before its end");
            left -= n;
        }
    });
    scene.ends_as_it_began();
}

/// Reads a success answer's head and gives the length of its body.
fn read_head(stream: &mut TcpStream) -> usize {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap()
}

#[test]
fn clients_that_never_read_their_large_answer_hold_up_nobody() {
    let scene = Scene::new(&[], &[]);
    // More than the system takes for a connection whose client does not read.
    let large = encrypt(&KEY, &vec![b'x'; 4 * MIB]);
    scene.beside(|| {
        let unread: Vec<TcpStream> = (0..15)
            .map(|_| {
                let mut stream = connect(scene.public());
                stream.write_all(raw_head(large.len()).as_bytes()).and_then(|()| stream.write_all(&large)).unwrap();
                wait_for_answer(&stream);
                stream
            })
            .collect();
        assert!(threads(&scene.daemon) > scene.threads, "the answers are still being handed over");
        drop(unread);
    });
    scene.ends_as_it_began();
}

#[test]
fn a_connection_past_the_limit_while_all_are_busy_gets_503_with_retry_after() {
    let scene = Scene::new(&[("TEEMARK_MAX_CONNECTIONS", "4")], &["slow=8"]);
    let send = || {
        let mut stream = connect(scene.public());
        stream.write_all(raw_head(scene.file.len()).as_bytes()).and_then(|()| stream.write_all(&scene.file)).unwrap();
        stream
    };
    let called = scene.service.count("TLS handshake: client");
    let mut busy: Vec<TcpStream> = (0..4).map(|_| send()).collect();
    // One pooled connection to the service is there; the other requests open theirs when they are under way.
    wait_for("four requests under way", || (scene.service.count("TLS handshake: client") >= called + 3).then_some(()));
    let turned_away = scene.daemon.get("/");
    assert_eq!((turned_away.status, turned_away.code().as_str()), (503, "overloaded"));
    assert!(turned_away.head.to_ascii_lowercase().contains("\r\nretry-after: 1\r\n"), "{}", turned_away.head);
    busy.iter_mut().for_each(|stream| assert_eq!(read_answer(stream).expect("an answer").status, 200));
    // Now they are idle, and the oldest gives way.
    assert_eq!(scene.daemon.get("/").status, 200);
    drop(busy);
    scene.ends_as_it_began();
}

#[test]
fn clients_that_go_away_while_their_request_is_under_way_leave_a_bounded_number_of_threads() {
    let scene = Scene::new(&[], &["slow=0.2"]);
    let most = scene.beside(|| {
        let mut most = 0;
        for _ in 0..200 {
            let mut stream = connect(scene.public());
            stream
                .write_all(raw_head(scene.file.len()).as_bytes())
                .and_then(|()| stream.write_all(&scene.file))
                .unwrap();
            drop(stream);
            most = most.max(threads(&scene.daemon));
        }
        most
    });
    println!("{most} threads at most, {} before", scene.threads);
    assert!(most <= scene.threads + 2 * 256, "{most} threads");
    scene.ends_as_it_began();
}

#[test]
fn two_hundred_idle_connections_cost_no_thread() {
    let scene = Scene::new(&[], &[]);
    let ask = |stream: &mut TcpStream| {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(read_answer(stream).expect("an answer").body, b"Pong!");
    };
    let connect_and_ask = || {
        let mut stream = connect(scene.public());
        ask(&mut stream);
        stream
    };
    let mut idle: Vec<TcpStream> = std::iter::repeat_with(connect_and_ask).take(200).collect();
    // The threads of the requests just answered end after five idle seconds.
    wait_for("the requests' threads to end", || (threads(&scene.daemon) <= scene.threads).then_some(()));
    assert!(scene.daemon.metric("teemark_connections_open") >= 200.0, "the connections are still open");
    idle.iter_mut().for_each(ask);
    drop(idle);
    scene.ends_as_it_began();
}

#[test]
fn after_a_moment_without_descriptors_requests_are_answered_again() {
    let daemon = Setup::new(free_port()).start();
    assert_eq!(daemon.get("/health").status, 200);
    let pid = daemon.process.child.id().to_string();
    let limit = |soft: usize| run(Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={soft}:")]));
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    // One of these leaves room for a connection and for one to tiny_http, but not for tiny_http to accept it: it stops
    // accepting then. Which one depends on what else is open at that moment.
    let mut failed = 0;
    for limited in open - 6..open + 4 {
        limit(limited);
        let mut stream = TcpStream::connect(daemon.public).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        failed += usize::from(read_answer(&mut stream).is_none_or(|answer| answer.status != 200));
        limit(1024);
    }
    assert!(failed > 0, "the limit was never in the way");
    wait_for("requests to be answered again", || (daemon.get("/health").status == 200).then_some(()));
    let log = daemon.process.log();
    assert!(
        log.contains("the HTTP server has died: starting another"),
        "tiny_http did not die, so nothing is shown:\n{log}"
    );
}
