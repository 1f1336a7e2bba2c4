//! The enclaves that are watched, and what became of each: pure state that grows look by look.

use formats::hpke::PrivateKey;
use formats::time::Utc;

use super::figures::{Figures, Look};
use super::refusals::Refusals;

/// How long a restart is told of, in seconds, as the alert TeemarkRestarted does.
const RESTART_TOLD: u64 = 900;

/// How long no collector may acknowledge a further record, in seconds, before that is a worry, as the alert
/// TeemarkLogNoCollector has it: a checkpoint is a further record each minute.
const ACKNOWLEDGED_WITHIN: u64 = 420;

/// What was found when an enclave was asked.
pub(super) struct Asked {
    /// This machine's time.
    pub(super) time: Utc,
    pub(super) found: Result<Page, String>,
}

/// What it answered.
pub(super) struct Page {
    pub(super) look: Look,
    /// What /admin/log has, or why it has nothing.
    pub(super) log: Result<Vec<u8>, String>,
}

/// Why an enclave does not answer, and since when.
#[derive(Debug)]
pub(super) struct Silence {
    pub(super) since: Utc,
    pub(super) why: String,
}

/// One that is watched.
#[derive(Debug, Default)]
pub(super) struct Enclave {
    /// Its admin address.
    pub(super) address: String,
    /// The last successful look.
    last: Option<Look>,
    /// What that says, beside the one before.
    pub(super) figures: Option<Figures>,
    /// `None` while it answers.
    pub(super) silence: Option<Silence>,
    /// When it was seen to have been restarted.
    restarted: Option<Utc>,
    /// The last record that a collector has acknowledged, and when that was first seen.
    acknowledged: Option<(f64, Utc)>,
    pub(super) refusals: Refusals,
}

impl Enclave {
    pub(super) fn new(address: String) -> Enclave {
        Enclave { address, ..Enclave::default() }
    }

    /// When it was seen to have been restarted, if that was within a quarter of an hour before `now`.
    pub(super) fn restarted(&self, now: Utc) -> Option<Utc> {
        self.restarted.filter(|at| now.0.saturating_sub(at.0) < RESTART_TOLD)
    }

    /// Since when no collector has acknowledged a further record, if that is too long before `now`.
    pub(super) fn unacknowledged(&self, now: Utc) -> Option<Utc> {
        self.acknowledged.map(|(_, since)| since).filter(|since| now.0.saturating_sub(since.0) >= ACKNOWLEDGED_WITHIN)
    }

    /// Takes what was found.
    pub(super) fn take(&mut self, asked: Asked, key: Option<&PrivateKey>) {
        let page = match asked.found {
            Ok(page) => page,
            Err(why) => {
                let since = self.silence.take().map_or(asked.time, |silence| silence.since);
                self.silence = Some(Silence { since, why });
                return;
            }
        };
        self.silence = None;
        let before = self.last.take();
        let same_start = before.filter(|before| !is_another_start(&page.look, before));
        if self.figures.is_some() && same_start.is_none() {
            self.restarted = Some(asked.time);
            self.refusals = Refusals::default();
        }
        let figures = Figures::of(&page.look, same_start.as_ref());
        let acknowledged = figures.log_stream.map(|stream| stream.acknowledged);
        if self.acknowledged.map(|(number, _)| number) != acknowledged {
            self.acknowledged = acknowledged.map(|number| (number, asked.time));
        }
        self.figures = Some(figures);
        self.refusals.take(page.log.as_deref().map_err(String::as_str), key);
        self.last = Some(page.look);
    }
}

/// Whether the enclave was restarted between the two looks.
fn is_another_start(now: &Look, before: &Look) -> bool {
    let start = |look: &Look| look.metrics.value("teemark_start_time_seconds");
    start(now) != start(before) || now.metrics.has_gone_back_since(&before.metrics)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::figures::tests::look;
    use super::*;

    /// An answer `at` seconds, with these metrics and this log.
    pub(crate) fn answers(at: u64, metrics: &str, log: &str) -> Asked {
        let look = look(at, metrics);
        Asked { time: look.time, found: Ok(Page { look, log: Ok(log.as_bytes().to_vec()) }) }
    }

    pub(crate) fn silent(at: u64, why: &str) -> Asked {
        Asked { time: look(at, "").time, found: Err(why.into()) }
    }

    fn files(start: u32, n: u32) -> String {
        format!("teemark_start_time_seconds {start}\nteemark_requests_total{{route=\"decrypt\",code=\"200\"}} {n}\n")
    }

    #[test]
    fn an_enclave_that_is_silent_is_so_since_the_first_time_and_goes_on_where_it_was() {
        let mut enclave = Enclave::new("http://a".into());
        enclave.take(answers(0, &files(1, 10), ""), None);
        enclave.take(silent(5, "refused"), None);
        enclave.take(silent(7, "timeout"), None);
        let silence = enclave.silence.as_ref().unwrap();
        assert_eq!((silence.since, silence.why.as_str()), (look(5, "").time, "timeout"));
        enclave.take(answers(10, &files(1, 30), ""), None);
        let figures = enclave.figures.as_ref().unwrap();
        assert!(enclave.silence.is_none() && figures.files_per_second == 2.0 && figures.over_seconds == 10.0);
        assert!(enclave.restarted(look(10, "").time).is_none());
    }

    #[test]
    fn a_restart_is_told_for_a_quarter_of_an_hour_and_no_rate_is_negative() {
        for (start, n) in [(1, 3), (2, 50)] {
            let mut enclave = Enclave::new("http://a".into());
            enclave.take(answers(0, &files(1, 40), "1 0 audit {}"), None);
            enclave.take(answers(10, &files(start, n), ""), None);
            let figures = enclave.figures.as_ref().unwrap();
            assert!(figures.since_start && figures.files_per_second > 0.0, "{figures:?}");
            let at = look(10, "").time;
            assert_eq!(enclave.restarted(Utc(at.0 + 899)), Some(at));
            assert_eq!(enclave.restarted(Utc(at.0 + 900)), None);
            enclave.take(answers(12, &files(start, n + 4), ""), None);
            assert_eq!(enclave.figures.as_ref().unwrap().files_per_second, 2.0);
        }
    }

    #[test]
    fn a_collector_that_acknowledges_nothing_more_for_seven_minutes_is_a_worry() {
        let stream = |acknowledged: u32| {
            format!(
                "teemark_log_connected 1\nteemark_log_last_record 9\nteemark_log_last_acknowledged_record {acknowledged}\n"
            )
        };
        let mut enclave = Enclave::new("http://a".into());
        enclave.take(answers(0, &stream(7), ""), None);
        enclave.take(answers(10, &stream(8), ""), None);
        enclave.take(answers(20, &stream(8), ""), None);
        let at = look(10, "").time;
        assert_eq!(
            (enclave.unacknowledged(Utc(at.0 + 419)), enclave.unacknowledged(Utc(at.0 + 420))),
            (None, Some(at))
        );
        enclave.take(answers(30, "", ""), None);
        assert_eq!(enclave.unacknowledged(Utc(at.0 + 900)), None, "nobody is to acknowledge anything");
        let alerts = std::fs::read_to_string("../deploy/monitoring/alerts.yml").unwrap();
        assert!(alerts.contains("changes(teemark_log_last_acknowledged_record[5m]) == 0\n        for: 2m\n"));
    }

    #[test]
    fn after_a_restart_the_log_is_read_from_its_beginning() {
        let line = |number: u32, code: &str| {
            format!("{number} {} audit {{\"event\":\"refused\",\"code\":\"{code}\",\"time_ms\":1}}\n", "0".repeat(64))
        };
        let mut enclave = Enclave::new("http://a".into());
        enclave.take(answers(0, &files(1, 40), &line(9, "before")), None);
        enclave.take(answers(2, &files(2, 0), &line(3, "after")), None);
        let codes: Vec<_> = enclave.refusals.newest().map(|refusal| refusal.code.as_str()).collect();
        assert_eq!(codes, ["after"]);
    }
}
