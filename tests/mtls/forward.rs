//! TEEMARK_FORWARD: other processes' connections to allowed hosts.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use crate::*;

/// More than any socket buffer holds.
const MUCH: usize = 8 << 20;

fn bytes(seed: u8) -> Vec<u8> {
    let byte = |i: usize| {
        let [low, high, ..] = i.to_le_bytes();
        low.wrapping_mul(31).wrapping_add(high) ^ seed
    };
    (0..MUCH).map(byte).collect()
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A daemon with forwarders, which exist once it says what it waits for.
fn forwarding(setup: Setup) -> Daemon {
    let daemon = setup.env("TEEMARK_FORWARD", "on").start();
    wait_for("the forwarders", || daemon.process.log().contains("waiting for the handshake").then_some(()));
    daemon
}

fn connect(host: &str, port: u16) -> TcpStream {
    let stream = TcpStream::connect((host, port)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

#[test]
fn a_forwarder_carries_bytes_both_ways_and_each_end_by_itself() {
    let (server, port) = listener();
    let _daemon = forwarding(Setup::new(port));
    // The client ends first: the answer comes after that.
    let mut client = connect("127.0.0.64", port);
    let (mut far, _) = server.accept().unwrap();
    far.set_read_timeout(Some(SOON)).unwrap();
    let answering = thread::spawn(move || {
        let asked = read_all(&mut far);
        far.write_all(&bytes(2)).unwrap();
        asked
    });
    client.write_all(&bytes(1)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(read_all(&mut client) == bytes(2));
    assert!(answering.join().unwrap() == bytes(1));

    // The server ends first: the client may still send.
    let mut client = connect("127.0.0.64", port);
    let (mut far, _) = server.accept().unwrap();
    far.set_read_timeout(Some(SOON)).unwrap();
    far.write_all(b"hello").unwrap();
    far.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), b"hello");
    client.write_all(b"and goodbye").unwrap();
    drop(client);
    assert_eq!(read_all(&mut far), b"and goodbye");
}

#[test]
fn each_entry_of_the_allow_list_has_a_forwarder_at_its_own_address() {
    let servers = [listener(), listener()];
    let mut setup = Setup::new(servers[0].1);
    setup.allowed.push_str(&format!("  - localhost:{}\n", servers[1].1));
    let _daemon = forwarding(setup);
    for (host, (server, port)) in ["127.0.0.64", "127.0.0.65"].into_iter().zip(&servers) {
        let mut client = connect(host, *port);
        let (mut far, _) = server.accept().unwrap();
        far.write_all(b"here").unwrap();
        drop(far);
        assert_eq!(read_all(&mut client), b"here", "{host}");
    }
    assert!(TcpStream::connect(("127.0.0.64", servers[1].1)).is_err());
}

#[test]
fn a_forwarder_to_a_host_that_cannot_be_reached_closes_the_connection() {
    let daemon = forwarding(Setup::new(free_port()));
    let log = daemon.process.log();
    let address = log.lines().find_map(|l| l.split_once("forward: tcp:")?.1.split_once(' ')).unwrap().0.to_owned();
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(read_all(&mut client), b"");
}

#[test]
fn without_the_setting_there_is_no_forwarder() {
    let (_server, port) = listener();
    let _daemon = Setup::new(port).start();
    assert!(TcpStream::connect(("127.0.0.64", port)).is_err());
}

#[test]
fn another_process_reaches_the_service_through_a_forwarder() {
    let service = Service::start(&CERTS, &[]);
    let _daemon = forwarding(Setup::new(service.port));
    let mut curl = Command::new("curl");
    // As in the hosts file inside the enclave.
    curl.args(["-q", "-sS", "--noproxy", "*", "--resolve", &format!("localhost:{}:127.0.0.64", service.port)]);
    curl.arg("--cacert").arg(CERTS.path("ca.crt")).arg("--cert").arg(CERTS.path("client.crt"));
    curl.arg("--key").arg(CERTS.path("client.key")).arg(format!("https://localhost:{}/health", service.port));
    assert_eq!(run(&mut curl), br#"{"status":"healthy"}"#);
}
