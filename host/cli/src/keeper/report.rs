//! What the keeper tells: a line of JSON for each act, and counters.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use formats::time::Utc;
use serde_json::{Map, Value, json};

use crate::output;
use crate::terminal::json_line;

/// Longest member of a line, in characters.
const LONGEST: usize = 2000;

/// Writes lines and counts.
pub(crate) struct Report {
    /// Members of each line: what the configuration does not prove.
    marks: Map<String, Value>,
    numbers: Mutex<Numbers>,
}

#[derive(Default)]
struct Numbers {
    boots: u64,
    /// Bundles by how it went.
    bundles: BTreeMap<&'static str, u64>,
    /// Faults of sources, by item.
    faults: BTreeMap<String, u64>,
    /// Whether each item has a value, and when it changed.
    sources: BTreeMap<String, Option<u64>>,
    enclaves: BTreeMap<String, Standing>,
    history_faults: u64,
    /// Bundles that other keepers passed on, by whether this one signed them.
    passed: BTreeMap<&'static str, u64>,
    pace: Pace,
}

/// How many lines may be told of what others do: anybody may do it as often as they like.
struct Pace {
    left: u32,
    /// When the last place came free.
    since: Instant,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { left: Pace::MOST, since: Instant::now() }
    }
}

impl Pace {
    /// Most at once.
    const MOST: u32 = 20;
    /// Then one in this time.
    const EACH: Duration = Duration::from_secs(3);

    fn has_place(&mut self, now: Instant) -> bool {
        while self.left < Pace::MOST && now >= self.since + Pace::EACH {
            (self.left, self.since) = (self.left + 1, self.since + Pace::EACH);
        }
        if self.left == Pace::MOST {
            self.since = now;
        }
        let has = self.left > 0;
        self.left -= u32::from(has);
        has
    }
}

/// How it stands with one enclave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// It was attested when it was last looked at.
    pub(crate) attested: bool,
    /// It has everything that the sources have.
    pub(crate) current: bool,
    /// Items that differ and are held back.
    pub(crate) held: usize,
}

impl Report {
    /// With these marks, by their names, in each line.
    pub(crate) fn new(set: &[&str]) -> Report {
        let marks = set.iter().map(|name| ((*name).to_owned(), true.into())).collect();
        Report { marks, numbers: Mutex::default() }
    }

    /// Tells that something happened.
    pub(crate) fn line(&self, event: &str, members: Value) {
        let mut line = json!({"time": Utc::now().to_string(), "event": event});
        for (name, value) in self.marks.clone().into_iter().chain(members.as_object().cloned().unwrap_or_default()) {
            line[name] = bounded(value);
        }
        // Standard output may be closed.
        let _ = output::to_stdout(json_line(&line).as_bytes());
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn boot(&self) {
        self.numbers().boots += 1;
    }

    pub(crate) fn bundle(&self, result: &'static str) {
        *self.numbers().bundles.entry(result).or_default() += 1;
    }

    /// Counts a bundle that another keeper passed on, and tells of it unless there was much to tell of late.
    pub(crate) fn passed(&self, result: &'static str, members: Value) {
        let has_place = {
            let mut numbers = self.numbers();
            *numbers.passed.entry(result).or_default() += 1;
            numbers.pace.has_place(Instant::now())
        };
        if has_place {
            self.line(result, members);
        }
    }

    pub(crate) fn source_fault(&self, item: &str) {
        *self.numbers().faults.entry(item.to_owned()).or_default() += 1;
    }

    pub(crate) fn history_fault(&self) {
        self.numbers().history_faults += 1;
    }

    /// When an item changed, in milliseconds since 1970; `None` if it has no value yet.
    pub(crate) fn source(&self, item: &str, changed_ms: Option<u64>) {
        self.numbers().sources.insert(item.to_owned(), changed_ms);
    }

    pub(crate) fn standing(&self, enclave: &str, standing: Standing) {
        self.numbers().enclaves.insert(enclave.to_owned(), standing);
    }

    pub(crate) fn forget(&self, enclave: &str) {
        self.numbers().enclaves.remove(enclave);
    }

    /// The items that have no value yet.
    pub(crate) fn missing(&self) -> Vec<String> {
        let numbers = self.numbers();
        numbers.sources.iter().filter(|(_, changed)| changed.is_none()).map(|(item, _)| item.clone()).collect()
    }

    /// The counters, as Prometheus reads them.
    pub(crate) fn metrics(&self) -> String {
        let numbers = self.numbers();
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, lines: Vec<(String, u64)>| {
            let _ = writeln!(text, "# HELP teemark_keeper_{name} {help}\n# TYPE teemark_keeper_{name} {kind}");
            for (labels, value) in lines {
                let _ = writeln!(text, "teemark_keeper_{name}{labels} {value}");
            }
        };
        let labelled = |label: &str, value: &str| format!("{{{label}=\"{}\"}}", escaped(value));
        metric(
            "boots_total",
            "counter",
            "Boots of enclaves that were not seen before.",
            vec![(String::new(), numbers.boots)],
        );
        let results = ["confirmed", "not_confirmed", "not_sealed"];
        let of = |result| (labelled("result", result), numbers.bundles.get(result).copied().unwrap_or(0));
        metric("bundles_total", "counter", "Bundles, by whether they came into force.", results.map(of).to_vec());
        let of = |result| (labelled("result", result), numbers.passed.get(result).copied().unwrap_or(0));
        let passed = ["signed", "not_signed"].map(of).to_vec();
        metric("passed_total", "counter", "Bundles that other keepers passed on, by whether this one signed.", passed);
        let faults =
            numbers.sources.keys().map(|item| (labelled("item", item), numbers.faults.get(item).copied().unwrap_or(0)));
        metric("source_faults_total", "counter", "Faults of the items' sources.", faults.collect());
        let changed = numbers.sources.iter().filter_map(|(item, ms)| Some((labelled("item", item), (*ms)? / 1000)));
        metric(
            "source_changed_timestamp_seconds",
            "gauge",
            "When an item's sources changed, since 1970; 0 if unknown.",
            changed.collect(),
        );
        let history_faults = vec![(String::new(), numbers.history_faults)];
        metric(
            "history_faults_total",
            "counter",
            "Times that the keeper's history could not be written.",
            history_faults,
        );
        type Figure = fn(&Standing) -> u64;
        let figures: [(&str, &str, Figure); 3] = [
            ("enclave_attested", "Whether an enclave passed when it was last looked at.", |s| u64::from(s.attested)),
            ("enclave_current", "Whether it has everything that the sources have.", |s| u64::from(s.current)),
            ("enclave_held", "Items that differ and are held back.", |s| s.held as u64),
        ];
        for (name, help, figure) in figures {
            let lines = numbers.enclaves.iter().map(|(enclave, s)| (labelled("enclave", enclave), figure(s)));
            metric(name, "gauge", help, lines.collect());
        }
        text
    }
}

/// A member of a line, without most of what is too long: an answer is somebody else's.
fn bounded(value: Value) -> Value {
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()).into(),
        None => value,
    }
}

/// A label's value as Prometheus' text format has it.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_answer_does_not_make_a_long_line() {
        let short = json!({"ok": false, "error": "é".repeat(100)});
        assert_eq!(bounded(short.clone()), short);
        let long = bounded(json!({"error": "é".repeat(60_000)}));
        assert!(long.as_str().unwrap().len() < 5000 && long.as_str().unwrap().contains("(120012 bytes)"), "{long}");
    }

    #[test]
    fn what_others_do_often_is_counted_and_told_seldom() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let told = |pace: &mut Pace, at: u32| (0..1000).filter(|_| pace.has_place(start + Pace::EACH * at)).count();
        pace.since = start;
        assert_eq!([0, 0, 1, 3, 1000].map(|at| told(&mut pace, at)), [20, 0, 1, 2, 20]);
        let report = Report::new(&[]);
        (0..100).for_each(|_| report.passed("not_signed", json!({})));
        assert!(report.metrics().contains("teemark_keeper_passed_total{result=\"not_signed\"} 100\n"));
    }

    #[test]
    fn metrics_are_text_that_prometheus_reads() {
        let report = Report::new(&["any_instance"]);
        report.boot();
        report.bundle("confirmed");
        report.source("FILE_KEYS", None);
        report.source_fault("FILE_KEYS");
        report.standing("http://h\"\\\n", Standing { attested: true, current: true, held: 0 });
        assert_eq!(report.missing(), ["FILE_KEYS"]);
        let text = report.metrics();
        for line in [
            "teemark_keeper_boots_total 1",
            "teemark_keeper_bundles_total{result=\"confirmed\"} 1",
            "teemark_keeper_bundles_total{result=\"not_confirmed\"} 0",
            "teemark_keeper_source_faults_total{item=\"FILE_KEYS\"} 1",
            "teemark_keeper_enclave_current{enclave=\"http://h\\\"\\\\\\n\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        report.source("FILE_KEYS", Some(7000));
        report.forget("http://h\"\\\n");
        let text = report.metrics();
        assert!(
            text.contains("source_changed_timestamp_seconds{item=\"FILE_KEYS\"} 7\n") && !text.contains("http://h"),
            "{text}"
        );
        assert!(report.missing().is_empty());
    }
}
