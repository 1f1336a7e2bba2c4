//! Taking an enclave out of service without losing a request.
//!
//! While it drains, /ready is 503, so balancers stop sending requests; those that come nevertheless are served, and each
//! answer is the last on its connection. Once none has come for [`QUIET`], or the time is up, further ones are 503.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::ApiError;

/// How long no request has come where none is expected to come any more: longer than balancers take to notice /ready.
const QUIET: Duration = Duration::from_secs(5);

/// Whether this enclave is being drained, and the requests in flight on the public listener.
#[derive(Default)]
pub struct Drain {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    in_flight: usize,
    draining: Option<Draining>,
}

#[derive(Clone, Copy)]
struct Draining {
    /// When the time is up.
    until: Instant,
    /// When the last request came, or when this began.
    last: Instant,
    /// Whether an earlier drain has ended, and so requests are refused already.
    closed: bool,
}

/// How a drain ended: whether nothing more comes and nothing is in flight, and the requests that are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Drained {
    pub(crate) drained: bool,
    pub(crate) in_flight: usize,
}

impl Drain {
    /// Whether this enclave is being drained, or has been.
    pub(crate) fn is_on(&self) -> bool {
        self.lock().draining.is_some()
    }

    /// Begins, and returns once nothing more comes and nothing is in flight; once the time is up; or once it is taken
    /// back. A drain that has begun before goes on with this time limit; if it has ended, requests stay refused.
    pub(crate) fn start(&self, limit: Duration) -> Drained {
        let mut state = self.lock();
        state.start(Instant::now(), limit);
        loop {
            let now = Instant::now();
            match state.next_look(now) {
                None => return state.result(now),
                Some(at) => {
                    let waited = self.changed.wait_timeout(state, at - now);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Takes it back: the enclave is in service again.
    pub(crate) fn take_back(&self) {
        self.lock().draining = None;
        self.changed.notify_all();
    }

    /// A request is in flight, whatever for, until [`Drain::ended`].
    pub(crate) fn began(&self) {
        self.lock().in_flight += 1;
    }

    /// A request's answer has been sent.
    pub(crate) fn ended(&self) {
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        if state.draining.is_some() {
            self.changed.notify_all();
        }
    }

    /// Lets in a request that asks for work, unlike the checks of balancers, which never cease.
    ///
    /// # Errors
    /// The enclave has been drained.
    pub(crate) fn admit(&self) -> Result<(), ApiError> {
        if self.lock().admits(Instant::now()) { Ok(()) } else { Err(ApiError::Drained) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Draining {
    /// From when on requests are refused, if none comes before.
    fn closes(self) -> Instant {
        self.until.min(self.last + QUIET)
    }

    fn is_closed(self, now: Instant) -> bool {
        self.closed || now >= self.closes()
    }
}

impl State {
    fn start(&mut self, now: Instant, limit: Duration) {
        let last = self.draining.map_or(now, |draining| draining.last);
        let closed = self.draining.is_some_and(|draining| draining.is_closed(now));
        self.draining = Some(Draining { until: now + limit, last, closed });
    }

    fn admits(&mut self, now: Instant) -> bool {
        match &mut self.draining {
            None => true,
            Some(draining) if draining.is_closed(now) => false,
            Some(draining) => {
                draining.last = now;
                true
            }
        }
    }

    /// When to look again, if nothing changes before; `None` if it is over.
    fn next_look(&self, now: Instant) -> Option<Instant> {
        let draining = self.draining?;
        let next = match draining.is_closed(now) {
            false => draining.closes(),
            true => draining.until,
        };
        let over = draining.is_closed(now) && self.in_flight == 0;
        Some(next).filter(|next| *next > now && !over)
    }

    fn result(&self, now: Instant) -> Drained {
        let closed = self.draining.is_some_and(|draining| draining.is_closed(now));
        Drained { drained: closed && self.in_flight == 0, in_flight: self.in_flight }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn draining(limit: Duration) -> (State, Instant) {
        let (mut state, start) = (State::default(), Instant::now());
        assert!(state.admits(start) && state.next_look(start).is_none());
        state.start(start, limit);
        (state, start)
    }

    #[test]
    fn it_is_over_once_no_request_has_come_for_five_seconds() {
        let (mut state, start) = draining(30 * SECOND);
        assert!(state.admits(start + 3 * SECOND));
        assert_eq!(state.next_look(start + 3 * SECOND), Some(start + 8 * SECOND));
        assert!(state.admits(start + 7 * SECOND), "it is still served");
        assert_eq!(state.next_look(start + 8 * SECOND), Some(start + 12 * SECOND));
        let end = start + 12 * SECOND;
        assert_eq!((state.next_look(end), state.result(end)), (None, Drained { drained: true, in_flight: 0 }));
        assert!(!state.admits(end) && !state.admits(end + SECOND), "none is served from then on");
        state.start(end + SECOND, 30 * SECOND);
        assert!(
            !state.admits(end + SECOND) && state.next_look(end + SECOND).is_none(),
            "also if it is asked for again"
        );
    }

    #[test]
    fn a_request_in_flight_is_waited_for_while_new_ones_are_refused() {
        let (mut state, start) = draining(30 * SECOND);
        state.in_flight = 1;
        let quiet = start + 5 * SECOND;
        assert_eq!((state.admits(quiet), state.next_look(quiet)), (false, Some(start + 30 * SECOND)));
        state.in_flight = 0;
        assert_eq!((state.next_look(quiet), state.result(quiet).drained), (None, true));
    }

    #[test]
    fn when_the_time_is_up_it_is_over_whatever_comes_or_is_in_flight() {
        let (mut state, start) = draining(2 * SECOND);
        state.in_flight = 3;
        assert!(state.admits(start + SECOND));
        assert_eq!(state.next_look(start + SECOND), Some(start + 2 * SECOND));
        let end = start + 2 * SECOND;
        assert_eq!((state.admits(end), state.next_look(end)), (false, None));
        assert_eq!(state.result(end), Drained { drained: false, in_flight: 3 });
        // Another one gives them more time, and lets in no more.
        state.start(end, 9 * SECOND);
        assert_eq!((state.admits(end), state.next_look(end)), (false, Some(end + 9 * SECOND)));
        state.in_flight = 0;
        assert_eq!((state.next_look(end), state.result(end).drained), (None, true));
    }

    #[test]
    fn a_drain_that_is_taken_back_is_over_and_requests_are_served_again() {
        let drain = Drain::default();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| drain.start(600 * SECOND));
            while !drain.is_on() {
                std::thread::yield_now();
            }
            drain.take_back();
            assert_eq!(waits.join().unwrap(), Drained { drained: false, in_flight: 0 });
        });
        assert!(!drain.is_on() && drain.admit().is_ok());
    }
}
