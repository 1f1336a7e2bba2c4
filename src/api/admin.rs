//! Routes of the admin listener, for operators.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use formats::time::Utc;
use log::{info, warn};
use serde_json::json;

use super::context::Api;
use super::drain::Drained;
use super::error::{ApiError, Routed};
use super::limits::BUNDLE;
use super::request::{Target, allow, body};
use super::shared::{metrics, readiness, refused};
use crate::logging::{self, Log};
use crate::memory::{FIXED_COST, while_growing};
use crate::metrics::METRICS;
use crate::net::answer::{Answer, Content};
use crate::net::request::Request;

pub(crate) fn route(api: &Api, target: &Target<'_>, request: &mut Request<'_>) -> Routed {
    let changes = !matches!(request.head.method.as_str(), "GET" | "HEAD");
    if (changes || target.path()[0] == "admin") && may_be_from_page(request) {
        return ("refused", Err(ApiError::FromPage));
    }
    match *target.path() {
        ["ping"] => ("ping", allow(request, "GET").map(|()| Answer::text("pong"))),
        ["admin", "status"] => ("status", allow(request, "GET").map(|()| status(api))),
        ["admin", "log"] => ("log", allow(request, "GET").and_then(|()| log_lines(api, target))),
        ["metrics"] => ("metrics", allow(request, "GET").map(|()| metrics(api))),
        ["admin", "update-secrets"] => {
            ("update_secrets", allow(request, "POST").and_then(|()| update_secrets(api, request)))
        }
        ["admin", "drain"] => {
            let answer = match request.head.method.as_str() {
                "POST" => drain(api, target),
                "DELETE" => Ok(take_back(api)),
                _ => Err(ApiError::MethodNotAllowed("POST, DELETE")),
            };
            ("drain", answer)
        }
        _ => ("unknown", Err(ApiError::NotFound)),
    }
}

/// How many records of the log are given where none are asked for, and at most.
const LINES: &str = "200";
const MOST_LINES: RangeInclusive<u64> = 1..=10_000;

/// The last records of the log.
fn log_lines(api: &Api, target: &Target<'_>) -> Result<Answer, ApiError> {
    let lines = target.query("lines")?.unwrap_or(LINES).parse().ok().filter(|lines| MOST_LINES.contains(lines));
    let wrong =
        || ApiError::Invalid(format!("lines is not a number from {} to {}", MOST_LINES.start(), MOST_LINES.end()));
    let lines = lines.ok_or_else(wrong)?;
    let mut memory = api.memory.open();
    memory.cover(FIXED_COST.saturating_add(while_growing(0, logging::MOST_KEPT)))?;
    let body = logging::log().map_or_else(Vec::new, |log| log.tail(lines));
    Ok(Answer { body: Content::Bytes(body), held: Some(memory), ..Answer::text("") })
}

/// How long a drain may take, in seconds.
const DRAIN: RangeInclusive<u64> = 1..=600;

/// Takes the enclave out of service; the answer comes once it is.
fn drain(api: &Api, target: &Target<'_>) -> Result<Answer, ApiError> {
    let seconds = target.query("seconds")?.unwrap_or("30").parse().ok().filter(|seconds| DRAIN.contains(seconds));
    let wrong = || ApiError::Invalid(format!("seconds is not a number from {} to {}", DRAIN.start(), DRAIN.end()));
    let seconds = seconds.ok_or_else(wrong)?;
    info!("draining: /ready is 503, and requests are served for {seconds} s at most");
    let Drained { drained, in_flight } = api.drain.start(Duration::from_secs(seconds));
    match drained {
        true => info!("drained: no request is in flight, and new ones are refused"),
        false => warn!("not drained within {seconds} s, or taken back: {in_flight} requests are in flight"),
    }
    Ok(Answer::json(200, &json!({"drained": drained, "in_flight": in_flight})))
}

fn take_back(api: &Api) -> Answer {
    api.drain.take_back();
    info!("in service: the drain, if any, is taken back");
    Answer::json(200, &json!({"draining": false}))
}

/// Whether a web page may have made the request, in the browser of somebody who reaches this listener. A browser names the
/// page's origin, except where it takes the daemon for the page's own server, since the page's host name leads here (DNS
/// rebinding); then it gives that name as Host.
fn may_be_from_page(request: &Request<'_>) -> bool {
    let foreign = |host: &[u8]| !str::from_utf8(host).is_ok_and(is_local);
    request.head.values("Origin").next().is_some() || request.head.values("Host").any(foreign)
}

/// Whether a Host is an IP address or localhost, which no page can have lead elsewhere.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok(),
    }
}

fn status(api: &Api) -> Answer {
    let secrets = api.store.now();
    let fault = secrets.certificate_fault(Utc::now());
    let (ready, why) = readiness(api);
    let ends = METRICS.certificate_ends.get();
    let log = logging::log().map(Log::progress).unwrap_or_default();
    Answer::json(
        200,
        &json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": api.started.elapsed().as_secs(),
            "ready": ready,
            "draining": api.drain.is_on(),
            "missing": why["missing"],
            "complete_at": why["complete_at"],
            "clock_fault": why["clock"],
            "audit": logging::log().map(|log| log.audit().name()),
            "audit_fault": why["audit"],
            "client_certificate": (ends > 0).then(|| fault.unwrap_or_else(|| "valid".into())),
            "client_certificate_expires": (ends > 0).then(|| Utc(ends).to_string()),
            "endpoints": api.allowed.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "handshakes": {"accepted": METRICS.handshakes_accepted.get(), "refused": METRICS.handshakes_refused.get()},
            "limits": api.limits.to_json(),
            "memory_left_bytes": api.memory.left(),
            "log": {
                "to": log.to.map_or_else(|| "off".into(), ToString::to_string),
                "connected": log.connected,
                "last": log.last,
                "acknowledged": log.acknowledged,
            },
            "connections_open": METRICS.connections_open.get(),
        }),
    )
}

/// The handshake over HTTP: the same bundle, the same checks, the same answer.
fn update_secrets(api: &Api, request: &mut Request<'_>) -> Result<Answer, ApiError> {
    let mut memory = api.memory.open();
    let bundle = body(request, BUNDLE, &mut memory, |n| n.saturating_mul(4))?;
    match api.handshakes.accept(bundle) {
        Ok(accepted) => Ok(Answer::json(200, &accepted.to_json())),
        Err(refusal) => Ok(refused(&refusal)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_or_localhost_is_local_and_no_name_is() {
        for local in
            ["127.0.0.1", "127.0.0.1:3001", "10.1.2.3:80", "[::1]", "[::1]:3001", "localhost", "LocalHost:3001"]
        {
            assert!(is_local(local), "{local}");
        }
        for foreign in [
            "",
            "x",
            "a.example:3001",
            "localhost.a.example",
            "127.0.0.1.a.example",
            "1:2:3",
            "::1",
            "[a.example]",
            "[::1",
            ":1",
        ] {
            assert!(!is_local(foreign), "{foreign}");
        }
    }
}
