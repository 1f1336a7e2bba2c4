//! Requests and answers: what the ingress hands over is routed, handled, and gets exactly one answer.

mod admin;
mod decrypt;
mod error;
mod health;
pub mod limits;
mod permit;
mod public;
mod request;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use formats::allow_list::AllowList;
use log::{Level, log};

use crate::attest::Attestation;
use crate::memory::Budget;
use crate::metrics::METRICS;
use crate::net::answer::Answer;
use crate::net::egress::Route;
use crate::net::http::HttpError;
use crate::net::ingress::Service;
use crate::net::request::Request;
use crate::secrets::store::Store;
use crate::settings::{Settings, WatermarkApi};
use error::ApiError;
use health::Health;
use limits::Limits;
use permit::Grants;
use request::Target;

/// What every request may use.
pub struct Api {
    pub store: Arc<Store>,
    pub attestation: Arc<Attestation>,
    pub grants: Grants,
    pub allowed: Arc<AllowList>,
    pub route: Route,
    pub memory: Budget,
    pub limits: Limits,
    pub allow_unwatermarked: bool,
    /// The form of a call of the watermark service.
    pub watermark_api: WatermarkApi,
    /// Whether /metrics is on the public listener too.
    pub public_metrics: bool,
    pub started: Instant,
    health: Health,
}

/// Which of the two listeners a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Public,
    Admin,
}

impl Api {
    pub fn new(
        store: Arc<Store>,
        allowed: Arc<AllowList>,
        attestation: Arc<Attestation>,
        settings: &Settings,
        limits: Limits,
    ) -> Api {
        Api {
            store,
            health: Health::new(allowed.iter().count()),
            allowed,
            grants: Grants::new(settings, attestation.identity()),
            attestation,
            route: settings.egress,
            memory: Budget::new(limits.memory, limits.connections),
            limits,
            allow_unwatermarked: settings.allow_unwatermarked,
            watermark_api: settings.watermark_api,
            public_metrics: settings.public_metrics,
            started: Instant::now(),
        }
    }
}

/// A route's name, as the metrics show it, and what came of the request.
type Routed = (&'static str, Result<Answer, ApiError>);

/// One side of the daemon, as the ingress sees it.
pub struct Served {
    pub api: Arc<Api>,
    pub side: Side,
}

impl Service for Served {
    fn answer(&self, request: &mut Request<'_>) -> Answer {
        answer(|| route(&self.api, self.side, request))
    }

    fn refuse(&self, error: HttpError) -> Answer {
        let error = match (error, self.side) {
            (HttpError::TooLarge(_), Side::Public) => ApiError::FileTooLarge(self.api.limits.past_file()),
            (HttpError::TooLarge(_), Side::Admin) => ApiError::FileTooLarge(limits::BUNDLE.past),
            (error, _) => error.into(),
        };
        answer(|| ("refused", Err(error)))
    }

    fn answered(&self, route: &'static str, status: u16, bytes: usize, took: Duration) {
        // Probes come every few seconds and say nothing new; and what anybody may cause is not to fill the log.
        let level = match (route, status) {
            ("decrypt" | "decrypt_raw", 401) => Level::Debug,
            ("decrypt" | "decrypt_raw" | "update_secrets" | "panicked", _) => Level::Info,
            _ => Level::Debug,
        };
        log!(level, "{route} {status} {bytes} bytes in {} ms", took.as_millis());
    }
}

/// The answer to what was routed. A panic in one request must not end the others.
fn answer(route: impl FnOnce() -> Routed) -> Answer {
    let (route, result) = catch_unwind(AssertUnwindSafe(route)).unwrap_or_else(|_| {
        METRICS.panics.add(1);
        ("panicked", Err(ApiError::Internal))
    });
    let answer = Answer { route, ..result.unwrap_or_else(Answer::from) };
    METRICS.answered(route, answer.status);
    answer
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
        assert!(answer.body.windows(10).any(|w| w == b"\"internal\""));
        assert!(METRICS.panics.get() > before);
    }
}
