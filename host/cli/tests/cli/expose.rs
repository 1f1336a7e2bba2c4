//! `teemark expose` between real sockets: TCP in front, a Unix or TCP socket in place of the enclave's vsock ports.

use std::io::{BufRead, BufReader, Read};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::process::{Child, ChildStderr};
use std::thread;
use std::time::Duration;

use super::*;

/// Longest wait for something that should happen at once, on a loaded machine.
const SOON: Duration = Duration::from_secs(120);

/// A running `teemark expose`.
struct Expose {
    child: Child,
    said: BufReader<ChildStderr>,
    public: String,
}

impl Drop for Expose {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Expose {
    /// Exposes the public port alone, by a shell that runs `before` first.
    fn start(before: &str, target: &str) -> Expose {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{before} exec \"$@\""), "sh", env!("CARGO_BIN_EXE_teemark"), "expose"]);
        command.args(["--public", "127.0.0.1:0", "--admin", "", "--public-target", target]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut public = String::new();
        while !public.starts_with("public: http://") {
            public.clear();
            assert_ne!(said.read_line(&mut public).unwrap(), 0, "it ended");
        }
        let (address, to) = public.strip_prefix("public: http://").unwrap().split_once(" leads to ").unwrap();
        assert_eq!(to.trim_end(), target);
        Expose { child, public: address.to_owned(), said }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.public).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().count()
    }
}

fn far_side() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", listener.local_addr().unwrap());
    (listener, address)
}

fn read_all(stream: &mut impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

#[test]
fn three_hundred_connections_cost_two_descriptors_each_and_no_thread() {
    let (server, target) = far_side();
    let expose = Expose::start("", &target);
    let pass = |_| {
        let mut near = expose.connect();
        let (mut far, _) = server.accept().unwrap();
        near.write_all(b"a").unwrap();
        far.read_exact(&mut [0]).unwrap();
        (near, far)
    };
    let first = pass(0);
    let (descriptors, threads) = (expose.descriptors(), expose.threads());
    let mut all: Vec<_> = (0..300).map(pass).collect();
    assert_eq!((expose.descriptors() - descriptors, expose.threads()), (600, threads));
    for (at, (near, far)) in all.iter_mut().enumerate() {
        far.write_all(&at.to_le_bytes()).unwrap();
        let mut got = [0; size_of::<usize>()];
        near.read_exact(&mut got).unwrap();
        assert_eq!(usize::from_le_bytes(got), at);
    }
    drop(first);
}

#[test]
fn a_client_that_has_ended_its_side_gets_its_answer_however_slowly_it_reads() {
    const MUCH: usize = 24 << 20;
    let folder = Place::new();
    let path = folder.path("enclave");
    let server = UnixListener::bind(&path).unwrap();
    let expose = Expose::start("", &format!("unix:{}", path.display()));
    let answering = thread::spawn(move || {
        let mut far = server.accept().unwrap().0;
        let asked = read_all(&mut far);
        far.write_all(&asked.repeat(MUCH / asked.len())).unwrap();
        // A second client is served while the first does not read.
        let mut other = server.accept().unwrap().0;
        assert_eq!(read_all(&mut other), b"other");
    });
    let mut client = expose.connect();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    // The answer's beginning is there; the rest fills every buffer on the way.
    let mut first = [0; 8];
    client.read_exact(&mut first).unwrap();
    expose.connect().write_all(b"other").unwrap();
    let rest = read_all(&mut client);
    assert!(rest.len() == MUCH - 8 && rest.chunks(8).all(|chunk| chunk == b"question"));
    answering.join().unwrap();
}

#[test]
fn an_enclave_that_does_not_listen_is_named_and_the_next_connection_is_served_once_it_does() {
    let folder = Place::new();
    let path = folder.path("enclave");
    let target = format!("unix:{}", path.display());
    let mut expose = Expose::start("", &target);
    assert_eq!(read_all(&mut expose.connect()), b"");
    assert!(expose.line().starts_with(&format!("{target} cannot be reached: ")));
    let server = UnixListener::bind(&path).unwrap();
    let mut client = expose.connect();
    server.accept().unwrap().0.write_all(b"up").unwrap();
    assert_eq!(read_all(&mut client), b"up");
}

/// The limit is what the open files allow here, so that the test does not need a thousand connections.
#[test]
fn past_the_limit_a_client_waits_until_another_is_gone() {
    let (server, target) = far_side();
    let mut expose = Expose::start("ulimit -n 68;", &target);
    let mut held: Vec<_> = (0..2).map(|_| (expose.connect(), server.accept().unwrap().0)).collect();
    let mut third = expose.connect();
    third.write_all(b"third").unwrap();
    // It has gone on serving the others since the third came.
    for (near, far) in &mut held {
        near.write_all(b"x").unwrap();
        far.read_exact(&mut [0]).unwrap();
    }
    server.set_nonblocking(true).unwrap();
    assert_eq!(server.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    server.set_nonblocking(false).unwrap();
    held.pop();
    let mut said = [0; 5];
    server.accept().unwrap().0.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"third");
    expose.signal("-TERM");
    assert_eq!(expose.child.wait().unwrap().code(), Some(0));
}

#[test]
fn sigterm_and_ctrl_c_end_it_with_0_and_cut_connections() {
    for signal in ["-TERM", "-INT"] {
        let (server, target) = far_side();
        let mut expose = Expose::start("", &target);
        let mut client = expose.connect();
        let _far = server.accept().unwrap();
        expose.signal(signal);
        assert_eq!(expose.child.wait().unwrap().code(), Some(0), "{signal}");
        assert_eq!(read_all(&mut client), b"");
        assert!(TcpStream::connect(&expose.public).is_err());
    }
}

#[test]
fn what_cannot_be_exposed_is_told_and_nothing_listens() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (arguments, words) in [
        (&["--public", "127.0.0.1:0"][..], "Give --enclave CID"),
        (&["--enclave", "16", "--public", "", "--admin", ""], "nothing to expose"),
        (&["--enclave", "16", "--public", "3000"], "not HOST:PORT"),
        (&["--enclave", "2"], "--enclave"),
        (&["--enclave", "16", "--public", &taken, "--admin", ""], "cannot listen on"),
        (&["--public-target", "vsock:3000", "--admin", ""], "vsock:CID:3000"),
        (&["--public-target", "enclave:1", "--admin", ""], "vsock:CID:PORT"),
    ] {
        let output = place.teemark(&[&["expose"], arguments].concat());
        assert!(fails(2, &output).contains(words), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("leads to"), "{arguments:?}");
    }
}
