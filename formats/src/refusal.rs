//! Why a bundle is refused.

use std::fmt;

use serde_json::{Value, json};

/// What is wrong with a bundle: the field and the reason. Never contains a value.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The path of the field, such as `FILE_KEYS.k`, or [`WHOLE`].
    pub field: String,
    /// What is wrong with it, to follow the field's name.
    pub reason: String,
}

/// The field of a refusal that concerns the whole bundle.
pub const WHOLE: &str = "bundle";

/// Refuses a field.
///
/// # Errors
/// Always.
pub fn refuse<T>(field: impl Into<String>, reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { field: field.into(), reason: reason.into() })
}

impl Refusal {
    /// The handshake's answer.
    pub fn to_json(&self) -> Value {
        json!({"ok": false, "field": self.field, "error": self.reason})
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

impl std::error::Error for Refusal {}
