//! How fast a peer has to be.

use std::time::{Duration, Instant};

/// A peer keeps pace while its bytes come at 32 KiB a second on average, after a grace period of 10 s, and never pause
/// for as long as that. So a slow line is served, and a peer that only wants to hold a connection is not.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    since: Instant,
    last: Instant,
    bytes: u64,
}

impl Pace {
    const GRACE: Duration = Duration::from_secs(10);
    const BYTES_A_SECOND: u64 = 32 << 10;

    /// Starts the clock.
    pub fn from(now: Instant) -> Pace {
        Pace { since: now, last: now, bytes: 0 }
    }

    /// This many bytes have moved.
    pub fn moved(&mut self, bytes: usize, now: Instant) {
        if bytes > 0 {
            self.last = now;
            self.bytes += bytes as u64;
        }
    }

    /// The peer was kept waiting for this long, which is not counted against it.
    pub fn pause(&mut self, waited: Duration) {
        self.since += waited;
        self.last += waited;
    }

    /// When bytes last moved.
    pub fn last(&self) -> Instant {
        self.last
    }

    /// When the peer becomes too slow, unless more bytes move before.
    pub fn deadline(&self) -> Instant {
        let average = self.since + Duration::from_millis(self.bytes * 1000 / Pace::BYTES_A_SECOND);
        average.min(self.last) + Pace::GRACE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_peer_has_ten_seconds_and_one_for_each_32_kib() {
        let start = Instant::now();
        let mut pace = Pace::from(start);
        assert_eq!(pace.deadline(), start + 10 * SECOND);
        for second in 1..60 {
            pace.moved(32 << 10, start + second * SECOND);
        }
        assert_eq!(pace.deadline(), start + 69 * SECOND);
        pace.moved(1, start + 68 * SECOND);
        assert_eq!(pace.deadline(), start + 69 * SECOND, "a byte now and then does not move the average");
        let mut fast = Pace::from(start);
        fast.moved(1 << 30, start + SECOND);
        assert_eq!(fast.deadline(), start + 11 * SECOND, "nor does haste allow for a pause");
    }

    #[test]
    fn time_in_which_the_peer_was_kept_waiting_does_not_count() {
        let start = Instant::now();
        let mut pace = Pace::from(start);
        pace.pause(5 * SECOND);
        assert_eq!(pace.deadline(), start + 15 * SECOND);
    }
}
