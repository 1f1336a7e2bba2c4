//! The error table: every answer that is not a success.

use formats::files::OpenError;
use formats::grants::GrantError;
use log::error;
use serde_json::json;

use super::limits::TooLarge;
use crate::attest::DocumentError;
use crate::memory::NoMemory;
use crate::net::answer::Answer;
use crate::net::http::{HttpError, MAX_FIELDS, MAX_HEAD};
use crate::net::request::BodyError;
use crate::watermark::WatermarkError;

/// A route's name, as in the metrics, and the outcome of the request.
pub(crate) type Routed = (&'static str, Result<Answer, ApiError>);

/// What went wrong with a request, in the caller's terms.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// The request cannot be understood: which part, and why.
    Invalid(String),
    /// The request breaks HTTP's rules or limits.
    Http(HttpError),
    /// The client closed the connection before it had its answer. Nobody reads this one.
    ClientGone,
    NotFound,
    /// The request is not entitled to its file.
    Grant(GrantError),
    /// A web page may have made the request, on the admin listener.
    FromPage,
    /// The path exists, but only for these methods.
    MethodNotAllowed(&'static str),
    FileTooLarge(TooLarge),
    UnknownKey,
    /// Wrong key, tag, length or associated data. The answer does not tell which.
    DecryptFailed,
    WatermarkFailed(String),
    /// What the service returned is not the marked file: why.
    WatermarkMissing(String),
    /// The watermark service does not mark files like this one: why.
    WatermarkUnsupported(String),
    /// The watermark service is busy; try again after this many seconds.
    WatermarkBusy(u64),
    WatermarkTimeout,
    /// These items have not been delivered yet.
    NotReady(Vec<&'static str>),
    Overloaded,
    /// This enclave has been taken out of service.
    Drained,
    /// No collector has acknowledged the record of what was about to be given, or none acknowledges records now.
    AuditUnavailable,
    /// There is no Nitro Secure Module that could sign an attestation document.
    CannotAttest,
    /// More attestation documents were requested than the module can make; try again after this many seconds.
    TooManyDocuments(u64),
    /// Too many senders of bundles, or this bundle is already coming.
    TooManyBundles,
    /// The request's own thread panicked, or the system or the Nitro Secure Module failed; the log says which.
    Internal,
}

impl ApiError {
    /// Status and code.
    pub(crate) fn code(&self) -> (u16, &'static str) {
        let (status, code, _) = self.row();
        (status, code)
    }

    /// Status, code and message.
    fn row(&self) -> (u16, &'static str, String) {
        match self {
            ApiError::Invalid(reason) => (400, "invalid_request", reason.clone()),
            ApiError::Http(e) => http_row(*e),
            // nginx's status code for this.
            ApiError::ClientGone => (499, "client_gone", "the client closed the connection".into()),
            ApiError::Grant(e) => {
                let (status, code) = grant_row(e);
                (status, code, e.to_string())
            }
            ApiError::FromPage => {
                let message = "not for web pages: ask without Origin, by an IP address or localhost";
                (403, "from_page", message.into())
            }
            ApiError::NotFound => (404, "not_found", "no such route".into()),
            ApiError::UnknownKey => (404, "unknown_key", "no key with this id is in force".into()),
            ApiError::MethodNotAllowed(allowed) => (405, "method_not_allowed", format!("allowed here: {allowed}")),
            ApiError::FileTooLarge(limit) => (413, "file_too_large", limit.message()),
            ApiError::WatermarkUnsupported(reason) => (422, "watermark_unsupported", reason.clone()),
            ApiError::WatermarkBusy(seconds) => (503, "watermark_busy", WatermarkError::Busy(*seconds).to_string()),
            ApiError::DecryptFailed => (422, "decrypt_failed", "the file could not be decrypted".into()),
            ApiError::TooManyDocuments(_) => {
                let limit = "the limit is ten attestation documents a second, and one in ten seconds for each grant";
                (429, "too_many_requests", limit.into())
            }
            ApiError::TooManyBundles => {
                let message =
                    "as many bundles as can be are being received, or this one is already: try again in a second";
                (429, "too_many_requests", message.into())
            }
            ApiError::Internal => (500, "internal", "the request failed".into()),
            ApiError::WatermarkFailed(reason) => (502, "watermark_failed", reason.clone()),
            ApiError::WatermarkMissing(reason) => (502, "watermark_missing", reason.clone()),
            ApiError::CannotAttest => {
                (503, "attestation_unavailable", "this machine has no Nitro Secure Module (/dev/nsm)".into())
            }
            ApiError::NotReady(missing) => {
                (503, "not_ready", format!("waiting for the handshake; missing: {}", missing.join(", ")))
            }
            ApiError::AuditUnavailable => {
                (503, "audit_unavailable", "no audit record can be kept now, so nothing is given".into())
            }
            ApiError::Overloaded => (503, "overloaded", "no memory for this request now".into()),
            ApiError::Drained => (503, "drained", "this enclave is out of service; ask another".into()),
            ApiError::WatermarkTimeout => {
                (504, "watermark_timeout", "the watermark service did not answer in time".into())
            }
        }
    }
}

/// Errors from before anything looks at what the request asks for.
fn http_row(e: HttpError) -> (u16, &'static str, String) {
    let invalid = |status, message: &str| (status, "invalid_request", message.to_owned());
    match e {
        HttpError::Malformed(reason) => invalid(400, reason),
        HttpError::HeadTooLarge => {
            invalid(431, &format!("the request's head is over {} KiB or {MAX_FIELDS} header fields", MAX_HEAD >> 10))
        }
        HttpError::LengthRequired => (411, "length_required", "send Content-Length or a chunked body".into()),
        HttpError::TooLarge(n) => (413, "file_too_large", format!("the body is over {n} bytes")),
        HttpError::UnknownExpectation => invalid(417, "the only supported value of Expect is 100-continue"),
        HttpError::TooSlow => invalid(408, "the request arrived too slowly"),
        HttpError::Overloaded => (503, "overloaded", "too many requests are in flight; try again in a second".into()),
    }
}

/// 401 if another token is needed, 403 if this one is valid for something else (RFC 6750, 3.1).
fn grant_row(e: &GrantError) -> (u16, &'static str) {
    match e {
        GrantError::Missing => (401, "grant_missing"),
        GrantError::Invalid(_) => (401, "grant_invalid"),
        GrantError::Expired => (401, "grant_expired"),
        GrantError::NotYetValid => (401, "grant_not_yet_valid"),
        GrantError::OtherFile => (403, "grant_for_another_file"),
        GrantError::OtherUser => (403, "grant_for_another_user"),
        GrantError::OtherContent => (403, "grant_for_another_content"),
        GrantError::OtherKey => (403, "grant_for_another_key"),
        GrantError::Used => (403, "grant_used"),
        GrantError::Full => (503, "overloaded"),
    }
}

impl ApiError {
    /// The answer that says so, and the code in it.
    pub(crate) fn answer(self) -> (Answer, Option<&'static str>) {
        let (status, code, message) = self.row();
        let mut answer = Answer::json(status, &json!({"error": message, "code": code}));
        match self {
            ApiError::Overloaded
            | ApiError::TooManyBundles
            | ApiError::Drained
            | ApiError::Http(HttpError::Overloaded)
            | ApiError::Grant(GrantError::Full) => answer.headers.push(("Retry-After", "1".into())),
            ApiError::TooManyDocuments(seconds) | ApiError::WatermarkBusy(seconds) => {
                answer.headers.push(("Retry-After", seconds.to_string()))
            }
            ApiError::Grant(GrantError::Missing) => answer.headers.push(("WWW-Authenticate", "Bearer".into())),
            ApiError::Grant(_) if status == 401 => {
                answer.headers.push(("WWW-Authenticate", "Bearer error=\"invalid_token\"".into()));
            }
            ApiError::NotReady(_) | ApiError::AuditUnavailable => answer.headers.push(("Retry-After", "5".into())),
            ApiError::MethodNotAllowed(allowed) => answer.headers.push(("Allow", allowed.into())),
            _ => {}
        }
        (answer, Some(code))
    }
}

impl From<DocumentError> for ApiError {
    fn from(e: DocumentError) -> ApiError {
        match e {
            DocumentError::TooMany(wait) => ApiError::TooManyDocuments(wait.as_secs() + 1),
            DocumentError::NoModule => ApiError::CannotAttest,
            DocumentError::Nsm(e) => {
                error!("no attestation document: {e}");
                ApiError::Internal
            }
        }
    }
}

impl From<OpenError> for ApiError {
    fn from(e: OpenError) -> ApiError {
        match e {
            OpenError::UnknownKey => ApiError::UnknownKey,
            OpenError::KeyIdNeeded => ApiError::Invalid("key_id is needed: there are several keys".into()),
            OpenError::Failed => ApiError::DecryptFailed,
        }
    }
}

impl From<HttpError> for ApiError {
    fn from(e: HttpError) -> ApiError {
        ApiError::Http(e)
    }
}

impl From<BodyError> for ApiError {
    fn from(e: BodyError) -> ApiError {
        match e {
            BodyError::Http(e) => e.into(),
            BodyError::Gone => ApiError::ClientGone,
        }
    }
}

impl From<NoMemory> for ApiError {
    fn from(e: NoMemory) -> ApiError {
        match e {
            NoMemory::Now => ApiError::Overloaded,
            NoMemory::Ever(total) => ApiError::FileTooLarge(TooLarge::Memory(total)),
        }
    }
}

impl From<WatermarkError> for ApiError {
    fn from(e: WatermarkError) -> ApiError {
        match e {
            WatermarkError::Timeout => ApiError::WatermarkTimeout,
            WatermarkError::Failed(reason) => ApiError::WatermarkFailed(reason),
            WatermarkError::Missing(reason) => ApiError::WatermarkMissing(reason),
            WatermarkError::Unsupported(_) => ApiError::WatermarkUnsupported(e.to_string()),
            WatermarkError::TooLarge => ApiError::FileTooLarge(TooLarge::Service),
            WatermarkError::Busy(seconds) => ApiError::WatermarkBusy(seconds),
            WatermarkError::NoMemory(e) => e.into(),
            WatermarkError::ClientGone => ApiError::ClientGone,
        }
    }
}
