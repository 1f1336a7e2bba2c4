//! A sealed log, through a relay, in a collector's files and in the journal, and what its key shows of it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use formats::hpke::PublicKey;
use formats::log::{Head, Kind, Segment};
use serde_json::Value;

use super::collector::{Collector, keygen};
use super::support::{Process, SOON, Setup, free_port, printed, program, run, succeeds, wait_for};
use super::{record, start_silently};

fn log(arguments: &[&str]) -> Output {
    Command::new(program("teemark")).arg("log").args(arguments).output().unwrap()
}

/// The lines of a log that was sealed for this public key in segments of ten records, each with a key.
pub(super) fn sealed(public: &str, segments: usize) -> Vec<String> {
    let public = PublicKey::from_base64(public).unwrap();
    let (mut head, mut lines) = (Head::default(), Vec::new());
    let mut add = |head: &mut Head, kind, body: &str| {
        let mut line = Vec::new();
        head.write(kind, body.as_bytes(), &mut line);
        lines.push(String::from_utf8(line).unwrap());
    };
    for _ in 0..segments {
        let (segment, body) = Segment::new(&[public], head.number + 1).unwrap();
        add(&mut head, Kind::Key, &body);
        for _ in 0..10 {
            let number = head.number + 1;
            let body = segment.seal(number, Kind::Log, format!("report-7, line {number}").as_bytes());
            add(&mut head, Kind::Sealed, &body);
        }
    }
    lines
}

/// How a command ends that reads this file, how many lines it prints, and what it says.
fn reads(command: &str, file: &Path, key: &Path) -> (Option<i32>, usize, String) {
    let [file, key] = [file, key].map(|path| path.to_str().unwrap());
    let what: &[&str] = if command == "grep" { &["grep", "report-7"] } else { &[command] };
    let output = log(&[what, &[file, "--key", key]].concat());
    let lines = String::from_utf8(output.stdout).unwrap().lines().filter(|line| line.contains("report-7")).count();
    (output.status.code(), lines, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn what_cannot_be_opened_is_counted_and_a_made_up_key_hides_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let public = keygen(folder.path(), "log");
    let key = folder.path().join("log.key");
    let lines = sealed(&public, 3);
    let file = folder.path().join("2026-11-30.log");
    fs::write(&file, lines.concat()).unwrap();
    // Another key.
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    let strangers = keygen(&other, "log");
    for command in ["open", "show", "grep"] {
        assert_eq!(reads(command, &file, &key), (Some(0), 30, String::new()), "{command}");
        let (status, found, told) = reads(command, &file, &other.join("log.key"));
        assert_eq!((status, found), (Some(1), 0), "{command}: {told}");
        assert!(told.contains("30 sealed records could not be opened: sealed for another log key"), "{told}");
    }
    // Keys that somebody made up after each genuine one: for nobody, for another log key, and for this one.
    let made_up = |line: &String| {
        let number = record(line.trim_end()).head.number;
        let bodies = [&strangers, &public]
            .map(|public| Segment::new(&[PublicKey::from_base64(public).unwrap()], number).unwrap().1);
        let bodies = [bodies[0].clone(), bodies[1].clone(), "{\"keys\":[]}".to_owned(), "x".to_owned()];
        bodies.map(|body| format!("{number} {} key {body}\n", "ab".repeat(32))).concat()
    };
    let hostile: String = lines.iter().map(|line| line.clone() + &made_up(line)).collect();
    fs::write(&file, hostile).unwrap();
    for command in ["open", "show", "grep"] {
        assert_eq!(reads(command, &file, &key), (Some(0), 30, String::new()), "{command}");
    }
    // Records that were changed, and lines that are none.
    let changed = lines[..20].concat() + &lines[20].replace(" sealed ", " sealed AAAA") + "x\n";
    fs::write(&file, changed).unwrap();
    let (status, found, told) = reads("show", &file, &key);
    assert_eq!((status, found), (Some(1), 18), "{told}");
    assert!(
        told.contains("1 sealed record could not be opened") && told.contains("; 1 line that cannot be read"),
        "{told}"
    );
    let output = log(&["grep", "report-7", file.to_str().unwrap(), "--key", key.to_str().unwrap(), "--json"]);
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&object["code"], &object["unopened"]), (&"log_unopened".into(), &1.into()), "{object}");
    assert_eq!((object["records"].as_array().unwrap().len(), &object["not_records"]), (18, &1.into()));
    // What goes on says it as soon as it comes.
    let mut follow = Command::new(program("teemark"));
    let (mut told, errors) = std::io::pipe().unwrap();
    follow.args(["log", "follow"]).arg(&file).arg("--key").arg(&key).stdout(Stdio::null()).stderr(errors);
    let mut follow = follow.spawn().unwrap();
    let mut first = String::new();
    BufReader::new(&mut told).read_line(&mut first).unwrap();
    assert!(first.contains("1 sealed record could not be opened"), "{first}");
    follow.kill().unwrap();
    follow.wait().unwrap();
}

#[test]
fn the_file_of_one_day_is_opened_with_the_key_of_a_segment_that_began_on_the_day_before() {
    let root = tempfile::tempdir().unwrap();
    let public = keygen(root.path(), "log");
    let key = root.path().join("log.key");
    let lines = sealed(&public, 20);
    // Midnight is in the middle of a segment.
    let days = [&lines[..25], &lines[25..70], &lines[70..]];
    let folder = root.path().join("7".repeat(64));
    fs::create_dir(&folder).unwrap();
    let file = |day: usize| folder.join(format!("2026-11-{}.log", 28 + day));
    for (day, lines) in days.iter().enumerate() {
        fs::write(file(day), lines.concat()).unwrap();
    }
    for (day, lines) in days.iter().enumerate() {
        let expected = lines.iter().filter(|line| line.contains(" sealed ")).count();
        for command in ["open", "grep"] {
            assert_eq!(reads(command, &file(day), &key), (Some(0), expected, String::new()), "{command} {day}");
        }
    }
    // From the folder itself.
    let mut command = Command::new(program("teemark"));
    command.args(["log", "open", "2026-11-29.log", "--key"]).arg(&key).current_dir(&folder);
    assert!(command.output().unwrap().status.success());
    // Without the day before, what is missing is said.
    fs::remove_file(file(1)).unwrap();
    let (status, found, told) = reads("open", &file(2), &key);
    let first = lines[70..].iter().position(|line| line.contains(" key ")).unwrap();
    assert_eq!((status, found), (Some(1), 137 - first), "{told}");
    assert!(told.contains("the file of the day before is not in the same folder"), "{told}");
}

#[test]
fn the_reference_has_each_command_and_option_of_the_log_and_no_other() {
    let reference = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/REFERENCE.md")).unwrap();
    let section = reference.split("\n## teemark log\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let options = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '-');
        words.filter(|word| word.starts_with("--") && !word.ends_with('-')).map(str::to_owned).collect()
    };
    let mut named = BTreeSet::new();
    for command in ["relay", "collect", "verify", "open", "show", "grep", "follow"] {
        let help = printed(log(&[command, "--help"]));
        assert!(section.contains(&format!("| `{command}")), "{command}");
        // Examples name options of other commands.
        let (_, listed) = help.split_once("\nOptions:\n").unwrap();
        for line in listed.split("\nExample").next().unwrap().lines().filter(|line| line.starts_with("      --")) {
            named.extend(options(line));
        }
        for variable in help.split("[env: ").skip(1) {
            let variable = variable.split('=').next().unwrap();
            assert!(section.contains(&format!("({variable})")), "{variable}");
        }
    }
    assert!(named.len() > 10, "{named:?}");
    assert_eq!(options(section), named);
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
    wait_for("all lines in the files", || {
        // There is nothing to read before the first records come.
        let found = log(&["grep", "unknown 404", files, "--key", key]);
        let lines = String::from_utf8(found.stdout).unwrap().lines().count();
        (found.status.success() && lines == 200).then_some(())
    });
    let without = log(&["grep", "unknown 404", files]);
    let told = String::from_utf8_lossy(&without.stderr);
    assert_eq!((without.status.code(), &without.stdout[..]), (Some(1), &b""[..]), "{told}");
    assert!(told.contains("sealed records could not be opened without the log key"), "{told}");
    let show = || printed(log(&["show", files, "--key", key]));
    // The daemon signs a checkpoint each minute.
    let (shown, opened) = wait_for("no record to come meanwhile", || {
        let (shown, opened) = (show(), printed(log(&["open", files, "--key", key])));
        (shown == show()).then_some((shown, opened))
    });
    assert!(shown.lines().any(|line| line.contains(" log ") && line.ends_with("starts")), "{shown}");
    assert_eq!(opened.lines().count(), shown.lines().count());
    assert!(opened.lines().any(|line| line.contains(" log ") && line.contains("unknown 404")));
    let object: Value =
        serde_json::from_str(&printed(log(&["grep", "boot_nonce", files, "--json", "--key", key]))).unwrap();
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
