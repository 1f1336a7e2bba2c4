//! What can go wrong with a watermark service, on demand: what `serve --fault` takes.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::StatusCode;

/// What `--help` says about `--fault`.
pub const HELP: &str = "What to do wrong, repeatable. Only /health for the fault that names it, else /api/watermark:
  slow=SECONDS        waits that long before the answer
  fail=STATUS         answers this status (300 to 599) with a JSON error
  cut                 sends half of the answer, then ends the TCP connection without a TLS close
  cut-before          ends the connection in place of the answer
  no-data             succeeds without watermarked_data
  not-json            answers 200 with HTML
  huge=BYTES          succeeds with watermarked_data of that many bytes
  status-error        answers 200 with {\"status\":\"error\"}
  unmarked            gives the file back as it came
  empty               gives back an empty file
  no-encoding         takes base64 for the text to mark, and leaves out encoding
  other-kind          gives back a file of another kind, a PDF (for a PDF a ZIP)
  not-utf8            gives back bytes that are not UTF-8, in base64
  base64-lines        writes base64 in lines of 76 characters with CR LF, and without padding
  early=STATUS        answers this status (200 to 599) from the head alone and closes; the body is not read
  early-keep=STATUS   answers likewise, and reads the body and keeps the connection
  twice               sends the answer twice
  retry-after=SECONDS adds Retry-After to what fail or early answers
  big-head=BYTES      adds a header field with a value of that many bytes (at most 16777216)
  fields=N            adds header fields until there are that many (8 to 10000)
  unhealthy           /health answers 503
  first=N             only the first N requests to which a fault applies meet it";

/// Longest `slow`: a day.
const MAX_SECONDS: f64 = 86_400.0;
/// Largest `big-head`, in bytes.
const MAX_HEAD: u64 = 16 << 20;

/// Faults that cannot all happen to one answer.
const ONCE: &str = "--fault: give each fault once, and only one of fail, early, early-keep, cut-before, no-data, \
                    not-json, huge, status-error, unmarked, empty, no-encoding, other-kind, not-utf8";

/// One `--fault`.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
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
pub enum Instead {
    Status(StatusCode),
    Nothing,
    NoData,
    Html,
    Huge(u64),
    StatusError,
}

/// What is answered before the body is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Early {
    pub status: StatusCode,
    /// The body is read afterwards, and the connection kept.
    pub keep: bool,
}

/// What stands in place of the marked file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WrongFile {
    /// The file as it came.
    Unmarked,
    Empty,
    /// What stood in the JSON, marked as text: a service that does not know `encoding`.
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
    let status = |lowest| (lowest..=599).contains(&number).then(|| StatusCode::from_u16(number as u16).ok())?;
    Some(match name {
        "fail" => Fault::Instead(Instead::Status(status(300)?)),
        "early" => Fault::Early(Early { status: status(200)?, keep: false }),
        "early-keep" => Fault::Early(Early { status: status(200)?, keep: true }),
        "huge" => Fault::Instead(Instead::Huge(number)),
        "retry-after" => Fault::RetryAfter(number),
        "big-head" if number <= MAX_HEAD => Fault::BigHead(number as usize),
        "fields" if (8..=10_000).contains(&number) => Fault::Fields(number as usize),
        "first" => Fault::First(number),
        _ => return None,
    })
}

/// All faults of one run, and how many requests still meet them.
#[derive(Debug, Default)]
pub struct Faults {
    on_watermark: Met,
    unhealthy: bool,
    left: Option<AtomicU64>,
}

/// The faults that one request to `/api/watermark` meets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Met {
    pub slow: Option<Duration>,
    pub early: Option<Early>,
    pub instead: Option<Instead>,
    pub file: Option<WrongFile>,
    pub cut: bool,
    pub twice: bool,
    pub base64_lines: bool,
    pub retry_after: Option<u64>,
    pub big_head: Option<usize>,
    pub fields: Option<usize>,
}

impl Faults {
    /// # Errors
    /// Two faults that cannot both happen, or one that only adds to another, without that.
    pub fn combine(faults: &[Fault]) -> Result<Self, String> {
        let mut all = Faults::default();
        let met = &mut all.on_watermark;
        for fault in faults {
            let repeated = match fault {
                Fault::Slow(wait) => met.slow.replace(*wait).is_some(),
                Fault::Early(early) => met.early.replace(*early).is_some(),
                Fault::Instead(instead) => met.instead.replace(*instead).is_some(),
                Fault::File(wrong) => met.file.replace(*wrong).is_some(),
                Fault::Cut => std::mem::replace(&mut met.cut, true),
                Fault::Twice => std::mem::replace(&mut met.twice, true),
                Fault::Base64Lines => std::mem::replace(&mut met.base64_lines, true),
                Fault::RetryAfter(seconds) => met.retry_after.replace(*seconds).is_some(),
                Fault::BigHead(bytes) => met.big_head.replace(*bytes).is_some(),
                Fault::Fields(n) => met.fields.replace(*n).is_some(),
                Fault::Unhealthy => std::mem::replace(&mut all.unhealthy, true),
                Fault::First(n) => all.left.replace(AtomicU64::new(*n)).is_some(),
            };
            if repeated {
                return Err(ONCE.to_owned());
            }
        }
        met.check()?;
        if all.left.is_some() && !all.unhealthy && all.on_watermark == Met::default() {
            return Err("--fault: first=N restricts other faults; name one".to_owned());
        }
        Ok(all)
    }

    /// What a request to `/api/watermark` meets. Counts it, if there is anything to meet.
    pub fn meet(&self) -> Met {
        if self.on_watermark != Met::default() && self.counts() { self.on_watermark } else { Met::default() }
    }

    /// Whether a request to `/health` is to find the service unhealthy. Counts it, if so.
    pub fn unhealthy(&self) -> bool {
        self.unhealthy && self.counts()
    }

    fn counts(&self) -> bool {
        let take = |left: &AtomicU64| left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        self.left.as_ref().is_none_or(|left| take(left).is_ok())
    }
}

impl Met {
    /// Whether these can happen in one answer.
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
        let met: Vec<bool> = (0..4).map(|_| faults.meet().instead.is_some()).collect();
        assert_eq!(met, [true, true, false, false]);
    }
}
