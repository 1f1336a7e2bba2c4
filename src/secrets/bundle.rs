//! The bundle: what an operator sends, parsed and checked as a whole before any of it counts.

use std::ffi::OsString;
use std::fmt;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use ureq::http::Uri;

use super::jwks;
use super::object::{Keep, Object, object_text, shown};
use super::sealed::SEALED;
use crate::base64;
use crate::files::{FileKey, FileKeys, KEY_LEN};
use crate::grants::GrantKeys;
use crate::json::string;
use crate::mtls::{Identity, PARTS};
use crate::net::endpoints::{AllowList, Endpoint};
use crate::time::Utc;

/// The items of a bundle.
pub const CERTIFICATES: &str = "MTLS_CLIENT_CERT_JSON";
pub const ENDPOINT: &str = "ECS_WATERMARK_ENDPOINT";
pub const FILE_KEYS: &str = "FILE_KEYS";
pub const GRANT_KEYS: &str = "GRANT_KEYS";
pub const ITEMS: [&str; 4] = [CERTIFICATES, ENDPOINT, FILE_KEYS, GRANT_KEYS];

/// Largest bundle, in bytes.
pub const MAX_BUNDLE: usize = 1 << 20;
/// Most keys in FILE_KEYS, and the longest key id in bytes.
const MAX_KEYS: usize = 1024;
pub const MAX_KEY_ID: usize = 128;

/// Checked items. An item that the sender left out is `None` and stays as it was.
#[derive(Default)]
pub struct Bundle {
    pub identity: Option<Identity>,
    pub service: Option<Service>,
    pub keys: Option<FileKeys>,
    pub grants: Option<GrantKeys>,
    /// Names that mean nothing to this version; and, with the reason in parentheses, members that are null and grant keys
    /// that are not for signatures known here.
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

/// A refusal as an error.
pub(super) fn refuse<T>(field: impl Into<String>, reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { field: field.into(), reason: reason.into() })
}

/// The field of a refusal that concerns the bundle as a whole.
pub const WHOLE: &str = "bundle";

impl Bundle {
    /// Parses and checks a bundle as of `now`. Where CAs are `pinned`, by their SHA-256, it may bring no other.
    ///
    /// # Errors
    /// The first thing that is wrong; a bundle without any known item is.
    pub fn parse(bytes: &[u8], allowed: &AllowList, pinned: &[[u8; 32]], now: Utc) -> Result<Bundle, Refusal> {
        if bytes.len() > MAX_BUNDLE {
            return refuse(WHOLE, format!("is larger than {MAX_BUNDLE} bytes"));
        }
        if bytes.trim_ascii().is_empty() {
            return refuse(WHOLE, "is empty");
        }
        let items = Object::parse(WHOLE, bytes, Keep::Named(&ITEMS))?;
        let mut ignored = items.ignored.clone();
        let bundle = Bundle {
            identity: items.get(CERTIFICATES).map(|v| identity(v, pinned, now, &mut ignored)).transpose()?,
            service: items.get(ENDPOINT).map(|v| service(v, allowed)).transpose()?,
            keys: items.get(FILE_KEYS).map(|v| file_keys(v, &mut ignored)).transpose()?,
            grants: items.get(GRANT_KEYS).map(|v| grant_keys(v, &mut ignored)).transpose()?,
            ignored,
        };
        match &bundle {
            Bundle { identity: None, service: None, keys: None, grants: None, ignored } => match ignored {
                names if names.iter().any(|name| name == SEALED) => {
                    refuse(WHOLE, "is sealed, and this daemon takes plain ones (TEEMARK_HANDSHAKE)")
                }
                _ => refuse(WHOLE, format!("has none of {}", ITEMS.join(", "))),
            },
            _ => Ok(bundle),
        }
    }
}

/// The items that the environment holds, as a bundle like any other; `None` where it holds none.
pub fn bundle_of_environment(names: &[&str], variable: impl Fn(&str) -> Option<OsString>) -> Option<Vec<u8>> {
    let mut items = Map::new();
    for &name in names {
        if let Some(value) = variable(name).filter(|v| !v.is_empty()) {
            items.insert(name.to_owned(), Value::String(value.to_string_lossy().into_owned()));
        }
    }
    (!items.is_empty()).then(|| Value::Object(items).to_string().into_bytes())
}

fn identity(value: &RawValue, pinned: &[[u8; 32]], now: Utc, ignored: &mut Vec<String>) -> Result<Identity, Refusal> {
    let text = object_text(CERTIFICATES, value)?;
    let object = Object::parse(CERTIFICATES, text.as_bytes(), Keep::Named(&PARTS))?;
    ignored.extend(object.ignored_in(CERTIFICATES));
    let part = |name| object.text(CERTIFICATES, name);
    let [cert, key, ca] = [part(PARTS[0])?, part(PARTS[1])?, part(PARTS[2])?];
    Identity::check([cert.as_bytes(), key.as_bytes(), ca.as_bytes()], now)
        .and_then(|identity| identity.within(pinned))
        .or_else(|e| refuse(format!("{CERTIFICATES}.{}", e.part), e.reason))
}

fn service(value: &RawValue, allowed: &AllowList) -> Result<Service, Refusal> {
    let Some(text) = string(value) else { return refuse(ENDPOINT, "is not a string") };
    // `echo` and files end with a newline.
    let text = text.trim_ascii();
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

fn file_keys(value: &RawValue, ignored: &mut Vec<String>) -> Result<FileKeys, Refusal> {
    let text = object_text(FILE_KEYS, value)?;
    let object = Object::parse(FILE_KEYS, text.as_bytes(), Keep::Most(MAX_KEYS))?;
    ignored.extend(object.ignored_in(FILE_KEYS));
    match object.members().next() {
        None => refuse(FILE_KEYS, "holds no key"),
        Some(_) => object.members().map(|(id, value)| Ok((id.to_owned(), file_key(id, value, ignored)?))).collect(),
    }
}

fn grant_keys(value: &RawValue, ignored: &mut Vec<String>) -> Result<GrantKeys, Refusal> {
    let (keys, passed_over) = jwks::parse(value)?;
    ignored.extend(passed_over);
    Ok(keys)
}

fn file_key(id: &str, value: &RawValue, ignored: &mut Vec<String>) -> Result<FileKey, Refusal> {
    let field = format!("{FILE_KEYS}.{}", shown(id));
    if id.is_empty() || id.len() > MAX_KEY_ID {
        return refuse(field, format!("is not a key id of 1 to {MAX_KEY_ID} bytes"));
    }
    let object = match value.get().starts_with('{') {
        true => Some(Object::parse(&field, value.get().as_bytes(), Keep::Named(&["key", "aad"]))?),
        false => None,
    };
    let (text, aad) = match &object {
        Some(object) => (object.get("key").and_then(string), object.get_even_null("aad")),
        None => (string(value), None),
    };
    let binds_file_id = match aad.map(string) {
        None => false,
        Some(Some(aad)) if aad == "file_id" => true,
        Some(_) => return refuse(field, "has an aad other than \"file_id\""),
    };
    let Some(text) = text else { return refuse(field, "is neither base64 nor an object with a string named key") };
    let Some(bytes) = base64::decode(&text) else { return refuse(field, "is not base64") };
    let Ok(key) = <&[u8; KEY_LEN]>::try_from(bytes.as_slice()) else {
        return refuse(field, format!("is {} bytes long, not {KEY_LEN}", bytes.len()));
    };
    ignored.extend(object.iter().flat_map(|object| object.ignored_in(&field)));
    Ok(FileKey::new(key, binds_file_id))
}
