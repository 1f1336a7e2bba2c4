//! The health check: is everything there that a file needs on its way?

use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::{Answer, Api};
use crate::watermark::check_watermark_health;

/// How long the result of a health check is kept.
const HEALTH_KEPT: Duration = Duration::from_secs(5);
/// Time to reach an endpoint in a health check.
const REACH_LIMIT: Duration = Duration::from_secs(2);

/// Time to ask the service.
const HEALTH_TIME: Duration = Duration::from_secs(5);

/// The last health check. Only one is made at a time.
#[derive(Default)]
pub struct Health {
    last: Mutex<Option<Checked>>,
    checking: Mutex<()>,
}

/// A health check's result and when it was made.
#[derive(Clone)]
struct Checked {
    at: Instant,
    status: u16,
    result: Value,
}

/// Tries every endpoint and asks the watermark service. Who comes while that goes on gets the last result; where there
/// is none yet, the new one.
pub fn health_check(api: &Api) -> Answer {
    let Health { last, checking } = &api.health;
    let last_result = || last.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let fresh = |checked: &Checked| checked.at.elapsed() < HEALTH_KEPT;
    let (one_at_a_time, checked) = (checking.try_lock(), last_result());
    let checked = match (one_at_a_time, checked) {
        (_, Some(checked)) if fresh(&checked) => checked,
        (Err(TryLockError::WouldBlock), Some(checked)) => checked,
        (one_at_a_time, _) => {
            // A check that panicked leaves nothing half done.
            let _one_at_a_time = match one_at_a_time {
                Ok(guard) => guard,
                Err(TryLockError::Poisoned(e)) => e.into_inner(),
                Err(TryLockError::WouldBlock) => checking.lock().unwrap_or_else(PoisonError::into_inner),
            };
            last_result().filter(fresh).unwrap_or_else(|| {
                let checked = check(api);
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(checked.clone());
                checked
            })
        }
    };
    Answer::json(checked.status, &checked.result)
}

fn check(api: &Api) -> Checked {
    let mut endpoints = Map::new();
    for endpoint in api.allowed.iter() {
        endpoints.insert(endpoint.to_string(), json!(api.route.dial(endpoint, REACH_LIMIT).is_ok()));
    }
    let watermark = match api.store.now().ready() {
        Ok(ready) => check_watermark_health(&ready, &api.store, HEALTH_TIME).map_err(|e| e.to_string()),
        Err(missing) => Err(format!("not asked; missing: {}", missing.join(", "))),
    };
    let healthy = watermark == Ok(true) && endpoints.values().all(|reached| reached == true);
    let watermark = match watermark {
        Ok(healthy) => json!({"healthy": healthy}),
        Err(reason) => json!({"healthy": false, "error": reason}),
    };
    let result = json!({
        "status": if healthy { "healthy" } else { "unhealthy" },
        "endpoints_status": endpoints,
        "watermark": watermark,
    });
    Checked { at: Instant::now(), status: if healthy { 200 } else { 503 }, result }
}
