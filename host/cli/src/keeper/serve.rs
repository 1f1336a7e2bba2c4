//! The keeper's own HTTP: /ready and /metrics, and where bundles are passed on to it. A connection has one request, and is
//! bounded in time and length; so few at once need no more than a thread each. A body is read only as far as whoever answers
//! asks for it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::report::Report;

/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 8 << 10;
/// Most bytes that are read at once.
const CHUNK: usize = 16 << 10;
/// Most connections at once; others are closed.
const MOST: usize = 16;
/// Time for a request to arrive, and to send its answer.
const LIMIT: Duration = Duration::from_secs(30);
/// After an accept that failed, as without free descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Time in which what is left of a body is thrown away, so that the client reads the answer and not that its bytes were not
/// wanted.
const LINGER: Duration = Duration::from_secs(5);

/// A request.
pub(crate) struct Request<'s> {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) body: Body<'s>,
}

/// The body of a request, most of which has not been read yet.
pub(crate) struct Body<'s> {
    stream: &'s TcpStream,
    /// What has been read and not been taken.
    bytes: Vec<u8>,
    /// How many bytes there are besides.
    left: usize,
    end: Instant,
    /// The client waits to be told to go on (RFC 9110, 10.1.1).
    expects: bool,
}

impl Body<'_> {
    /// Takes the first line, with its end; `None` if it has more than `most` bytes.
    ///
    /// # Errors
    /// The connection failed, or its time is over.
    pub(crate) fn line(&mut self, most: usize) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = self.bytes.iter().take(most).position(|byte| *byte == b'\n') {
                let rest = self.bytes.split_off(at + 1);
                return Ok(Some(std::mem::replace(&mut self.bytes, rest)));
            }
            if self.bytes.len() >= most || self.left == 0 {
                return Ok(None);
            }
            self.more()?;
        }
    }

    /// Takes the rest, if it arrives within this time.
    ///
    /// # Errors
    /// The connection failed, or its time is over.
    pub(crate) fn rest(&mut self, limit: Duration) -> io::Result<Vec<u8>> {
        self.end = self.end.min(Instant::now() + limit);
        while self.left > 0 {
            self.more()?;
        }
        Ok(std::mem::take(&mut self.bytes))
    }

    fn more(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.expects) {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        self.left -= more(self.stream, &mut self.bytes, self.left, self.end)?;
        Ok(())
    }

    /// Throws away what has not been read.
    fn discard(&mut self) -> io::Result<()> {
        self.end = self.end.min(Instant::now() + LINGER);
        while self.left > 0 {
            self.bytes.clear();
            self.more()?;
        }
        Ok(())
    }
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) kind: &'static str,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Answer {
        Answer { status, kind: "application/json", body: body.to_string() }
    }
}

/// One of the connections that are open.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves in a thread of its own. Where `answer` fails, the connection is closed without an answer. Bodies have at most `most` bytes. Returns the address.
///
/// # Errors
/// The address cannot be listened on.
pub(crate) fn start(
    listen: &str,
    most: usize,
    answer: impl Fn(&mut Request<'_>) -> io::Result<Answer> + Send + Sync + 'static,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr()?;
    let (answer, open) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
    thread::Builder::new().name("serve".into()).spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                thread::sleep(PAUSE);
                continue;
            };
            if open.load(Ordering::Relaxed) >= MOST {
                continue;
            }
            open.fetch_add(1, Ordering::Relaxed);
            let (answer, place) = (answer.clone(), Place(open.clone()));
            // Without a thread, the connection is closed and its place is free again.
            let _ = thread::Builder::new().name("request".into()).spawn(move || {
                let _place = place;
                // The client may have gone.
                let _ = serve(&stream, most, &*answer);
            });
        }
    })?;
    Ok(address)
}

/// /ready and /metrics.
pub(crate) fn numbers(report: &Report, request: &Request<'_>) -> Answer {
    match (request.method.as_str(), request.path.as_str()) {
        ("GET" | "HEAD", "/metrics") => {
            Answer { status: 200, kind: "text/plain; version=0.0.4", body: report.metrics() }
        }
        ("GET" | "HEAD", "/ready") => {
            let missing = report.missing();
            let status = if missing.is_empty() { 200 } else { 503 };
            Answer::json(status, &json!({"ready": missing.is_empty(), "missing": missing}))
        }
        _ => Answer::json(404, &json!({"error": "there are /ready and /metrics", "code": "not_found"})),
    }
}

fn serve(stream: &TcpStream, most: usize, answer: &dyn Fn(&mut Request<'_>) -> io::Result<Answer>) -> io::Result<()> {
    stream.set_write_timeout(Some(LIMIT))?;
    let mut request = match read(stream, most)? {
        Ok(request) => request,
        Err(refusal) => return send(stream, &refusal),
    };
    let answer = answer(&mut request)?;
    request.body.expects = false;
    send(stream, &answer)?;
    stream.shutdown(Shutdown::Write)?;
    request.body.discard()
}

fn send(mut stream: &TcpStream, answer: &Answer) -> io::Result<()> {
    let Answer { status, kind, body } = answer;
    let head = format!(
        "HTTP/1.1 {status} \r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat())
}

/// Reads the head of a request; the refusal of one that cannot be read.
fn read(stream: &TcpStream, most: usize) -> io::Result<Result<Request<'_>, Answer>> {
    let end = Instant::now() + LIMIT;
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if bytes.len() > MAX_HEAD {
            return Ok(Err(Answer::json(431, &json!({"error": "the head is too large", "code": "invalid_request"}))));
        }
        more(stream, &mut bytes, CHUNK, end)?;
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let mut bytes = bytes.split_off(head + 4);
    let field = |wanted: &str| {
        let fields = text.lines().skip(1).filter_map(|line| line.split_once(':'));
        let mut named = fields.filter(|(name, _)| name.trim().eq_ignore_ascii_case(wanted));
        named.next().map(|(_, value)| value.trim().to_owned())
    };
    let length = field("content-length").map_or(Ok(0), |length| length.parse::<usize>());
    let length = match length {
        Ok(length) if length <= most && field("transfer-encoding").is_none() => length,
        _ => return Ok(Err(Answer::json(413, &json!({"error": "the body is too large", "code": "invalid_request"})))),
    };
    let expects = field("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"));
    bytes.truncate(length);
    let left = length - bytes.len();
    let mut words = text.split_ascii_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default().to_owned();
    Ok(Ok(Request { method: method.to_owned(), path, body: Body { stream, bytes, left, end, expects } }))
}

/// Reads some more bytes, `most` at most; returns how many.
fn more(mut stream: &TcpStream, bytes: &mut Vec<u8>, most: usize, end: Instant) -> io::Result<usize> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(left))?;
    let mut chunk = [0; CHUNK];
    match stream.read(&mut chunk[..most.min(CHUNK)])? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        n => {
            bytes.extend_from_slice(&chunk[..n]);
            Ok(n)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        // An early answer may close the stream before all is sent.
        let _ = stream.write_all(request);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn a_request_is_read_whole_and_bounded() {
        let echo = |request: &mut Request<'_>| {
            let body = request.body.rest(LIMIT)?;
            Ok(Answer::json(200, &json!([request.method, request.path, String::from_utf8_lossy(&body)])))
        };
        let address = start("127.0.0.1:0", 10, echo).unwrap();
        let posted = asked(address, b"POST /a?b HTTP/1.1\r\ncontent-length: 3\r\n\r\nxyz and more");
        assert!(posted.starts_with("HTTP/1.1 200") && posted.ends_with(r#"["POST","/a","xyz"]"#), "{posted}");
        assert!(asked(address, b"GET / HTTP/1.1\r\n\r\n").ends_with(r#"["GET","/",""]"#));
        for (request, status) in [
            (&b"POST / HTTP/1.1\r\nContent-Length: 11\r\n\r\n"[..], "413"),
            (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "413"),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "413"),
            (&[b'a'; MAX_HEAD + 1], "431"),
        ] {
            assert!(asked(address, request).starts_with(&format!("HTTP/1.1 {status} ")), "{status}");
        }
    }

    #[test]
    fn a_line_is_answered_before_the_rest_has_arrived_and_the_rest_is_not_kept() {
        let first = |request: &mut Request<'_>| {
            let line = request.body.line(5)?.map(|line| String::from_utf8_lossy(&line).into_owned());
            Ok(Answer::json(200, &json!([line, request.body.bytes.len()])))
        };
        let address = start("127.0.0.1:0", 1 << 20, first).unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\nline\n").unwrap();
        let mut start = vec![0; 13];
        stream.read_exact(&mut start).unwrap();
        // A client that sends everything first reads the answer all the same.
        stream.write_all(&vec![b'x'; 1_000_000 - 5]).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with(r#"["line\n",0]"#), "{answer}");
        for body in ["no line", "no"] {
            let length = body.len();
            let answer =
                asked(address, format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes());
            assert!(answer.contains("[null,"), "{answer}");
        }
    }

    #[test]
    fn a_request_that_panics_gives_its_place_back() {
        let address = start("127.0.0.1:0", 0, |request| match request.path.as_str() {
            "/panic" => panic!("this is the test's"),
            _ => Ok(Answer::json(200, &json!("served"))),
        });
        let address = address.unwrap();
        for _ in 0..2 * MOST {
            assert_eq!(asked(address, b"GET /panic HTTP/1.1\r\n\r\n"), "");
        }
        assert!(asked(address, b"GET / HTTP/1.1\r\n\r\n").ends_with("\"served\""));
    }
}
