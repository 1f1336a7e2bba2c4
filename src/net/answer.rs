//! Answers, in tiny_http's terms.

use std::io;

use formats::base64;
use serde_json::Value;
use tiny_http::{HTTPVersion, Header, Response};

use crate::memory::Reservation;

/// An answer before it is sent.
pub struct Answer {
    /// The route's name, one of the daemon's own, for metrics and the log.
    pub route: &'static str,
    /// HTTP's status code.
    pub status: u16,
    /// The Content-Type; empty if there is no content.
    pub content_type: &'static str,
    /// Other header fields.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Content,
    /// The memory that the body holds until it is sent.
    pub held: Option<Reservation>,
}

/// An answer's body.
pub enum Content {
    /// As it is.
    Bytes(Vec<u8>),
    /// A file behind what belongs to it.
    Behind {
        /// What comes first: small.
        before: Vec<u8>,
        /// The file.
        data: Vec<u8>,
    },
    /// A JSON text with a file in it, whose base64 is written piece by piece while it is sent.
    Base64 {
        /// The JSON up to the file.
        before: Vec<u8>,
        /// The file.
        data: Vec<u8>,
        /// The JSON from the file on.
        after: Vec<u8>,
    },
}

/// Bytes of a file that are sent at once as base64; a multiple of three, since padding belongs to the end.
const PIECE: usize = 48 << 10;

impl Content {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Content::Bytes(bytes) => bytes.len(),
            Content::Behind { before, data } => before.len() + data.len(),
            Content::Base64 { before, data, after } => before.len() + base64::encoded_len(data.len()) + after.len(),
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands over all of it, behind `head`: what is small in one piece, since each is a system call.
    ///
    /// # Errors
    /// Those of `send`.
    pub fn send_behind(&self, mut head: Vec<u8>, mut send: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self {
            Content::Bytes(bytes) => send_two(head, bytes, send),
            Content::Behind { before, data } => {
                head.extend_from_slice(before);
                send_two(head, data, send)
            }
            Content::Base64 { before, data, after } => {
                let beginning = [&head[..], before].concat();
                // Made of zeros, which the allocator has, and written once.
                let mut text = vec![0; beginning.len() + base64::encoded_len(data.len().min(PIECE)) + after.len()];
                text[..beginning.len()].copy_from_slice(&beginning);
                let mut end = beginning.len();
                for (i, bytes) in data.chunks(PIECE).enumerate() {
                    if i > 0 {
                        send(&text[..end])?;
                        end = 0;
                    }
                    end += base64::encode_into(bytes, &mut text[end..]);
                }
                text[end..end + after.len()].copy_from_slice(after);
                send(&text[..end + after.len()])
            }
        }
    }
}

fn send_two(mut head: Vec<u8>, bytes: &[u8], mut send: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    if bytes.len() <= SMALL {
        head.extend_from_slice(bytes);
        return send(&head);
    }
    send(&head)?;
    send(bytes)
}
/// HTTP's status code for a success without content.
const NO_CONTENT: u16 = 204;
const NO_LENGTH: &[u8] = b"Content-Length: 0\r\n\r\n";

/// Largest body that goes out in one piece with its head, in bytes.
const SMALL: usize = 16 << 10;

impl Answer {
    /// An answer in JSON.
    pub fn json(status: u16, value: &Value) -> Answer {
        let body = Content::Bytes(value.to_string().into_bytes());
        Answer { route: "", status, content_type: "application/json", headers: Vec::new(), body, held: None }
    }

    /// A success in plain text.
    pub fn text(text: &str) -> Answer {
        let (content_type, body) = ("text/plain", Content::Bytes(text.into()));
        Answer { route: "", status: 200, content_type, headers: Vec::new(), body, held: None }
    }

    /// A success without content.
    pub fn empty(headers: Vec<(&'static str, String)>) -> Answer {
        let body = Content::Bytes(Vec::new());
        Answer { route: "", status: NO_CONTENT, content_type: "", headers, body, held: None }
    }

    /// The head as it is sent; with `close`, it says that this is the connection's last answer.
    pub fn head(&self, close: bool) -> Vec<u8> {
        let headers = [("Server", "teemarkd"), ("Content-Type", self.content_type)];
        let headers = headers.into_iter().chain(self.headers.iter().map(|(name, value)| (*name, value.as_str())));
        let headers = headers.filter(|(_, value)| !value.is_empty());
        let headers = headers.filter_map(|(name, value)| Header::from_bytes(name, value).ok()).collect();
        let response = Response::new(self.status.into(), headers, io::empty(), Some(self.body.len()), None)
            .with_chunked_threshold(usize::MAX);
        let mut head = Vec::with_capacity(512);
        // Writing to a Vec cannot fail. tiny_http leaves Connection to its own server.
        let _ = response.raw_print(&mut head, HTTPVersion(1, 1), &[], true, None);
        // tiny_http ends each head with a length, which an answer without content may not have (RFC 9110, 8.6).
        if self.status == NO_CONTENT && head.ends_with(NO_LENGTH) {
            head.truncate(head.len() - NO_LENGTH.len());
            head.extend_from_slice(b"\r\n");
        }
        if close {
            head.truncate(head.len().saturating_sub(2));
            head.extend_from_slice(b"Connection: close\r\n\r\n");
        }
        head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_content_has_neither_type_nor_length() {
        let head = String::from_utf8(Answer::empty(vec![("Allow", "GET".into())]).head(true)).unwrap();
        assert!(head.starts_with("HTTP/1.1 204 No Content\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(head.contains("\r\nAllow: GET\r\n") && head.contains("\r\nConnection: close\r\n"), "{head}");
        assert!(!head.contains("Content-"), "{head}");
    }

    #[test]
    fn a_head_has_length_type_and_headers_and_says_whether_it_is_the_last() {
        let headers = vec![("Retry-After", "1".to_owned())];
        let answer = Answer {
            route: "x",
            status: 503,
            content_type: "text/plain",
            headers,
            body: Content::Bytes(vec![0; 7]),
            held: None,
        };
        for close in [false, true] {
            let head = String::from_utf8(answer.head(close)).unwrap();
            assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n") && head.ends_with("\r\n\r\n"), "{head}");
            for line in ["Content-Length: 7", "Content-Type: text/plain", "Retry-After: 1", "Server: teemarkd"] {
                assert_eq!(head.lines().filter(|l| *l == line).count(), 1, "{line} in {head}");
            }
            assert_eq!(head.contains("Connection: close"), close);
            assert_eq!(head.matches("\r\n\r\n").count(), 1);
        }
    }
}
