//! What the daemon counts, as Prometheus reads it (text format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use formats::time::Utc;

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
pub struct Gauge(AtomicU64);

impl Gauge {
    const fn new() -> Gauge {
        Gauge(AtomicU64::new(0))
    }

    /// Sets the number.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number of either sign, once it is known.
pub struct Signed(AtomicI64);

impl Signed {
    const UNKNOWN: i64 = i64::MIN;

    const fn new() -> Signed {
        Signed(AtomicI64::new(Signed::UNKNOWN))
    }

    fn get(&self) -> Option<i64> {
        Some(self.0.load(Relaxed)).filter(|n| *n != Signed::UNKNOWN)
    }

    /// Sets the number.
    pub fn set(&self, n: i64) {
        self.0.store(n, Relaxed);
    }
}

/// Upper bounds of the histograms' buckets, in milliseconds.
const BUCKETS: [u64; 12] = [1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000, 30_000];

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

    fn print(&self, name: &str, help: &str, out: &mut String) {
        describe(name, "histogram", help, out);
        let mut total = 0;
        for (count, bound) in self.buckets.iter().zip(BUCKETS.iter().map(Some).chain([None])) {
            total += count.load(Relaxed);
            let le = bound.map_or("+Inf".to_owned(), |ms| seconds(ms * 1000));
            let _ = writeln!(out, "{name}_bucket{{le=\"{le}\"}} {total}");
        }
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {total}", seconds(self.sum.load(Relaxed)));
    }
}

/// Everything that is counted.
pub struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
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
    /// Milliseconds by which this machine's clock was ahead of the Nitro Secure Module's when they were last compared.
    pub clock_drift: Signed,
    /// When the client certificate expires, in seconds since 1970; 0 if there is none.
    pub certificate_ends: Gauge,
}

impl Metrics {
    const fn new() -> Metrics {
        Metrics {
            requests: Mutex::new(BTreeMap::new()),
            file_bytes_in: Counter::new(),
            file_bytes_out: Counter::new(),
            decrypt_time: Histogram::new(),
            watermark_time: Histogram::new(),
            watermark_retries: Counter::new(),
            connections: Counter::new(),
            connections_refused: Counter::new(),
            connections_open: Gauge::new(),
            handshakes_accepted: Counter::new(),
            handshakes_refused: Counter::new(),
            tls_handshakes: Counter::new(),
            panics: Counter::new(),
            log_lines_dropped: Counter::new(),
            grants_refused: Counter::new(),
            clock_drift: Signed::new(),
            certificate_ends: Gauge::new(),
        }
    }

    /// Counts one answer. `route` is one of the daemon's own names, never something that a client sent.
    pub fn answered(&self, route: &'static str, code: u16) {
        *self.requests.lock().unwrap_or_else(|e| e.into_inner()).entry((route, code)).or_default() += 1;
    }

    /// All metrics as text. `memory_left` is what admission has left, in bytes.
    pub fn print(&self, memory_left: usize) -> String {
        let mut out = String::with_capacity(6 << 10);
        describe("teemark_requests_total", "counter", "Answers by route and status code.", &mut out);
        for ((route, code), n) in self.requests.lock().unwrap_or_else(|e| e.into_inner()).iter() {
            let _ = writeln!(out, "teemark_requests_total{{route=\"{route}\",code=\"{code}\"}} {n}");
        }
        let counters = [
            ("file_bytes_in_total", "Bytes of encrypted files received.", &self.file_bytes_in),
            ("file_bytes_out_total", "Bytes of files returned.", &self.file_bytes_out),
            ("watermark_retries_total", "Calls repeated after a stale pooled connection.", &self.watermark_retries),
            ("connections_total", "Connections accepted.", &self.connections),
            ("connections_refused_total", "Connections refused or cut.", &self.connections_refused),
            ("handshakes_accepted_total", "Bundles that took effect.", &self.handshakes_accepted),
            ("handshakes_refused_total", "Bundles that changed nothing.", &self.handshakes_refused),
            ("tls_handshakes_total", "TLS handshakes completed with the watermark service.", &self.tls_handshakes),
            ("grants_refused_total", "Requests for a file without a valid grant.", &self.grants_refused),
            ("log_lines_dropped_total", "Log lines dropped because the queue was full.", &self.log_lines_dropped),
            ("panics_total", "Requests that ended in a panic.", &self.panics),
        ];
        for (name, help, counter) in counters {
            simple(name, "counter", help, signed(counter.get()), &mut out);
        }
        simple("connections_open", "gauge", "Connections open now.", signed(self.connections_open.get()), &mut out);
        simple(
            "memory_left_bytes",
            "gauge",
            "Bytes that admission can still give.",
            signed(memory_left as u64),
            &mut out,
        );
        if let Some(ms) = self.clock_drift.get() {
            let help = "Seconds by which the clock was ahead of the Nitro Secure Module's when last compared.";
            let sign = if ms < 0 { "-" } else { "" };
            let drift = format_args!("{sign}{}", seconds(ms.unsigned_abs() * 1000)).to_string();
            simple("clock_drift_seconds", "gauge", help, drift, &mut out);
        }
        if self.certificate_ends.get() > 0 {
            let left = signed(self.certificate_ends.get()) - signed(Utc::now().0);
            let help = "Seconds until the client certificate expires; negative afterwards.";
            simple("client_certificate_expires_seconds", "gauge", help, left, &mut out);
        }
        self.decrypt_time.print("teemark_decrypt_seconds", "Time to decrypt a file.", &mut out);
        self.watermark_time.print("teemark_watermark_seconds", "Time of a call of the watermark service.", &mut out);
        out
    }
}

/// Microseconds as seconds, by integers only: code that prints floats weighs 20 KB.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn describe(name: &str, kind: &str, help: &str, out: &mut String) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn simple(name: &str, kind: &str, help: &str, value: impl Display, out: &mut String) {
    let name = format!("teemark_{name}");
    describe(&name, kind, help, out);
    let _ = writeln!(out, "{name} {value}");
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
        h.print("x", "Help.", &mut out);
        for line in ["x_bucket{le=\"0.001\"} 1", "x_bucket{le=\"0.05\"} 2", "x_bucket{le=\"+Inf\"} 3", "x_count 3"] {
            assert!(out.lines().any(|l| l == line), "{line} is missing in\n{out}");
        }
        assert!(out.contains("x_sum 3600.031"));
    }

    #[test]
    fn every_line_is_a_comment_or_a_name_with_a_number() {
        let metrics = Metrics::new();
        metrics.answered("decrypt", 200);
        for line in metrics.print(7).lines().filter(|l| !l.starts_with("# ")) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("teemark_") && value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
