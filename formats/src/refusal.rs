//! Why a bundle is not taken.

use std::fmt;

use serde_json::{Value, json};

/// What is wrong with a bundle: the field, and why. Never a value.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub field: String,
    pub reason: String,
}

/// The field of a refusal that concerns the bundle as a whole.
pub const WHOLE: &str = "bundle";

/// A refusal as an error.
///
/// # Errors
/// Always.
pub fn refuse<T>(field: impl Into<String>, reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { field: field.into(), reason: reason.into() })
}

impl Refusal {
    /// The answer of the handshake.
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
