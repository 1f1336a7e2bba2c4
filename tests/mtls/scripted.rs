//! A TLS server that does what a test says, request by request, including what the development service never does.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use rustls::{HandshakeKind, ServerConnection, StreamOwned};

use crate::CERTS;
use crate::support::{content_length, read_head};

/// What a scripted service returns as the marked file.
pub(crate) const MARKED: &str = "marked by the script";

/// What happens to one request.
pub(crate) enum Step {
    /// A success with [`MARKED`]; the connection is kept.
    Answer,
    /// The request is read, then the connection is closed without notice.
    Cut,
    /// The same with the TLS close that a well-behaved server sends.
    Close,
    /// The connection is closed once the head and a byte of the body are read, with the rest still coming.
    CutInBody,
    /// A success with [`MARKED`] that says that the connection is closed then.
    Last,
    /// These bytes, then the connection is closed.
    Bytes(Vec<u8>),
    /// These bytes once the head is read; the body is not read, and the connection is closed.
    EarlyClose(&'static str),
    /// The same, but the connection is kept open, and never read again.
    EarlyHold(&'static str),
    /// These bytes once the head is read, then as [`Step::Answer`].
    EarlyThenAnswer(&'static str),
    /// A success with [`MARKED`], and right behind it another answer, to nobody.
    Twice,
    /// The same, but the other answer is sent between two meetings at this barrier.
    AgainLater(Arc<Barrier>),
    /// An answer of this status whose body is the request's.
    Echo(&'static str),
    /// A good answer, sent one byte every 50 ms.
    Trickle,
    /// An answer that does not say how long it is and never ends.
    Endless,
}

/// The running server. Its threads end with the test program.
pub(crate) struct Scripted {
    pub(crate) port: u16,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    resumed: Arc<AtomicUsize>,
}

type Tls = StreamOwned<ServerConnection, TcpStream>;

impl Scripted {
    /// Starts it. The script is told which connection a request came on, and its number on that connection, from 0.
    pub(crate) fn start(script: impl Fn(usize, usize) -> Step + Send + Sync + 'static) -> Scripted {
        let (config, script) = (CERTS.tls_server(), Arc::new(script));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let [requests, connections, resumed] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
        let counts = (requests.clone(), connections.clone(), resumed.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (config, script, requests) = (config.clone(), script.clone(), counts.0.clone());
                let resumed = counts.2.clone();
                let connection = counts.1.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || {
                    let stream = stream.unwrap();
                    // What a script sends before it closes must arrive before the end does.
                    stream.set_nodelay(true).unwrap();
                    let mut tls = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
                    for request in 0.. {
                        let Some(head) = read_head(&mut tls) else { return };
                        requests.fetch_add(1, Ordering::SeqCst);
                        if request == 0 && tls.conn.handshake_kind() == Some(HandshakeKind::Resumed) {
                            resumed.fetch_add(1, Ordering::SeqCst);
                        }
                        if !act(&mut tls, &head, script(connection, request)) {
                            return;
                        }
                    }
                });
            }
        });
        Scripted { port, requests, connections, resumed }
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Connections that resumed a session of an earlier one.
    pub(crate) fn resumed(&self) -> usize {
        self.resumed.load(Ordering::SeqCst)
    }
}

fn read_body(tls: &mut Tls, head: &str) -> Vec<u8> {
    let mut body = vec![0; content_length(head).unwrap_or(0)];
    // If the daemon has given up, the step notices by itself.
    let _ = tls.read_exact(&mut body);
    body
}

fn answer(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// An answer for another user.
fn others() -> Vec<u8> {
    answer("200 OK", b"{\"status\":\"success\",\"watermarked_data\":\"the file of another user\"}")
}

fn success() -> Vec<u8> {
    answer("200 OK", format!("{{\"status\":\"success\",\"watermarked_data\":\"{MARKED}\"}}").as_bytes())
}

/// Performs the step; returns whether the connection is kept.
fn act(tls: &mut Tls, head: &str, step: Step) -> bool {
    match &step {
        Step::CutInBody => {
            let _ = tls.read_exact(&mut [0]);
            return false;
        }
        Step::EarlyClose(bytes) | Step::EarlyHold(bytes) | Step::EarlyThenAnswer(bytes) => {
            let _ = tls.write_all(bytes.as_bytes()).and_then(|()| tls.flush());
        }
        _ => {}
    }
    match &step {
        Step::EarlyClose(_) => return false,
        Step::EarlyHold(_) => loop {
            thread::park();
        },
        _ => {}
    }
    let body = read_body(tls, head);
    match step {
        Step::Answer => tls.write_all(&success()).and_then(|()| tls.flush()).is_ok(),
        Step::Echo(status) => tls.write_all(&answer(status, &body)).and_then(|()| tls.flush()).is_ok(),
        Step::EarlyThenAnswer(_) => tls.write_all(&success()).and_then(|()| tls.flush()).is_ok(),
        Step::Twice => tls.write_all(&[success(), others()].concat()).and_then(|()| tls.flush()).is_ok(),
        Step::AgainLater(met) => {
            let first = tls.write_all(&success()).and_then(|()| tls.flush());
            met.wait();
            let second = tls.write_all(&others()).and_then(|()| tls.flush());
            met.wait();
            first.and(second).is_ok()
        }
        Step::Cut | Step::CutInBody | Step::EarlyClose(_) | Step::EarlyHold(_) => false,
        Step::Close => {
            tls.conn.send_close_notify();
            let _ = tls.flush();
            false
        }
        Step::Last => {
            let answer = String::from_utf8(success()).expect("a text").replacen("\r\n", "\r\nConnection: close\r\n", 1);
            let _ = tls.write_all(answer.as_bytes()).and_then(|()| tls.flush());
            false
        }
        Step::Bytes(bytes) => {
            let _ = tls.write_all(&bytes).and_then(|()| tls.flush());
            false
        }
        Step::Trickle => {
            for byte in success() {
                if tls.write_all(&[byte]).and_then(|()| tls.flush()).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
            }
            false
        }
        Step::Endless => {
            let _ = tls.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunk = [b"10000\r\n", &[b' '; 0x10000][..], b"\r\n"].concat();
            while tls.write_all(&chunk).is_ok() {}
            false
        }
    }
}
