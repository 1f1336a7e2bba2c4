//! Named threads.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// Starts a thread.
///
/// # Errors
/// The system has no threads left.
pub fn start(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    start_boxed(name, Box::new(body))
}

/// One copy for all callers: the standard library's part would be compiled for each type of closure, 2 KB each time.
#[inline(never)]
fn start_boxed(name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.into()).spawn(body)
}

/// A job for a timer that must not wait for it: each call runs it in a thread that ends with it. A call that comes while the
/// job still runs does nothing, and so does one for which the system has no thread left.
pub fn aside(name: &'static str, job: impl Fn() + Send + Sync + 'static) -> impl FnMut() + Send + 'static {
    let job = Arc::new(job);
    let mut last: Option<JoinHandle<()>> = None;
    move || {
        if last.as_ref().is_none_or(JoinHandle::is_finished) {
            let job = job.clone();
            last = start(name, move || job()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread::yield_now;

    use super::*;

    /// A timer whose job blocks until it is told to end, the job's beginnings, and what tells it: one job for each
    /// message, and all if it is dropped.
    fn blocking() -> (impl FnMut() + Send + 'static, Receiver<()>, Sender<()>) {
        let (began, beginnings) = channel();
        let (end, ends) = channel::<()>();
        let ends = Mutex::new(ends);
        let timer = aside("job", move || {
            began.send(()).unwrap();
            let _ = ends.lock().unwrap().recv();
        });
        (timer, beginnings, end)
    }

    #[test]
    fn a_job_that_blocks_holds_up_no_timer_and_runs_once_at_a_time() {
        let (mut timer, beginnings, end) = blocking();
        timer();
        beginnings.recv().unwrap();
        // It blocks by now, and nobody waits for it.
        (0..10).for_each(|_| timer());
        drop(end);
        drop(timer);
        // To the end of the last thread.
        assert_eq!(beginnings.iter().count(), 0, "it was started a second time");
    }

    #[test]
    fn a_job_that_has_ended_runs_again() {
        let (mut timer, beginnings, end) = blocking();
        timer();
        beginnings.recv().unwrap();
        end.send(()).unwrap();
        while beginnings.try_recv().is_err() {
            timer();
            yield_now();
        }
        drop(end);
    }
}
