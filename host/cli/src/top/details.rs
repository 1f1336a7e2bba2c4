//! All that is known of one enclave.

use formats::time::Utc;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::enclaves::Enclave;
use super::figures::{Count, Figures, Latency, Stream, Used};
use super::levels::{self, Level};
use super::numbers::{bytes, quantile, rate, took};
use super::text::{GAP, certificate, drift, lost, plain, silence, state, text, time_of_day, up, value};

/// How many refusals are shown; more are kept, for --json.
const REFUSALS: usize = 10;

/// All that is known of an enclave, in lines of this width; a table or a message may be longer.
pub(super) fn details(enclave: &Enclave, now: Utc, width: usize) -> Vec<Line<'static>> {
    let mut lines = vec![Line::from(text(&enclave.address, Style::new().bold()))];
    if let Some(why) = &enclave.silence {
        lines.push(Line::from(state(enclave)));
        lines.extend(paragraph(plain(&silence(why, now)), width));
        lines.extend(enclave.figures.iter().map(|_| Line::from(note("What it said last:"))));
    }
    if let Some(figures) = &enclave.figures {
        lines.extend(flow(about(enclave, figures, now), GAP, width));
        lines.extend(worries(figures).into_iter().flat_map(|worry| paragraph(worry, width)));
        for group in [traffic(figures), latencies(figures), room(figures), secrets(figures), log(enclave, figures, now)]
        {
            lines.extend(flow(group, GAP, width));
        }
        lines.extend(counts("ERROR", &figures.errors, false));
        lines.extend(refusals(enclave, figures, width));
        lines.extend(counts("ROUTE", &figures.routes, true));
    }
    lines
}

type Figure = Vec<Span<'static>>;

fn figure(label: &str, value: Span<'static>) -> Figure {
    vec![text(&format!("{label} "), Style::new().dim()), value]
}

fn note(words: &str) -> Span<'static> {
    text(words, Style::new().dim())
}

/// Lays figures out in lines; none is broken.
fn flow(figures: Vec<Figure>, gap: &'static str, width: usize) -> Vec<Line<'static>> {
    let mut lines: Vec<Line<'static>> = Vec::new();
    for figure in figures {
        let wide = figure.iter().map(Span::width).sum::<usize>();
        match lines.last_mut() {
            Some(line) if line.width() + gap.len() + wide <= width => {
                line.push_span(gap);
                line.extend(figure);
            }
            _ => lines.push(Line::from(figure)),
        }
    }
    lines
}

/// Lays a text out in lines, which are broken between words.
fn paragraph(text: Span<'static>, width: usize) -> Vec<Line<'static>> {
    let words = text.content.split(' ').map(|word| vec![Span::styled(word.to_owned(), text.style)]);
    flow(words.collect(), " ", width)
}

/// Why it is not ready, and what could not be asked.
fn worries(figures: &Figures) -> Vec<Span<'static>> {
    let not_ready = figures.not_ready.iter().map(|why| value(why, levels::readiness(figures)));
    let not_told = figures.status_fault.iter().map(|why| value(&format!("/admin/status: {why}"), Level::Warning));
    not_ready.chain(not_told).collect()
}

fn about(enclave: &Enclave, figures: &Figures, now: Utc) -> Vec<Figure> {
    let mut about = Vec::new();
    if enclave.silence.is_none() {
        about.push(vec![state(enclave)]);
    }
    about.push(figure("teemarkd", plain(figures.version.as_deref().unwrap_or("–"))));
    about.push(figure("up", up(enclave, figures, now)));
    if let Some(at) = enclave.restarted(now) {
        about.push(vec![value(&format!("restarted before {at}"), Level::Warning)]);
    }
    if figures.panics > 0.0 {
        about.push(figure("panics", value(&format!("{:.0}", figures.panics), Level::Warning)));
    }
    about
}

fn over(figures: &Figures) -> String {
    match figures.since_start {
        true => "since the start".to_owned(),
        false => format!("last {}", took(figures.over_seconds)),
    }
}

fn traffic(figures: &Figures) -> Vec<Figure> {
    vec![
        figure("files/s", plain(&rate(figures.files_per_second))),
        figure("errors/s", plain(&rate(figures.errors_per_second))),
        figure("in/s", plain(&bytes(figures.bytes_in_per_second))),
        figure("out/s", plain(&bytes(figures.bytes_out_per_second))),
        vec![note(&format!("({})", over(figures)))],
    ]
}

fn latencies(figures: &Figures) -> Vec<Figure> {
    let both = |latency: Option<Latency>| {
        let [p50, p99] = [latency.map(|latency| latency.p50), latency.map(|latency| latency.p99)].map(quantile);
        plain(&format!("p50 {p50}, p99 {p99}"))
    };
    let mut latencies = vec![figure("a file took", both(figures.latency))];
    if !figures.since_start {
        latencies.push(figure("since the start", both(figures.latency_since_start)));
    }
    latencies.push(figure("the service", both(figures.service_latency)));
    latencies
}

fn room(figures: &Figures) -> Vec<Figure> {
    let of = |used: Option<Used>, shown: fn(f64) -> String, level: fn(Used) -> Level| match used {
        Some(used) => value(&format!("{} of {}", shown(used.used), shown(used.limit)), level(used)),
        None => plain("–"),
    };
    let number = |n: f64| format!("{n:.0}");
    vec![
        figure("memory", of(figures.memory_bytes, bytes, levels::memory)),
        figure("in flight", of(figures.in_flight, number, levels::near_limit)),
        figure("grants", of(figures.grants, number, levels::near_limit)),
    ]
}

fn secrets(figures: &Figures) -> Vec<Figure> {
    let number = |n: Option<f64>| plain(&n.map_or_else(|| "–".to_owned(), |n| format!("{n:.0}")));
    vec![
        figure("certificate", certificate(figures)),
        figure("file keys", number(figures.file_keys)),
        figure("grant keys", number(figures.grant_keys)),
        figure("counter", number(figures.counter)),
    ]
}

fn log(enclave: &Enclave, figures: &Figures, now: Utc) -> Vec<Figure> {
    vec![
        figure("clock drift", drift(figures)),
        figure("log records lost", lost(figures)),
        figure("collector", collector(enclave, figures, now)),
    ]
}

/// Whether a collector acknowledges the log.
fn collector(enclave: &Enclave, figures: &Figures, now: Utc) -> Span<'static> {
    let Some(Stream { connected, last, acknowledged }) = figures.log_stream else { return plain("none") };
    let behind = format!("has {acknowledged:.0} of {last:.0} records");
    match enclave.unacknowledged(now) {
        _ if figures.audit_fault.is_some() => value(&format!("does not acknowledge, {behind}"), Level::Critical),
        Some(since) => value(&format!("{behind}, none since {}", time_of_day(since)), Level::Warning),
        None if connected => plain(&behind),
        None => value(&format!("not connected, {behind}"), Level::Warning),
    }
}

/// A table of counts; nothing where there are none.
fn counts(name: &str, counts: &[Count], timed: bool) -> Vec<Line<'static>> {
    if counts.is_empty() {
        return Vec::new();
    }
    let more = if timed { format!("{:>9}{:>9}", "P50", "P99") } else { String::new() };
    let wide = counts.iter().map(|count| count.name.chars().count()).chain([16]).max().unwrap_or(0);
    let mut lines =
        vec![Line::from(text(&format!("{name:wide$}{:>10}{:>9}{more}", "TOTAL", "A SECOND"), Style::new().bold()))];
    for Count { name, total, per_second, latency } in counts {
        let [p50, p99] = [latency.map(|latency| latency.p50), latency.map(|latency| latency.p99)].map(quantile);
        let more = if timed { format!("{p50:>9}{p99:>9}") } else { String::new() };
        lines.push(Line::from(plain(&format!("{name:wide$}{total:>10.0}{:>9}{more}", rate(*per_second)))));
    }
    lines
}

/// The last refusals, or why there are none to be seen.
fn refusals(enclave: &Enclave, figures: &Figures, width: usize) -> Vec<Line<'static>> {
    let refusals = &enclave.refusals;
    let mut lines = vec![Line::from(text("LAST REFUSALS", Style::new().bold()))];
    let mut says = |words: String| lines.extend(paragraph(note(&words), width));
    if let Some(why) = &refusals.fault {
        says(format!("/admin/log: {why}"));
    } else if refusals.sealed > 0 {
        let key = if refusals.has_key { "this log key does not open them" } else { "--log-key FILE opens them" };
        says(format!("{} records of the log are sealed; {key}", refusals.sealed));
    } else if figures.audit.as_deref() == Some("off") {
        says("TEEMARK_AUDIT is off, so none is recorded".to_owned());
    } else if refusals.newest().next().is_none() {
        says("none among the last records of the log".to_owned());
    }
    for refusal in refusals.newest().take(REFUSALS) {
        let time = time_of_day(refusal.time);
        lines.push(Line::from_iter([
            text(&format!("{time}  "), Style::new().dim()),
            plain(&format!("{:20}  {}", refusal.code, refusal.about)),
        ]));
    }
    lines
}
