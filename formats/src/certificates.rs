//! MTLS_CLIENT_CERT_JSON: how the enclave and the watermark service authenticate each other.

use std::fmt;

use serde_json::value::RawValue;

use crate::base64;
use crate::digest::Sha256;
use crate::items::CERTIFICATES;
use crate::object::{Keep, Object, object_text};
use crate::refusal::Refusal;

/// One of the item's three parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The client's certificate, followed by its issuers in order.
    Certificate,
    /// Its private key.
    Key,
    /// The CAs that the service's certificate must come from.
    Authority,
}

impl Part {
    /// All parts, in the order of [`Parts`].
    pub const ALL: [Part; 3] = [Part::Certificate, Part::Key, Part::Authority];

    /// The part's name in the bundle's item.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Certificate => "client_cert",
            Part::Key => "client_key",
            Part::Authority => "ca_cert",
        }
    }

    /// The part's file name.
    pub const fn file(self) -> &'static str {
        match self {
            Part::Certificate => "client.crt",
            Part::Key => "client.key",
            Part::Authority => "ecs-ca.crt",
        }
    }

    /// The file's permission bits.
    pub const fn mode(self) -> u32 {
        match self {
            Part::Certificate | Part::Authority => 0o644,
            Part::Key => 0o600,
        }
    }
}

/// Which part is refused, and why. Never contains a value.
#[derive(Debug, PartialEq, Eq)]
pub struct PartError {
    /// The part that is refused.
    pub part: Part,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for PartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.part.name(), self.reason)
    }
}

impl std::error::Error for PartError {}

/// Refuses a part.
///
/// # Errors
/// Always.
pub fn refuse<T>(part: Part, reason: impl Into<String>) -> Result<T, PartError> {
    Err(PartError { part, reason: reason.into() })
}

/// One value for each part, in the order of [`Part::ALL`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts<T>(pub [T; 3]);

impl<T> Parts<T> {
    /// The value for one part.
    pub fn get(&self, part: Part) -> &T {
        &self.0[part as usize]
    }

    /// Each part with its value.
    pub fn iter(&self) -> impl Iterator<Item = (Part, &T)> {
        Part::ALL.into_iter().zip(&self.0)
    }
}

/// Parses the item: the text of each part, which is PEM, or base64 of PEM or DER. Unknown members go to `ignored`.
///
/// # Errors
/// A part is missing, or not a string.
pub fn parse(value: &RawValue, ignored: &mut Vec<String>) -> Result<Parts<String>, Refusal> {
    let text = object_text(CERTIFICATES, value)?;
    let object = Object::parse(CERTIFICATES, text.as_bytes(), Keep::Named(&Part::ALL.map(Part::name)))?;
    ignored.extend(object.ignored_in(CERTIFICATES));
    let part = |part: Part| object.text(CERTIFICATES, part.name()).map(String::from);
    Ok(Parts([part(Part::Certificate)?, part(Part::Key)?, part(Part::Authority)?]))
}

/// Writes the item from these files, PEM or DER, as text, like the `cat > mtls_certs.json <<EOF` in certs/README.md.
pub fn write(files: &Parts<Vec<u8>>) -> String {
    let members = files.iter().map(|(part, file)| format!("\"{}\":\"{}\"", part.name(), base64::encode(file)));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// SHA-256 of a certificate in DER, with which an image pins it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub Sha256);

impl Fingerprint {
    /// Parses hex, with or without the colons that openssl puts between the bytes.
    pub fn from_hex(text: &str) -> Option<Fingerprint> {
        Sha256::from_hex(&text.replace(':', "")).map(Fingerprint)
    }
}
