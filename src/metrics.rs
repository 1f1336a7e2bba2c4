//! What the daemon counts, as Prometheus reads it (text format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use formats::items::{FILE_KEYS, GRANT_KEYS};

/// The counters of this process.
pub static METRICS: Metrics = Metrics::new();

/// A number that only grows.
pub struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }

    /// Adds to the count.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    const fn new() -> Gauge {
        Gauge(AtomicU64::new(0))
    }

    /// Sets the number.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// One more, until the value is dropped.
    pub fn one_more(&'static self) -> OneMore {
        self.0.fetch_add(1, Relaxed);
        OneMore(self)
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counts in a gauge until it is dropped.
pub struct OneMore(&'static Gauge);

impl Drop for OneMore {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// A number of either sign, once it is known. What is not known is stored as 0, as everything here is at first: so these
/// statics take no bytes in the program's file.
pub struct Signed(AtomicI64);

impl Signed {
    const UNKNOWN: i64 = i64::MIN;

    const fn new() -> Signed {
        Signed(AtomicI64::new(0))
    }

    fn get(&self) -> Option<i64> {
        Some(self.0.load(Relaxed) ^ Signed::UNKNOWN).filter(|n| *n != Signed::UNKNOWN)
    }

    /// Sets the number.
    pub fn set(&self, n: i64) {
        self.0.store(n ^ Signed::UNKNOWN, Relaxed);
    }
}

/// Upper bounds of the histograms' buckets, in milliseconds.
const BUCKETS: [u64; 9] = [1, 5, 25, 100, 250, 1_000, 2_500, 10_000, 30_000];

/// A histogram of durations: a count per bucket, and the sum in microseconds.
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS.len() + 1],
    sum: AtomicU64,
}

impl Histogram {
    const fn new() -> Histogram {
        Histogram { buckets: [const { AtomicU64::new(0) }; BUCKETS.len() + 1], sum: AtomicU64::new(0) }
    }

    /// Counts one duration.
    pub fn observe(&self, took: Duration) {
        let bucket = BUCKETS.iter().position(|&bound| took <= Duration::from_millis(bound)).unwrap_or(BUCKETS.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Its samples. `label` is a label and a comma, or nothing.
    fn print(&self, name: &str, label: &str, out: &mut String) {
        let mut total = 0;
        for (count, bound) in self.buckets.iter().zip(BUCKETS.iter().map(Some).chain([None])) {
            total += count.load(Relaxed);
            let le = bound.map_or("+Inf".to_owned(), |ms| seconds(ms * 1000));
            let _ = writeln!(out, "{name}_bucket{{{label}le=\"{le}\"}} {total}");
        }
        let of = label.strip_suffix(',').map_or_else(String::new, |label| format!("{{{label}}}"));
        let _ = writeln!(out, "{name}_sum{of} {}\n{name}_count{of} {total}", seconds(self.sum.load(Relaxed)));
    }
}

/// The names of the routes, and of what answers where there is none.
const ROUTES: [&str; 20] = [
    "attestation",
    "decrypt",
    "decrypt_raw",
    "drain",
    "get_attestation",
    "health",
    "health_check",
    "log",
    "log_checkpoint",
    "metrics",
    "panicked",
    "ping",
    "ready",
    "refused",
    "root",
    "sealed_bundle",
    "state",
    "status",
    "unknown",
    "update_secrets",
];

/// The codes of errors: each has its count from the start, since an alarm sees no increase in a series that begins at 1.
pub const CODES: [&str; 30] = [
    "attestation_unavailable",
    "audit_unavailable",
    "client_gone",
    "decrypt_failed",
    "drained",
    "file_too_large",
    "from_page",
    "grant_expired",
    "grant_for_another_content",
    "grant_for_another_file",
    "grant_for_another_key",
    "grant_for_another_user",
    "grant_invalid",
    "grant_missing",
    "grant_not_yet_valid",
    "grant_used",
    "internal",
    "invalid_request",
    "length_required",
    "method_not_allowed",
    "not_found",
    "not_ready",
    "overloaded",
    "too_many_requests",
    "unknown_key",
    "watermark_busy",
    "watermark_failed",
    "watermark_missing",
    "watermark_timeout",
    "watermark_unsupported",
];

/// The state of a listener's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// It waits for the first byte of a request.
    Idle,
    /// A request's head is coming.
    Head,
    /// A complete head waits for a thread.
    Queued,
    /// A request is being served.
    InFlight,
    /// The last answer is being sent.
    Closing,
}

/// The states' names, in their order.
const STATES: [&str; 5] = ["idle", "head", "queued", "in_flight", "closing"];

/// A listener's connections by state.
#[derive(Default)]
pub struct ByState([Gauge; STATES.len()]);

impl ByState {
    const fn new() -> ByState {
        ByState([const { Gauge::new() }; STATES.len()])
    }

    /// How many are in this state.
    pub fn at(&self, state: ConnectionState) -> &Gauge {
        &self.0[state as usize]
    }
}

/// What is looked at when the metrics are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Live {
    /// Whether files can be had.
    pub ready: bool,
    /// Whether this enclave is being taken out of service.
    pub draining: bool,
    /// What is left of the memory of all requests, in bytes.
    pub memory_left: usize,
    /// All of it.
    pub memory: usize,
    /// The largest file, in bytes.
    pub max_file: usize,
    /// Most connections of a listener, and most requests in flight.
    pub connections: usize,
    /// Grants that are remembered, and the most that are.
    pub grants: [usize; 2],
    /// File keys and grant keys in force.
    pub keys: [usize; 2],
    /// The counter of the last sealed bundle in force; 0 if none is.
    pub counter: u64,
    /// When the daemon started, in seconds since 1970.
    pub started: u64,
    /// The number of the log's last record.
    pub log_last: u64,
    /// Whether the stream of the log is open, and the last record that a collector has acknowledged, if there is to be a
    /// stream.
    pub log_stream: Option<(bool, u64)>,
}

/// Everything that is counted.
pub struct Metrics {
    /// Answers by route and status code.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Those that are errors, by the error's code.
    refusals: [Counter; CODES.len()],
    durations: [Histogram; ROUTES.len()],
    /// Bytes of encrypted files received.
    pub file_bytes_in: Counter,
    /// Bytes of files returned.
    pub file_bytes_out: Counter,
    /// Times to decrypt a file.
    pub decrypt_time: Histogram,
    /// Times of calls of the watermark service.
    pub watermark_time: Histogram,
    /// Calls repeated after a stale pooled connection.
    pub watermark_retries: Counter,
    /// Connections accepted.
    pub connections: Counter,
    /// Connections refused or cut.
    pub connections_refused: Counter,
    /// Connections open now.
    pub connections_open: Gauge,
    /// The public listener's connections.
    pub public: ByState,
    /// The admin listener's.
    pub admin: ByState,
    /// Bundles that took effect.
    pub handshakes_accepted: Counter,
    /// Bundles that changed nothing.
    pub handshakes_refused: Counter,
    /// TLS handshakes completed with the watermark service.
    pub tls_handshakes: Counter,
    /// Requests that ended in a panic.
    pub panics: Counter,
    /// Log lines dropped because the queue was full.
    pub log_lines_dropped: Counter,
    /// Requests for a file without a valid grant.
    pub grants_refused: Counter,
    /// Attestation documents that the module made.
    pub documents_made: Counter,
    /// Documents that were refused, since too many were requested.
    pub documents_refused: Counter,
    /// Documents that the module failed to make.
    pub documents_failed: Counter,
    /// Milliseconds by which this machine's clock was ahead of the Nitro Secure Module's when they were last compared.
    pub clock_drift: Signed,
    /// When the client certificate expires, in seconds since 1970; 0 if there is none.
    pub certificate_ends: Gauge,
}

impl Metrics {
    const fn new() -> Metrics {
        Metrics {
            requests: Mutex::new(BTreeMap::new()),
            refusals: [const { Counter::new() }; CODES.len()],
            durations: [const { Histogram::new() }; ROUTES.len()],
            file_bytes_in: Counter::new(),
            file_bytes_out: Counter::new(),
            decrypt_time: Histogram::new(),
            watermark_time: Histogram::new(),
            watermark_retries: Counter::new(),
            connections: Counter::new(),
            connections_refused: Counter::new(),
            connections_open: Gauge::new(),
            public: ByState::new(),
            admin: ByState::new(),
            handshakes_accepted: Counter::new(),
            handshakes_refused: Counter::new(),
            tls_handshakes: Counter::new(),
            panics: Counter::new(),
            log_lines_dropped: Counter::new(),
            grants_refused: Counter::new(),
            documents_made: Counter::new(),
            documents_refused: Counter::new(),
            documents_failed: Counter::new(),
            clock_drift: Signed::new(),
            certificate_ends: Gauge::new(),
        }
    }

    /// Counts one answer, and the code in it if it is an error. Both names are the daemon's own, never something that a
    /// client sent.
    pub fn answered(&self, route: &'static str, status: u16, code: Option<&'static str>) {
        *self.requests().entry((route, status)).or_default() += 1;
        let Some(code) = code else { return };
        let found = CODES.iter().zip(&self.refusals).find(|(name, _)| **name == code);
        debug_assert!(found.is_some(), "{code} is not in CODES");
        if let Some((_, refusals)) = found {
            refusals.add(1);
        }
    }

    /// Counts how long a request took, from its complete head to the end of its answer.
    pub fn took(&self, route: &'static str, took: Duration) {
        let found = ROUTES.iter().position(|name| *name == route);
        debug_assert!(found.is_some(), "{route} is not in ROUTES");
        if let Some(route) = found {
            self.durations[route].observe(took);
        }
    }

    fn requests(&self) -> MutexGuard<'_, BTreeMap<(&'static str, u16), u64>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All metrics as text.
    pub fn print(&self, live: &Live) -> String {
        let mut out = String::with_capacity(16 << 10);
        self.print_answers(&mut out);
        for (name, help, counter) in [
            ("file_bytes_in_total", "Bytes of encrypted files received.", &self.file_bytes_in),
            ("file_bytes_out_total", "Bytes of files returned.", &self.file_bytes_out),
            ("watermark_retries_total", "Calls repeated after a stale pooled connection.", &self.watermark_retries),
            ("connections_total", "Connections accepted.", &self.connections),
            ("connections_refused_total", "Connections refused or cut.", &self.connections_refused),
            ("handshakes_accepted_total", "Bundles that took effect.", &self.handshakes_accepted),
            ("handshakes_refused_total", "Bundles that changed nothing.", &self.handshakes_refused),
            ("tls_handshakes_total", "TLS handshakes completed with the watermark service.", &self.tls_handshakes),
            ("grants_refused_total", "Requests for a file without a valid grant.", &self.grants_refused),
            ("log_lines_dropped_total", "Records of the log that were dropped.", &self.log_lines_dropped),
            ("panics_total", "Requests that ended in a panic.", &self.panics),
        ] {
            sample(name, "counter", help, counter.get(), &mut out);
        }
        family("attestation_documents_total", "counter", "Attestation documents by what became of them.", &mut out);
        for (result, counter) in
            [("made", &self.documents_made), ("refused", &self.documents_refused), ("failed", &self.documents_failed)]
        {
            labelled("attestation_documents_total", "result", result, counter.get(), &mut out);
        }
        self.print_gauges(live, &mut out);
        out
    }

    fn print_answers(&self, out: &mut String) {
        family("requests_total", "counter", "Answers by route and status code.", out);
        for ((route, status), n) in self.requests().iter() {
            let _ = writeln!(out, "teemark_requests_total{{route=\"{route}\",code=\"{status}\"}} {n}");
        }
        family("refusals_total", "counter", "Answers that are errors, by the error's code.", out);
        for (code, refusals) in CODES.iter().zip(&self.refusals) {
            labelled("refusals_total", "code", code, refusals.get(), out);
        }
        let help = "Time from a request's complete head to the end of its answer, by route.";
        family("request_duration_seconds", "histogram", help, out);
        for (route, durations) in ROUTES.iter().zip(&self.durations) {
            if durations.buckets.iter().any(|n| n.load(Relaxed) > 0) {
                durations.print("teemark_request_duration_seconds", &format!("route=\"{route}\","), out);
            }
        }
        for (name, help, histogram) in [
            ("decrypt_seconds", "Time to decrypt a file.", &self.decrypt_time),
            ("watermark_seconds", "Time of a call of the watermark service.", &self.watermark_time),
        ] {
            family(name, "histogram", help, out);
            histogram.print(&format!("teemark_{name}"), "", out);
        }
    }

    fn print_gauges(&self, live: &Live, out: &mut String) {
        family("listener_connections", "gauge", "Connections of clients by listener and state.", out);
        for (listener, by_state) in [("public", &self.public), ("admin", &self.admin)] {
            for (state, gauge) in STATES.iter().zip(&by_state.0) {
                let n = gauge.get();
                let _ = writeln!(out, "teemark_listener_connections{{listener=\"{listener}\",state=\"{state}\"}} {n}");
            }
        }
        family("keys_in_force", "gauge", "Keys in force by item.", out);
        for (item, n) in [FILE_KEYS, GRANT_KEYS].iter().zip(live.keys) {
            labelled("keys_in_force", "item", item, n as u64, out);
        }
        family("build_info", "gauge", "The daemon's version; always 1.", out);
        labelled("build_info", "version", env!("CARGO_PKG_VERSION"), 1, out);
        for (name, help, value) in [
            ("ready", "Whether files can be had, as /ready says.", u64::from(live.ready)),
            ("draining", "Whether this enclave is being taken out of service.", u64::from(live.draining)),
            ("start_time_seconds", "When the daemon started, since 1970.", live.started),
            ("connections_open", "Connections open now, those that are forwarded too.", self.connections_open.get()),
            ("connections_limit", "Most connections of a listener, and most requests in flight.", n(live.connections)),
            ("memory_left_bytes", "Bytes that admission can still give.", n(live.memory_left)),
            ("memory_limit_bytes", "Bytes that all requests together may hold.", n(live.memory)),
            ("file_limit_bytes", "Bytes of the largest file.", n(live.max_file)),
            ("grants_remembered", "Grants in use, used up or tried in vain that have not expired.", n(live.grants[0])),
            ("grants_remembered_limit", "Most grants that are remembered.", n(live.grants[1])),
            ("bundle_in_force", "Counter of the last sealed bundle in force; 0 if none is.", live.counter),
            ("log_last_record", "Number of the log's last record.", live.log_last),
        ] {
            sample(name, "gauge", help, value, out);
        }
        if let Some((connected, acknowledged)) = live.log_stream {
            let help = "Whether the log's stream to the collector is open.";
            sample("log_connected", "gauge", help, connected.into(), out);
            let help = "Number of the last record that a collector has acknowledged; 0 if none.";
            sample("log_last_acknowledged_record", "gauge", help, acknowledged, out);
        }
        let ends = self.certificate_ends.get();
        if ends > 0 {
            let help = "When the client certificate ends, since 1970.";
            sample("client_certificate_not_after_timestamp_seconds", "gauge", help, ends, out);
        }
        if let Some(ms) = self.clock_drift.get() {
            let help = "Seconds by which the clock was ahead of the Nitro Secure Module's when last compared.";
            family("clock_drift_seconds", "gauge", help, out);
            let (sign, drift) = (if ms < 0 { "-" } else { "" }, seconds(ms.unsigned_abs() * 1000));
            let _ = writeln!(out, "teemark_clock_drift_seconds {sign}{drift}");
        }
    }
}

fn n(n: usize) -> u64 {
    n as u64
}

/// Microseconds as seconds, by integers only: code that prints floats weighs 20 KB.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What a metric is called, and is, without `teemark_`.
fn family(name: &str, kind: &str, help: &str, out: &mut String) {
    let _ = writeln!(out, "# HELP teemark_{name} {help}\n# TYPE teemark_{name} {kind}");
}

/// A metric without labels.
fn sample(name: &str, kind: &str, help: &str, value: u64, out: &mut String) {
    family(name, kind, help, out);
    let _ = writeln!(out, "teemark_{name} {value}");
}

/// A sample of a metric whose samples differ in one label.
fn labelled(name: &str, label: &str, value: &str, n: u64, out: &mut String) {
    let _ = writeln!(out, "teemark_{name}{{{label}=\"{value}\"}} {n}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_each_time_in_its_bucket_and_all_above() {
        let h = Histogram::new();
        h.observe(Duration::from_millis(1));
        h.observe(Duration::from_millis(30));
        h.observe(Duration::from_secs(3600));
        let mut out = String::new();
        h.print("x", "", &mut out);
        for line in ["x_bucket{le=\"0.001\"} 1", "x_bucket{le=\"0.1\"} 2", "x_bucket{le=\"+Inf\"} 3", "x_count 3"] {
            assert!(out.lines().any(|l| l == line), "{line} is missing in\n{out}");
        }
        assert!(out.contains("x_sum 3600.031"));
        let of_route = Histogram::new();
        of_route.observe(Duration::from_secs(61));
        let mut out = String::new();
        of_route.print("x", "route=\"y\",", &mut out);
        for line in
            ["x_bucket{route=\"y\",le=\"30\"} 0", "x_bucket{route=\"y\",le=\"+Inf\"} 1", "x_sum{route=\"y\"} 61"]
        {
            assert!(out.lines().any(|l| l == line), "{line} is missing in\n{out}");
        }
    }

    #[test]
    fn every_line_is_a_comment_or_a_name_with_a_number() {
        let metrics = Metrics::new();
        metrics.answered("decrypt", 422, Some("decrypt_failed"));
        metrics.took("decrypt", Duration::from_millis(7));
        metrics.clock_drift.set(-1500);
        let text = metrics.print(&Live::default());
        for line in [
            "teemark_refusals_total{code=\"decrypt_failed\"} 1",
            "teemark_refusals_total{code=\"audit_unavailable\"} 0",
            "teemark_request_duration_seconds_count{route=\"decrypt\"} 1",
            "teemark_clock_drift_seconds -1.5",
            "teemark_ready 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        for line in text.lines().filter(|l| !l.starts_with("# ")) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("teemark_") && value.parse::<f64>().is_ok(), "{line}");
        }
    }

    #[test]
    fn a_connection_is_counted_in_one_state_until_it_leaves_it() {
        static STATES: ByState = ByState::new();
        let head = STATES.at(ConnectionState::Head).one_more();
        let other = STATES.at(ConnectionState::Closing).one_more();
        assert_eq!(STATES.0.each_ref().map(Gauge::get), [0, 1, 0, 0, 1]);
        drop((head, other));
        assert_eq!(STATES.0.each_ref().map(Gauge::get), [0; 5]);
    }
}
