//! This machine's clock, held against the Nitro Secure Module's.
//!
//! An enclave has no time server, and its clock drifts by seconds a week. Grants and certificates are judged by it, so
//! it is compared with the time in the module's documents, and set where they differ by more than half a second. That
//! time is the hypervisor's, as is the clock from which this machine's began: docs/THREAT-MODEL.md says who can move it.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::{error, info, warn};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use super::raw;
use crate::audit;
use crate::metrics::METRICS;

/// Differences up to this are left alone.
const LEFT_ALONE: Duration = Duration::from_millis(500);
/// Up to this the clock is made to run slower or faster, and beyond it is stepped.
const SLEWED: Duration = Duration::from_secs(2);
/// The largest step. A larger difference is not drift, and nobody knows which of the two clocks is right.
const STEPPED: Duration = Duration::from_secs(3600);

/// What becomes of a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Correction {
    #[default]
    None,
    Slew,
    Step,
    Impossible,
}

/// What was found when the clocks were last compared, if they ever were.
#[derive(Debug, Default)]
pub(super) struct Clock(Mutex<Option<Last>>);

#[derive(Clone, Copy, Debug, Default)]
struct Last {
    difference: Difference,
    /// What was logged of it, and of those before, in the same words: what came of them, and whether this machine's clock was
    /// ahead.
    told: Option<(Outcome, bool)>,
}

/// What came of a difference that is too large to be left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Slewed,
    Stepped,
    Failed,
    Impossible,
}

/// A difference of two clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Difference {
    by: Duration,
    /// Whether this machine's clock is the one that is ahead.
    ahead: bool,
}

impl Difference {
    /// On this machine's clock, the module read `module` at some point between `asked` and `answered`. This is the smallest
    /// difference that is consistent with that.
    fn of(asked: SystemTime, answered: SystemTime, module: SystemTime) -> Difference {
        match (asked.duration_since(module), module.duration_since(answered)) {
            (Ok(by), _) => Difference { by, ahead: true },
            (_, Ok(by)) => Difference { by, ahead: false },
            _ => Difference { by: Duration::ZERO, ahead: false },
        }
    }

    fn correction(self) -> Correction {
        match self.by {
            by if by <= LEFT_ALONE => Correction::None,
            by if by <= SLEWED => Correction::Slew,
            by if by <= STEPPED => Correction::Step,
            _ => Correction::Impossible,
        }
    }

    /// By how many milliseconds this machine's clock is ahead.
    fn milliseconds(self) -> i64 {
        let by = i64::try_from(self.by.as_millis()).unwrap_or(i64::MAX);
        if self.ahead { by } else { -by }
    }

    /// By how many milliseconds this machine's clock has to move.
    fn to_move(self) -> i64 {
        -self.milliseconds()
    }

    /// In words: "12.345 s ahead of the Nitro Secure Module's".
    fn words(self) -> String {
        let direction = if self.ahead { "ahead of" } else { "behind" };
        let ms = self.by.as_millis();
        format!("{}.{:03} s {direction} the Nitro Secure Module's", ms / 1000, ms % 1000)
    }
}

impl Clock {
    /// Compares the module's time with this machine's clock, which read `asked` before the request and `answered` after the
    /// reply, and corrects this machine's clock if necessary.
    pub(super) fn compare(&self, asked: SystemTime, answered: SystemTime, module: SystemTime) {
        let difference = Difference::of(asked, answered, module);
        METRICS.clock_drift.set(difference.milliseconds());
        self.correct(difference, |correction| match correction {
            Correction::Slew => raw::slew(difference.to_move()),
            _ => step(difference),
        });
    }

    /// Has the clock set if it has to be, and then tells and records what came of it. A difference that persists, such as
    /// during a slew, is logged once: anybody may ask for documents.
    ///
    /// The first comparison is made before anybody is served. Nothing minds a step then, and a slew would take up to an hour.
    fn correct(&self, difference: Difference, set: impl FnOnce(Correction) -> io::Result<()>) {
        let before = self.last().replace(Last { difference, told: None });
        let correction = match difference.correction() {
            Correction::Slew if before.is_none() => Correction::Step,
            correction => correction,
        };
        let (outcome, fault) = match correction {
            Correction::None => return,
            Correction::Impossible => (Outcome::Impossible, None),
            Correction::Slew | Correction::Step => match set(correction) {
                Err(e) => (Outcome::Failed, Some(e)),
                Ok(()) if correction == Correction::Slew => (Outcome::Slewed, None),
                Ok(()) => (Outcome::Stepped, None),
            },
        };
        let told = Some((outcome, difference.ahead));
        // A step is over; the next one is another.
        if outcome != Outcome::Stepped
            && let Some(last) = &mut *self.last()
        {
            last.told = told;
        }
        if before.is_some_and(|before| before.told == told) {
            return;
        }
        let words = difference.words();
        let how = match (outcome, fault) {
            (Outcome::Impossible, _) => {
                error!("the clock is {words}, which is too far to correct: restart the enclave");
                return;
            }
            (Outcome::Slewed, _) => {
                info!("the clock is {words}, and is slewed");
                "slewed"
            }
            (Outcome::Stepped, _) => {
                warn!("the clock is {words}, and is set");
                "stepped"
            }
            (Outcome::Failed, fault) => {
                error!("the clock is {words}, and cannot be set: {}", fault.unwrap_or(io::ErrorKind::Other.into()));
                "failed"
            }
        };
        audit::clock(difference.milliseconds(), how);
    }

    fn last(&self) -> MutexGuard<'_, Option<Last>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wrong with the clock, for whoever is to start the enclave anew.
    pub(super) fn fault(&self) -> Option<String> {
        let last = (*self.last())?.difference;
        (last.correction() == Correction::Impossible).then(|| format!("{}, which is too far to correct", last.words()))
    }
}

/// Steps the clock by a difference, so that what has passed since they were compared counts too.
fn step(difference: Difference) -> io::Result<()> {
    let now = SystemTime::now();
    let right = if difference.ahead { now.checked_sub(difference.by) } else { now.checked_add(difference.by) };
    let since_1970 = right.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Ok(clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(since_1970))?)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::logging::Log;

    fn difference(seconds: f64) -> Difference {
        let here = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let by = Duration::from_secs_f64(seconds.abs());
        Difference::of(here, here, if seconds > 0.0 { here - by } else { here + by })
    }

    #[test]
    fn a_module_that_took_long_to_answer_tells_no_difference_that_may_not_be() {
        let asked = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let answered = asked + Duration::from_secs(9);
        for (module, ms) in [(-1000, 1000), (0, 0), (4500, 0), (9000, 0), (9500, -500)] {
            let module = asked - Duration::from_secs(60) + Duration::from_millis((60_000_i64 + module).unsigned_abs());
            assert_eq!(Difference::of(asked, answered, module).milliseconds(), ms);
        }
    }

    #[test]
    fn a_clock_is_left_alone_slewed_stepped_or_given_up_by_how_far_it_is_off() {
        for (seconds, correction) in [
            (0.0, Correction::None),
            (0.5, Correction::None),
            (0.501, Correction::Slew),
            (2.0, Correction::Slew),
            (2.001, Correction::Step),
            (3600.0, Correction::Step),
            (3600.001, Correction::Impossible),
            (1e9, Correction::Impossible),
        ] {
            for difference in [difference(seconds), difference(-seconds)] {
                assert_eq!(difference.correction(), correction, "{difference:?}");
            }
        }
    }

    #[test]
    fn before_anybody_is_served_half_a_second_is_stepped_and_later_slewed() {
        let clock = Clock::default();
        for expected in [Correction::Step, Correction::Slew, Correction::Slew] {
            let mut made = None;
            clock.correct(difference(1.5), |correction| {
                made = Some(correction);
                Ok(())
            });
            assert_eq!(made, Some(expected));
        }
        let right = Clock::default();
        right.correct(difference(0.4), |_| unreachable!("it is left alone"));
        let mut made = None;
        right.correct(difference(1.5), |correction| {
            made = Some(correction);
            Ok(())
        });
        assert_eq!(made, Some(Correction::Slew), "the first comparison is over");
    }

    #[test]
    fn a_clock_that_is_ahead_has_to_move_back() {
        assert_eq!((difference(1.5).to_move(), difference(-1.5).to_move()), (-1500, 1500));
    }

    #[test]
    fn a_difference_is_told_with_its_direction() {
        assert_eq!(difference(200.25).milliseconds(), 200_250);
        assert_eq!(difference(-200.25).milliseconds(), -200_250);
        assert_eq!(difference(2.04).words(), "2.040 s ahead of the Nitro Secure Module's");
        assert_eq!(difference(-61.5).words(), "61.500 s behind the Nitro Secure Module's");
    }

    #[test]
    fn what_came_of_setting_the_clock_is_recorded_once_after_it() {
        let log = Log::of_tests();
        let recorded = |difference: Difference| -> Vec<(Value, Value)> {
            let (text, by) = (log.settled(), difference.by.as_millis());
            let bodies = text.lines().filter_map(|line| Some(line.split_once(" audit ")?.1));
            let records = bodies.map(|body| serde_json::from_str::<Value>(body).unwrap());
            records
                .filter(|record| record["event"] == "clock" && record["by_ms"] == json!(by))
                .map(|record| (record["correction"].clone(), record["ahead"].clone()))
                .collect()
        };
        let clock = Clock(Mutex::new(Some(Last::default())));
        let (slew, step, other) = (difference(1.111), difference(-61.222), difference(99.333));
        let correct = |difference: Difference, result: io::Result<()>, times: usize| {
            let before = recorded(difference).len();
            clock.correct(difference, |_| {
                assert_eq!(recorded(difference).len(), before, "it is not set yet");
                result
            });
            assert_eq!(recorded(difference).len(), before + times);
        };
        let fails = || Err(io::ErrorKind::PermissionDenied.into());
        // A slew is asked for again while it lasts.
        correct(slew, Ok(()), 1);
        correct(slew, Ok(()), 0);
        clock.correct(difference(0.1), |_| unreachable!("it is right"));
        correct(slew, Ok(()), 1);
        // A step is over at once, unless it fails.
        correct(step, Ok(()), 1);
        correct(step, Ok(()), 1);
        correct(other, fails(), 1);
        correct(other, fails(), 0);
        // It could be set in the end.
        correct(other, Ok(()), 1);
        let all = [slew, step, other].map(recorded);
        let expected =
            [("slewed", true), ("stepped", false), ("failed", true)].map(|(how, ahead)| (json!(how), json!(ahead)));
        assert_eq!(all.each_ref().map(|records| records[0].clone()), expected);
        assert_eq!(all.map(|records| records.len()), [2, 2, 2]);
    }

    /// Nothing is set here: it would be this machine's clock.
    #[test]
    fn a_clock_that_is_too_far_off_is_a_fault_until_it_is_right() {
        let clock = Clock::default();
        let here = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        assert_eq!(clock.fault(), None);
        clock.compare(here, here, here - Duration::from_secs(3601));
        assert!(clock.fault().unwrap().starts_with("3601.000 s ahead of the Nitro Secure Module's"));
        clock.compare(here, here, here);
        assert_eq!(clock.fault(), None);
    }
}
