//! What can go wrong with a watermark service, on demand: what `serve --fault` takes.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::StatusCode;

/// What `--help` says about `--fault`.
pub const HELP: &str = "What to do wrong, repeatable:
  slow=SECONDS   waits that long before the answer of /api/watermark
  fail=STATUS    /api/watermark answers this status (300 to 599) with a JSON error
  cut            sends half of /api/watermark's answer, then ends the TCP connection without a TLS close
  cut-before     ends the connection in place of /api/watermark's answer
  no-data        /api/watermark succeeds without watermarked_data
  not-json       /api/watermark answers 200 with HTML
  huge=BYTES     /api/watermark succeeds with watermarked_data of that many bytes
  status-error   /api/watermark answers 200 with {\"status\":\"error\"}
  unhealthy      /health answers 503
  first=N        only the first N requests to which a fault applies meet it";

/// Longest `slow`: a day.
const MAX_SECONDS: f64 = 86_400.0;

/// One `--fault`.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    Slow(Duration),
    Instead(Instead),
    Cut,
    Unhealthy,
    First(u64),
}

/// What `/api/watermark` answers in place of its own answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Instead {
    Status(StatusCode),
    Nothing,
    NoData,
    Html,
    Huge(u64),
    StatusError,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let number = |value: Option<&str>| -> Option<u64> {
            value?.bytes().all(|b| b.is_ascii_digit()).then(|| value?.parse().ok())?
        };
        let fault = match (name, value) {
            ("slow", Some(seconds)) => seconds
                .parse()
                .ok()
                .filter(|s| (0.0..=MAX_SECONDS).contains(s))
                .map(|s| Fault::Slow(Duration::from_secs_f64(s))),
            ("fail", Some(_)) => number(value)
                .filter(|status| (300..=599).contains(status))
                .and_then(|status| StatusCode::from_u16(status as u16).ok())
                .map(|status| Fault::Instead(Instead::Status(status))),
            ("huge", Some(_)) => number(value).map(|bytes| Fault::Instead(Instead::Huge(bytes))),
            ("first", Some(_)) => number(value).map(Fault::First),
            ("cut", None) => Some(Fault::Cut),
            ("cut-before", None) => Some(Fault::Instead(Instead::Nothing)),
            ("no-data", None) => Some(Fault::Instead(Instead::NoData)),
            ("not-json", None) => Some(Fault::Instead(Instead::Html)),
            ("status-error", None) => Some(Fault::Instead(Instead::StatusError)),
            ("unhealthy", None) => Some(Fault::Unhealthy),
            _ => None,
        };
        fault.ok_or_else(|| {
            "no such fault; possible are slow=SECONDS, fail=STATUS (300 to 599), cut, cut-before, no-data, not-json, \
             huge=BYTES, status-error, unhealthy, first=N"
                .to_owned()
        })
    }
}

/// All faults of one run, and how many requests still meet them.
#[derive(Debug, Default)]
pub struct Faults {
    slow: Option<Duration>,
    instead: Option<Instead>,
    cut: bool,
    unhealthy: bool,
    left: Option<AtomicU64>,
}

/// The faults that one request to `/api/watermark` meets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Met {
    pub slow: Option<Duration>,
    pub instead: Option<Instead>,
    pub cut: bool,
}

impl Faults {
    /// # Errors
    /// Two faults that cannot both happen, or `first` with nothing to restrict.
    pub fn combine(faults: &[Fault]) -> Result<Self, String> {
        let mut all = Faults::default();
        for fault in faults {
            let repeated = match fault {
                Fault::Slow(wait) => all.slow.replace(*wait).is_some(),
                Fault::Instead(instead) => all.instead.replace(instead.clone()).is_some(),
                Fault::Cut => std::mem::replace(&mut all.cut, true),
                Fault::Unhealthy => std::mem::replace(&mut all.unhealthy, true),
                Fault::First(n) => all.left.replace(AtomicU64::new(*n)).is_some(),
            };
            if repeated {
                return Err("--fault: give each fault once, and only one of fail, cut-before, no-data, not-json, \
                            huge, status-error"
                    .to_owned());
            }
        }
        if all.cut && all.instead == Some(Instead::Nothing) {
            return Err("--fault: cut and cut-before exclude each other".to_owned());
        }
        if all.left.is_some() && !all.unhealthy && all.on_watermark() == Met::default() {
            return Err("--fault: first=N restricts other faults; name one".to_owned());
        }
        Ok(all)
    }

    /// What a request to `/api/watermark` meets. Counts it, if there is anything to meet.
    pub fn meet(&self) -> Met {
        let met = self.on_watermark();
        if met != Met::default() && self.counts() { met } else { Met::default() }
    }

    /// Whether a request to `/health` is to find the service unhealthy. Counts it, if so.
    pub fn unhealthy(&self) -> bool {
        self.unhealthy && self.counts()
    }

    fn on_watermark(&self) -> Met {
        Met { slow: self.slow, instead: self.instead.clone(), cut: self.cut }
    }

    fn counts(&self) -> bool {
        let take = |left: &AtomicU64| left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        self.left.as_ref().is_none_or(|left| take(left).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(texts: &[&str]) -> Result<Faults, String> {
        Faults::combine(&texts.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>()?)
    }

    #[test]
    fn every_fault_that_help_lists_is_understood() {
        let listed = HELP.lines().skip(1).map(|line| line.split_whitespace().next().unwrap());
        let mut count = 0;
        for name in listed {
            let text = name.replace("SECONDS", "0.5").replace("STATUS", "503").replace("BYTES", "9").replace('N', "1");
            assert!(text.parse::<Fault>().is_ok(), "{text}");
            count += 1;
        }
        assert_eq!(count, 10);
    }

    #[test]
    fn anything_else_is_refused_with_the_list() {
        for text in [
            "",
            "slow",
            "slow=",
            "slow=-1",
            "slow=inf",
            "slow=NaN",
            "slow=1e9",
            "fail",
            "fail=99",
            "fail=200",
            "fail=600",
            "fail=+503",
            "cut=1",
            "cut-after",
            "Cut",
            "huge=1k",
            "huge=-1",
            "first=",
            "unhealthy=yes",
        ] {
            assert!(text.parse::<Fault>().unwrap_err().contains("slow=SECONDS"), "{text}");
        }
    }

    #[test]
    fn faults_that_exclude_each_other_are_refused() {
        for texts in
            [&["cut", "cut"][..], &["fail=500", "no-data"], &["huge=1", "huge=2"], &["cut", "cut-before"], &["first=1"]]
        {
            assert!(faults(texts).is_err(), "{texts:?}");
        }
        assert!(faults(&["slow=1", "huge=9", "cut", "unhealthy", "first=2"]).is_ok());
    }

    #[test]
    fn first_restricts_only_requests_that_a_fault_applies_to() {
        let faults = faults(&["no-data", "first=2"]).unwrap();
        assert!(!faults.unhealthy());
        let met: Vec<bool> = (0..4).map(|_| faults.meet().instead.is_some()).collect();
        assert_eq!(met, [true, true, false, false]);
    }
}
