//! The keeper's own HTTP: /ready and /metrics, and where bundles are passed on to it. A connection has one request, and is
//! bounded in time and length; so few at once need no more than a thread each.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::report::Report;

/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 8 << 10;
/// Most connections at once; others are closed.
const MOST: usize = 16;
/// Time for a request to arrive, and to send its answer.
const LIMIT: Duration = Duration::from_secs(30);
/// After an accept that failed, as without free descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A request.
pub(crate) struct Request {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) body: Vec<u8>,
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

/// Serves in a thread of its own. Bodies have at most `most` bytes. Returns the address.
///
/// # Errors
/// The address cannot be listened on.
pub(crate) fn start(
    listen: &str,
    most: usize,
    answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
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
            let (answer, opened) = (answer.clone(), open.clone());
            open.fetch_add(1, Ordering::Relaxed);
            let served = thread::Builder::new().name("request".into()).spawn(move || {
                // The client may have gone.
                let _ = serve(&stream, most, &*answer);
                opened.fetch_sub(1, Ordering::Relaxed);
            });
            if served.is_err() {
                open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    })?;
    Ok(address)
}

/// /ready and /metrics.
pub(crate) fn numbers(report: &Report, request: &Request) -> Answer {
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

fn serve(stream: &TcpStream, most: usize, answer: &dyn Fn(&Request) -> Answer) -> io::Result<()> {
    stream.set_write_timeout(Some(LIMIT))?;
    let answer = match read(stream, most)? {
        Ok(request) => answer(&request),
        Err(refusal) => refusal,
    };
    let Answer { status, kind, body } = answer;
    let head = format!(
        "HTTP/1.1 {status} \r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = stream;
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat())
}

/// Reads a request whole; the refusal of one that cannot be read.
fn read(stream: &TcpStream, most: usize) -> io::Result<Result<Request, Answer>> {
    let end = Instant::now() + LIMIT;
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if bytes.len() > MAX_HEAD {
            return Ok(Err(Answer::json(431, &json!({"error": "the head is too large", "code": "invalid_request"}))));
        }
        more(stream, &mut bytes, end)?;
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let mut body = bytes.split_off(head + 4);
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
    if field("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
        let mut stream = stream;
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    while body.len() < length {
        more(stream, &mut body, end)?;
    }
    body.truncate(length);
    let mut words = text.split_ascii_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default().to_owned();
    Ok(Ok(Request { method: method.to_owned(), path, body }))
}

/// Reads some more bytes.
fn more(mut stream: &TcpStream, bytes: &mut Vec<u8>, end: Instant) -> io::Result<()> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(left))?;
    let mut chunk = [0; 16 << 10];
    match stream.read(&mut chunk)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        n => {
            bytes.extend_from_slice(&chunk[..n]);
            Ok(())
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
        let echo = |request: &Request| {
            let Request { method, path, body } = request;
            Answer::json(200, &json!([method, path, String::from_utf8_lossy(body)]))
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
}
