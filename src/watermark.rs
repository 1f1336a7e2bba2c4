//! The client of the watermark service.

use std::fmt;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use log::{info, warn};
use serde::{Deserialize, Serialize, Serializer};
use ureq::http::Response;
use ureq::{Agent, Body, Error};

use crate::json::Text;
use crate::memory::{NoMemory, ReadError, Reservation, read_all};
use crate::metrics::METRICS;
use crate::net::tls::Stale;
use crate::net::tls_error;
use crate::secrets::store::Ready;

/// What an answer may hold beyond twice the request, in bytes.
pub const ANSWER_SLACK: usize = 1 << 20;
/// Largest answer to a health check, in bytes, and time for one.
const HEALTH_LIMIT: u64 = 64 << 10;
const HEALTH_TIME: Duration = Duration::from_secs(5);

/// A file to be marked for a user.
#[derive(Clone, Copy)]
pub struct WatermarkRequest<'a> {
    pub file_id: &'a str,
    pub user_id: &'a str,
    /// The file. It is sent as text where it is UTF-8, else as base64.
    pub data: &'a [u8],
}

/// The service's success answer.
pub struct WatermarkResponse {
    /// The marked file; the service may leave it out.
    pub watermarked_data: Option<Vec<u8>>,
}

/// Why there is no marked file.
#[derive(Debug)]
pub enum WatermarkError {
    /// The service was not done in time.
    Timeout,
    /// The service could not be reached or trusted, refused, or gave no usable answer. The text says which; what the
    /// service said is left out, since it may quote the file.
    Failed(String),
    /// The request or its answer does not fit into the memory that is left.
    NoMemory(NoMemory),
}

impl fmt::Display for WatermarkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WatermarkError::Timeout => f.write_str("the watermark service did not answer in time"),
            WatermarkError::Failed(reason) => f.write_str(reason),
            WatermarkError::NoMemory(_) => f.write_str("no memory for the call"),
        }
    }
}

impl From<NoMemory> for WatermarkError {
    fn from(e: NoMemory) -> Self {
        WatermarkError::NoMemory(e)
    }
}

impl From<Error> for WatermarkError {
    fn from(e: Error) -> Self {
        match e {
            Error::Timeout(_) => WatermarkError::Timeout,
            Error::Io(e) if e.kind() == ErrorKind::TimedOut => WatermarkError::Timeout,
            Error::Io(e) => match e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(tls) => failed(format!("TLS with the watermark service failed: {}", tls_error::words(tls))),
                None => failed(format!("the connection to the watermark service failed: {e}")),
            },
            // ureq's other messages may quote what the service sent.
            Error::Protocol(_) | Error::Http(_) => failed("the watermark service does not speak HTTP/1.1"),
            _ => failed("the watermark service's answer cannot be used"),
        }
    }
}

fn failed(reason: impl Into<String>) -> WatermarkError {
    WatermarkError::Failed(reason.into())
}

/// The wire form of a request.
#[derive(Serialize)]
struct WireRequest<'a> {
    file_id: &'a str,
    user_id: &'a str,
    #[serde(serialize_with = "data")]
    data: Result<&'a str, &'a [u8]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
}

fn data<S: Serializer>(data: &Result<&str, &[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    match data {
        Ok(text) => serializer.serialize_str(text),
        Err(bytes) => serializer.collect_str(&Base64Display::new(bytes, &STANDARD)),
    }
}

/// The wire form of an answer.
#[derive(Deserialize)]
struct WireAnswer<'a> {
    #[serde(borrow)]
    status: Text<'a>,
    #[serde(borrow)]
    watermarked_data: Option<Text<'a>>,
    #[serde(borrow)]
    encoding: Option<Text<'a>>,
}

/// Has a file marked. `memory` comes to cover what the call needs beside the file itself.
///
/// # Errors
/// See [`WatermarkError`].
pub fn call_watermark_service(
    ready: &Ready,
    request: WatermarkRequest<'_>,
    memory: &mut Reservation,
) -> Result<WatermarkResponse, WatermarkError> {
    let start = Instant::now();
    let result = exchange(ready, request, start, memory);
    METRICS.watermark_time.observe(start.elapsed());
    if let Err(e) = &result {
        warn!("watermark service {}: {e}", ready.service.endpoint);
    }
    result
}

fn exchange(
    ready: &Ready,
    request: WatermarkRequest<'_>,
    start: Instant,
    memory: &mut Reservation,
) -> Result<WatermarkResponse, WatermarkError> {
    let body = wire(request, memory)?;
    let url = format!("{}/api/watermark", ready.service.url);
    let post = |agent: &Agent| {
        let left = ready.mtls.limit.saturating_sub(start.elapsed());
        let request = agent.post(&url).config().timeout_global(Some(left)).build();
        request.content_type("application/json").send(&body[..])
    };
    let mut response = with_retry(ready, post)?;
    let limit = body.len().saturating_mul(2).saturating_add(ANSWER_SLACK);
    drop(body);
    if !response.status().is_success() {
        // Read to its end, if that is near, the connection can serve again.
        let _ = response.body_mut().with_config().limit(HEALTH_LIMIT).read_to_vec();
        return Err(failed(format!("the watermark service answered HTTP {}", response.status().as_u16())));
    }
    // Beside the answer there are the file and the marked file, and while escapes in it are undone a buffer that grows.
    let file = request.data.len();
    let answer = read_answer(&mut response, limit, memory, |n| file.saturating_add(n.saturating_mul(4)))?;
    marked(&answer).map(|watermarked_data| WatermarkResponse { watermarked_data })
}

/// The marked file in an answer, if it is there.
fn marked(answer: &[u8]) -> Result<Option<Vec<u8>>, WatermarkError> {
    let answer: WireAnswer = serde_json::from_slice(answer)
        .map_err(|_| failed("the watermark service's answer is not the expected JSON"))?;
    if &*answer.status != "success" {
        return Err(failed("the watermark service reports that it could not mark the file"));
    }
    match (answer.watermarked_data, answer.encoding.as_deref()) {
        (None, _) => Ok(None),
        (Some(text), None) => Ok(Some(text.0.into_owned().into_bytes())),
        (Some(text), Some("base64")) => {
            STANDARD.decode(text.as_bytes()).map(Some).map_err(|_| failed("the watermark service's base64 is damaged"))
        }
        (Some(_), Some(_)) => Err(failed("the watermark service's answer has an unknown encoding")),
    }
}

/// The request as JSON, in a buffer made once and large enough.
fn wire(request: WatermarkRequest<'_>, memory: &mut Reservation) -> Result<Vec<u8>, WatermarkError> {
    let WatermarkRequest { file_id, user_id, data } = request;
    let text = std::str::from_utf8(data).map_err(|_| data);
    let length = escaped_len(file_id.as_bytes()) + escaped_len(user_id.as_bytes()) + 128;
    let length = length + text.map_or(data.len().div_ceil(3) * 4, |text| escaped_len(text.as_bytes()));
    memory.cover(data.len().saturating_add(length))?;
    let mut body = Vec::with_capacity(length);
    let encoding = text.is_err().then_some("base64");
    serde_json::to_writer(&mut body, &WireRequest { file_id, user_id, data: text, encoding })
        .map_err(|_| failed("the file cannot be put into JSON"))?;
    Ok(body)
}

/// Bytes of a string within JSON, as serde_json escapes it.
fn escaped_len(text: &[u8]) -> usize {
    let one = |b: &u8| match b {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.iter().map(one).sum()
}

fn read_answer(
    response: &mut Response<Body>,
    limit: usize,
    memory: &mut Reservation,
    cost: impl Fn(usize) -> usize,
) -> Result<Vec<u8>, WatermarkError> {
    let known = response.body().content_length().map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    read_all(response.body_mut().as_reader(), known, limit, memory, cost).map_err(|e| match e {
        ReadError::TooLarge => failed(format!("the watermark service's answer is over {limit} bytes")),
        ReadError::NoMemory(e) => e.into(),
        ReadError::Io(e) => Error::from(e).into(),
    })
}

/// Makes a call on a pooled connection, and once more on a new one where that proved stale.
fn with_retry(
    ready: &Ready,
    call: impl Fn(&Agent) -> Result<Response<Body>, Error>,
) -> Result<Response<Body>, WatermarkError> {
    match call(&ready.mtls.pooled) {
        Err(e) if is_stale(&e) => {
            info!("{e}: trying once more");
            METRICS.watermark_retries.add(1);
            Ok(call(&ready.mtls.fresh)?)
        }
        other => Ok(other?),
    }
}

fn is_stale(e: &Error) -> bool {
    matches!(e, Error::Io(e) if e.get_ref().is_some_and(|inner| inner.is::<Stale>()))
}

/// Whether the service says that it is well: 2xx from its /health.
///
/// # Errors
/// It could not be asked.
pub fn check_watermark_health(ready: &Ready) -> Result<bool, WatermarkError> {
    let url = format!("{}/health", ready.service.url);
    let get = |agent: &Agent| agent.get(&url).config().timeout_global(Some(HEALTH_TIME)).build().call();
    let mut response = with_retry(ready, get)?;
    // Read to its end, the connection can serve again.
    response.body_mut().with_config().limit(HEALTH_LIMIT).read_to_vec()?;
    Ok(response.status().is_success())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Budget;

    #[test]
    fn a_request_fits_the_buffer_made_for_it() {
        let mut memory = Budget::new(1 << 20).reserve(0).unwrap();
        for data in
            [&b""[..], b"text", b"\x01\"\\\n\x7f", "\u{e4}\u{2028}".as_bytes(), b"\xff\xfe", b"\xff\xfe\xfd\xfc"]
        {
            let body = wire(WatermarkRequest { file_id: "f\"", user_id: "u\n", data }, &mut memory).unwrap();
            assert!(body.len() <= body.capacity() && body.capacity() < body.len() + 128, "{data:?}");
        }
    }

    #[test]
    fn text_goes_as_text_and_the_rest_as_base64() {
        let mut memory = Budget::new(1 << 20).reserve(0).unwrap();
        let mut json = |data| {
            let body = wire(WatermarkRequest { file_id: "f", user_id: "u", data }, &mut memory).unwrap();
            serde_json::from_slice::<serde_json::Value>(&body).unwrap()
        };
        assert_eq!(json("grün".as_bytes()), serde_json::json!({"file_id": "f", "user_id": "u", "data": "grün"}));
        let binary = serde_json::json!({"file_id": "f", "user_id": "u", "data": "/wA=", "encoding": "base64"});
        assert_eq!(json(b"\xff\0"), binary);
    }
}
