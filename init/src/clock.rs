//! Time since the kernel's start, the only clock that is the enclave's own.

use core::fmt;
use core::time::Duration;

use rustix::thread::{NanosleepRelativeResult, Timespec, nanosleep};
use rustix::time::{ClockId, clock_gettime};

/// The time since the kernel's start.
pub fn now() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::from_secs(now.tv_sec.unsigned_abs()) + Duration::from_nanos(now.tv_nsec.unsigned_abs())
}

/// Sleeps for that long, whatever signals arrive.
pub fn sleep(time: Duration) {
    let mut left = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
    while let NanosleepRelativeResult::Interrupted(rest) = nanosleep(&left) {
        left = rest;
    }
}

/// Prints a time as seconds with three decimals: `0.291 s`.
pub struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{:03} s", self.0.as_secs(), self.0.subsec_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn seconds_have_three_decimals() {
        assert_eq!(format!("{}", Seconds(Duration::from_millis(12_007))), "12.007 s");
        assert_eq!(format!("{}", Seconds(Duration::from_micros(999))), "0.000 s");
    }

    #[test]
    fn the_clock_goes_on() {
        let before = now();
        sleep(Duration::from_millis(2));
        assert!(now() - before >= Duration::from_millis(2));
    }
}
