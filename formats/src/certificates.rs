//! MTLS_CLIENT_CERT_JSON: by what the enclave is known to the watermark service, and the service to it.

use std::fmt;

use serde_json::value::RawValue;

use crate::base64;
use crate::digest::Sha256;
use crate::items::CERTIFICATES;
use crate::object::{Keep, Object, object_text};
use crate::refusal::Refusal;

/// One of the three parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The client's certificate, and then each one's issuer.
    Certificate,
    /// Its private key.
    Key,
    /// Whom the service has to be certified by.
    Authority,
}

impl Part {
    /// All of them, in the order in which [`Parts`] are given.
    pub const ALL: [Part; 3] = [Part::Certificate, Part::Key, Part::Authority];

    /// The part as the bundle's item names it.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Certificate => "client_cert",
            Part::Key => "client_key",
            Part::Authority => "ca_cert",
        }
    }

    /// The part as a file.
    pub const fn file(self) -> &'static str {
        match self {
            Part::Certificate => "client.crt",
            Part::Key => "client.key",
            Part::Authority => "ecs-ca.crt",
        }
    }

    /// The file's mode.
    pub const fn mode(self) -> u32 {
        match self {
            Part::Certificate | Part::Authority => 0o644,
            Part::Key => 0o600,
        }
    }
}

/// Which part is refused, and why; never a value.
#[derive(Debug, PartialEq, Eq)]
pub struct PartError {
    pub part: Part,
    pub reason: String,
}

impl fmt::Display for PartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.part.name(), self.reason)
    }
}

impl std::error::Error for PartError {}

/// A refused part as an error.
///
/// # Errors
/// Always.
pub fn refuse<T>(part: Part, reason: impl Into<String>) -> Result<T, PartError> {
    Err(PartError { part, reason: reason.into() })
}

/// Something for each part, in the order of [`Part::ALL`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts<T>(pub [T; 3]);

impl<T> Parts<T> {
    pub fn get(&self, part: Part) -> &T {
        &self.0[part as usize]
    }

    /// Each part with what there is for it.
    pub fn iter(&self) -> impl Iterator<Item = (Part, &T)> {
        Part::ALL.into_iter().zip(&self.0)
    }
}

/// Reads the item: the text of each part, which is PEM, or base64 of PEM or DER. What means nothing in it goes to `ignored`.
///
/// # Errors
/// A part is missing, or is not a text.
pub fn parse(value: &RawValue, ignored: &mut Vec<String>) -> Result<Parts<String>, Refusal> {
    let text = object_text(CERTIFICATES, value)?;
    let object = Object::parse(CERTIFICATES, text.as_bytes(), Keep::Named(&Part::ALL.map(Part::name)))?;
    ignored.extend(object.ignored_in(CERTIFICATES));
    let part = |part: Part| object.text(CERTIFICATES, part.name()).map(String::from);
    Ok(Parts([part(Part::Certificate)?, part(Part::Key)?, part(Part::Authority)?]))
}

/// Writes the item of these files, PEM or DER, as text: what `cat > mtls_certs.json <<EOF` of certs/README.md gives.
pub fn write(files: &Parts<Vec<u8>>) -> String {
    let members = files.iter().map(|(part, file)| format!("\"{}\":\"{}\"", part.name(), base64::encode(file)));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// SHA-256 of a certificate in DER, by which an image pins it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub Sha256);

impl Fingerprint {
    /// Reads hex, with or without the colons that openssl puts between the bytes.
    pub fn from_hex(text: &str) -> Option<Fingerprint> {
        Sha256::from_hex(&text.replace(':', "")).map(Fingerprint)
    }
}
