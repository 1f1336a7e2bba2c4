//! Routes of the admin listener, for operators.

use formats::time::Utc;
use serde_json::json;

use super::context::Api;
use super::error::{ApiError, Routed};
use super::limits::BUNDLE;
use super::request::{Target, allow, body};
use crate::metrics::METRICS;
use crate::net::answer::Answer;
use crate::net::request::Request;

pub(crate) fn route(api: &Api, target: &Target<'_>, request: &mut Request<'_>) -> Routed {
    match *target.path() {
        ["ping"] => ("ping", allow(request, "GET").map(|()| Answer::text("pong"))),
        ["admin", "status"] => ("status", allow(request, "GET").map(|()| status(api))),
        ["metrics"] => ("metrics", allow(request, "GET").map(|()| metrics(api))),
        ["admin", "update-secrets"] => {
            ("update_secrets", allow(request, "POST").and_then(|()| update_secrets(api, request)))
        }
        _ => ("unknown", Err(ApiError::NotFound)),
    }
}

/// The metrics in Prometheus' text format.
pub(crate) fn metrics(api: &Api) -> Answer {
    Answer::text(&METRICS.print(api.memory.left()))
}

fn status(api: &Api) -> Answer {
    let secrets = api.store.now();
    let (missing, fault) = (secrets.missing(), secrets.certificate_fault(Utc::now()));
    let ends = METRICS.certificate_ends.get();
    Answer::json(
        200,
        &json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": api.started.elapsed().as_secs(),
            "ready": missing.is_empty() && fault.is_none(),
            "missing": missing,
            "client_certificate": (ends > 0).then(|| fault.unwrap_or_else(|| "valid".into())),
            "client_certificate_expires": (ends > 0).then(|| Utc(ends).to_string()),
            "endpoints": api.allowed.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "handshakes": {"accepted": METRICS.handshakes_accepted.get(), "refused": METRICS.handshakes_refused.get()},
            "limits": api.limits.to_json(),
            "memory_left_bytes": api.memory.left(),
            "connections_open": METRICS.connections_open.get(),
        }),
    )
}

/// The handshake over HTTP: the same bundle, the same checks, the same answer.
fn update_secrets(api: &Api, request: &mut Request<'_>) -> Result<Answer, ApiError> {
    let mut memory = api.memory.open();
    let bundle = body(request, BUNDLE, &mut memory, |n| n.saturating_mul(4))?;
    match api.store.accept(&bundle) {
        Ok(accepted) => Ok(Answer::json(200, &accepted.to_json())),
        Err(refusal) => {
            let mut answer = refusal.to_json();
            answer["code"] = json!("invalid_request");
            Ok(Answer::json(400, &answer))
        }
    }
}
