//! A hostile parent: it changes the stream between an enclave and the collector, in place of a relay that carries it as it
//! is. What it did is in the collector's files, and `teemark log verify` names it.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use formats::attestation::BootNonce;
use formats::log::{Checkpoint, Dropped, Head, Kind, Record};
use ring::signature::Ed25519KeyPair;

use super::collector::Collector;
use super::record;
use super::support::{Daemon, Process, Setup, free_port, program, unspoilt, wait_for};

/// What it does to a line of the stream: the lines that go on in its place.
type Change = Box<dyn FnMut(&str) -> Vec<String> + Send>;

/// The parent: enclaves come to its port, and it goes to the relay's.
fn parent(relay: u16, change: Change) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let change = Arc::new(Mutex::new(change));
    thread::spawn(move || {
        for enclave in listener.incoming() {
            let (mut enclave, change) = (enclave.unwrap(), change.clone());
            let mut onward = TcpStream::connect(("127.0.0.1", relay)).unwrap();
            let mut acks = onward.try_clone().unwrap();
            let mut back = enclave.try_clone().unwrap();
            thread::spawn(move || {
                let _ = std::io::copy(&mut acks, &mut back);
                let _ = back.shutdown(Shutdown::Both);
            });
            thread::spawn(move || {
                for line in BufReader::new(&mut enclave).lines() {
                    let Ok(line) = line else { break };
                    let lines = (change.lock().unwrap())(&line);
                    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
                    if onward.write_all(text.as_bytes()).is_err() {
                        break;
                    }
                }
                let _ = (onward.shutdown(Shutdown::Both), enclave.shutdown(Shutdown::Both));
            });
        }
    });
    port
}

/// A collector and a relay, and a daemon whose log comes to them by way of a parent that does this.
struct Scene {
    collector: Collector,
    daemon: Daemon,
    /// Where a daemon's log goes.
    to: String,
    _relay: Process,
}

impl Scene {
    fn new(change: Change) -> Scene {
        let mut collector = Collector::new();
        collector.start();
        let relay_port = free_port();
        let mut relay = Command::new(program("teemark"));
        let listen = format!("tcp:127.0.0.1:{relay_port}");
        relay.args(["log", "relay", "--listen", &listen, "--to", &collector.address()]).stdout(Stdio::null());
        let relay = Process::spawn(&mut relay, collector.folder.path().join("relay.log"));
        assert!(relay.has_logged("leads to"), "{}", relay.log());
        let to = format!("tcp:127.0.0.1:{}", parent(relay_port, change));
        let daemon = Setup::new(1).env("TEEMARK_LOG_TO", &to).start();
        Scene { collector, daemon, to, _relay: relay }
    }

    /// Asks for paths until this holds of the lines in the files, and gives what verify finds in them.
    fn found(&self, until: impl Fn(&[String]) -> bool) -> String {
        wait_for("the records", || {
            assert_eq!(self.daemon.get("/nothing").status, 404);
            until(&self.collector.lines()).then_some(())
        });
        self.named(&["--development"])
    }

    fn named(&self, how: &[&str]) -> String {
        let output = self.collector.verify(how);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        told
    }
}

/// The record in each case, somewhere after the first checkpoint.
const AT: u64 = 15;

/// Whether a record far behind it has come.
fn goes_on(lines: &[String]) -> bool {
    lines.iter().any(|line| record(line).head.number > AT + 20)
}

fn number(line: &str) -> Option<u64> {
    Record::parse(line.as_bytes()).map(|record| record.head.number)
}

/// At record [`AT`] does this the first time that it comes; everything else goes on as it is.
fn once(act: impl FnOnce(&str) -> Vec<String> + Send + 'static) -> Change {
    let mut act = Some(act);
    Box::new(move |line| match act.take_if(|_| number(line) == Some(AT)) {
        Some(act) => act(line),
        None => vec![line.to_owned()],
    })
}

/// The next record after this one, with a hash that fits.
fn after(line: &str, kind: Kind, body: &str) -> String {
    let mut head = record(line).head;
    let mut next = Vec::new();
    head.write(kind, body.as_bytes(), &mut next);
    String::from_utf8(next).unwrap().trim_end().to_owned()
}

#[test]
fn records_that_the_parent_drops_from_the_stream_are_named() {
    let always: Change = Box::new(|line| if number(line) == Some(AT) { vec![] } else { vec![line.to_owned()] });
    let told = Scene::new(always).found(goes_on);
    assert!(told.contains(&format!("record {AT} is missing")), "{told}");
}

#[test]
fn records_that_the_parent_reorders_in_the_stream_are_named() {
    let (mut held, mut done) = (None, false);
    let told = Scene::new(Box::new(move |line| {
        if number(line) == Some(AT) && !done {
            (held, done) = (Some(line.to_owned()), true);
            return vec![];
        }
        [line.to_owned()].into_iter().chain(held.take()).collect()
    }));
    let told = told.found(goes_on);
    assert!(told.contains(&format!("record {AT} comes after record {}: it was moved", AT + 1)), "{told}");
}

#[test]
fn records_that_the_parent_edits_in_the_stream_are_named_and_the_genuine_ones_are_kept() {
    let scene = Scene::new(once(|line| vec![format!("{line} edited")]));
    let told = scene.found(goes_on);
    assert!(told.contains(&format!("record {AT} does not fit: it was changed")), "{told}");
    assert!(scene.collector.lines().iter().any(|line| number(line) == Some(AT) && !line.ends_with(" edited")));
}

#[test]
fn records_that_the_parent_replays_in_the_stream_are_named() {
    let mut first = None;
    let told = Scene::new(Box::new(move |line| {
        if number(line) == Some(3) {
            first.get_or_insert_with(|| line.to_owned());
        }
        let replayed = if number(line) == Some(AT) { first.take() } else { None };
        [line.to_owned()].into_iter().chain(replayed).collect()
    }));
    let told = told.found(goes_on);
    assert!(told.contains(&format!("record 3 comes again after record {AT}: it was replayed")), "{told}");
}

#[test]
fn another_boots_records_that_the_parent_puts_into_the_stream_are_named() {
    let other = Arc::new(Mutex::new(Vec::new()));
    let recorded = other.clone();
    let scene = Scene::new(Box::new(move |line| {
        let mut recorded = recorded.lock().unwrap();
        recorded.push(line.to_owned());
        // The first boot's end is the second's hello.
        let second = recorded.iter().skip(1).position(|line| line.starts_with("teemark-log "));
        match second {
            Some(at) if number(line) == Some(AT) => {
                let first: Vec<String> = recorded[1..=at].to_vec();
                [line.to_owned()].into_iter().chain(first).collect()
            }
            _ => vec![line.to_owned()],
        }
    }));
    wait_for("records", || {
        assert_eq!(scene.daemon.get("/nothing").status, 404);
        goes_on(&scene.collector.lines()).then_some(())
    });
    let first = scene.collector.lines().len();
    let daemon = Setup::new(1).env("TEEMARK_LOG_TO", &scene.to).start();
    wait_for("records of both", || {
        assert_eq!(daemon.get("/nothing").status, 404);
        (scene.collector.lines().len() > first + 60).then_some(())
    });
    let told = scene.named(&["--development"]);
    assert!(told.contains(&format!("another chain begins after record {AT}")), "{told}");
    assert!(!other.lock().unwrap().is_empty());
}

#[test]
fn a_stream_that_the_parent_cuts_is_named_while_the_enclave_runs() {
    let scene = Scene::new(Box::new(|line| {
        if number(line).is_some_and(|number| number > AT) { vec![] } else { vec![line.to_owned()] }
    }));
    wait_for("the first records", || {
        assert_eq!(scene.daemon.get("/nothing").status, 404);
        scene.collector.lines().iter().any(|line| number(line) == Some(AT)).then_some(())
    });
    assert_eq!(scene.daemon.get("/nothing").status, 404);
    let url = format!("http://{}", scene.daemon.public);
    let told = scene.named(&["--development", "--attested", &url]);
    assert!(told.contains(&format!("the end is missing: records {} to ", AT + 1)), "{told}");
}

#[test]
fn a_record_that_the_parent_puts_into_the_stream_before_the_genuine_one_is_named_by_its_hash() {
    let made_up = |line: &str| after(line, Kind::Audit, "{\"event\":\"given\"}");
    let (scene, lines) = unspoilt("the last checkpoint", || {
        let mut scene = Scene::new(once(move |line| vec![line.to_owned(), made_up(line)]));
        let told = scene.found(goes_on);
        // The next checkpoint tells, which comes within a minute.
        let [undecided, decided] = ["is here twice", "with hash "].map(|how| format!("record {} {how}", AT + 1));
        assert!(told.contains(&undecided) || told.contains(&decided), "{told}");
        let lines = scene.daemon.stop().leaves("the last checkpoint", || {
            let lines = scene.collector.lines();
            (record(lines.last()?).kind == Kind::Checkpoint).then_some(lines)
        })?;
        Some((scene, lines))
    });
    let inserted = lines.iter().find(|line| number(line) == Some(AT + 1)).unwrap();
    assert!(inserted.contains("given"), "it stands before the genuine one");
    let hash = &record(inserted).head.hash.to_string()[..16];
    let told = scene.named(&["--development"]);
    let expected = format!("record {} with hash {hash}… was inserted: the enclave signed another", AT + 1);
    assert!(told.contains(&expected) && told.matches("WRONG").count() == 1, "{told}");
}

#[test]
fn a_checkpoint_that_the_parent_forges_in_the_stream_is_named() {
    let forge = |line: &str| {
        let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
        let sign = |bytes: &[u8]| key.sign(bytes).as_ref().try_into().unwrap();
        let checkpoint = Checkpoint::new(BootNonce::from_bytes([3; 32]), record(line).head, 0, sign);
        after(line, Kind::Checkpoint, &serde_json::to_string(&checkpoint).unwrap())
    };
    let told = Scene::new(once(move |line| vec![line.to_owned(), forge(line)])).found(goes_on);
    assert!(told.contains(&format!("the checkpoint in record {} is forged", AT + 1)), "{told}");
}

#[test]
fn records_that_the_parent_drops_and_says_that_the_enclave_did_are_named() {
    let mut last = Head::default();
    let scene = Scene::new(Box::new(move |line| match number(line) {
        Some(AT..=17) => {
            last = record(line).head;
            vec![]
        }
        Some(20) => {
            let dropped = serde_json::to_string(&Dropped::Records { from: AT, last }).unwrap();
            vec![line.to_owned(), after(line, Kind::Dropped, &dropped)]
        }
        Some(21..) => vec![],
        _ => vec![line.to_owned()],
    }));
    let told = scene.found(|lines| lines.iter().any(|line| number(line) == Some(21)));
    assert!(told.contains("records 15 to 17 are missing; record 21 says that the enclave dropped them"), "{told}");
}
