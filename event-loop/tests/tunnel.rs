//! Tunnels over real sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use event_loop::socket::Listener;
use event_loop::target::Target;
use event_loop::{EventLoop, Handle, tunnel};
use formats::address::Address;

/// Longest wait for something that should happen at once, on a loaded machine.
const SOON: Duration = Duration::from_secs(120);
/// More than the pipe and all socket buffers of a connection hold.
const MUCH: usize = 24 << 20;

/// A loop that forwards to `target`, and its address.
fn forwarding(target: &str, limit: usize) -> (Handle, String) {
    let listener = Listener::open(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address().unwrap().to_string().strip_prefix("tcp:").unwrap().to_owned();
    let target: Address = target.parse().unwrap();
    let mut event_loop = EventLoop::new(|_| {}).unwrap();
    event_loop.add(tunnel::acceptor(listener, limit, Target::find(&target).unwrap())).unwrap();
    (event_loop.start().unwrap(), address)
}

fn server() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", listener.local_addr().unwrap());
    (listener, address)
}

fn connected(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn accepted(server: &TcpListener) -> TcpStream {
    let stream = server.accept().unwrap().0;
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// Bytes that tell the stream and the place in it.
fn bytes(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed).collect()
}

fn read_all(stream: &mut impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

/// All of them share the loop's pipe; what one reader leaves in it must not reach another.
#[test]
fn streams_stay_apart_whether_their_readers_wait_go_away_or_keep_up() {
    let (server, target) = server();
    let (handle, address) = forwarding(&target, 64);
    let mut working = Vec::new();
    for seed in 0..12u8 {
        let mut near = connected(&address);
        let mut far = accepted(&server);
        let (full, is_full) = channel();
        working.push(thread::spawn(move || {
            // Until nothing fits any more, so that the pipe has a rest each time.
            near.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            let all = bytes(seed, MUCH);
            let mut sent = 0;
            let stuck = loop {
                match near.write(&all[sent..]) {
                    Ok(n) => sent += n,
                    Err(e) => break e.kind(),
                }
                if sent == MUCH {
                    break ErrorKind::WriteZero;
                }
            };
            full.send(()).unwrap();
            if seed % 3 == 1 {
                return; // its reader goes away
            }
            near.set_write_timeout(Some(SOON)).unwrap();
            near.write_all(&all[sent..]).unwrap();
            near.shutdown(Shutdown::Write).unwrap();
            assert!(seed % 3 == 0 || stuck == ErrorKind::WouldBlock, "{seed}: {stuck}");
        }));
        working.push(thread::spawn(move || match seed % 3 {
            0 => assert!(read_all(&mut far) == bytes(seed, MUCH), "{seed}"),
            1 => {
                is_full.recv().unwrap();
                drop(far); // with unread bytes, so the tunnel's next write fails
            }
            _ => {
                is_full.recv().unwrap();
                assert!(read_all(&mut far) == bytes(seed, MUCH), "{seed}");
            }
        }));
    }
    for thread in working {
        thread.join().unwrap();
    }
    handle.stop();
}

#[test]
fn each_direction_ends_by_itself() {
    let (server, target) = server();
    let (handle, address) = forwarding(&target, 64);
    let mut near = connected(&address);
    let mut far = accepted(&server);
    near.write_all(b"asked").unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut far), b"asked");
    far.write_all(b"answered").unwrap();
    drop(far);
    assert_eq!(read_all(&mut near), b"answered");
    handle.stop();
}

#[test]
fn unix_sockets_are_forwarded_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("far");
    let server = UnixListener::bind(&path).unwrap();
    let (handle, address) = forwarding(&format!("unix:{}", path.display()), 64);
    let mut near = connected(&address);
    let mut far = server.accept().unwrap().0;
    let all = bytes(7, MUCH);
    let sent = all.clone();
    let sending = thread::spawn(move || {
        far.write_all(&sent).unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        read_all(&mut far)
    });
    assert!(read_all(&mut near) == all);
    near.write_all(b"thanks").unwrap();
    drop(near);
    assert_eq!(sending.join().unwrap(), b"thanks");
    handle.stop();
}

#[test]
fn a_target_that_refuses_closes_the_connection_and_a_name_with_several_addresses_has_each_tried() {
    let (listener, target) = server();
    drop(listener);
    let (handle, address) = forwarding(&target, 64);
    assert_eq!(read_all(&mut connected(&address)), b"");
    handle.stop();

    // ::1 refuses, where the machine has it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (handle, address) = forwarding(&format!("tcp:localhost:{}", listener.local_addr().unwrap().port()), 64);
    let mut near = connected(&address);
    accepted(&listener).write_all(b"here").unwrap();
    assert_eq!(read_all(&mut near), b"here");
    handle.stop();
}

/// A Unix socket whose backlog is full answers EAGAIN, as a vsock port's answers with a reset: not even then does the loop
/// wait.
#[test]
fn a_target_whose_backlog_is_full_closes_the_connection_and_holds_up_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("far");
    let server = UnixListener::bind(&path).unwrap();
    nix::sys::socket::listen(&server, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
    let (handle, address) = forwarding(&format!("unix:{}", path.display()), 64);
    let mut first = connected(&address);
    first.write_all(b"first").unwrap();
    let mut far = server.accept().unwrap().0;
    let waiting = fill(&path);
    assert!(!waiting.is_empty());
    assert_eq!(read_all(&mut connected(&address)), b"");
    let mut said = [0; 5];
    far.read_exact(&mut said).unwrap();
    far.write_all(b"still served").unwrap();
    drop(far);
    assert_eq!((&said, read_all(&mut first)), (b"first", b"still served".to_vec()));
    handle.stop();
}

/// Connections until no more fit into the backlog.
fn fill(path: &Path) -> Vec<UnixStream> {
    let address = nix::sys::socket::UnixAddr::new(path).unwrap();
    let mut all = Vec::new();
    loop {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, connect, socket};
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        match connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &address) {
            Ok(()) => all.push(UnixStream::from(fd)),
            Err(nix::errno::Errno::EAGAIN) => return all,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn past_the_limit_a_connection_waits_and_is_served_once_another_has_ended() {
    let (server, target) = server();
    let (handle, address) = forwarding(&target, 2);
    let mut held: Vec<_> = (0..2).map(|_| (connected(&address), accepted(&server))).collect();
    let mut third = connected(&address);
    third.write_all(b"me too").unwrap();
    server.set_nonblocking(true).unwrap();
    // Several turns of the loop: it has read what the others sent after the third came.
    for (near, far) in &mut held {
        near.write_all(b"x").unwrap();
        far.read_exact(&mut [0]).unwrap();
    }
    assert_eq!(server.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "the third has to wait");
    server.set_nonblocking(false).unwrap();
    held.pop();
    let mut said = [0; 6];
    accepted(&server).read_exact(&mut said).unwrap();
    assert_eq!(&said, b"me too");
    handle.stop();
}
