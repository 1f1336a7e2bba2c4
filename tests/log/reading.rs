//! A sealed log, through a relay, in a collector's files and in the journal, and what its key shows of it.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::collector::{Collector, keygen};
use super::start_silently;
use super::support::{Process, SOON, Setup, free_port, printed, program, run, succeeds};

fn log(arguments: &[&str]) -> Output {
    Command::new(program("teemark")).arg("log").args(arguments).output().unwrap()
}

#[test]
fn a_sealed_log_comes_through_a_relay_and_only_its_key_shows_it() {
    let mut collector = Collector::new();
    let folder = collector.folder.path().to_owned();
    let public = keygen(&folder, "log");
    let (socket, port) = (folder.join("journal"), free_port());
    let journal = UnixDatagram::bind(&socket).unwrap();
    collector.start_with(&collector.key(), &["--journald", socket.to_str().unwrap()]);
    let mut relay = Command::new(program("teemark"));
    let listen = format!("tcp:127.0.0.1:{port}");
    relay.args(["log", "relay", "--listen", &listen, "--to", &collector.address()]).stdout(Stdio::null());
    let relay = Process::spawn(&mut relay, folder.join("relay.log"));
    assert!(relay.has_logged("leads to"), "{}", relay.log());
    let setup = Setup::new(1).env("TEEMARK_LOG_TO", &listen).env("TEEMARK_LOG_KEYS", &public);
    let daemon = start_silently(setup.env("RUST_LOG", "debug"));
    // Of several segments.
    (0..200).for_each(|_| assert_eq!(daemon.get("/nothing").status, 404));
    let (files, key) = (collector.files(), folder.join("log.key"));
    let (files, key) = (files.to_str().unwrap(), key.to_str().unwrap());
    super::support::wait_for("all lines in the files", || {
        let found = printed(log(&["grep", "unknown 404", files, "--key", key]));
        (found.lines().count() == 200).then_some(())
    });
    assert_eq!(printed(log(&["grep", "unknown 404", files])), "", "not without the key");
    let shown = printed(log(&["show", files, "--key", key]));
    assert!(shown.lines().any(|line| line.contains(" log ") && line.ends_with("starts")), "{shown}");
    let opened = printed(log(&["open", files, "--key", key]));
    assert_eq!(opened.lines().count(), shown.lines().count());
    assert!(opened.lines().any(|line| line.contains(" log ") && line.contains("unknown 404")));
    let object: Value = serde_json::from_str(&printed(log(&["grep", "boot_nonce", files, "--json"]))).unwrap();
    let records = object["records"].as_array().unwrap();
    assert!(records.iter().any(|record| record["kind"] == "boot" && record["body"]["log"] == "sealed"), "{object}");
    let follow = ["log", "follow", files, "--key", key];
    let mut follow = Command::new(program("teemark")).args(follow).stdout(Stdio::piped()).spawn().unwrap();
    let mut followed = BufReader::new(follow.stdout.take().unwrap()).lines();
    assert!(followed.by_ref().any(|line| line.unwrap().contains("unknown 404")));
    assert_eq!(daemon.get("/other").status, 404);
    let after = (0..).map(|_| followed.next().unwrap().unwrap()).filter(|line| line.contains("unknown 404")).nth(199);
    assert!(after.is_some(), "what came later is printed too");
    follow.kill().unwrap();
    follow.wait().unwrap();
    // A field a line, and one entry a record.
    journal.set_read_timeout(Some(SOON)).unwrap();
    let mut entry = vec![0; 64 << 10];
    let n = journal.recv(&mut entry).unwrap();
    let entry = String::from_utf8_lossy(&entry[..n]).into_owned();
    assert!(entry.starts_with("MESSAGE=key ") && entry.contains("\nTEEMARK_NUMBER=1\n"), "{entry}");
    succeeds(log(&["verify", files, "--development"]));
    run(Command::new("kill").args(["-s", "TERM", &relay.child.id().to_string()]));
}
