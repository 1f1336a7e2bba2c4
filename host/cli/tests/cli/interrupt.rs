//! Ctrl-C, a plain kill and a terminal that closes leave nothing behind.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};

use super::enclave::{Reply, daemon};
use super::*;

const SIGNALS: [i32; 3] = [1, 2, 15];

/// A daemon that sends half of its answer and then nothing, until the sender is dropped.
fn half_an_answer() -> (String, std::sync::mpsc::Sender<()>) {
    let (go, stay): (_, Receiver<()>) = channel();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        std::io::Read::read(&mut stream, &mut [0; 65_536]).unwrap();
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n";
        stream.write_all(&[head.as_bytes(), &[b'm'; 500_000]].concat()).unwrap();
        let _ = stay.recv();
    });
    (address, go)
}

/// The mode of the file in the folder that a program has open, once it has written `length` bytes. The file has no name,
/// so it is found by its descriptor.
fn mode_of_what_is_written(place: &Place, child: &Child, length: u64) -> u32 {
    let folder = fs::canonicalize(place.0.path()).unwrap();
    loop {
        let open = fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap().filter_map(|entry| {
            let path = entry.ok()?.path();
            let (name, found) = (fs::read_link(&path).ok()?, fs::metadata(&path).ok()?);
            (found.is_file() && name.starts_with(&folder) && found.len() >= length).then_some(found.mode() & 0o777)
        });
        if let Some(mode) = open.last() {
            return mode;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn send(signal: i32, child: &Child) {
    let sent = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

#[test]
fn a_decryption_that_a_signal_ends_leaves_no_part_of_the_file_and_nobody_else_could_read_it() {
    for signal in SIGNALS {
        let place = Place::new();
        place.write("file.enc", "sealed");
        let (endpoint, _stays) = half_an_answer();
        let mut child = place
            .command(&["decrypt", "file.enc", "--endpoint", &endpoint, "--user-id", "alice"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        assert_eq!(mode_of_what_is_written(&place, &child, 400_000), 0o600);
        send(signal, &child);
        assert_eq!(child.wait().unwrap().signal(), Some(signal), "it ends by the signal itself");
        assert_eq!(place.names(), ["file.enc"]);
    }
}

#[test]
fn an_encryption_that_a_signal_ends_leaves_nothing() {
    for signal in SIGNALS {
        let place = Place::new();
        place.keys(&["1"]);
        // It waits for the rest of its input.
        let mut child = place
            .command(&["encrypt", "-", "--keys", "keys.json", "--output", "file.enc"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.as_mut().unwrap().write_all(&[b'p'; 100_000]).unwrap();
        mode_of_what_is_written(&place, &child, 0);
        send(signal, &child);
        assert_eq!(child.wait().unwrap().signal(), Some(signal));
        assert_eq!(place.names(), ["keys.json"]);
    }
}

#[test]
fn a_decrypted_file_is_for_its_owner_alone_also_where_it_replaces_one_that_was_not() {
    let place = Place::new();
    place.write("file.enc", "sealed");
    place.write("file", "old");
    fs::set_permissions(place.path("file"), fs::Permissions::from_mode(0o644)).unwrap();
    let (endpoint, _requests) = daemon(vec![Reply::After(enclave::answer("200 OK", "", "marked"))]);
    succeeds(place.teemark(&["decrypt", "file.enc", "--endpoint", &endpoint, "--user-id", "alice", "--force"]));
    assert_eq!((place.read("file"), place.mode("file")), (b"marked".to_vec(), 0o600));
    assert_eq!(place.names(), ["file", "file.enc"]);
}
