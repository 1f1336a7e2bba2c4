//! The error table: every answer that is not a success.

use serde_json::json;

use super::Answer;
use crate::files::OpenError;
use crate::memory::{NoMemory, ReadError};
use crate::watermark::WatermarkError;

/// What went wrong with a request, in the caller's terms.
#[derive(Debug)]
pub enum ApiError {
    /// The request cannot be understood: which part, and why.
    Invalid(String),
    NotFound,
    /// The path is right, the method is not; these are.
    MethodNotAllowed(&'static str),
    FileTooLarge,
    UnknownKey,
    /// Wrong key, tag, length or associated data. Which one is not told.
    DecryptFailed,
    WatermarkFailed(String),
    WatermarkMissing,
    WatermarkTimeout,
    /// These items have not been delivered yet.
    NotReady(Vec<&'static str>),
    Overloaded,
    Panicked,
}

impl ApiError {
    /// Status, code and message.
    fn row(&self) -> (u16, &'static str, String) {
        match self {
            ApiError::Invalid(reason) => (400, "invalid_request", reason.clone()),
            ApiError::NotFound => (404, "not_found", "there is nothing at this path".into()),
            ApiError::UnknownKey => (404, "unknown_key", "no key of this id is in force".into()),
            ApiError::MethodNotAllowed(allowed) => (405, "method_not_allowed", format!("allowed here: {allowed}")),
            ApiError::FileTooLarge => (413, "file_too_large", "the body, or the file in it, is too large".into()),
            ApiError::DecryptFailed => (422, "decrypt_failed", "the file could not be decrypted".into()),
            ApiError::Panicked => (500, "internal", "the request failed".into()),
            ApiError::WatermarkFailed(reason) => (502, "watermark_failed", reason.clone()),
            ApiError::WatermarkMissing => {
                (502, "watermark_missing", "the watermark service left out the marked file".into())
            }
            ApiError::NotReady(missing) => {
                (503, "not_ready", format!("waiting for the handshake; missing: {}", missing.join(", ")))
            }
            ApiError::Overloaded => (503, "overloaded", "no memory for this request now".into()),
            ApiError::WatermarkTimeout => {
                (504, "watermark_timeout", "the watermark service did not answer in time".into())
            }
        }
    }
}

impl From<ApiError> for Answer {
    fn from(error: ApiError) -> Answer {
        let (status, code, message) = error.row();
        let mut answer = Answer::json(status, &json!({"error": message, "code": code}));
        match error {
            ApiError::Overloaded => answer.headers.push(("Retry-After", "1".into())),
            ApiError::NotReady(_) => answer.headers.push(("Retry-After", "5".into())),
            ApiError::MethodNotAllowed(allowed) => answer.headers.push(("Allow", allowed.into())),
            _ => {}
        }
        answer
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

impl From<NoMemory> for ApiError {
    fn from(e: NoMemory) -> ApiError {
        match e {
            NoMemory::Now => ApiError::Overloaded,
            NoMemory::Ever => ApiError::FileTooLarge,
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(e: ReadError) -> ApiError {
        match e {
            ReadError::TooLarge => ApiError::FileTooLarge,
            ReadError::NoMemory(e) => e.into(),
            ReadError::Io(_) => ApiError::Invalid("the body did not arrive".into()),
        }
    }
}

impl From<WatermarkError> for ApiError {
    fn from(e: WatermarkError) -> ApiError {
        match e {
            WatermarkError::Timeout => ApiError::WatermarkTimeout,
            WatermarkError::Failed(reason) => ApiError::WatermarkFailed(reason),
            WatermarkError::NoMemory(e) => e.into(),
        }
    }
}
