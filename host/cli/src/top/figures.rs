//! What two looks at an enclave's metrics say together: rates and quantiles of the time in between. Of the first look, and of
//! the first after a restart, those since the start.

use std::ops::Add;
use std::time::Duration;

use formats::items::{FILE_KEYS, GRANT_KEYS};
use formats::time::Utc;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::metrics::{Histogram, Metrics, Quantile};

/// The routes that give files.
const FILES: [&str; 2] = ["decrypt", "decrypt_raw"];

/// One successful look.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// When, by a clock that never goes back.
    pub(super) at: Duration,
    /// When, by this machine's clock.
    pub(super) time: Utc,
    pub(super) metrics: Metrics,
    /// What /admin/status says, or why it says nothing.
    pub(super) status: Result<Value, String>,
}

/// How many there are, of how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Used {
    pub(super) used: f64,
    pub(super) limit: f64,
}

impl Used {
    fn of(used: Option<f64>, limit: Option<f64>) -> Option<Used> {
        Some(Used { used: used?, limit: limit.filter(|limit| *limit > 0.0)? })
    }

    /// The part that is used.
    pub(super) fn part(self) -> f64 {
        self.used / self.limit
    }
}

/// Half of the requests took at most the one, and 99 of 100 at most the other, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Latency {
    #[serde(serialize_with = "as_seconds")]
    pub(super) p50: Quantile,
    #[serde(serialize_with = "as_seconds")]
    pub(super) p99: Quantile,
}

/// A number; one that is above the largest bound is given as that bound, as Prometheus does it.
fn as_seconds<S: Serializer>(quantile: &Quantile, serializer: S) -> Result<S::Ok, S::Error> {
    let (Quantile::About(seconds) | Quantile::Above(seconds)) = quantile;
    serializer.serialize_f64(*seconds)
}

impl Latency {
    fn of(histogram: &Histogram) -> Option<Latency> {
        Some(Latency { p50: histogram.quantile(0.5)?, p99: histogram.quantile(0.99)? })
    }
}

/// How many, and how many a second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Count {
    pub(super) name: String,
    pub(super) total: f64,
    pub(super) per_second: f64,
    /// Of a route that was used in that time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latency: Option<Latency>,
}

/// What is known of an enclave that answers. What it does not tell is `None`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Figures {
    pub(super) version: Option<String>,
    pub(super) up_seconds: Option<f64>,
    pub(super) ready: bool,
    pub(super) draining: bool,
    /// Why it is not ready.
    pub(super) not_ready: Vec<String>,
    /// Whether rates and quantiles are since the start, and not since the look before.
    pub(super) since_start: bool,
    /// How long that is, in seconds.
    pub(super) over_seconds: f64,
    pub(super) files_per_second: f64,
    pub(super) bytes_in_per_second: f64,
    pub(super) bytes_out_per_second: f64,
    pub(super) errors_per_second: f64,
    pub(super) latency: Option<Latency>,
    pub(super) latency_since_start: Option<Latency>,
    pub(super) service_latency: Option<Latency>,
    pub(super) in_flight: Option<Used>,
    pub(super) memory_bytes: Option<Used>,
    pub(super) grants: Option<Used>,
    pub(super) file_keys: Option<f64>,
    pub(super) grant_keys: Option<f64>,
    /// The counter of the last sealed bundle in force; 0 if none is.
    pub(super) counter: Option<f64>,
    /// Until the client certificate expires; below 0 once it has.
    pub(super) certificate_seconds: Option<f64>,
    pub(super) clock_drift_seconds: Option<f64>,
    pub(super) log_records_lost: Lost,
    /// `None` without a stream to a collector.
    pub(super) log_stream: Option<Stream>,
    /// TEEMARK_AUDIT, if it is told.
    pub(super) audit: Option<String>,
    /// Why no collector's acknowledgement counts, if requests wait for one.
    pub(super) audit_fault: Option<String>,
    pub(super) panics: f64,
    /// Why /admin/status could not be had.
    pub(super) status_fault: Option<String>,
    pub(super) routes: Vec<Count>,
    /// Errors by their code.
    pub(super) errors: Vec<Count>,
}

/// Records that the enclave dropped: since its start, and in the time that rates are of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Lost {
    pub(super) total: f64,
    pub(super) lately: f64,
}

/// How far the log has come.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Stream {
    /// Whether it is open; behind a relay, to the relay.
    pub(super) connected: bool,
    /// The numbers of the last record that there is, and of the last that a collector has acknowledged; 0 if none has.
    pub(super) last: f64,
    pub(super) acknowledged: f64,
}

/// Two looks, the earlier one only if the enclave was not restarted in between.
struct Pair<'a> {
    now: &'a Look,
    before: Option<&'a Look>,
    seconds: f64,
}

impl Figures {
    /// `before` is an earlier look at the same start, if there is one.
    pub(super) fn of(now: &Look, before: Option<&Look>) -> Figures {
        let Look { metrics, status, .. } = now;
        let told = |name: &str| status.as_ref().ok().and_then(|status| status[name].as_str()).map(str::to_owned);
        let up = up_seconds(now);
        let since_start = before.is_none();
        // The daemon tells whole seconds, so it may be 0.
        let since_before = |before: &Look| now.at.saturating_sub(before.at).as_secs_f64().max(0.001);
        let pair = Pair { now, before, seconds: before.map_or(up.unwrap_or(0.0).max(1.0), since_before) };
        let value = |name: &str| metrics.value(name);
        let keys = metrics.by("teemark_keys_in_force", "item");
        let left = value("teemark_memory_left_bytes");
        let memory = value("teemark_memory_limit_bytes");
        let in_flight = metrics.sum("teemark_listener_connections", &[("listener", "public"), ("state", "in_flight")]);
        let seen = Duration::from_secs(now.time.0).as_secs_f64();
        Figures {
            version: metrics.by("teemark_build_info", "version").keys().next().map(|version| (*version).to_owned()),
            up_seconds: up,
            ready: value("teemark_ready") == Some(1.0),
            draining: value("teemark_draining") == Some(1.0),
            not_ready: status.as_ref().map(why_not_ready).unwrap_or_default(),
            since_start,
            over_seconds: pair.seconds,
            files_per_second: FILES
                .iter()
                .map(|route| pair.rate_of("teemark_requests_total", "route", route))
                .fold(0.0, Add::add),
            bytes_in_per_second: pair.rate("teemark_file_bytes_in_total"),
            bytes_out_per_second: pair.rate("teemark_file_bytes_out_total"),
            errors_per_second: pair.rate("teemark_refusals_total"),
            latency: pair.latency("teemark_request_duration_seconds", &FILES),
            latency_since_start: Latency::of(&metrics.histogram("teemark_request_duration_seconds", &FILES)),
            service_latency: pair.latency("teemark_watermark_seconds", &[]),
            in_flight: Used::of(Some(in_flight), value("teemark_connections_limit")),
            memory_bytes: Used::of(left.zip(memory).map(|(left, all)| (all - left).max(0.0)), memory),
            grants: Used::of(value("teemark_grants_remembered"), value("teemark_grants_remembered_limit")),
            file_keys: keys.get(FILE_KEYS).copied(),
            grant_keys: keys.get(GRANT_KEYS).copied(),
            counter: value("teemark_bundle_in_force"),
            certificate_seconds: value("teemark_client_certificate_not_after_timestamp_seconds").map(|end| end - seen),
            clock_drift_seconds: value("teemark_clock_drift_seconds"),
            log_records_lost: Lost {
                total: metrics.sum("teemark_log_lines_dropped_total", &[]),
                lately: pair.more("teemark_log_lines_dropped_total", &[]),
            },
            log_stream: value("teemark_log_connected").map(|connected| Stream {
                connected: connected == 1.0,
                last: value("teemark_log_last_record").unwrap_or_default(),
                acknowledged: value("teemark_log_last_acknowledged_record").unwrap_or_default(),
            }),
            audit: told("audit"),
            audit_fault: told("audit_fault"),
            panics: metrics.sum("teemark_panics_total", &[]),
            status_fault: status.as_ref().err().cloned(),
            routes: pair.counts("teemark_requests_total", "route", true),
            errors: pair
                .counts("teemark_refusals_total", "code", false)
                .into_iter()
                .filter(|count| count.total > 0.0)
                .collect(),
        }
    }
}

impl Pair<'_> {
    /// By how much the samples of this name with these labels have grown.
    fn more(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let before = self.before.map_or(0.0, |before| before.metrics.sum(name, labels));
        (self.now.metrics.sum(name, labels) - before).max(0.0)
    }

    fn rate(&self, name: &str) -> f64 {
        self.more(name, &[]) / self.seconds
    }

    fn rate_of(&self, name: &str, label: &str, value: &str) -> f64 {
        self.more(name, &[(label, value)]) / self.seconds
    }

    fn latency(&self, name: &str, routes: &[&str]) -> Option<Latency> {
        let now = self.now.metrics.histogram(name, routes);
        let between = match self.before {
            Some(before) => now.since(&before.metrics.histogram(name, routes)),
            None => now,
        };
        Latency::of(&between)
    }

    /// By each value of a label, the most frequent first.
    fn counts(&self, name: &str, label: &str, timed: bool) -> Vec<Count> {
        let count = |(value, total): (&str, f64)| Count {
            name: value.to_owned(),
            total,
            per_second: self.rate_of(name, label, value),
            latency: timed.then(|| self.latency("teemark_request_duration_seconds", &[value])).flatten(),
        };
        let mut counts: Vec<Count> = self.now.metrics.by(name, label).into_iter().map(count).collect();
        counts.sort_by(|one, other| other.total.total_cmp(&one.total));
        counts
    }
}

/// How long the enclave has been running: by its own clock, or else by this machine's.
fn up_seconds(look: &Look) -> Option<f64> {
    let told = look.status.as_ref().ok().and_then(|status| status["uptime_seconds"].as_f64());
    let since = look.metrics.value("teemark_start_time_seconds");
    told.or_else(|| Some((Duration::from_secs(look.time.0).as_secs_f64() - since?).max(0.0)))
}

/// What /admin/status says about it, with the words of /ready.
fn why_not_ready(status: &Value) -> Vec<String> {
    let names = status["missing"].as_array().map(Vec::as_slice).unwrap_or_default();
    let missing = names.iter().filter_map(Value::as_str).map(|name| format!("{name} is missing"));
    let certificate = status["client_certificate"].as_str().filter(|fault| *fault != "valid");
    let faults = [
        certificate.map(|fault| format!("the client certificate {fault}")),
        status["clock_fault"].as_str().map(str::to_owned),
        status["complete_at"].as_str().map(|_| "more bundles are to come".to_owned()),
        status["audit_fault"].as_str().map(str::to_owned),
    ];
    missing.chain(faults.into_iter().flatten()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A look `at` seconds, with these lines.
    pub(crate) fn look(at: u64, lines: &str) -> Look {
        let (at, time) = (Duration::from_secs(at), Utc(1_800_000_000 + at));
        Look { at, time, metrics: Metrics::parse(lines), status: Ok(json!({"uptime_seconds": 100 + at.as_secs()})) }
    }

    #[test]
    fn a_rate_is_of_the_time_between_two_looks_and_of_the_first_since_the_start() {
        let counts = |ok: u32, bad: u32, raw: u32, probes: u32| {
            format!(
                "teemark_requests_total{{route=\"decrypt\",code=\"200\"}} {ok}\nteemark_requests_total{{route=\"decrypt\",code=\"422\"}} \
                 {bad}\nteemark_requests_total{{route=\"decrypt_raw\",code=\"200\"}} {raw}\n\
                 teemark_requests_total{{route=\"ready\",code=\"200\"}} {probes}\nteemark_refusals_total{{code=\"decrypt_failed\"}} {bad}\n\
                 teemark_refusals_total{{code=\"internal\"}} 0\n"
            )
        };
        let first = look(0, &counts(50, 10, 40, 5));
        let figures = Figures::of(&first, None);
        assert!(
            figures.since_start && figures.files_per_second == 1.0 && figures.errors_per_second == 0.1,
            "{figures:?}"
        );
        let second = look(4, &counts(58, 12, 50, 905));
        let figures = Figures::of(&second, Some(&first));
        assert!(!figures.since_start && figures.over_seconds == 4.0);
        assert_eq!((figures.files_per_second, figures.errors_per_second), (5.0, 0.5));
        let route = |name: &str| figures.routes.iter().find(|count| count.name == name).unwrap();
        assert_eq!(
            (route("decrypt").total, route("decrypt").per_second, route("ready").per_second),
            (70.0, 2.5, 225.0)
        );
        assert_eq!(figures.routes[0].name, "ready", "the most frequent first");
        let started = Look { status: Ok(json!({"uptime_seconds": 0})), ..first };
        assert_eq!(Figures::of(&started, None).files_per_second, 100.0);
        let errors: Vec<_> = figures.errors.iter().map(|count| (count.name.as_str(), count.total)).collect();
        assert_eq!(errors, [("decrypt_failed", 12.0)], "those that there were");
    }

    #[test]
    fn latencies_are_of_files_between_two_looks_and_since_the_start() {
        let counts = |fast: u32, all: u32| {
            let bucket =
                |le, n| format!("teemark_request_duration_seconds_bucket{{route=\"decrypt\",le=\"{le}\"}} {n}\n");
            let ready = "teemark_request_duration_seconds_bucket{route=\"ready\",le=\"+Inf\"} 1000\n";
            bucket("0.1", fast) + &bucket("1", all) + &bucket("+Inf", all) + ready
        };
        let (first, second) = (look(0, &counts(100, 100)), look(2, &counts(100, 200)));
        let about = |latency: Option<Latency>| match latency.unwrap() {
            Latency { p50: Quantile::About(p50), .. } => p50,
            other => panic!("{other:?}"),
        };
        let figures = Figures::of(&second, Some(&first));
        assert!((about(figures.latency) - 0.55).abs() < 1e-9, "{figures:?}");
        assert!((about(figures.latency_since_start) - 0.1).abs() < 1e-9, "{figures:?}");
        assert_eq!(Figures::of(&first, Some(&first)).latency, None, "nothing came in between");
        assert!((about(Figures::of(&first, None).latency) - 0.05).abs() < 1e-9);
    }

    #[test]
    fn what_is_in_use_stands_beside_its_limit_and_what_is_not_told_is_none() {
        let text = "teemark_memory_left_bytes 30\nteemark_memory_limit_bytes 100\nteemark_connections_limit 256\n\
                    teemark_listener_connections{listener=\"public\",state=\"in_flight\"} 3\n\
                    teemark_listener_connections{listener=\"admin\",state=\"in_flight\"} 1\n\
                    teemark_client_certificate_not_after_timestamp_seconds 1800086400\nteemark_grants_remembered 3\n\
                    teemark_keys_in_force{item=\"FILE_KEYS\"} 2\nteemark_build_info{version=\"0.1.0\"} 1\nteemark_ready 1\n";
        let figures = Figures::of(&look(0, text), None);
        assert_eq!(figures.memory_bytes, Some(Used { used: 70.0, limit: 100.0 }));
        assert_eq!(figures.in_flight, Some(Used { used: 3.0, limit: 256.0 }));
        assert_eq!((figures.certificate_seconds, figures.grants), (Some(86_400.0), None));
        assert_eq!((figures.file_keys, figures.grant_keys), (Some(2.0), None));
        assert!(figures.ready && figures.version.as_deref() == Some("0.1.0") && figures.clock_drift_seconds.is_none());
    }

    #[test]
    fn each_reason_not_to_be_ready_is_told() {
        let mut now = look(0, "teemark_ready 0\n");
        now.status = Ok(json!({
            "missing": ["FILE_KEYS"], "client_certificate": "expired at 2026-11-30T00:00:00Z", "clock_fault": "the clock is off",
            "complete_at": "aa", "audit": "required", "audit_fault": "no collector has acknowledged a record yet",
        }));
        let figures = Figures::of(&now, None);
        assert_eq!(figures.not_ready.len(), 5, "{figures:?}");
        assert!(figures.not_ready[0] == "FILE_KEYS is missing" && figures.not_ready[1].contains("expired at"));
        assert_eq!(figures.audit.as_deref(), Some("required"));
        assert!(figures.audit_fault.is_some() && !figures.ready);
        now.status = Err("from_page".into());
        assert_eq!(Figures::of(&now, None).status_fault.as_deref(), Some("from_page"));
    }
}
