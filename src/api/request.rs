//! What a request asks for.

use std::borrow::Cow;
use std::io::Read;

use percent_encoding::percent_decode_str;
use tiny_http::{Method, Request};

use super::error::ApiError;
use super::limits::BodyLimit;
use crate::memory::{ReadError, Reservation, read_all};

/// Longest file id and user id, in bytes.
const MAX_ID: usize = 256;

/// A request's path and query, decoded.
pub struct Target {
    path: Vec<String>,
    query: Vec<(String, String)>,
}

impl Target {
    /// Takes a request target apart.
    ///
    /// # Errors
    /// A part is not UTF-8.
    pub fn parse(target: &str) -> Result<Target, ApiError> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let segments = path.trim_start_matches('/').split('/').map(|s| decode(s, "the path"));
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // Forms and query builders write a blank as + (URL Standard, 5.1).
            Ok((decode(&name.replace('+', " "), "the query")?, decode(&value.replace('+', " "), "the query")?))
        });
        Ok(Target { path: segments.collect::<Result<_, _>>()?, query: pairs.collect::<Result<_, ApiError>>()? })
    }

    /// The path's segments; one empty segment for `/`.
    pub fn path(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).collect()
    }

    /// The value of a parameter that may stand once.
    ///
    /// # Errors
    /// It stands more often.
    pub fn query(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let mut values = self.query.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(ApiError::Invalid(format!("{name} is given twice"))),
            (value, None) => Ok(value),
        }
    }
}

fn decode(text: &str, place: &str) -> Result<String, ApiError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Cow::into_owned).map_err(|_| ApiError::Invalid(format!("{place} is not UTF-8")))
}

/// The value of a header field that may stand once.
///
/// # Errors
/// It stands more often.
pub fn header<'a>(request: &'a Request, name: &'static str) -> Result<Option<&'a str>, ApiError> {
    let mut values = request.headers().iter().filter(|h| h.field.equiv(name)).map(|h| h.value.as_str().trim());
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(ApiError::Invalid(format!("{name} is given twice"))),
        (value, None) => Ok(value),
    }
}

/// Lets one method pass; HEAD passes for GET.
///
/// # Errors
/// It is another one.
pub fn allow(request: &Request, method: Method, name: &'static str) -> Result<(), ApiError> {
    let same = *request.method() == method || (method == Method::Get && *request.method() == Method::Head);
    if same { Ok(()) } else { Err(ApiError::MethodNotAllowed(name)) }
}

/// An id that may stand in a request and in a mark: 1 to 256 bytes without control characters.
///
/// # Errors
/// It is missing, or no such id.
pub fn id<'a>(name: &str, id: Option<&'a str>) -> Result<&'a str, ApiError> {
    match id {
        None => Err(ApiError::Invalid(format!("{name} is missing"))),
        Some(id) if id.is_empty() || id.len() > MAX_ID || id.chars().any(char::is_control) => {
            Err(ApiError::Invalid(format!("{name} is not of 1 to {MAX_ID} bytes without control characters")))
        }
        Some(id) => Ok(id),
    }
}

/// Reads the body, within `limit`, once `cost` of its length is reserved.
///
/// # Errors
/// It is too large, does not fit the memory, or is cut off.
pub fn body(
    request: &mut Request,
    limit: BodyLimit,
    memory: &mut Reservation,
    cost: impl Fn(usize) -> usize,
) -> Result<Vec<u8>, ApiError> {
    let known = request.body_length();
    if known.is_some_and(|length| length > limit.bytes) {
        return Err(ApiError::FileTooLarge(limit.past));
    }
    if let Some(length) = known {
        // Before as_reader, which tells a client that waits for 100 (Continue) to send.
        memory.cover(cost(length))?;
    }
    // ingress hands the body over as it is: so many bytes, or, where it came in chunks, all until the end.
    let reader = request.as_reader().take(known.map_or(u64::MAX, |n| n as u64));
    let bytes = read_all(reader, known, limit.bytes, memory, cost).map_err(|e| match e {
        ReadError::TooLarge => ApiError::FileTooLarge(limit.past),
        ReadError::NoMemory(e) => e.into(),
        ReadError::Io(_) => ApiError::Invalid("the body did not arrive".into()),
    })?;
    if known.is_some_and(|length| length != bytes.len()) {
        return Err(ApiError::Invalid("the body is shorter than its Content-Length".into()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_comes_apart_and_its_parts_are_decoded() {
        let target = Target::parse("/files/a%2Fb%C3%A4/decrypt?user_id=x+y%2B&key_id=&user").unwrap();
        assert_eq!(target.path(), ["files", "a/bä", "decrypt"]);
        assert_eq!(target.query("user_id").unwrap(), Some("x y+"));
        assert_eq!(target.query("key_id").unwrap(), Some(""));
        assert_eq!(target.query("none").unwrap(), None);
        assert!(Target::parse("/?a=1&a=2").unwrap().query("a").is_err());
        assert!(Target::parse("/%ff").is_err() && Target::parse("/?a=%ff").is_err());
    }

    #[test]
    fn ids_are_bounded() {
        assert!(id("x", Some("ä b")).is_ok());
        for bad in [None, Some(""), Some("a\nb"), Some("\u{7f}"), Some(&*"x".repeat(257))] {
            assert!(id("x", bad).is_err());
        }
    }
}
