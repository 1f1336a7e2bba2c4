//! What both listeners say alike: whether files can be had, the metrics, and that a bundle is refused.

use formats::refusal::Refusal;
use formats::time::Utc;
use serde_json::{Value, json};

use super::context::Api;
use crate::logging::{self, Log};
use crate::metrics::{Live, METRICS};
use crate::net::answer::Answer;

/// Whether files can be had, and if not, why.
pub(crate) fn readiness(api: &Api) -> (bool, Value) {
    let secrets = api.store.now();
    let (missing, fault) = (secrets.missing(), secrets.certificate_fault(Utc::now()));
    let clock = api.attestation.clock_fault();
    let draining = api.drain.is_on();
    let complete_at = secrets.complete_at();
    let audit = logging::log().and_then(Log::audit_fault);
    let works = fault.is_none() && clock.is_none() && audit.is_none();
    let ready = missing.is_empty() && works && complete_at.is_none() && !draining;
    let mut answer = json!({"ready": ready, "missing": missing});
    if let Some(fault) = fault {
        answer["client_certificate"] = fault.into();
    }
    if let Some(clock) = clock {
        answer["clock"] = clock.into();
    }
    if let Some(state) = complete_at {
        answer["complete_at"] = json!(state);
    }
    if let Some(audit) = audit {
        answer["audit"] = audit.into();
    }
    if draining {
        answer["draining"] = true.into();
    }
    (ready, answer)
}

/// The metrics in Prometheus' text format.
pub(crate) fn metrics(api: &Api) -> Answer {
    let secrets = api.store.now();
    let log = logging::log().map(Log::progress).unwrap_or_default();
    Answer::text(&METRICS.print(&Live {
        ready: readiness(api).0,
        draining: api.drain.is_on(),
        memory_left: api.memory.left(),
        memory: api.limits.memory,
        max_file: api.limits.max_file,
        connections: api.limits.connections,
        grants: api.grants.remembered(),
        keys: secrets.keys_in_force(),
        counter: api.attestation.in_force().bundle.counter,
        started: api.started_at.0,
        log_last: log.last,
        log_stream: log.to.map(|_| (log.connected, log.acknowledged)),
    }))
}

/// The handshake's answer, by HTTP, to a bundle that is refused.
pub(crate) fn refused(refusal: &Refusal) -> Answer {
    let mut answer = refusal.to_json();
    answer["code"] = json!("invalid_request");
    Answer::json(400, &answer)
}
