//! HTTP/1.1 by hand: requests as exactly these bytes, and their answers.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::SOON;

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The value of a header field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The code of an error answer.
    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

pub(crate) fn get_from(to: SocketAddr, path: &str) -> Answer {
    request(to, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"), b"")
}

/// Sends a request's bytes as they are and reads one answer.
pub(crate) fn request(to: SocketAddr, head: &str, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    // An early answer may close the stream before all is sent.
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
    read_answer(&mut stream).expect("an answer")
}

/// Looks at what comes next, without reading it. A machine that is stopped for a while interrupts a wait that has a limit
/// (signal(7)).
pub(crate) fn peek(stream: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.peek(into) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Waits until the answer begins, without reading it.
pub(crate) fn wait_for_answer(stream: &TcpStream) {
    let came = peek(stream, &mut [0]);
    assert_eq!(came.as_ref().ok(), Some(&1), "no answer: {came:?}");
}

/// Reads a message's head, with the empty line at its end; `None` if the stream ends before that.
pub(crate) fn read_head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    Some(String::from_utf8(head).unwrap())
}

/// How long the body is that follows this head; `None` if the head does not say.
pub(crate) fn content_length(head: &str) -> Option<usize> {
    let head = head.to_ascii_lowercase();
    head.lines().find_map(|line| line.strip_prefix("content-length: ")).map(|length| length.parse().unwrap())
}

/// Reads one answer with a Content-Length from a stream that may go on; `None` if the stream ends first.
pub(crate) fn read_answer(stream: &mut impl Read) -> Option<Answer> {
    let head = read_head(stream)?;
    let status = head[9..12].parse().unwrap();
    let mut body = vec![0; content_length(&head).unwrap_or(0)];
    stream.read_exact(&mut body).ok()?;
    Some(Answer { status, head, body })
}
