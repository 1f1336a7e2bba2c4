//! NumericDate: seconds since 1970. JSON allows a fraction and an exponent (RFC 7519, 2), and languages whose clocks
//! use floating point write both.

use serde_json::value::RawValue;

/// Most digits, and largest exponent: no real date has more.
const LONGEST: usize = 64;

/// A moment to the second; of what is beyond, only `fraction` is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NumericDate {
    pub whole: u64,
    /// Whether the moment is a fraction of a second later.
    pub(super) fraction: bool,
}

impl NumericDate {
    /// The last whole second that is not after this moment. What ends at the moment has ended at that second.
    pub(super) fn down(self) -> u64 {
        self.whole
    }

    /// The first whole second that is not before it. What begins at the moment has begun at that second.
    pub(super) fn up(self) -> u64 {
        self.whole.saturating_add(self.fraction.into())
    }

    /// Parses a number exactly; `None` for a negative number, one far too large, and what is not a number.
    pub(super) fn read(number: &RawValue) -> Option<NumericDate> {
        let text = number.get();
        if text.len() > LONGEST || !text.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let (digits, exponent) = match text.split_once(['e', 'E']) {
            Some((digits, exponent)) => (digits, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (before, after) = digits.split_once('.').unwrap_or((digits, ""));
        // The number of digits before the decimal point.
        let point = i64::try_from(before.len()).ok()? + i64::from(exponent);
        let mut date = NumericDate { whole: 0, fraction: false };
        for (i, digit) in (0..).zip(before.bytes().chain(after.bytes())) {
            let digit = u64::from(digit - b'0');
            match i < point {
                true => date.whole = date.whole.checked_mul(10)?.checked_add(digit)?,
                false => date.fraction |= digit != 0,
            }
        }
        for _ in i64::try_from(before.len() + after.len()).ok()?..point {
            match date.whole {
                0 => break,
                _ => date.whole = date.whole.checked_mul(10)?,
            }
        }
        Some(date)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(u64, u64)> {
        let date = NumericDate::read(&RawValue::from_string(text.into()).unwrap())?;
        Some((date.down(), date.up()))
    }

    #[test]
    fn numbers_in_all_their_forms_are_read_exactly() {
        for (text, down, up) in [
            ("0", 0, 0),
            ("0.0", 0, 0),
            ("0e99", 0, 0),
            ("0.5", 0, 1),
            ("1764000000", 1_764_000_000, 1_764_000_000),
            ("1764000000.0", 1_764_000_000, 1_764_000_000),
            ("1764000000.7182817", 1_764_000_000, 1_764_000_001),
            ("1764000000.00000000000000000000000000001", 1_764_000_000, 1_764_000_001),
            ("1.764e9", 1_764_000_000, 1_764_000_000),
            ("1.7640000001e+9", 1_764_000_000, 1_764_000_001),
            ("17640000005E-1", 1_764_000_000, 1_764_000_001),
            ("17640000000e-1", 1_764_000_000, 1_764_000_000),
            ("1e-2000000000", 0, 1),
            ("0.00000000017e19", 1_700_000_000, 1_700_000_000),
            ("18446744073709551615", u64::MAX, u64::MAX),
            ("18446744073709551615.5", u64::MAX, u64::MAX),
            // 2^53 + 1, which f64 cannot represent.
            ("9007199254740993", 9_007_199_254_740_993, 9_007_199_254_740_993),
        ] {
            assert_eq!(read(text), Some((down, up)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_moment_is_not_read() {
        let long = format!("1.{}", "0".repeat(64));
        for text in [
            "-1",
            "-0.5",
            "-0",
            "1e20",
            "1e2000000000",
            "1e99999999999",
            "18446744073709551616",
            "\"1764000000\"",
            "null",
            "true",
            "[1]",
            "{}",
            &long,
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
