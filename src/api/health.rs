//! The health check: is everything there that a file needs on its way?
//!
//! Each endpoint is tried and the service is asked at the same time, each in a thread of its own, and whatever has not
//! answered by the end of [`LIMIT`] counts as a failure: name resolution and a vsock connect cannot be interrupted. A
//! thread that hangs is left behind, and until it ends there is no second one for the same question.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use formats::allow_list::{AllowList, Endpoint};
use log::error;
use serde_json::{Map, Value, json};

use crate::net::answer::Answer;
use crate::net::egress::Route;
use crate::secrets::store::Store;
use crate::threads;
use crate::watermark::check_watermark_health;

/// How long the result of a health check is kept.
const KEPT: Duration = Duration::from_secs(5);
/// Time for a health check, so that its answer is there within 3 s.
const LIMIT: Duration = Duration::from_millis(2800);
/// Time to reach an endpoint, and for the service to answer: shorter, so that the reason is told.
const QUESTION_LIMIT: Duration = Duration::from_millis(2500);

/// The last health check. Only one is made at a time.
pub struct Health {
    state: Mutex<State>,
    done: Condvar,
    /// For each endpoint, and then for the service: whether a thread is asking.
    asking: Vec<Arc<AtomicBool>>,
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
    status: u16,
    result: Value,
}

/// What a thread finds out: whether something is well, or why it cannot be told.
type Question = Box<dyn FnOnce() -> Result<bool, String> + Send>;

/// Tries every endpoint and asks the watermark service, unless that was done a moment ago.
pub fn health_check(health: &Health, allowed: &AllowList, route: Route, store: &Arc<Store>) -> Answer {
    let checked = health.latest(LIMIT, || check(&health.asking, allowed, route, store));
    Answer::json(checked.status, &checked.result)
}

impl Health {
    /// For so many endpoints.
    pub fn new(endpoints: usize) -> Health {
        let asking = std::iter::repeat_with(Arc::default).take(endpoints + 1).collect();
        Health { state: Mutex::default(), done: Condvar::new(), asking }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last result while it is fresh, else that of `check`. A caller that comes while another one checks gets the
    /// last result; where there is none yet it waits for the new one, `within` at most.
    fn latest(&self, within: Duration, check: impl FnOnce() -> Checked) -> Checked {
        let mut state = self.lock();
        match &state.last {
            Some(last) if state.checking || last.at.elapsed() < KEPT => return last.clone(),
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

/// A check under way; over when it is dropped, by a panic too.
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
        Checked { at: Instant::now(), status: if healthy { 200 } else { 503 }, result }
    }

    /// For a caller that waited for another's check in vain.
    fn unfinished() -> Checked {
        Checked::new(Map::new(), Err("the health check is not finished yet: ask again".into()))
    }
}

fn check(asking: &[Arc<AtomicBool>], allowed: &AllowList, route: Route, store: &Arc<Store>) -> Checked {
    let reach = |endpoint: &Endpoint| -> Question {
        let endpoint = endpoint.clone();
        Box::new(move || Ok(route.dial(&endpoint, QUESTION_LIMIT).is_ok()))
    };
    let service: Question = match store.now().ready() {
        Ok(ready) => {
            let store = store.clone();
            Box::new(move || check_watermark_health(&ready, &store, QUESTION_LIMIT).map_err(|e| e.to_string()))
        }
        Err(missing) => Box::new(move || Err(format!("not asked; missing: {}", missing.join(", ")))),
    };
    let questions = allowed.iter().map(reach).chain([service]).collect();
    let mut answers = ask(asking, questions, LIMIT);
    let service = answers.pop().unwrap_or(Ok(false));
    let mut endpoints = Map::new();
    for (endpoint, answer) in allowed.iter().zip(answers) {
        endpoints.insert(endpoint.to_string(), (answer == Ok(true)).into());
    }
    Checked::new(endpoints, service)
}

/// Asks all questions at the same time, but for those that are still being asked from before, and gives the answers that
/// come within `limit`.
fn ask(asking: &[Arc<AtomicBool>], questions: Vec<Question>, limit: Duration) -> Vec<Result<bool, String>> {
    let end = Instant::now() + limit;
    let not_answered = Err(format!("not answered within {} ms", limit.as_millis()));
    let all = Mutex::new((vec![not_answered; questions.len()], 0));
    let answers = Arc::new(Answers { all, one_more: Condvar::new() });
    for (i, (asking, question)) in asking.iter().zip(questions).enumerate() {
        if asking.swap(true, Ordering::AcqRel) {
            continue;
        }
        answers.lock().1 += 1;
        let asking = Asking { asking: asking.clone(), answers: answers.clone() };
        let started = threads::start("health", move || {
            let answer = question();
            asking.answers.lock().0[i] = answer;
        });
        if let Err(e) = started {
            error!("cannot start a thread for the health check: {e}");
        }
    }
    let (all, left) = (answers.lock(), end.saturating_duration_since(Instant::now()));
    let waited = answers.one_more.wait_timeout_while(all, left, |(_, open)| *open > 0);
    waited.unwrap_or_else(PoisonError::into_inner).0.0.clone()
}

/// The answers to all questions, and how many are still being asked.
struct Answers {
    all: Mutex<(Vec<Result<bool, String>>, usize)>,
    one_more: Condvar,
}

impl Answers {
    fn lock(&self) -> MutexGuard<'_, (Vec<Result<bool, String>>, usize)> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question being asked; answered, or given up by a panic, when it is dropped.
struct Asking {
    asking: Arc<AtomicBool>,
    answers: Arc<Answers>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.asking.store(false, Ordering::Release);
        self.answers.lock().1 -= 1;
        self.answers.one_more.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::channel;
    use std::thread;

    /// Longer than any machine is busy.
    const LONG: Duration = Duration::from_secs(600);

    fn asking<const N: usize>() -> [Arc<AtomicBool>; N] {
        std::array::from_fn(|_| Arc::default())
    }

    fn well() -> Checked {
        Checked::new(Map::new(), Ok(true))
    }

    #[test]
    fn what_hangs_has_not_answered_and_is_not_asked_again_until_it_ends() {
        let (release, released) = channel::<()>();
        let (asking, asked) = (asking::<1>(), Arc::new(AtomicUsize::new(0)));
        let question = |wait: Box<dyn FnOnce() + Send>| -> Vec<Question> {
            let asked = asked.clone();
            vec![Box::new(move || {
                asked.fetch_add(1, Ordering::Relaxed);
                wait();
                Ok(true)
            })]
        };
        // It hangs until the test drops its end.
        let hangs = question(Box::new(move || assert!(released.recv().is_err())));
        let not_answered = vec![Err("not answered within 50 ms".to_owned())];
        assert_eq!(ask(&asking, hangs, Duration::from_millis(50)), not_answered);
        for _ in 0..3 {
            assert_eq!(ask(&asking, question(Box::new(|| {})), Duration::from_millis(50)), not_answered);
        }
        drop(release);
        while asking[0].load(Ordering::Acquire) {
            thread::yield_now();
        }
        assert_eq!(ask(&asking, question(Box::new(|| {})), LONG), [Ok(true)]);
        assert_eq!(asked.load(Ordering::Relaxed), 2, "once while it hung, and once afterwards");
    }

    #[test]
    fn no_question_waits_for_another() {
        let (answered, other_answered) = channel::<()>();
        let waits: Question = Box::new(move || Ok(other_answered.recv().is_ok()));
        let other: Question = Box::new(move || Ok(answered.send(()).is_ok()));
        assert_eq!(ask(&asking::<2>(), vec![waits, other], LONG), [Ok(true), Ok(true)]);
    }

    #[test]
    fn a_question_that_panics_has_not_answered_and_can_be_asked_again() {
        let asking = asking::<1>();
        assert!(ask(&asking, vec![Box::new(|| panic!("as asked"))], LONG)[0].is_err());
        while asking[0].load(Ordering::Acquire) {
            thread::yield_now();
        }
        assert_eq!(ask(&asking, vec![Box::new(|| Ok(true))], LONG), [Ok(true)]);
    }

    #[test]
    fn a_caller_that_comes_during_the_first_check_waits_for_it_but_not_for_ever() {
        let health = Health::new(0);
        let (begun, has_begun) = channel();
        let (release, released) = channel::<()>();
        thread::scope(|scope| {
            let first = scope.spawn(|| {
                health.latest(LONG, move || {
                    begun.send(()).unwrap();
                    assert!(released.recv().is_err());
                    well()
                })
            });
            has_begun.recv().unwrap();
            let in_vain = health.latest(Duration::from_millis(10), || panic!("a second check"));
            assert_eq!(in_vain.status, 503);
            assert!(in_vain.result["watermark"]["error"].as_str().unwrap().contains("not finished yet"));
            let second = scope.spawn(|| {
                let start = Instant::now();
                let check = || {
                    assert!(start.elapsed() >= KEPT, "a second check");
                    well()
                };
                health.latest(LONG, check)
            });
            drop(release);
            assert_eq!((first.join().unwrap().status, second.join().unwrap().status), (200, 200));
        });
    }

    #[test]
    fn a_check_that_panics_is_over() {
        let health = Health::new(0);
        let panics = || health.latest(LONG, || panic!("as asked"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert_eq!(health.latest(LONG, well).status, 200);
    }
}
