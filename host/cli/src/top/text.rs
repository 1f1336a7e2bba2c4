//! Styled text, and the figures that the table and the details have in common.

use formats::time::Utc;
use ratatui::style::Style;
use ratatui::text::Span;

use super::enclaves::{Enclave, Silence};
use super::figures::Figures;
use super::levels::{self, Level};
use super::numbers::lasted;
use crate::terminal::printable;

/// Between columns, and between figures.
pub(super) const GAP: &str = "  ";

/// A piece of text. Every one goes through here, so none can steer the terminal.
pub(super) fn text(text: &str, style: Style) -> Span<'static> {
    Span::styled(printable(text), style)
}

/// A value, with a mark behind it where it is a worry: not everybody sees colours.
pub(super) fn value(value: &str, level: Level) -> Span<'static> {
    match level {
        Level::Well => text(value, Style::new()),
        Level::Warning => text(&format!("{value}!"), Style::new().yellow().bold()),
        Level::Critical => text(&format!("{value}!!"), Style::new().red().bold()),
    }
}

pub(super) fn plain(words: &str) -> Span<'static> {
    value(words, Level::Well)
}

pub(super) fn certificate(figures: &Figures) -> Span<'static> {
    let Some(seconds) = figures.certificate_seconds else { return plain("–") };
    let left = match seconds {
        s if s <= 0.0 => "expired".to_owned(),
        s if s < 172_800.0 => format!("{:.0}h", (s / 3600.0).floor()),
        s => format!("{:.0}d", (s / 86_400.0).floor()),
    };
    value(&left, levels::certificate(seconds))
}

pub(super) fn drift(figures: &Figures) -> Span<'static> {
    let shown = |s: f64| if s.abs() < 9.95 { format!("{:+.0}ms", s * 1000.0) } else { format!("{s:+.0}s") };
    let drift = figures.clock_drift_seconds;
    drift.map_or_else(|| plain("–"), |seconds| value(&shown(seconds), levels::drift(seconds)))
}

pub(super) fn lost(figures: &Figures) -> Span<'static> {
    let lost = figures.log_records_lost;
    value(&format!("{:.0}", lost.total), if lost.lately > 0.0 { Level::Warning } else { Level::Well })
}

pub(super) fn state(enclave: &Enclave) -> Span<'static> {
    match (&enclave.silence, &enclave.figures) {
        (Some(_), _) => value("no answer", Level::Critical),
        (None, None) => plain("asking"),
        (None, Some(figures)) => {
            let word = match (figures.ready, figures.draining) {
                (_, true) => "draining",
                (true, false) => "ready",
                (false, false) => "not ready",
            };
            value(word, levels::readiness(figures))
        }
    }
}

pub(super) fn up(enclave: &Enclave, figures: &Figures, now: Utc) -> Span<'static> {
    let shown = figures.up_seconds.map_or_else(|| "–".to_owned(), lasted);
    value(&shown, if enclave.restarted(now).is_some() { Level::Warning } else { Level::Well })
}

/// Why an enclave does not answer, and since when; without the date if that is not a day ago.
pub(super) fn silence(Silence { since, why }: &Silence, now: Utc) -> String {
    match now.0.saturating_sub(since.0) {
        0..86_400 => format!("since {}: {why}", time_of_day(*since)),
        _ => format!("since {since}: {why}"),
    }
}

pub(super) fn time_of_day(time: Utc) -> String {
    let text = time.to_string();
    text.split_once('T').map_or(text.clone(), |(_, time)| time.to_owned())
}
