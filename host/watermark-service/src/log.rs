//! The service's log: lines on standard error.

use std::io::{self, Write};

/// Writes one line to standard error, in one write so that lines of several threads do not mix. A closed standard error
/// does not stop the service.
pub(crate) fn log(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}
