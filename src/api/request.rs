//! A request's target, parameters and body.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use formats::attestation::MAX_NONCE;
use percent_encoding::percent_decode_str;

use super::error::ApiError;
use super::limits::{BodyLimit, TooLarge};
use crate::memory::{Reservation, SILENCE, grown, while_growing};
use crate::net::request::{Progress, Request};

/// Longest file id and user id, in bytes.
const MAX_ID: usize = 256;

/// A request's path as it came, and its query, decoded.
///
/// A path has only one spelling, so that a limit in front of it cannot be bypassed by another (except for ids in it,
/// which [`decode`] reads).
pub(crate) struct Target<'a> {
    path: Vec<&'a str>,
    query: Vec<(String, String)>,
}

impl<'a> Target<'a> {
    /// Splits a request target.
    ///
    /// # Errors
    /// The query is not UTF-8.
    pub(crate) fn parse(target: &'a str) -> Result<Target<'a>, ApiError> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = path.strip_prefix('/').unwrap_or(path).split('/').collect();
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // Forms and query builders write a space as + (URL Standard, 5.1).
            Ok((decode(&name.replace('+', " "), "the query")?, decode(&value.replace('+', " "), "the query")?))
        });
        Ok(Target { path, query: pairs.collect::<Result<_, ApiError>>()? })
    }

    /// The path's segments as they came; one empty segment for `/`.
    pub(crate) fn path(&self) -> &[&'a str] {
        &self.path
    }

    /// The value of a parameter that may be given once.
    ///
    /// # Errors
    /// It is given more than once.
    pub(crate) fn query(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let mut values = self.query.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(ApiError::Invalid(format!("{name} is given twice"))),
            (value, None) => Ok(value),
        }
    }
}

/// Undoes percent-encoding.
///
/// # Errors
/// The result is not UTF-8; `place` names the text in the error.
pub(crate) fn decode(text: &str, place: &str) -> Result<String, ApiError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Cow::into_owned).map_err(|_| ApiError::Invalid(format!("{place} is not UTF-8")))
}

/// The value of a header field that may occur once.
///
/// # Errors
/// It occurs more than once, or is not UTF-8.
pub(crate) fn header<'a>(request: &'a Request<'_>, name: &'static str) -> Result<Option<&'a str>, ApiError> {
    let mut values = request.head.values(name);
    match (values.next().map(str::from_utf8), values.next()) {
        (_, Some(_)) => Err(ApiError::Invalid(format!("{name} is given twice"))),
        (Some(Err(_)), None) => Err(ApiError::Invalid(format!("{name} is not UTF-8"))),
        (value, None) => Ok(value.transpose().unwrap_or_default()),
    }
}

/// Accepts one method; HEAD is accepted for GET.
///
/// # Errors
/// The request has another method.
pub(crate) fn allow(request: &Request<'_>, method: &'static str) -> Result<(), ApiError> {
    let same = request.head.method == method || (method == "GET" && request.head.head_only());
    if same { Ok(()) } else { Err(ApiError::MethodNotAllowed(method)) }
}

/// Checks an id that a request names and a mark contains: 1 to 256 bytes without control characters.
///
/// # Errors
/// It is missing or invalid.
pub(crate) fn id<'a>(name: &str, id: Option<&'a str>) -> Result<&'a str, ApiError> {
    match id {
        None => Err(ApiError::Invalid(format!("{name} is missing"))),
        Some(id) if id.is_empty() || id.len() > MAX_ID || id.chars().any(char::is_control) => {
            Err(ApiError::Invalid(format!("{name} must be 1 to {MAX_ID} bytes without control characters")))
        }
        Some(id) => Ok(id),
    }
}

/// Reads the nonce of an attestation document: hex of 1 to [`MAX_NONCE`] bytes.
///
/// # Errors
/// It is something else.
pub(crate) fn nonce(name: &str, hex: &str) -> Result<Vec<u8>, ApiError> {
    let nonce = hex::decode(hex).ok().filter(|nonce| (1..=MAX_NONCE).contains(&nonce.len()));
    nonce.ok_or_else(|| ApiError::Invalid(format!("{name} is not hex of 1 to {MAX_NONCE} bytes")))
}

/// How often a silent request checks whether it has to give way.
pub(crate) const CHECK_EVERY: Duration = Duration::from_millis(100);

/// Reads the body, at most `limit`. Memory is reserved as it arrives; once it is complete, `cost` of its length.
///
/// # Errors
/// It is too large or too slow, does not fit into memory, is cut off, or gives way to others.
pub(crate) fn body(
    request: &mut Request<'_>,
    limit: BodyLimit,
    memory: &mut Reservation,
    cost: impl Fn(usize) -> usize,
) -> Result<Vec<u8>, ApiError> {
    let announced = request.announced().map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let most = announced.unwrap_or(limit.bytes + 1);
    if most > limit.bytes + usize::from(announced.is_none()) {
        return Err(ApiError::FileTooLarge(limit.past));
    }
    if announced.is_some_and(|length| cost(length) > memory.total()) {
        // Before the client is told to send the body.
        return Err(ApiError::FileTooLarge(TooLarge::Memory(memory.total())));
    }
    let mut bytes = Vec::new();
    memory.receiving(Instant::now());
    loop {
        if bytes.len() == bytes.capacity() && bytes.len() < most {
            let room = grown(bytes.len(), most);
            request.pause(memory.cover(cost(0).saturating_add(while_growing(bytes.len(), room)))?);
            memory.receiving(request.last_content());
            bytes.reserve_exact(room - bytes.len());
        }
        let silent = request.last_content().elapsed();
        let patience = SILENCE.saturating_sub(silent).max(CHECK_EVERY);
        let room = bytes.capacity() - bytes.len();
        match request.read(&mut bytes, room, patience)? {
            Progress::Content => memory.receiving(Instant::now()),
            Progress::Nothing => {}
            Progress::End => break,
        }
        if bytes.len() > limit.bytes {
            return Err(ApiError::FileTooLarge(limit.past));
        }
        if memory.gives_way(Instant::now()) {
            return Err(ApiError::Overloaded);
        }
    }
    memory.received();
    memory.cover(cost(bytes.len()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_comes_apart_and_its_parts_are_decoded() {
        let target = Target::parse("/files/a%2Fb%C3%A4/decrypt?user_id=x+y%2B&key_id=&user").unwrap();
        assert_eq!(target.path(), ["files", "a%2Fb%C3%A4", "decrypt"]);
        assert_eq!(decode(target.path()[1], "the path").unwrap(), "a/bä");
        assert_eq!(target.query("user_id").unwrap(), Some("x y+"));
        assert_eq!(target.query("key_id").unwrap(), Some(""));
        assert_eq!(target.query("none").unwrap(), None);
        assert!(Target::parse("/?a=1&a=2").unwrap().query("a").is_err());
        assert!(decode("%ff", "the path").is_err() && Target::parse("/?a=%ff").is_err());
        assert_eq!(Target::parse("/").unwrap().path(), [""]);
        assert_eq!(Target::parse("//a").unwrap().path(), ["", "a"]);
    }

    #[test]
    fn ids_are_bounded() {
        assert!(id("x", Some("ä b")).is_ok());
        for bad in [None, Some(""), Some("a\nb"), Some("\u{7f}"), Some(&*"x".repeat(257))] {
            assert!(id("x", bad).is_err());
        }
    }
}
