//! Times as people read them: `2026-11-23T19:06:35Z`.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970-01-01T00:00:00Z, printed in UTC by RFC 3339.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Utc(pub u64);

impl Utc {
    /// The system clock's time; a clock before 1970 counts as 1970.
    pub fn now() -> Utc {
        Utc(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }

    /// Reads a time as it is printed here; `None` if it is written in another way, or is not one.
    pub fn parse(text: &str) -> Option<Utc> {
        let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let seconds = number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?;
        // A year before, days are counted in whole years; the day is one of the 366 that follow.
        let first = year.checked_sub(1970)? * 365;
        let time = (first..first + 366 + year / 4).find(|&days| date(days) == (year, month, day))? * 86_400 + seconds;
        // What is not printed so is not a time: another form, or a number out of its range.
        Some(Utc(time)).filter(|time| time.to_string() == text)
    }
}

/// The system clock's time in milliseconds since 1970-01-01T00:00:00Z; a clock before that counts as 0.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date(self.0 / 86_400);
        let (hour, minute, second) = (self.0 / 3600 % 24, self.0 / 60 % 60, self.0 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// The date of a day counted from 1970-01-01 in the proleptic Gregorian calendar. Years are counted from March, so
/// that a leap day is the last day of its year, in eras of 400 years, which all have 146,097 days.
fn date(day: u64) -> (u64, u64, u64) {
    let shifted = day + 719_468; // days since 0000-03-01
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day_of_year - (153 * from_march + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_print_as_date_does() {
        // Each line: date -u -d @SECONDS +%FT%TZ
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_078_012_800, "2004-02-29T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(Utc(seconds).to_string(), text);
            assert_eq!(Utc::parse(text), Some(Utc(seconds)));
        }
    }

    #[test]
    fn what_is_not_a_moment_is_not_read() {
        for text in [
            "",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01 00:00:00Z",
            "2026-01-01T00:00:00",
            "+026-01-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-01-01T00:00:00Zx",
            "２０２６-01-01T00:00:00Z",
        ] {
            assert_eq!(Utc::parse(text), None, "{text}");
        }
    }
}
