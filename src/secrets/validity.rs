//! The client certificate's validity, and the warnings before it ends.

use formats::time::Utc;

/// How many days before a certificate expires there is a warning.
const WARNED_OF: [u64; 3] = [1, 7, 30];
const DAY: u64 = 86_400;

/// The first and the last second at which a certificate chain is valid.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// The first second.
    pub begins: Utc,
    /// The last second.
    pub ends: Utc,
}

/// What there is to say about a certificate at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remark {
    /// It expires within this many days.
    ExpiresWithin(u64),
    /// It has expired.
    Expired,
    /// It is not valid yet.
    NotYetValid,
}

impl Validity {
    /// Why the certificate cannot be used at `now`, and what to do.
    pub fn fault(&self, now: Utc) -> Option<String> {
        match self.remark(now)? {
            Remark::Expired => Some(format!("expired at {}; send a new one with teemark secrets", self.ends)),
            Remark::NotYetValid => Some(format!(
                "not valid before {}; if the enclave's clock is right, {now}, send another with teemark secrets",
                self.begins
            )),
            Remark::ExpiresWithin(_) => None,
        }
    }

    /// The warning that is due at `now`, if `last` was the last remark; updates `last`.
    pub fn warning(&self, last: &mut Option<Remark>, now: Utc) -> Option<String> {
        let remark = self.remark(now);
        if std::mem::replace(last, remark) == remark {
            return None;
        }
        match remark? {
            Remark::ExpiresWithin(1) => Some(self.expires_within("a day")),
            Remark::ExpiresWithin(days) => Some(self.expires_within(&format!("{days} days"))),
            Remark::Expired => self.fault(now),
            Remark::NotYetValid => self.fault(now).map(|fault| format!("is {fault}")),
        }
    }

    fn expires_within(&self, time: &str) -> String {
        format!("expires within {time}, at {}; send a new one with teemark secrets", self.ends)
    }

    fn remark(&self, now: Utc) -> Option<Remark> {
        if now > self.ends {
            return Some(Remark::Expired);
        }
        if now < self.begins {
            return Some(Remark::NotYetValid);
        }
        let left = self.ends.0 - now.0;
        WARNED_OF.into_iter().find(|days| left <= days * DAY).map(Remark::ExpiresWithin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALIDITY: Validity = Validity { begins: Utc(1000), ends: Utc(1000 + 365 * DAY) };

    /// The moment `seconds` before the end.
    fn before_the_end(seconds: u64) -> Utc {
        Utc(VALIDITY.ends.0 - seconds)
    }

    #[test]
    fn a_warning_comes_once_at_30_7_and_1_days_before_the_end_and_once_when_it_has_come() {
        let mut last = None;
        let mut warnings = Vec::new();
        // Every hour for a year and a bit.
        for hour in 0..=366 * 24 {
            let now = Utc(VALIDITY.begins.0 + hour * 3600);
            warnings.extend(VALIDITY.warning(&mut last, now).map(|warning| (hour, warning)));
        }
        let hour = |days: u64| (365 - days) * 24;
        let starts = [
            (hour(30), "expires within 30 days, at "),
            (hour(7), "expires within 7 days, at "),
            (hour(1), "expires within a day, at "),
            (hour(0) + 1, "expired at "),
        ];
        assert_eq!(warnings.len(), starts.len(), "{warnings:?}");
        for ((hour, warning), (at, start)) in warnings.iter().zip(starts) {
            assert_eq!(*hour, at, "{warning}");
            assert!(warning.starts_with(&format!("{start}{}", VALIDITY.ends)), "{warning}");
            assert!(warning.contains("send a new one with teemark secrets"), "{warning}");
        }
    }

    #[test]
    fn a_certificate_that_comes_late_is_warned_of_at_once_and_only_for_what_is_left() {
        let mut last = None;
        let warning = VALIDITY.warning(&mut last, before_the_end(3 * DAY)).unwrap();
        assert!(warning.starts_with("expires within 7 days"), "{warning}");
        assert_eq!(VALIDITY.warning(&mut last, before_the_end(2 * DAY)), None);
        // Another certificate in its place, about which nothing has been said.
        last = None;
        assert!(VALIDITY.warning(&mut last, before_the_end(2 * DAY)).is_some());
    }

    #[test]
    fn a_certificate_has_a_fault_outside_of_its_time_and_to_the_second() {
        for (now, fault) in [
            (Utc(999), Some("not valid before 1970-01-01T00:16:40Z")),
            (Utc(1000), None),
            (before_the_end(0), None),
            (Utc(VALIDITY.ends.0 + 1), Some("expired at 1971-01-01T00:16:40Z")),
        ] {
            let found = VALIDITY.fault(now);
            assert_eq!(found.is_some(), fault.is_some(), "{now}: {found:?}");
            assert!(fault.is_none_or(|fault| found.clone().unwrap().starts_with(fault)), "{now}: {found:?}");
        }
    }
}
