//! Answers, in tiny_http's terms.

use std::io;

use serde_json::Value;
use tiny_http::{HTTPVersion, Header, Response};

use crate::memory::Reservation;

/// An answer before it is sent.
pub struct Answer {
    /// The route's name, one of the daemon's own, for metrics and the log.
    pub route: &'static str,
    /// HTTP's status code.
    pub status: u16,
    /// The Content-Type.
    pub content_type: &'static str,
    /// Other header fields.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The memory that the body holds until it is sent.
    pub held: Option<Reservation>,
}

impl Answer {
    /// An answer in JSON.
    pub fn json(status: u16, value: &Value) -> Answer {
        let body = value.to_string().into_bytes();
        Answer { route: "", status, content_type: "application/json", headers: Vec::new(), body, held: None }
    }

    /// A success in plain text.
    pub fn text(text: &str) -> Answer {
        let (content_type, body) = ("text/plain", text.into());
        Answer { route: "", status: 200, content_type, headers: Vec::new(), body, held: None }
    }

    /// The head as it is sent; with `close`, it says that this is the connection's last answer.
    pub fn head(&self, close: bool) -> Vec<u8> {
        let headers = [("Server", "teemarkd"), ("Content-Type", self.content_type)];
        let headers = headers.into_iter().chain(self.headers.iter().map(|(name, value)| (*name, value.as_str())));
        let headers = headers.filter_map(|(name, value)| Header::from_bytes(name, value).ok()).collect();
        let response = Response::new(self.status.into(), headers, io::empty(), Some(self.body.len()), None)
            .with_chunked_threshold(usize::MAX);
        let mut head = Vec::with_capacity(512);
        // Writing to a Vec cannot fail. tiny_http leaves Connection to its own server.
        let _ = response.raw_print(&mut head, HTTPVersion(1, 1), &[], true, None);
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
    fn a_head_has_length_type_and_headers_and_says_whether_it_is_the_last() {
        let headers = vec![("Retry-After", "1".to_owned())];
        let answer =
            Answer { route: "x", status: 503, content_type: "text/plain", headers, body: vec![0; 7], held: None };
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
