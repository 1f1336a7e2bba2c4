//! Addresses as people write them: `vsock:PORT` or `vsock:CID:PORT`, `tcp:HOST:PORT`, `unix:PATH`.
//!
//! Inside the enclave every connection is AF_VSOCK (vsock(7)); on a development machine the same programs run over TCP or a
//! Unix socket.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where to listen or to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// AF_VSOCK. An address without a CID can only be listened on; it stands for any CID of this machine.
    Vsock {
        /// The machine's CID; `None` to listen on any of this machine.
        cid: Option<u32>,
        /// The port.
        port: u32,
    },
    /// TCP, with a host name or an IP address (IPv6 in brackets).
    Tcp {
        /// A host name or an IP address, IPv6 in brackets.
        host: String,
        /// The port; to listen, 0 lets the system choose one.
        port: u16,
    },
    /// A Unix socket's path.
    Unix(PathBuf),
}

/// A text that is not an address in any of the three forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressError(String);

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not an address: write vsock:PORT, vsock:CID:PORT, tcp:HOST:PORT or unix:PATH", self.0)
    }
}

impl std::error::Error for AddressError {}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        parse(text).ok_or_else(|| AddressError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Address> {
    match text.split_once(':')? {
        ("vsock", rest) => {
            let (cid, port) = match rest.split_once(':') {
                Some((cid, port)) => (Some(decimal(cid)?), port),
                None => (None, rest),
            };
            Some(Address::Vsock { cid, port: decimal(port)? })
        }
        ("tcp", rest) => {
            let (host, port) = rest.rsplit_once(':')?;
            let bracketed = host.starts_with('[') && host.ends_with(']');
            if host.is_empty() || host.contains(':') && !bracketed {
                return None;
            }
            Some(Address::Tcp { host: host.to_owned(), port: decimal(port)?.try_into().ok()? })
        }
        ("unix", path) if !path.is_empty() => Some(Address::Unix(path.into())),
        _ => None,
    }
}

/// Parses plain digits only: `u32::from_str` would accept a leading plus sign too.
fn decimal(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Vsock { cid: None, port } => write!(f, "vsock:{port}"),
            Address::Vsock { cid: Some(cid), port } => write!(f, "vsock:{cid}:{port}"),
            Address::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_prints_as_it_is_written() {
        for text in ["vsock:3000", "vsock:16:7777", "tcp:127.0.0.1:80", "tcp:[::1]:80", "tcp:a.b:1", "unix:/run/x:y"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_three_forms() {
        for text in [
            "",
            "3000",
            "vsock:",
            "vsock:x",
            "vsock:1:2:3",
            "vsock:+1",
            "vsock:4294967296",
            "tcp:80",
            "tcp::80",
            "tcp:h:65536",
            "tcp:::1:80",
            "unix:",
            "http:h:1",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("vsock:CID:PORT"), "{text}: {error}");
        }
    }
}
