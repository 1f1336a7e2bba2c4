//! What `teemark log collect` keeps and acknowledges, where the disk is full or fails, and after days were removed.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use formats::attestation::BootNonce;
use formats::log::{Ack, Head, Kind, hello};
use formats::time::Utc;

use super::collector::Collector;
use super::record;
use super::support::{SOON, bash, program, run, wait_for};

/// A stream to a collector, of whoever reaches its port.
struct Client(BufReader<TcpStream>);

impl Client {
    fn new(collector: &Collector, boot: BootNonce) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", collector.port)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut client = Client(BufReader::new(stream));
        client.say(&hello(boot));
        client
    }

    fn say(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// Ends its side, and reads all acknowledgements to the end.
    fn acks(mut self) -> Vec<Ack> {
        let _ = self.0.get_mut().shutdown(Shutdown::Write);
        let mut bytes = Vec::new();
        let _ = self.0.read_to_end(&mut bytes);
        let acks = bytes.split_inclusive(|b| *b == b'\n').map(|line| Ack::parse(&line[..line.len() - 1]).unwrap());
        acks.collect()
    }
}

fn chain(n: usize) -> Vec<String> {
    let mut head = Head::default();
    let mut lines = Vec::new();
    for i in 0..n {
        let mut line = Vec::new();
        head.write(Kind::Log, format!("line {i}").as_bytes(), &mut line);
        lines.push(String::from_utf8(line).unwrap());
    }
    lines
}

const BOOT: BootNonce = BootNonce::from_bytes([7; 32]);

#[test]
fn the_collector_signs_for_nothing_that_it_does_not_have_from_the_first_record_on() {
    let mut collector = Collector::new();
    collector.start();
    // Whatever number and hash somebody would like to have signed.
    let mut client = Client::new(&collector, BOOT);
    client.say(&format!("4711 {} log x\n", "cd".repeat(32)));
    assert_eq!(client.acks(), []);
    // All but one record.
    let lines = chain(6);
    let mut client = Client::new(&collector, BOOT);
    client.say(&[&lines[..2], &lines[3..]].concat().concat());
    let acks = client.acks();
    assert!(acks.iter().all(|ack| ack.head.number <= 2) && !acks.is_empty(), "{acks:?}");
    // Also by a collector that begins anew.
    collector.kill();
    collector.start();
    let mut client = Client::new(&collector, BOOT);
    client.say(&lines[3..].concat());
    assert_eq!(client.acks(), []);
    // With what was missing, all of it.
    let mut client = Client::new(&collector, BOOT);
    client.say(&lines[2..].concat());
    assert_eq!(client.acks().last().unwrap().head.number, 6);
}

/// Sends a collector all of these lines. How many it has acknowledged, and then in its files, all of them in their order.
fn send(collector: &Collector, lines: &[String]) -> (u64, usize) {
    let mut client = Client::new(collector, BOOT);
    client.say(&lines.concat());
    let acks = client.acks();
    let written = collector.lines();
    assert!(written.len() <= lines.len() && written.iter().zip(lines).all(|(a, b)| a == b.trim_end()), "{written:?}");
    (acks.last().map_or(0, |ack| ack.head.number), written.len())
}

/// How many of these lines fit.
fn fit(lines: &[String], bytes: usize) -> usize {
    let ends = lines.iter().scan(0, |end, line| {
        *end += line.len();
        Some(*end)
    });
    ends.take_while(|end| *end <= bytes).count()
}

#[test]
fn a_collector_whose_disk_is_full_keeps_and_acknowledges_what_fits_and_goes_on_when_there_is_room() {
    let mut collector = Collector::new();
    let limits = ["bash", "-c", "trap '' XFSZ; ulimit -S -f 1; exec \"$@\"", "bash"];
    collector.start_by(&limits, &[]);
    let lines = chain(40);
    let fit = fit(&lines, 1024);
    assert!((5..35).contains(&fit));
    // Also if it comes again, and while there is still no room.
    for _ in 0..3 {
        assert_eq!(send(&collector, &lines), (fit as u64, fit));
    }
    run(Command::new("prlimit").args(["--fsize=unlimited:", "--pid", &collector.pid().to_string()]));
    assert_eq!(send(&collector, &lines), (40, 40));
}

#[test]
fn a_collector_with_max_bytes_keeps_and_acknowledges_what_fits_and_goes_on_with_more() {
    let mut collector = Collector::new();
    let lines = chain(40);
    // Each boot's folder counts 8 KiB.
    let most = 8192 + lines[..10].concat().len() + 20;
    collector.start_with(&collector.key(), &["--max-bytes", &most.to_string()]);
    for _ in 0..3 {
        assert_eq!(send(&collector, &lines), (10, 10));
    }
    let told = fs::read_to_string(collector.folder.path().join("log")).unwrap();
    assert!(told.contains(&format!("record 11 cannot be kept: --max-bytes {most} is reached")), "{told}");
    // Of another boot there is not even a folder.
    let mut client = Client::new(&collector, BootNonce::from_bytes([8; 32]));
    client.say(&lines.concat());
    assert_eq!(client.acks(), []);
    assert_eq!(fs::read_dir(collector.files()).unwrap().count(), 1);
    collector.kill();
    collector.start_with(&collector.key(), &["--max-bytes", &(2 * most).to_string()]);
    assert_eq!(send(&collector, &lines), (40, 40));
}

/// When the tests began: all of them speak of the same days.
static NOW: LazyLock<Utc> = LazyLock::new(Utc::now);

/// The file's name of the day that is so many days ago.
fn day(ago: u64) -> String {
    Utc(NOW.0 - ago * 86_400).to_string()[..10].to_owned()
}

/// A boot's folder, with these lines in the file of each day that is so many days ago, and what a collector writes down
/// when such a day ends.
fn write_days(collector: &Collector, boot: BootNonce, days: &[(u64, &[String])]) -> PathBuf {
    // A collector that is running may remove the folder as soon as it is among its files.
    let written = collector.folder.path().join("written");
    fs::create_dir(&written).unwrap();
    let mut ends = String::new();
    for (ago, lines) in days {
        fs::write(written.join(format!("{}.log", day(*ago))), lines.concat()).unwrap();
        let head = record(lines.last().unwrap().trim_end()).head;
        ends += &format!("{} {} {}\n", day(*ago), head.number, head.hash);
    }
    fs::write(written.join("days"), ends).unwrap();
    fs::create_dir_all(collector.files()).unwrap();
    let folder = collector.files().join(boot.to_string());
    fs::rename(written, &folder).unwrap();
    folder
}

fn logs(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.ends_with(".log"));
    names.sort();
    names
}

#[test]
fn with_keep_days_old_files_go_at_the_start_and_later_and_the_rest_goes_on_and_opens() {
    let mut collector = Collector::new();
    let public = super::collector::keygen(collector.folder.path(), "log");
    let lines = super::reading::sealed(&public, 12);
    // A boot that has ended, and one that goes on, sealed, with midnight in a segment.
    let [ended, goes_on] = [BootNonce::from_bytes([8; 32]), BOOT];
    write_days(&collector, ended, &[(30, &lines[..20]), (20, &lines[20..40])]);
    let days = [(30, &lines[..20]), (20, &lines[20..60]), (1, &lines[60..80])];
    let folder = write_days(&collector, goes_on, &days);
    let more = ["--keep-days", "2", "--remove-every", "1"];
    collector.start_with(&collector.key(), &more);
    assert!(!collector.files().join(ended.to_string()).exists());
    // There is no checkpoint, so nothing says whose the beginning is.
    assert_eq!(logs(&folder), [day(30), day(1)].map(|day| day + ".log"));
    assert_eq!(fs::metadata(folder.join(day(30) + ".log")).unwrap().len(), 0);
    let key = collector.folder.path().join("log.key");
    let opened = |what: &Path| {
        let output = Command::new(program("teemark")).args(["log", "open"]).arg(what).arg("--key").arg(&key).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().matches("report-7").count()
    };
    let sealed = |lines: &[String]| lines.iter().filter(|line| line.contains(" sealed ")).count();
    for what in [folder.clone(), folder.join(day(1) + ".log")] {
        assert_eq!(opened(&what), sealed(&lines[60..80]), "{}", what.display());
    }
    // The next record follows what was removed.
    let mut client = Client::new(&collector, goes_on);
    client.say(&lines[80..].concat());
    assert_eq!(client.acks().last().unwrap().head.number, lines.len() as u64);
    assert_eq!(opened(&folder), sealed(&lines[60..]));
    // While it runs, too: of a boot with a stream the last file stays.
    let mut client = Client::new(&collector, goes_on);
    client.say(lines.last().unwrap());
    let mut ack = String::new();
    client.0.read_line(&mut ack).unwrap();
    let of_ended = write_days(&collector, ended, &[(30, &lines[..20])]);
    wait_for("the boot that has ended to be removed", || (!of_ended.exists()).then_some(()));
    assert_eq!(opened(&folder), sealed(&lines[60..]), "nothing of the boot that goes on went");
}

/// What the collector calls while records come, a system call a line, each with its thread.
fn calls(collector: &mut Collector, strace: &[&str], more: &[&str], streams: impl FnOnce(&Collector)) -> String {
    let trace = collector.folder.path().join("trace");
    let mut by = vec!["strace", "-D", "-f", "-qq", "-o", trace.to_str().unwrap()];
    by.extend(strace);
    collector.start_by(&by, more);
    streams(collector);
    fs::read_to_string(trace).unwrap()
}

#[test]
fn each_acknowledgement_and_each_entry_of_the_journal_comes_after_the_disk_has_the_records() {
    let mut collector = Collector::new();
    let socket = collector.folder.path().join("journal");
    let _journal = UnixDatagram::bind(&socket).unwrap();
    let more = ["--journald", socket.to_str().unwrap()];
    let trace = calls(&mut collector, &["-e", "trace=write,fdatasync,sendto", "-y"], &more, |collector| {
        for lines in chain(30).chunks(3).scan(String::new(), |all, lines| {
            all.push_str(&lines.concat());
            Some(all.clone())
        }) {
            let mut client = Client::new(collector, BOOT);
            client.say(&lines);
            let last = record(lines.lines().last().unwrap()).head;
            assert_eq!(client.acks().last().unwrap().head, last);
        }
    });
    let (mut unsynced, mut writes, mut acks, mut entries) = (0, 0, 0, 0);
    for line in trace.lines() {
        if line.contains("write(") && line.contains(".log>, ") {
            (unsynced, writes) = (unsynced + 1, writes + 1);
        } else if line.contains("fdatasync(") && line.ends_with("= 0") {
            unsynced = 0;
        } else if line.contains("sendto(") && line.contains("\"ack ") {
            assert_eq!(unsynced, 0, "{trace}");
            acks += 1;
        } else if line.contains("sendto(") && line.contains("\"MESSAGE=") {
            assert_eq!(unsynced, 0, "{trace}");
            entries += 1;
        }
    }
    assert!(writes == 30 && acks >= 10 && entries == 30, "{writes} {acks} {entries}: {trace}");
}

#[test]
fn what_could_not_be_synced_is_not_acknowledged_and_is_written_anew() {
    let mut collector = Collector::new();
    let socket = collector.folder.path().join("journal");
    let journal = UnixDatagram::bind(&socket).unwrap();
    let more = ["--journald", socket.to_str().unwrap()];
    let lines = chain(4);
    calls(&mut collector, &["-e", "inject=fdatasync:error=EIO:when=2"], &more, |collector| {
        // On one stream, whose thread is the one that strace counts the calls of.
        let mut client = Client::new(collector, BOOT);
        client.say(&lines[..2].concat());
        let mut ack = String::new();
        client.0.read_line(&mut ack).unwrap();
        assert_eq!(Ack::parse(ack.trim_end().as_bytes()).unwrap().head.number, 2);
        client.say(&lines[2..].concat());
        assert_eq!(client.acks(), []);
        assert_eq!(collector.lines().len(), 2, "what may not be on the disk is gone");
        let mut client = Client::new(collector, BOOT);
        client.say(&lines[2..].concat());
        assert_eq!(client.acks().last().unwrap().head.number, 4);
    });
    assert_eq!(collector.lines().len(), 4);
    // The journal has each record once.
    journal.set_nonblocking(true).unwrap();
    let entries = std::iter::from_fn(|| {
        let mut entry = vec![0; 4096];
        let n = journal.recv(&mut entry).ok()?;
        let text = String::from_utf8(entry[..n].to_vec()).unwrap();
        Some(text.split_once("TEEMARK_NUMBER=").unwrap().1.split('\n').next().unwrap().to_owned())
    });
    assert_eq!(entries.collect::<Vec<_>>(), ["1", "2", "3", "4"]);
}

#[test]
fn the_collector_holds_no_file_of_a_boot_without_a_stream_and_no_stream_that_brings_nothing() {
    let mut collector = Collector::new();
    collector.start_by(&[], &["--idle", "86400"]);
    let open = || fs::read_dir(format!("/proc/{}/fd", collector.pid())).unwrap().count();
    let before = open();
    for n in 0..50 {
        let mut client = Client::new(&collector, BootNonce::from_bytes([n; 32]));
        client.say(&chain(1).concat());
        assert_eq!(client.acks().len(), 1);
    }
    wait_for("the files to be closed", || (open() <= before).then_some(()));
    // Only the silent stream may be ended after a second: one that says something may be late on a busy machine.
    collector.kill();
    collector.start_by(&[], &["--idle", "1"]);
    let mut silent = TcpStream::connect(("127.0.0.1", collector.port)).unwrap();
    silent.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(silent.read_to_end(&mut Vec::new()).unwrap(), 0, "the collector ends it");
    let files = collector.files();
    for (path, mode) in [(&files, 0o700), (&files.join(BootNonce::from_bytes([1; 32]).to_string()), 0o700)] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
    }
}

#[test]
fn more_files_than_a_process_may_open_are_read() {
    let folder = tempfile::tempdir().unwrap();
    for (n, line) in chain(60).iter().enumerate() {
        fs::write(folder.path().join(format!("2026-{:02}-{:02}.log", 1 + n / 28, 1 + n % 28)), line).unwrap();
    }
    let teemark = program("teemark");
    let show = format!("ulimit -n 40; {} log show {}", teemark.display(), folder.path().display());
    assert_eq!(bash(folder.path(), &show).lines().count(), 60);
}
