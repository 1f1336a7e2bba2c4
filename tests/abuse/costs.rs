//! What a request and a connection cost, counted.

use std::io::{BufRead, BufReader};
use std::process::{ChildStderr, Command, Stdio};

use super::*;

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
fn a_request_costs_a_thread_and_a_descriptor_besides_the_services_connection() {
    const REQUESTS: usize = 8;
    let service = Service::start(&CERTS, &["--fault", "slow=600"]);
    let daemon = Daemon::ready(&service, &CERTS);
    let file = encrypt(&KEY, b"a file like any other\n");
    // What remains is the main thread, the event loop's and the log's.
    wait_for("the handshake's thread to end", || (threads(&daemon) == 3).then_some(()));
    let descriptors_before = descriptors(&daemon);
    let _in_flight: Vec<TcpStream> = (0..REQUESTS)
        .map(|_| {
            let mut stream = connect(daemon.public);
            stream.write_all(&[raw_head(file.len()).as_bytes(), &file].concat()).unwrap();
            stream
        })
        .collect();
    wait_for("the calls", || (service.count("TLS handshake: client") >= REQUESTS).then_some(()));
    assert_eq!(threads(&daemon), 3 + REQUESTS as u64);
    if let Some(before) = descriptors_before {
        assert_eq!(descriptors(&daemon), Some(before + 2 * REQUESTS), "the client's and the service's");
    }
}

#[test]
fn an_idle_daemon_has_four_threads_at_most_also_after_many_requests_at_once() {
    let scene = Scene::new(&[], &["slow=0.2"]);
    thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| assert_eq!(scene.daemon.decrypt(&scene.file, "f", "u").status, 200));
        }
    });
    wait_for("the threads to end", || (threads(&scene.daemon) <= 4).then_some(()));
    scene.ends_as_it_began();
}

#[test]
fn no_socket_of_the_daemon_can_be_found_by_name_but_those_that_are_set() {
    let scene = Scene::new(&[], &[]);
    let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", scene.daemon.process.child.id())) else {
        return not_run("no_socket_of_the_daemon_can_be_found_by_name", "only root can see its descriptors");
    };
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let sockets: Vec<String> =
        links.filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect();
    assert!(sockets.len() >= 3, "{sockets:?}");
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    // Num RefCount Protocol Flags Type St Inode Path
    let named: Vec<&str> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|columns| columns.len() > 7 && sockets.iter().any(|inode| inode == columns[6]))
        .map(|columns| columns[7])
        .collect();
    assert_eq!(named, [scene.daemon.secrets.to_str().unwrap()]);
}

/// A daemon whose standard error is a pipe that the test stops reading once the daemon listens; and the pipe.
fn with_a_log_that_nobody_reads(setup: &Setup) -> (Process, SocketAddr, ChildStderr) {
    let mut child = setup.command().stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::with_capacity(1, child.stderr.take().unwrap());
    let public = log.by_ref().lines().find_map(|line| {
        let line = line.unwrap();
        Some(line.split_once("public: listening on tcp:")?.1.parse().unwrap())
    });
    (Process::of(child, setup.folder.path().join("log")), public.unwrap(), log.into_inner())
}

#[test]
fn a_log_that_nobody_reads_holds_up_neither_requests_nor_the_stop() {
    const AT_ONCE: usize = 200;
    let setup = Setup::new(1);
    let (mut process, public, unread) = with_a_log_that_nobody_reads(&setup);
    let ask =
        |path: &str| request(public, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), b"");
    let mut asked = 0;
    let mut stream = connect(public);
    let many = "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n".repeat(AT_ONCE);
    // A pipe's 64 KiB, the queue's 1 MiB, and more; a line has 60 bytes at least.
    while asked < (2 << 20) / 60 {
        stream.write_all(many.as_bytes()).unwrap();
        (0..AT_ONCE).for_each(|_| assert_eq!(read_answer(&mut stream).expect("an answer").status, 404));
        asked += AT_ONCE;
    }
    assert_eq!(ask("/health").status, 200);
    let file = b"x";
    let refused = request(public, &raw_head(file.len()), file);
    assert_eq!((refused.status, refused.code().as_str()), (503, "not_ready"));
    process.signal("TERM");
    let status = wait_for("the daemon's end", || process.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    drop(unread);
}

#[test]
fn after_a_moment_without_descriptors_requests_are_answered_again() {
    let daemon = Setup::new(free_port()).start();
    assert_eq!(daemon.get("/health").status, 200);
    let Some(open) = descriptors(&daemon) else {
        return not_run("after_a_moment_without_descriptors", "only root can count the daemon's");
    };
    let pid = daemon.process.child.id().to_string();
    let limit = |soft: usize| run(Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={soft}:")]));
    // Which step fails for lack of descriptors depends on what else is open at that moment.
    let mut failed = 0;
    for limited in open - 6..open + 4 {
        limit(limited);
        let mut stream = TcpStream::connect(daemon.public).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        failed += usize::from(read_answer(&mut stream).is_none_or(|answer| answer.status != 200));
        limit(1024);
    }
    assert!(failed > 0, "the limit was never reached");
    wait_for("requests to be answered again", || (daemon.get("/health").status == 200).then_some(()));
    assert!(daemon.process.has_logged("cannot accept a connection"), "it was not the daemon that ran out");
}
