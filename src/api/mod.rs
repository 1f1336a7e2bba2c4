//! Requests and answers: what the ingress hands over is routed and handled, and gets exactly one answer.

mod admin;
mod context;
mod cors;
mod decrypt;
mod drain;
mod error;
mod forms;
mod health;
pub mod limits;
mod permit;
mod public;
mod request;
mod shared;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use log::{Level, log};

use crate::metrics::METRICS;
use crate::net::answer::Answer;
use crate::net::http::HttpError;
use crate::net::ingress::Service;
use crate::net::request::Request;
pub use context::Api;
use error::{ApiError, Routed};
use request::Target;

/// The listener that a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The public listener, for users.
    Public,
    /// The admin listener, for operators.
    Admin,
}

/// One listener's routes, as the ingress sees them.
pub struct Served {
    /// What all requests share.
    pub api: Arc<Api>,
    /// The listener.
    pub side: Side,
}

impl Service for Served {
    fn answer(&self, request: &mut Request<'_>) -> Answer {
        self.began();
        let answer = answer(|| route(&self.api, self.side, request));
        self.admit(request.head.lines(), answer)
    }

    fn refuse(&self, error: HttpError, head: &[u8]) -> Answer {
        self.began();
        let error = match (error, self.side) {
            (HttpError::TooLarge(_), Side::Public) => ApiError::FileTooLarge(self.api.limits.past_file()),
            (HttpError::TooLarge(_), Side::Admin) => ApiError::FileTooLarge(limits::BUNDLE.past),
            (error, _) => error.into(),
        };
        self.admit(head, answer(|| ("refused", Err(error))))
    }

    fn answered(&self, route: &'static str, status: u16, bytes: usize, took: Duration) {
        // Probes come every few seconds and say nothing new, and anonymous clients must not be able to fill the log.
        let level = match (route, status) {
            ("decrypt" | "decrypt_raw", 401) => Level::Debug,
            ("sealed_bundle", 400..) => Level::Debug,
            ("decrypt" | "decrypt_raw" | "update_secrets" | "sealed_bundle" | "panicked", _) => Level::Info,
            _ => Level::Debug,
        };
        METRICS.took(route, took);
        log!(level, "{route} {status} {bytes} bytes in {} ms", took.as_millis());
        if self.side == Side::Public {
            self.api.drain.ended();
        }
    }

    fn keeps_connections(&self) -> bool {
        self.side == Side::Admin || !self.api.drain.is_on()
    }
}

impl Served {
    fn began(&self) {
        if self.side == Side::Public {
            self.api.drain.began();
        }
    }

    /// Lets pages of other origins read an answer of the public listener, where that is set.
    fn admit(&self, head: &[u8], mut answer: Answer) -> Answer {
        if self.side == Side::Public {
            self.api.cors.admit(head, &mut answer);
        }
        answer
    }
}

/// Runs a route. A panic in one request must not end the others.
fn answer(route: impl FnOnce() -> Routed) -> Answer {
    let (route, result) = catch_unwind(AssertUnwindSafe(route)).unwrap_or_else(|_| {
        METRICS.panics.add(1);
        ("panicked", Err(ApiError::Internal))
    });
    let (answer, code) = match result {
        Ok(answer) => (answer, None),
        Err(e) => e.answer(),
    };
    METRICS.answered(route, answer.status, code);
    Answer { route, ..answer }
}

fn route(api: &Api, side: Side, request: &mut Request<'_>) -> Routed {
    let target = std::mem::take(&mut request.head.target);
    match Target::parse(&target) {
        Ok(target) if side == Side::Public => public::route(api, &target, request),
        Ok(target) => admin::route(api, &target, request),
        Err(e) => ("unknown", Err(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_one_request_answers_500() {
        let before = METRICS.panics.get();
        let answer = answer(|| panic!("as asked"));
        assert_eq!((answer.route, answer.status), ("panicked", 500));
        assert!(
            matches!(answer.body, crate::net::answer::Content::Bytes(body) if body.windows(10).any(|w| w == b"\"internal\""))
        );
        assert!(METRICS.panics.get() > before);
    }
}
