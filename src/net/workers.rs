//! Threads for requests: one for each request in flight, kept for the next one for a while, and bounded in number.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_loop::threads;

use crate::metrics::METRICS;

/// How long a thread waits for its next request, and how many threads do so at most.
const KEPT: Duration = Duration::from_secs(5);
const MOST_IDLE: usize = 4;

/// A thread's task.
pub type Job = Box<dyn FnOnce() + Send>;

/// A bounded number of threads.
#[derive(Clone)]
pub struct Workers(Arc<Shared>);

struct Shared {
    most: usize,
    /// Called when a place becomes free.
    freed: Box<dyn Fn() + Send + Sync>,
    state: Mutex<State>,
    given: Condvar,
}

#[derive(Default)]
struct State {
    /// Threads that wait for a job.
    idle: usize,
    /// Jobs that are running or ready.
    busy: usize,
    /// Jobs that are ready, each for a thread that waits or has just been started.
    jobs: VecDeque<Job>,
}

impl Workers {
    /// A pool of at most `most` threads; none has been started. `freed` is called each time a place becomes free, so
    /// that a caller that found none may try again.
    pub fn new(most: usize, freed: impl Fn() + Send + Sync + 'static) -> Workers {
        let (state, given, freed) = (Mutex::default(), Condvar::new(), Box::new(freed));
        Workers(Arc::new(Shared { most, freed, state, given }))
    }

    /// Whether there is a place for one more job; `beyond` adds extra places.
    pub fn has_place(&self, beyond: usize) -> bool {
        self.state().busy < self.0.most + beyond
    }

    /// Runs a job in a thread now. The caller has checked that there is a place for it. The job is made once there is a
    /// thread.
    ///
    /// # Errors
    /// The system has no threads left.
    pub fn run(&self, job: impl FnOnce() -> Job) -> io::Result<()> {
        let mut state = self.state();
        let one_is_idle = state.idle > state.jobs.len();
        if !one_is_idle {
            let workers = self.clone();
            // It waits for the lock, and then finds the job.
            threads::start("request", move || workers.work())?;
        }
        state.busy += 1;
        state.jobs.push_back(job());
        if one_is_idle {
            self.0.given.notify_one();
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                METRICS.panics.add(1);
            }
            self.state().busy -= 1;
            (self.0.freed)();
        }
    }

    /// The next job; `None` if none comes within [`KEPT`], or if enough threads already wait for one.
    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        if let Some(job) = state.jobs.pop_front() {
            return Some(job);
        }
        if state.idle >= MOST_IDLE {
            return None;
        }
        state.idle += 1;
        let wait = self.0.given.wait_timeout_while(state, KEPT, |state| state.jobs.is_empty());
        let (mut state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        state.idle -= 1;
        state.jobs.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::thread;

    #[test]
    fn as_many_jobs_as_there_may_be_run_at_once_and_a_thread_serves_again() {
        let workers = Workers::new(3, || {});
        let all = Arc::new(Barrier::new(4));
        for _ in 0..3 {
            assert!(workers.has_place(0));
            let all = all.clone();
            assert!(workers.run(|| Box::new(move || _ = all.wait())).is_ok());
        }
        assert!(!workers.has_place(0) && workers.has_place(1));
        all.wait();
        for _ in 0..100 {
            until(|| workers.has_place(0));
            let done = Arc::new(Barrier::new(2));
            let of_job = done.clone();
            assert!(workers.run(|| Box::new(move || _ = of_job.wait())).is_ok());
            done.wait();
        }
        assert!(workers.state().idle <= 3);
    }

    #[test]
    fn at_most_four_threads_wait_for_the_next_job() {
        let workers = Workers::new(64, || {});
        let all = Arc::new(Barrier::new(33));
        for _ in 0..32 {
            let all = all.clone();
            assert!(workers.run(|| Box::new(move || _ = all.wait())).is_ok());
        }
        // Each thread has a reference, and so has this test.
        assert_eq!(Arc::strong_count(&workers.0), 33);
        all.wait();
        until(|| Arc::strong_count(&workers.0) <= 1 + MOST_IDLE);
        assert!(workers.state().busy == 0 && workers.has_place(0));
    }

    #[test]
    fn a_caller_that_is_told_of_a_free_place_finds_it() {
        let (freed, is_freed) = std::sync::mpsc::channel();
        let workers = Workers::new(1, move || freed.send(()).unwrap());
        for _ in 0..100 {
            assert!(workers.run(|| Box::new(|| {})).is_ok());
            is_freed.recv().unwrap();
            assert!(workers.has_place(0));
        }
    }

    #[test]
    fn a_panic_costs_no_place() {
        let workers = Workers::new(1, || {});
        assert!(workers.run(|| Box::new(|| panic!("as asked"))).is_ok());
        until(|| workers.has_place(0));
        let done = Arc::new(Barrier::new(2));
        let of_job = done.clone();
        assert!(workers.run(|| Box::new(move || _ = of_job.wait())).is_ok());
        done.wait();
    }

    fn until(mut done: impl FnMut() -> bool) {
        while !done() {
            thread::yield_now();
        }
    }
}
