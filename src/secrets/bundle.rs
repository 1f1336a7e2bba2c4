//! The bundle: what an operator sends, parsed and checked as a whole before any of it counts.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use ureq::http::Uri;

use crate::files::{FileKey, FileKeys, KEY_LEN};
use crate::mtls::{Identity, PARTS};
use crate::net::endpoints::{AllowList, Endpoint};
use crate::time::Utc;

/// The three items of a bundle.
pub const CERTIFICATES: &str = "MTLS_CLIENT_CERT_JSON";
pub const ENDPOINT: &str = "ECS_WATERMARK_ENDPOINT";
pub const FILE_KEYS: &str = "FILE_KEYS";

/// Largest bundle, in bytes.
pub const MAX_BUNDLE: usize = 1 << 20;
/// Most keys in FILE_KEYS, and the longest key id in bytes.
const MAX_KEYS: usize = 1024;
pub const MAX_KEY_ID: usize = 128;
/// How many ignored names an answer lists, and how much of each.
const NAMES_TOLD: usize = 16;
const NAME_TOLD: usize = 64;

/// Checked items. An item that the sender left out is `None` and stays as it was.
pub struct Bundle {
    pub identity: Option<Identity>,
    pub service: Option<Service>,
    pub keys: Option<FileKeys>,
    /// Names that mean nothing to this version.
    pub ignored: Vec<String>,
}

/// The watermark service's place, on the allow list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `https://host:port` and perhaps a path, without a slash at the end.
    pub url: String,
    pub endpoint: Endpoint,
}

/// What is wrong with a bundle: the field, and why. Never a value.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub field: String,
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

impl Refusal {
    /// The answer of the handshake.
    pub fn to_json(&self) -> Value {
        json!({"ok": false, "field": self.field, "error": self.reason})
    }
}

fn refuse<T>(field: impl Into<String>, reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { field: field.into(), reason: reason.into() })
}

/// The field of a refusal that concerns the bundle as a whole.
pub const WHOLE: &str = "bundle";

impl Bundle {
    /// Parses and checks a bundle as of `now`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(bytes: &[u8], allowed: &AllowList, now: Utc) -> Result<Bundle, Refusal> {
        if bytes.len() > MAX_BUNDLE {
            return refuse(WHOLE, format!("is larger than {MAX_BUNDLE} bytes"));
        }
        if bytes.trim_ascii().is_empty() {
            return refuse(WHOLE, "is empty");
        }
        match json(WHOLE, bytes)? {
            Value::Object(items) => Bundle::check(&items, allowed, now),
            _ => refuse(WHOLE, "is not a JSON object"),
        }
    }

    /// Checks the items of a parsed bundle.
    ///
    /// # Errors
    /// The first thing that is wrong; a bundle without any known item is.
    pub fn check(items: &Map<String, Value>, allowed: &AllowList, now: Utc) -> Result<Bundle, Refusal> {
        let mut ignored = unknown(items, &[CERTIFICATES, ENDPOINT, FILE_KEYS], "");
        let bundle = Bundle {
            identity: items.get(CERTIFICATES).map(|v| identity(v, now, &mut ignored)).transpose()?,
            service: items.get(ENDPOINT).map(|v| service(v, allowed)).transpose()?,
            keys: items.get(FILE_KEYS).map(file_keys).transpose()?,
            ignored,
        };
        if bundle.identity.is_none() && bundle.service.is_none() && bundle.keys.is_none() {
            return refuse(WHOLE, format!("has none of {CERTIFICATES}, {ENDPOINT} and {FILE_KEYS}"));
        }
        Ok(bundle)
    }
}

/// serde_json's messages give places, not contents, where any JSON value will do.
fn json(field: &str, bytes: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(bytes).or_else(|e| match e.is_eof() {
        true => refuse(field, format!("is cut off at line {} column {}", e.line(), e.column())),
        false => refuse(field, format!("is not JSON: {e}")),
    })
}

/// Names that are not known, made safe to print and few.
fn unknown(items: &Map<String, Value>, known: &[&str], prefix: &str) -> Vec<String> {
    let shown = |name: &String| format!("{prefix}{}", name.escape_debug().take(NAME_TOLD).collect::<String>());
    items.keys().filter(|name| !known.contains(&name.as_str())).take(NAMES_TOLD).map(shown).collect()
}

fn identity(value: &Value, now: Utc, ignored: &mut Vec<String>) -> Result<Identity, Refusal> {
    let parsed;
    let object = match value {
        Value::Object(object) => object,
        Value::String(text) => {
            parsed = json(CERTIFICATES, text.as_bytes())?;
            match &parsed {
                Value::Object(object) => object,
                _ => return refuse(CERTIFICATES, "is a string that does not hold a JSON object"),
            }
        }
        _ => return refuse(CERTIFICATES, "is neither an object nor a string that holds one"),
    };
    ignored.extend(unknown(object, &PARTS, &format!("{CERTIFICATES}.")));
    let mut parts = [&b""[..]; 3];
    for (part, name) in parts.iter_mut().zip(PARTS) {
        *part = match object.get(name) {
            Some(Value::String(text)) => text.as_bytes(),
            Some(_) => return refuse(format!("{CERTIFICATES}.{name}"), "is not a string"),
            None => return refuse(format!("{CERTIFICATES}.{name}"), "is missing"),
        };
    }
    Identity::check(parts, now).or_else(|e| refuse(format!("{CERTIFICATES}.{}", e.part), e.reason))
}

fn service(value: &Value, allowed: &AllowList) -> Result<Service, Refusal> {
    let Some(text) = value.as_str() else { return refuse(ENDPOINT, "is not a string") };
    let refuse = |reason: &str| refuse(ENDPOINT, reason);
    let Ok(url) = text.parse::<Uri>() else { return refuse("is not a URL") };
    let (Some("https"), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return refuse("is not an https URL with a host");
    };
    if authority.as_str().contains('@') {
        return refuse("has a user name");
    }
    if url.query().is_some() || text.contains('#') {
        return refuse("has a query or a fragment");
    }
    let port = url.port_u16().unwrap_or(443);
    match allowed.find(authority.host(), port) {
        Some(endpoint) => Ok(Service { url: text.trim_end_matches('/').to_owned(), endpoint: endpoint.clone() }),
        None => refuse("is not on the allow list (allowed_endpoints.yaml, host and port)"),
    }
}

fn file_keys(value: &Value) -> Result<FileKeys, Refusal> {
    let Some(object) = value.as_object() else { return refuse(FILE_KEYS, "is not an object of key ids") };
    match object.len() {
        0 => refuse(FILE_KEYS, "holds no key"),
        n if n > MAX_KEYS => refuse(FILE_KEYS, format!("holds more than {MAX_KEYS} keys")),
        _ => object.iter().map(|(id, value)| Ok((id.clone(), file_key(id, value)?))).collect(),
    }
}

fn file_key(id: &str, value: &Value) -> Result<FileKey, Refusal> {
    let field = format!("{FILE_KEYS}.{}", id.escape_debug().take(NAME_TOLD).collect::<String>());
    if id.is_empty() || id.len() > MAX_KEY_ID {
        return refuse(field, format!("is no key id of 1 to {MAX_KEY_ID} bytes"));
    }
    let (text, binds_file_id) = match value {
        Value::String(text) => (text.as_str(), false),
        Value::Object(key) => match (key.get("key"), key.get("aad")) {
            (Some(Value::String(text)), None) => (text.as_str(), false),
            (Some(Value::String(text)), Some(aad)) if aad == "file_id" => (text.as_str(), true),
            (Some(Value::String(_)), Some(_)) => return refuse(field, "has an aad other than \"file_id\""),
            _ => return refuse(field, "has no string named key"),
        },
        _ => return refuse(field, "is neither base64 nor an object with key"),
    };
    let Ok(bytes) = STANDARD.decode(text.trim_ascii()) else { return refuse(field, "is not base64") };
    match <&[u8; KEY_LEN]>::try_from(bytes.as_slice()) {
        Ok(key) => Ok(FileKey::new(key, binds_file_id)),
        Err(_) => refuse(field, format!("is {} bytes long, not {KEY_LEN}", bytes.len())),
    }
}
