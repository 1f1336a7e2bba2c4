//! The client of the watermark service. docs/FORMATS.md, "The watermark service", describes the protocol.

mod answer;
mod fingerprint;
mod kind;
mod request;

use std::fmt;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use formats::files::ChosenKey;
use formats::json;
use formats::service::{ANSWER_SLACK, ANSWER_TIMES};
use log::{info, warn};
use ureq::http::Response;
use ureq::http::header::CONTENT_LENGTH;
use ureq::{Agent, Body, Error, SendBody};

use crate::memory::{FIXED_COST, JSON_SLACK, NoMemory, ReadError, Reservation, crowded, read_all};
use crate::metrics::METRICS;
use crate::mtls::tls_error;
use crate::net::tls::{EarlyAnswer, HeadTooLarge, NotHttp, Stale};
use crate::net::wait::ClientGone;
use crate::secrets::store::{Ready, Store};
use crate::settings::WatermarkApi;
pub use answer::KEPT;
use answer::Original;
use request::WireRequest;

/// Most bytes that are read of a health check's answer, or of an answer that is not a success.
const SHORT_ANSWER: u64 = 64 << 10;
/// Seconds that a user is asked to wait if the service is busy: if it does not say how long, and at most.
const BUSY_FOR: u64 = 5;
const BUSY_FOR_AT_MOST: u64 = 60;

/// A file to be marked for a user.
pub struct WatermarkRequest<'a> {
    /// The file's id, which the mark carries.
    pub file_id: &'a str,
    /// The user's id, which the mark carries.
    pub user_id: &'a str,
    /// The file.
    pub data: Vec<u8>,
}

/// The service's success answer.
pub struct WatermarkResponse {
    /// The marked file, or why the answer has none.
    pub watermarked_data: Result<Vec<u8>, Unmarked>,
    /// The file as it was, if the caller keeps it.
    pub file: Option<Vec<u8>>,
}

/// A success answer without a marked file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmarked {
    /// watermarked_data is missing.
    LeftOut,
    /// watermarked_data is the file that was sent, byte for byte.
    Unchanged,
}

impl fmt::Display for Unmarked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unmarked::LeftOut => "the watermark service left out the marked file",
            Unmarked::Unchanged => "the watermark service gave back the file as it was, without a mark",
        })
    }
}

/// How the service is called: under which secrets, and in which form.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The secrets in force when the call begins.
    pub ready: &'a Ready,
    /// The key that the file was opened with.
    pub key: &'a ChosenKey,
    /// Holds the secrets in force later, if the call is repeated.
    pub store: &'a Store,
    /// The form of the call.
    pub form: WatermarkApi,
    /// Whether the file is to be there still when the answer has come, and not only its fingerprint.
    pub keep_file: bool,
}

/// Why there is no marked file.
#[derive(Debug)]
pub enum WatermarkError {
    /// The service did not answer in time.
    Timeout,
    /// The service could not be reached or trusted, refused, or gave no usable answer. The text says which; it leaves
    /// out what the service said, which may quote the file.
    Failed(String),
    /// What came back cannot be the marked file: why.
    Missing(String),
    /// The service does not mark files like this one. It answered with this status.
    Unsupported(u16),
    /// The file is too large for the service.
    TooLarge,
    /// The service is busy; try again after this many seconds, 1 to 60.
    Busy(u64),
    /// The request or its answer does not fit into the memory that is left.
    NoMemory(NoMemory),
    /// The client that asked for the file is gone, so the call was ended.
    ClientGone,
}

impl fmt::Display for WatermarkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WatermarkError::Timeout => f.write_str("the watermark service did not answer in time"),
            WatermarkError::Failed(reason) | WatermarkError::Missing(reason) => f.write_str(reason),
            WatermarkError::Unsupported(status) => {
                write!(f, "the watermark service cannot mark this file (it answered HTTP {status})")
            }
            WatermarkError::TooLarge => {
                f.write_str("the file is too large for the watermark service (it answered HTTP 413)")
            }
            WatermarkError::Busy(_) => f.write_str("the watermark service is busy"),
            WatermarkError::NoMemory(_) => f.write_str("no memory for the call"),
            WatermarkError::ClientGone => ClientGone.fmt(f),
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
            Error::Io(e) => of_connection(&e),
            Error::LargeResponseHeader(..) | Error::Protocol(ureq_proto::Error::HttpParseTooManyHeaders) => {
                failed(format!("the watermark service's answer cannot be used: {HeadTooLarge}"))
            }
            // ureq's other messages may quote what the service sent.
            Error::Protocol(_) | Error::Http(_) => failed("the watermark service does not speak HTTP/1.1"),
            _ => failed("the watermark service's answer cannot be used"),
        }
    }
}

/// What a failure of the connection means, or an answer that came too early.
fn of_connection(e: &std::io::Error) -> WatermarkError {
    let inner = e.get_ref();
    if let Some(early) = inner.and_then(|inner| inner.downcast_ref::<EarlyAnswer>()) {
        return match early.status {
            400.. => refused(early.status, early.retry_after),
            status => failed(format!(
                "the watermark service answered HTTP {status} before it had the whole file: it cannot have marked it"
            )),
        };
    }
    match inner {
        Some(inner) if inner.is::<ClientGone>() => WatermarkError::ClientGone,
        Some(inner) if inner.is::<HeadTooLarge>() || inner.is::<NotHttp>() => {
            failed(format!("the watermark service's answer cannot be used: {inner}"))
        }
        Some(inner) => match inner.downcast_ref::<rustls::Error>() {
            Some(tls) => failed(format!("TLS with the watermark service failed: {}", tls_error::words(tls))),
            None => failed(format!("the connection to the watermark service failed: {inner}")),
        },
        None if e.kind() == ErrorKind::UnexpectedEof => {
            failed("the watermark service closed the connection before it had answered")
        }
        None => failed(format!("the connection to the watermark service failed: {e}")),
    }
}

/// What a status that is not a success means. A user's mistake must not alarm the operator.
fn refused(status: u16, retry_after: Option<u64>) -> WatermarkError {
    match status {
        413 => WatermarkError::TooLarge,
        415 | 422 => WatermarkError::Unsupported(status),
        429 | 503 => WatermarkError::Busy(retry_after.unwrap_or(BUSY_FOR).clamp(1, BUSY_FOR_AT_MOST)),
        _ => failed(format!("the watermark service answered HTTP {status}")),
    }
}

fn failed(reason: impl Into<String>) -> WatermarkError {
    WatermarkError::Failed(reason.into())
}

/// Has a file marked. `memory` grows to cover what the call needs besides the file itself.
///
/// # Errors
/// See [`WatermarkError`].
pub fn call_watermark_service(
    caller: Caller<'_>,
    request: WatermarkRequest<'_>,
    memory: &mut Reservation,
) -> Result<WatermarkResponse, WatermarkError> {
    let start = Instant::now();
    let result = exchange(caller, request, start, memory);
    METRICS.watermark_time.observe(start.elapsed());
    let endpoint = &caller.ready.service.endpoint;
    match &result {
        Err(e @ WatermarkError::Unsupported(_)) => {
            warn!("watermark service {endpoint}: {e}; if it does so with every file, see TEEMARK_WATERMARK_API");
        }
        Err(e) => warn!("watermark service {endpoint}: {e}"),
        Ok(_) => {}
    }
    result
}

fn exchange(
    caller: Caller<'_>,
    request: WatermarkRequest<'_>,
    start: Instant,
    memory: &mut Reservation,
) -> Result<WatermarkResponse, WatermarkError> {
    let wire = WireRequest::new(caller.form, &request);
    let (length, sent) = (wire.len(), wire.sent);
    let limit = |ready: &Ready| time_limit(ready.mtls.timeout, request.data.len());
    let post = |ready: &Ready, agent: &Agent| {
        let left = limit(ready).saturating_sub(start.elapsed());
        let post = agent.post(format!("{}/api/watermark", ready.service.url));
        let post = post.config().timeout_global(Some(left)).build();
        let post = post.content_type("application/json").header(CONTENT_LENGTH, length);
        post.send(SendBody::from_reader(&mut wire.reader()))
    };
    // The file was opened, and its grant checked, under keys that may be removed meanwhile: then the client has to ask again.
    let still_may = |now: &Ready| now.keys.still_have(caller.key) && Arc::ptr_eq(&now.grants, &caller.ready.grants);
    let mut response = with_repeat(caller.ready, caller.store, still_may, post)?;
    let most = length.saturating_mul(ANSWER_TIMES).saturating_add(ANSWER_SLACK);
    // The service has all of the file now, and its answer takes the file's place.
    let original = Original::of(request.data, sent, caller.keep_file)?;
    if !response.status().is_success() {
        // Read to its end, if that is near, so that the connection can be reused.
        let _ = response.body_mut().with_config().limit(SHORT_ANSWER).read_to_vec();
        let retry_after =
            response.headers().get("Retry-After").and_then(|value| value.to_str().ok()?.trim().parse().ok());
        return Err(refused(response.status().as_u16(), retry_after));
    }
    let held = original.held() + FIXED_COST;
    let answer = read_answer(&mut response, most, memory, |n| held.saturating_add(n))?;
    if json::beside_largest_value(&answer) > JSON_SLACK {
        memory.cover(held.saturating_add(crowded(answer.len())))?;
    }
    let watermarked_data = answer::marked(caller.form, &original, answer)?;
    Ok(WatermarkResponse { watermarked_data, file: original.into_file() })
}

/// Longest call for a file of this many bytes: TEEMARK_TIMEOUT, and a second for each MiB.
fn time_limit(timeout: Duration, bytes: usize) -> Duration {
    timeout + Duration::from_secs((bytes >> 20) as u64)
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

/// Makes a call on a pooled connection, and repeats it on a new one if that proved stale, under the secrets that are in
/// force by then, if it `still_may` be made.
fn with_repeat(
    ready: &Ready,
    store: &Store,
    still_may: impl Fn(&Ready) -> bool,
    call: impl Fn(&Ready, &Agent) -> Result<Response<Body>, Error>,
) -> Result<Response<Body>, WatermarkError> {
    match call(ready, &ready.mtls.pooled(Instant::now())) {
        Err(e) if is_stale(&e) => {
            info!("{e}: the call is repeated on a new one");
            METRICS.watermark_retries.add(1);
            let now = store.now().ready().map_err(|_| WatermarkError::Busy(1))?;
            if !still_may(&now) {
                return Err(WatermarkError::Busy(1));
            }
            Ok(call(&now, &now.mtls.fresh)?)
        }
        other => Ok(other?),
    }
}

fn is_stale(e: &Error) -> bool {
    matches!(e, Error::Io(e) if e.get_ref().is_some_and(|inner| inner.is::<Stale>()))
}

/// Whether the service reports within `limit` that it is healthy: 2xx from its /health.
///
/// # Errors
/// It could not be asked.
pub fn check_watermark_health(ready: &Ready, store: &Store, limit: Duration) -> Result<bool, WatermarkError> {
    let start = Instant::now();
    let get = |ready: &Ready, agent: &Agent| {
        let left = limit.saturating_sub(start.elapsed());
        agent.get(format!("{}/health", ready.service.url)).config().timeout_global(Some(left)).build().call()
    };
    let mut response = with_repeat(ready, store, |_| true, get)?;
    // Read to its end, so that the connection can be reused.
    response.body_mut().with_config().limit(SHORT_ANSWER).read_to_vec()?;
    Ok(response.status().is_success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_mistake_is_told_from_a_fault_of_the_service() {
        assert!(matches!(refused(413, None), WatermarkError::TooLarge));
        assert!(matches!(refused(415, None), WatermarkError::Unsupported(415)));
        assert!(matches!(refused(422, Some(9)), WatermarkError::Unsupported(422)));
        for status in [400, 401, 403, 404, 408, 500, 502, 504] {
            assert!(
                matches!(refused(status, Some(9)), WatermarkError::Failed(text) if text.contains(&status.to_string()))
            );
        }
    }

    #[test]
    fn a_busy_service_is_asked_again_after_1_to_60_seconds() {
        for (asked, told) in [(None, 5), (Some(0), 1), (Some(1), 1), (Some(60), 60), (Some(u64::MAX), 60)] {
            for status in [429, 503] {
                assert!(
                    matches!(refused(status, asked), WatermarkError::Busy(seconds) if seconds == told),
                    "{asked:?}"
                );
            }
        }
    }

    #[test]
    fn a_call_may_take_a_second_longer_for_each_mib_of_the_file() {
        let seconds = |timeout, bytes| time_limit(Duration::from_secs(timeout), bytes).as_secs();
        for (bytes, limit) in [(0, 30), ((1 << 20) - 1, 30), (1 << 20, 31), (64 << 20, 94), (200 << 20, 230)] {
            assert_eq!(seconds(30, bytes), limit, "{bytes} bytes");
        }
        assert_eq!(seconds(3600, 1 << 30), 3600 + 1024);
    }

    #[test]
    fn an_early_answer_can_only_refuse() {
        let early = |status| of_connection(&std::io::Error::other(EarlyAnswer { status, retry_after: None }));
        assert!(matches!(early(413), WatermarkError::TooLarge));
        assert!(matches!(early(503), WatermarkError::Busy(5)));
        for status in [200, 204, 302] {
            assert!(
                matches!(early(status), WatermarkError::Failed(text) if text.contains("before it had the whole file"))
            );
        }
    }
}
