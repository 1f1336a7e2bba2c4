//! The allow list: the endpoints that the enclave may connect to.
//!
//! Both sides of the proxy read `allowed_endpoints.yaml`. Entry i is reached at the parent's vsock port 8101 + i, and
//! is 127.0.0.(64 + i) in /etc/hosts, so the order matters.

use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroUsize;

use crate::digest::{Sha256, sha256};

/// The port of an entry without one.
const HTTPS_PORT: u16 = 443;
/// Entries get the addresses 127.0.0.64 to 127.0.0.254.
const FIRST_LOOPBACK: usize = 64;
const MOST_ENTRIES: usize = 255 - FIRST_LOOPBACK;

/// The hosts and ports that may be dialled, in the file's order. The default is an empty list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList {
    endpoints: Vec<Endpoint>,
    sha256: Sha256,
}

/// A host and port on the allow list. Only a list makes one, so having it proves that it may be dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    index: usize,
    host: String,
    port: u16,
}

/// Why the list cannot be used: the file's name, the line (from 1; none for the file as a whole) and the reason.
#[derive(Debug)]
pub struct AllowListError {
    /// The file's name, as it was given to [`AllowList::parse`].
    pub file: String,
    /// The line, counted from 1; `None` if the file as a whole is wrong.
    pub line: Option<NonZeroUsize>,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for AllowListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            None => write!(f, "{}: {}", self.file, self.reason),
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.reason),
        }
    }
}

impl std::error::Error for AllowListError {}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Endpoint {
    /// The position in the list, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The host's name in lower case, or its IPv4 address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, 1 to 65535.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address that stands for this host inside the enclave.
    pub fn loopback(&self) -> Ipv4Addr {
        Ipv4Addr::new(127, 0, 0, u8::try_from(FIRST_LOOPBACK + self.index).expect("a list has 191 entries at most"))
    }
}

impl AllowList {
    /// Parses the list. `file` is the file's name, for errors.
    ///
    /// # Errors
    /// The text is not UTF-8, or a line is wrong.
    pub fn parse(file: &str, text: &[u8]) -> Result<AllowList, AllowListError> {
        let text = str::from_utf8(text).map_err(|e| (0, format!("is not UTF-8 at byte {}", e.valid_up_to() + 1)));
        text.and_then(AllowList::read).map_err(|(line, reason)| {
            let line = NonZeroUsize::new(line);
            AllowListError { file: file.to_owned(), line, reason }
        })
    }

    /// Parses the subset of YAML that a list may use: `endpoints:`, then one item per line; comments and blank lines.
    fn read(text: &str) -> Result<AllowList, (usize, String)> {
        let mut list: Option<Vec<Endpoint>> = None;
        for (at, line) in text.lines().enumerate().map(|(i, l)| (i + 1, l)) {
            let line = strip_comment(line).trim();
            match (line, &mut list) {
                ("" | "---", _) => {}
                ("endpoints:", None) => list = Some(Vec::new()),
                (_, None) => return Err((at, format!("expected `endpoints:`, found {line:?}"))),
                (_, Some(list)) => {
                    let item = line
                        .strip_prefix("- ")
                        .ok_or_else(|| (at, format!("expected `- host:port`, found {line:?}")))?;
                    let (host, port) = entry(item.trim()).map_err(|reason| (at, reason))?;
                    if list.iter().any(|e| e.host == host && e.port == port) {
                        return Err((at, format!("{host}:{port} is listed twice")));
                    }
                    if list.len() == MOST_ENTRIES {
                        return Err((at, format!("more than {MOST_ENTRIES} entries")));
                    }
                    list.push(Endpoint { index: list.len(), host, port });
                }
            }
        }
        let endpoints = list.ok_or_else(|| (0, "has no `endpoints:`".into()))?;
        Ok(AllowList { endpoints, sha256: sha256(text.as_bytes()) })
    }

    /// Finds the endpoint with this host (in any case) and port.
    pub fn find(&self, host: &str, port: u16) -> Option<&Endpoint> {
        self.endpoints.iter().find(|e| e.port == port && e.host.eq_ignore_ascii_case(host))
    }

    /// All endpoints, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter()
    }

    /// SHA-256 of the file that the list was read from, as sha256sum(1) prints it.
    pub fn sha256(&self) -> Sha256 {
        self.sha256
    }
}

/// The part of a line before its comment. `#` begins one at the line's start or after a blank (YAML 1.2, section 6.6).
fn strip_comment(line: &str) -> &str {
    let start = line.char_indices().find(|&(i, c)| c == '#' && (i == 0 || line[..i].ends_with([' ', '\t'])));
    start.map_or(line, |(i, _)| &line[..i])
}

fn entry(item: &str) -> Result<(String, u16), String> {
    let item = ['"', '\''].iter().find_map(|q| item.strip_prefix(*q)?.strip_suffix(*q)).unwrap_or(item);
    let (host, port) = match item.split_once(':') {
        Some((host, port)) => {
            let digits = port.bytes().all(|b| b.is_ascii_digit());
            let port = port.parse().ok().filter(|&p| p > 0 && digits);
            (host, port.ok_or_else(|| format!("{item:?} has no port from 1 to 65535"))?)
        }
        None => (item, HTTPS_PORT),
    };
    if !is_host_name(host) {
        return Err(format!("{host:?} is not a host name: write `- host` or `- host:port`"));
    }
    Ok((host.to_ascii_lowercase(), port))
}

/// RFC 1123, section 2.1: labels of letters, digits and inner hyphens, 63 bytes each, 253 in all.
fn is_host_name(host: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    host.len() <= 253 && host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_list_names_the_watermark_service() {
        let list = AllowList::read(include_str!("../../allowed_endpoints.yaml")).unwrap();
        let endpoint = list.find("watermark.internal.staging.zing.you", 8080).unwrap();
        assert_eq!((endpoint.index(), endpoint.loopback()), (0, Ipv4Addr::new(127, 0, 0, 64)));
    }

    #[test]
    fn order_default_port_quotes_and_comments_are_understood() {
        let list = AllowList::read("---\n# hosts\nendpoints:\n  - A.example # one\n\n- \"b.example:8443\"\n").unwrap();
        assert_eq!(list.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a.example:443", "b.example:8443"]);
        assert!(list.find("A.EXAMPLE", 443).is_some());
        assert!(list.find("a.example", 8443).is_none());
    }

    #[test]
    fn a_bad_or_repeated_line_is_named() {
        for (text, line) in [
            ("", 0),
            ("hosts:\n- a", 1),
            ("endpoints: [a]", 1),
            ("endpoints:\n- a\n- b:0", 3),
            ("endpoints:\n- a\n- A:443", 3),
            ("endpoints:\n- a:x", 2),
            ("endpoints:\n- a:+1", 2),
            ("endpoints:\n- https://a", 2),
            ("endpoints:\n- *.a", 2),
            ("endpoints:\n-a", 2),
            ("endpoints:\n- a b", 2),
            ("endpoints:\n- -a", 2),
            ("endpoints:\n- a..b", 2),
            ("endpoints:\nendpoints:", 2),
        ] {
            assert_eq!(AllowList::read(text).unwrap_err().0, line, "{text:?}");
        }
        let many = format!("endpoints:\n{}", (0..192).map(|i| format!("- h{i}\n")).collect::<String>());
        assert_eq!(AllowList::read(&many).unwrap_err().0, 193);
    }
}
