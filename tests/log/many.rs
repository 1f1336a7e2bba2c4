//! Every record of very many requests, at the disk's pace, as fast as they come, and where none is given without one.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Range;
use std::process::Command;
use std::thread::{self, JoinHandle};

use serde_json::Value;

use super::audit::Scene;
use super::collector::{Collector, audits};
use super::support::{SOON, as_metric, read_answer, wait_for};

const REQUESTS: usize = 20_000;
/// How many are sent on a connection before their answers are waited for.
const AT_ONCE: usize = 200;

/// Whether a request's file is given. The others' do not open.
fn is_given(n: usize) -> bool {
    n.is_multiple_of(20)
}

/// Sends these requests on one connection.
fn send(
    stream: &TcpStream,
    file: &[u8],
    numbers: impl Iterator<Item = usize>,
    is_given: fn(usize) -> bool,
) -> JoinHandle<io::Result<()>> {
    let one = |n: usize| {
        let file: &[u8] = if is_given(n) { file } else { b"x" };
        let length = file.len();
        let head = format!(
            "POST /files/f/decrypt?user_id=alice HTTP/1.1\r\nHost: x\r\nX-Request-Id: r-{n}\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        [head.as_bytes(), file].concat()
    };
    let many: Vec<u8> = numbers.flat_map(one).collect();
    let mut sender = stream.try_clone().unwrap();
    thread::spawn(move || sender.write_all(&many))
}

/// Sends these requests on one connection, and expects of each its answer.
fn ask(stream: &mut TcpStream, file: &[u8], numbers: Range<usize>, is_given: fn(usize) -> bool) {
    let sending = send(stream, file, numbers.clone(), is_given);
    for n in numbers {
        let status = read_answer(stream).expect("an answer").status;
        assert_eq!(status, if is_given(n) { 200 } else { 422 }, "r-{n}");
    }
    sending.join().unwrap().unwrap();
}

/// Asks for these files until each is given. Where records are required, one that the disk keeps for five seconds costs a
/// request its file: the answer says so, and those behind it on the connection may have none.
fn ask_until_given(scene: &Scene, numbers: Range<usize>) {
    let mut left: Vec<usize> = numbers.collect();
    for _ in 0..100 {
        wait_for("the daemon to be ready", || scene.is_ready());
        let mut stream = connect(scene.daemon.public);
        let sending = send(&stream, &scene.file, left.iter().copied(), |_| true);
        let mut again = Vec::new();
        for &n in &left {
            let refused = match read_answer(&mut stream) {
                Some(answer) if answer.status == 200 => continue,
                Some(answer) => (answer.status, answer.code().as_str()) == (503, "audit_unavailable"),
                None => !again.is_empty(),
            };
            assert!(refused, "r-{n} is neither given nor refused for want of its record");
            again.push(n);
        }
        let _ = stream.shutdown(Shutdown::Both);
        let sent = sending.join().unwrap();
        assert!(sent.is_ok() || !again.is_empty(), "{sent:?}");
        if again.is_empty() {
            return;
        }
        left = again;
    }
    panic!("not given: {left:?}");
}

/// Runs this many clients at once, each of which asks for its share of the requests.
fn at_once(clients: usize, requests: usize, ask: impl Fn(Range<usize>) + Sync) {
    let (share, ask) = (requests / clients, &ask);
    thread::scope(|scope| {
        for client in 0..clients {
            scope.spawn(move || ask(client * share..(client + 1) * share));
        }
    });
}

/// The parts of a client's share that it sends on its connection before it waits for their answers.
fn parts(share: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = share.end;
    share.step_by(AT_ONCE).map(move |first| first..(first + AT_ONCE).min(end))
}

fn connect(public: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(public).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// Whether this is in one of the last lines of the collector's files.
fn ends_with(collector: &Collector, text: &str) -> bool {
    let tail = format!("tail -qc 100000 {}/*/*.log", collector.files().display());
    let found = Command::new("sh").arg("-c").arg(tail).output().unwrap();
    String::from_utf8_lossy(&found.stdout).contains(text)
}

/// Waits until the collector's files end with what the enclave wrote last. Each time that is looked up anew: thousands of
/// records may wait for the log's thread. The collector acknowledges nothing after a gap.
fn wait_for_all(scene: &Scene) {
    wait_for("the records in the files", || {
        let last = scene.daemon.get_admin("/admin/status").json()["log"]["last"].as_u64().unwrap();
        ends_with(&scene.collector, &format!("\n{last} ")).then_some(())
    });
}

/// The requests of which there is a record of this event, by their ids.
fn decided(all: &[Value], event: &str) -> BTreeSet<String> {
    let of_event = all.iter().filter(|record| record["event"] == event);
    of_event.filter_map(|record| record["request_id"].as_str().map(str::to_owned)).collect()
}

/// What verify says, which has nothing against the files, nor against their end.
#[track_caller]
fn verified(scene: &Scene) -> String {
    let url = format!("http://{}", scene.daemon.public);
    let verified = scene.collector.verify(&["--development", "--attested", &url]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(text.contains(" up to record "), "{text}");
    text
}

#[test]
fn every_record_of_20000_requests_is_in_the_files_and_verifies() {
    let mut scene = Scene::new(&[]);
    scene.collector.start();
    let mut stream = connect(scene.daemon.public);
    for first in (0..REQUESTS).step_by(AT_ONCE) {
        ask(&mut stream, &scene.file, first..first + AT_ONCE, is_given);
        // As fast as this machine's disk: what nobody takes in time would be dropped.
        let last = format!("\"r-{}\"", first + AT_ONCE - 1);
        wait_for("the records in the files", || ends_with(&scene.collector, &last).then_some(()));
    }
    let all = audits(&scene.collector.lines());
    let [given, refused] = ["given", "refused"].map(|event| decided(&all, event));
    for n in 0..REQUESTS {
        assert!(if is_given(n) { &given } else { &refused }.contains(&format!("r-{n}")), "{n}");
    }
    assert_eq!(scene.daemon.metric("teemark_log_lines_dropped_total"), 0.0);
    assert!(!verified(&scene).contains("dropped"));
}

/// What says that records were dropped, and from which hash the chain goes on, is tried beside the stream
/// (src/logging/stream.rs).
#[test]
fn of_20000_requests_as_fast_as_they_come_each_record_is_in_the_files_or_counted_as_dropped() {
    let mut scene = Scene::new(&[]);
    scene.collector.start();
    // None of them waits for the disk.
    at_once(8, REQUESTS, |share| {
        let mut stream = connect(scene.daemon.public);
        parts(share).for_each(|part| ask(&mut stream, &scene.file, part, is_given));
    });
    wait_for_all(&scene);
    // What waits for the log's thread still comes.
    wait_for("each record in the files, or its count among the dropped", || {
        let all = audits(&scene.collector.lines());
        let [given, refused] = ["given", "refused"].map(|event| decided(&all, event));
        let has = |n: &usize| if is_given(*n) { &given } else { &refused }.contains(&format!("r-{n}"));
        let missing = (0..REQUESTS).filter(|n| !has(n)).count();
        let dropped = scene.daemon.metric("teemark_log_lines_dropped_total");
        println!("{missing} are missing, and {dropped} were dropped");
        (as_metric(missing) <= dropped).then_some(())
    });
}

#[test]
fn of_many_requests_at_once_none_is_given_without_its_records_where_they_are_required() {
    const MANY: usize = 1_000;
    let mut scene = Scene::new(&[("TEEMARK_AUDIT", "required")]);
    scene.collector.start();
    wait_for("the daemon to be ready", || scene.is_ready());
    at_once(8, MANY, |share| parts(share).for_each(|part| ask_until_given(&scene, part)));
    // Each answer is here, so its first record has to be.
    let ids: BTreeSet<String> = (0..MANY).map(|n| format!("r-{n}")).collect();
    assert_eq!(decided(&audits(&scene.collector.lines()), "about_to_give"), ids);
    wait_for_all(&scene);
    // The second one is written after the answer.
    wait_for("each request's second record", || {
        (decided(&audits(&scene.collector.lines()), "given") == ids).then_some(())
    });
    assert_eq!(scene.daemon.metric("teemark_log_lines_dropped_total"), 0.0);
    assert!(!verified(&scene).contains("dropped"));
}
