//! The health check: does everything work that a file depends on?
//!
//! All endpoints and the service are probed at the same time, each in a thread of its own. Name resolution and a vsock
//! connect cannot be interrupted, so a probe without a result at the end of [`LIMIT`] counts as failed. A thread that
//! hangs is left behind, and until it ends its probe is not started again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_loop::threads;
use formats::allow_list::{AllowList, Endpoint};
use log::error;
use serde_json::{Map, Value, json};

use crate::net::egress::Route;
use crate::net::request_id::RequestId;
use crate::secrets::store::Store;
use crate::watermark::check_watermark_health;

/// How long the result of a health check is reused.
const KEPT: Duration = Duration::from_secs(5);
/// Time limit of a health check, so that its answer arrives within 3 s.
const LIMIT: Duration = Duration::from_millis(2800);
/// Time limit to reach an endpoint, and for the service to answer: shorter, so that the reason is reported.
const PROBE_LIMIT: Duration = Duration::from_millis(2500);

/// The last health check. Only one runs at a time.
pub struct Health {
    state: Mutex<State>,
    done: Condvar,
    /// Whether a probe is still running: one flag per endpoint, and then the service's.
    running: Vec<Arc<AtomicBool>>,
}

#[derive(Default)]
struct State {
    last: Option<Checked>,
    checking: bool,
}

/// A health check's result and when it was made.
#[derive(Clone)]
struct Checked {
    at: Instant,
    healthy: bool,
    result: Value,
}

/// What runs in a thread: returns whether the target is healthy, or why that is not known.
type Probe = Box<dyn FnOnce() -> Result<bool, String> + Send>;

/// Probes every endpoint and the watermark service, unless there is a recent result. Returns whether all are healthy,
/// and what was found.
pub(crate) fn health_check(health: &Health, allowed: &AllowList, route: Route, store: &Arc<Store>) -> (bool, Value) {
    let checked = health.latest(Instant::now(), LIMIT, || check(&health.running, allowed, route, store));
    (checked.healthy, checked.result)
}

impl Health {
    /// For this many endpoints.
    pub fn new(endpoints: usize) -> Health {
        let running = std::iter::repeat_with(Arc::default).take(endpoints + 1).collect();
        Health { state: Mutex::default(), done: Condvar::new(), running }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the last result while it is fresh, else that of `check`. While another caller's check runs, returns the
    /// last result; if there is none yet, waits for the new one, `within` at most.
    fn latest(&self, now: Instant, within: Duration, check: impl FnOnce() -> Checked) -> Checked {
        let mut state = self.lock();
        match &state.last {
            Some(last) if state.checking || now.saturating_duration_since(last.at) < KEPT => return last.clone(),
            None if state.checking => {
                let wait = self.done.wait_timeout_while(state, within, |state| state.checking);
                let (state, _) = wait.unwrap_or_else(PoisonError::into_inner);
                return state.last.clone().unwrap_or_else(Checked::unfinished);
            }
            _ => state.checking = true,
        }
        drop(state);
        let _checking = Checking(self);
        let checked = check();
        self.lock().last = Some(checked.clone());
        checked
    }
}

/// A check in progress; it ends when this is dropped, also by a panic.
struct Checking<'a>(&'a Health);

impl Drop for Checking<'_> {
    fn drop(&mut self) {
        self.0.lock().checking = false;
        self.0.done.notify_all();
    }
}

impl Checked {
    fn new(endpoints: Map<String, Value>, watermark: Result<bool, String>) -> Checked {
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
        Checked { at: Instant::now(), healthy, result }
    }

    /// For a caller that waited in vain for another caller's check.
    fn unfinished() -> Checked {
        Checked::new(Map::new(), Err("the health check is not finished yet: ask again".into()))
    }
}

fn check(running: &[Arc<AtomicBool>], allowed: &AllowList, route: Route, store: &Arc<Store>) -> Checked {
    let reach = |endpoint: &Endpoint| -> Probe {
        let endpoint = endpoint.clone();
        Box::new(move || Ok(route.dial(&endpoint, PROBE_LIMIT).is_ok()))
    };
    let service: Probe = match store.now().ready() {
        Ok(ready) => {
            let store = store.clone();
            Box::new(move || check_watermark_health(&ready, &store, PROBE_LIMIT).map_err(|e| e.to_string()))
        }
        Err(missing) => Box::new(move || Err(format!("not asked; missing: {}", missing.join(", ")))),
    };
    let probes = allowed.iter().map(reach).chain([service]).collect();
    let mut results = run_probes(running, probes, LIMIT);
    let service = results.pop().unwrap_or(Ok(false));
    let mut endpoints = Map::new();
    for (endpoint, result) in allowed.iter().zip(results) {
        endpoints.insert(endpoint.to_string(), (result == Ok(true)).into());
    }
    Checked::new(endpoints, service)
}

/// Runs all probes at the same time, except those that still run from before, and returns the results that arrive
/// within `limit`.
fn run_probes(running: &[Arc<AtomicBool>], probes: Vec<Probe>, limit: Duration) -> Vec<Result<bool, String>> {
    let end = Instant::now() + limit;
    let not_answered = Err(format!("not answered within {} ms", limit.as_millis()));
    let all = Mutex::new((vec![not_answered; probes.len()], 0));
    let results = Arc::new(Results { all, one_more: Condvar::new() });
    for (i, (running, probe)) in running.iter().zip(probes).enumerate() {
        if running.swap(true, Ordering::AcqRel) {
            continue;
        }
        results.lock().1 += 1;
        let running = Running { running: running.clone(), results: results.clone() };
        let request = RequestId::of_this_thread();
        let started = threads::start("health", move || {
            let _in_log = request.as_ref().map(RequestId::enter);
            let result = probe();
            running.results.lock().0[i] = result;
        });
        if let Err(e) = started {
            error!("cannot start a thread for the health check: {e}");
        }
    }
    let (all, left) = (results.lock(), end.saturating_duration_since(Instant::now()));
    let waited = results.one_more.wait_timeout_while(all, left, |(_, open)| *open > 0);
    waited.unwrap_or_else(PoisonError::into_inner).0.0.clone()
}

/// The results of all probes, and how many still run.
struct Results {
    all: Mutex<(Vec<Result<bool, String>>, usize)>,
    one_more: Condvar,
}

impl Results {
    fn lock(&self) -> MutexGuard<'_, (Vec<Result<bool, String>>, usize)> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A probe that runs; it ends when this is dropped, also by a panic.
struct Running {
    running: Arc<AtomicBool>,
    results: Arc<Results>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Release);
        self.results.lock().1 -= 1;
        self.results.one_more.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::channel;
    use std::thread;

    /// Longer than any test takes.
    const LONG: Duration = Duration::from_secs(600);

    fn running<const N: usize>() -> [Arc<AtomicBool>; N] {
        std::array::from_fn(|_| Arc::default())
    }

    fn well() -> Checked {
        Checked::new(Map::new(), Ok(true))
    }

    #[test]
    fn a_probe_that_hangs_is_not_started_again_until_it_ends() {
        let (release, released) = channel::<()>();
        let (running, asked) = (running::<1>(), Arc::new(AtomicUsize::new(0)));
        let probe = |wait: Box<dyn FnOnce() + Send>| -> Vec<Probe> {
            let asked = asked.clone();
            vec![Box::new(move || {
                asked.fetch_add(1, Ordering::Relaxed);
                wait();
                Ok(true)
            })]
        };
        // It hangs until the test drops its end.
        let hangs = probe(Box::new(move || assert!(released.recv().is_err())));
        let not_answered = vec![Err("not answered within 50 ms".to_owned())];
        assert_eq!(run_probes(&running, hangs, Duration::from_millis(50)), not_answered);
        for _ in 0..3 {
            assert_eq!(run_probes(&running, probe(Box::new(|| {})), Duration::from_millis(50)), not_answered);
        }
        drop(release);
        while running[0].load(Ordering::Acquire) {
            thread::yield_now();
        }
        assert_eq!(run_probes(&running, probe(Box::new(|| {})), LONG), [Ok(true)]);
        assert_eq!(asked.load(Ordering::Relaxed), 2, "once while it hung, and once afterwards");
    }

    #[test]
    fn no_probe_waits_for_another() {
        let (answered, other_answered) = channel::<()>();
        let waits: Probe = Box::new(move || Ok(other_answered.recv().is_ok()));
        let other: Probe = Box::new(move || Ok(answered.send(()).is_ok()));
        assert_eq!(run_probes(&running::<2>(), vec![waits, other], LONG), [Ok(true), Ok(true)]);
    }

    #[test]
    fn a_probe_that_panics_has_no_result_and_can_be_started_again() {
        let running = running::<1>();
        assert!(run_probes(&running, vec![Box::new(|| panic!("as asked"))], LONG)[0].is_err());
        while running[0].load(Ordering::Acquire) {
            thread::yield_now();
        }
        assert_eq!(run_probes(&running, vec![Box::new(|| Ok(true))], LONG), [Ok(true)]);
    }

    #[test]
    fn a_caller_that_comes_during_the_first_check_waits_for_it_but_not_forever() {
        let health = Health::new(0);
        let (begun, has_begun) = channel();
        let (release, released) = channel::<()>();
        thread::scope(|scope| {
            let first = scope.spawn(|| {
                health.latest(Instant::now(), LONG, move || {
                    begun.send(()).unwrap();
                    assert!(released.recv().is_err());
                    well()
                })
            });
            has_begun.recv().unwrap();
            let in_vain = health.latest(Instant::now(), Duration::from_millis(10), || panic!("a second check"));
            assert!(!in_vain.healthy);
            assert!(in_vain.result["watermark"]["error"].as_str().unwrap().contains("not finished yet"));
            let second = scope.spawn(|| {
                let start = Instant::now();
                let check = || {
                    assert!(start.elapsed() >= KEPT, "a second check");
                    well()
                };
                health.latest(Instant::now(), LONG, check)
            });
            drop(release);
            assert!(first.join().unwrap().healthy && second.join().unwrap().healthy);
        });
    }

    #[test]
    fn a_result_is_kept_for_five_seconds() {
        let health = Health::new(0);
        let at = health.latest(Instant::now(), LONG, well).at;
        let kept = health.latest(at + KEPT - Duration::from_nanos(1), LONG, || panic!("a second check"));
        assert_eq!(kept.at, at);
        assert!(health.latest(at + KEPT, LONG, well).at > at);
    }

    #[test]
    fn a_check_that_panics_is_over() {
        let health = Health::new(0);
        let panics = || health.latest(Instant::now(), LONG, || panic!("as asked"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert!(health.latest(Instant::now(), LONG, well).healthy);
    }
}
