//! The faults that `serve --fault` makes the service have, to test its clients.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::StatusCode;

/// What `--help` says about `--fault`.
pub(crate) const HELP: &str = "A fault to have, repeatable. All but unhealthy affect /api/watermark only:
  slow=SECONDS        waits that long before the answer
  fail=STATUS         answers this status (300 to 599) with a JSON error
  cut                 sends half of the answer, then ends the TCP connection without a TLS close
  cut-before          ends the connection in place of the answer
  no-data             succeeds without watermarked_data
  not-json            answers 200 with HTML
  huge=BYTES          succeeds with watermarked_data of that many bytes
  status-error        answers 200 with {\"status\":\"error\"}
  unmarked            gives the file back unchanged
  empty               gives back an empty file
  no-encoding         marks the base64 itself, as text, and leaves out encoding
  other-kind          gives back a file of another kind, a PDF (for a PDF a ZIP)
  not-utf8            gives back bytes that are not UTF-8, in base64
  base64-lines        writes base64 in lines of 76 characters with CR LF, and without padding
  early=STATUS        answers this status (200 to 599) from the head alone and closes; the body is not read
  early-keep=STATUS   the same, but reads the body and keeps the connection open
  twice               sends the answer twice
  retry-after=SECONDS adds Retry-After to what fail or early answers
  big-head=BYTES      adds a header field with a value of that many bytes (at most 16777216)
  fields=N            adds header fields until there are that many (8 to 10000)
  unhealthy           /health answers 503
  first=N             the faults affect only the first N requests that they apply to";

/// Longest `slow`: a day.
const MAX_SECONDS: f64 = 86_400.0;
/// Largest `big-head`, in bytes.
const MAX_HEAD: u64 = 16 << 20;

/// The error for faults that exclude each other.
const ONCE: &str = "--fault: give each fault once, and only one of fail, early, early-keep, cut-before, no-data, \
                    not-json, huge, status-error, unmarked, empty, no-encoding, other-kind, not-utf8";

/// One `--fault`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    Slow(Duration),
    Early(Early),
    Instead(Instead),
    File(WrongFile),
    Cut,
    Twice,
    Base64Lines,
    RetryAfter(u64),
    BigHead(usize),
    Fields(usize),
    Unhealthy,
    First(u64),
}

/// What `/api/watermark` answers in place of its own answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Instead {
    Status(StatusCode),
    Nothing,
    NoData,
    Html,
    Huge(u64),
    StatusError,
}

/// What is answered before the body is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Early {
    pub(crate) status: StatusCode,
    /// Whether the body is read afterwards and the connection kept open.
    pub(crate) keep: bool,
}

/// What is given back in place of the marked file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum WrongFile {
    /// The file unchanged.
    Unmarked,
    Empty,
    /// The JSON member's text, marked as it is: a service that does not know `encoding`.
    NoEncoding,
    OtherKind,
    NotUtf8,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let fault = match value {
            None => plain(name),
            Some(value) => with_value(name, value),
        };
        fault.ok_or_else(|| {
            let names: Vec<_> = HELP.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
            format!("not a fault, or not a value that it takes (see --help); possible are {}", names.join(", "))
        })
    }
}

fn plain(name: &str) -> Option<Fault> {
    Some(match name {
        "cut" => Fault::Cut,
        "twice" => Fault::Twice,
        "base64-lines" => Fault::Base64Lines,
        "unhealthy" => Fault::Unhealthy,
        "cut-before" => Fault::Instead(Instead::Nothing),
        "no-data" => Fault::Instead(Instead::NoData),
        "not-json" => Fault::Instead(Instead::Html),
        "status-error" => Fault::Instead(Instead::StatusError),
        "unmarked" => Fault::File(WrongFile::Unmarked),
        "empty" => Fault::File(WrongFile::Empty),
        "no-encoding" => Fault::File(WrongFile::NoEncoding),
        "other-kind" => Fault::File(WrongFile::OtherKind),
        "not-utf8" => Fault::File(WrongFile::NotUtf8),
        _ => return None,
    })
}

fn with_value(name: &str, value: &str) -> Option<Fault> {
    if name == "slow" {
        let seconds = value.parse().ok().filter(|s| (0.0..=MAX_SECONDS).contains(s))?;
        return Some(Fault::Slow(Duration::from_secs_f64(seconds)));
    }
    if !value.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = value.parse().ok()?;
    let status = |lowest| StatusCode::from_u16(u16::try_from(number).ok().filter(|n| (lowest..=599).contains(n))?).ok();
    Some(match name {
        "fail" => Fault::Instead(Instead::Status(status(300)?)),
        "early" => Fault::Early(Early { status: status(200)?, keep: false }),
        "early-keep" => Fault::Early(Early { status: status(200)?, keep: true }),
        "huge" => Fault::Instead(Instead::Huge(number)),
        "retry-after" => Fault::RetryAfter(number),
        "big-head" if number <= MAX_HEAD => Fault::BigHead(usize::try_from(number).ok()?),
        "fields" if (8..=10_000).contains(&number) => Fault::Fields(usize::try_from(number).ok()?),
        "first" => Fault::First(number),
        _ => return None,
    })
}

/// All faults of one run, and how many requests they still affect.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    on_watermark: ActiveFaults,
    unhealthy: bool,
    left: Option<AtomicU64>,
}

/// The faults of one request to `/api/watermark`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ActiveFaults {
    pub(crate) slow: Option<Duration>,
    pub(crate) early: Option<Early>,
    pub(crate) instead: Option<Instead>,
    pub(crate) file: Option<WrongFile>,
    pub(crate) cut: bool,
    pub(crate) twice: bool,
    pub(crate) base64_lines: bool,
    pub(crate) retry_after: Option<u64>,
    pub(crate) big_head: Option<usize>,
    pub(crate) fields: Option<usize>,
}

impl Faults {
    /// # Errors
    /// Two faults exclude each other, or one that only changes another is given without it.
    pub(crate) fn combine(faults: &[Fault]) -> Result<Self, String> {
        let mut all = Faults::default();
        let active = &mut all.on_watermark;
        for fault in faults {
            let repeated = match fault {
                Fault::Slow(wait) => active.slow.replace(*wait).is_some(),
                Fault::Early(early) => active.early.replace(*early).is_some(),
                Fault::Instead(instead) => active.instead.replace(*instead).is_some(),
                Fault::File(wrong) => active.file.replace(*wrong).is_some(),
                Fault::Cut => std::mem::replace(&mut active.cut, true),
                Fault::Twice => std::mem::replace(&mut active.twice, true),
                Fault::Base64Lines => std::mem::replace(&mut active.base64_lines, true),
                Fault::RetryAfter(seconds) => active.retry_after.replace(*seconds).is_some(),
                Fault::BigHead(bytes) => active.big_head.replace(*bytes).is_some(),
                Fault::Fields(n) => active.fields.replace(*n).is_some(),
                Fault::Unhealthy => std::mem::replace(&mut all.unhealthy, true),
                Fault::First(n) => all.left.replace(AtomicU64::new(*n)).is_some(),
            };
            if repeated {
                return Err(ONCE.to_owned());
            }
        }
        active.check()?;
        if all.left.is_some() && !all.unhealthy && all.on_watermark == ActiveFaults::default() {
            return Err("--fault: first=N restricts other faults; name one".to_owned());
        }
        Ok(all)
    }

    /// The faults of this request to `/api/watermark`. Counts it if there are any.
    pub(crate) fn for_watermark(&self) -> ActiveFaults {
        if self.on_watermark != ActiveFaults::default() && self.counts() {
            self.on_watermark
        } else {
            ActiveFaults::default()
        }
    }

    /// Whether this request to `/health` finds the service unhealthy. Counts it if so.
    pub(crate) fn unhealthy(&self) -> bool {
        self.unhealthy && self.counts()
    }

    fn counts(&self) -> bool {
        let take = |left: &AtomicU64| left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        self.left.as_ref().is_none_or(|left| take(left).is_ok())
    }
}

impl ActiveFaults {
    /// Checks that these can happen in one answer.
    fn check(&self) -> Result<(), String> {
        let refuse = |message: &str| Err(format!("--fault: {message}"));
        if u8::from(self.early.is_some()) + u8::from(self.instead.is_some()) + u8::from(self.file.is_some()) > 1 {
            return Err(ONCE.to_owned());
        }
        if self.cut && self.instead == Some(Instead::Nothing) {
            return refuse("cut and cut-before exclude each other");
        }
        if self.twice && (self.cut || self.instead == Some(Instead::Nothing)) {
            return refuse("twice excludes cut and cut-before");
        }
        let refuses = self.early.is_some() || matches!(self.instead, Some(Instead::Status(_)));
        if self.retry_after.is_some() && !refuses {
            return refuse("retry-after goes with fail, early or early-keep");
        }
        Ok(())
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
            let text = name.replace("SECONDS", "5").replace("STATUS", "503").replace("BYTES", "9").replace('N', "8");
            assert!(text.parse::<Fault>().is_ok(), "{text}");
            count += 1;
        }
        assert_eq!(count, 22);
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
            "unmarked=1",
            "early",
            "early=199",
            "early-keep=600",
            "retry-after=1.5",
            "big-head=16777217",
            "fields=7",
            "fields=10001",
            "first=99999999999999999999",
        ] {
            assert!(text.parse::<Fault>().unwrap_err().contains("slow=SECONDS"), "{text}");
        }
    }

    #[test]
    fn faults_that_exclude_each_other_are_refused() {
        for texts in [
            &["cut", "cut"][..],
            &["fail=500", "no-data"],
            &["huge=1", "huge=2"],
            &["cut", "cut-before"],
            &["first=1"],
            &["unmarked", "empty"],
            &["early=413", "early-keep=413"],
            &["early=413", "fail=413"],
            &["fail=413", "unmarked"],
            &["twice", "cut"],
            &["twice", "cut-before"],
            &["retry-after=1"],
            &["retry-after=1", "no-data"],
            &["fields=9", "fields=9"],
        ] {
            assert!(faults(texts).is_err(), "{texts:?}");
        }
        assert!(faults(&["slow=1", "huge=9", "cut", "unhealthy", "first=2"]).is_ok());
        assert!(faults(&["twice", "unmarked", "base64-lines", "big-head=9", "fields=9"]).is_ok());
        assert!(faults(&["early=503", "retry-after=1", "slow=1"]).is_ok());
    }

    #[test]
    fn first_restricts_only_requests_that_a_fault_applies_to() {
        let faults = faults(&["no-data", "first=2"]).unwrap();
        assert!(!faults.unhealthy());
        let active: Vec<bool> = (0..4).map(|_| faults.for_watermark().instead.is_some()).collect();
        assert_eq!(active, [true, true, false, false]);
    }
}
