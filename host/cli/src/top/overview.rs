//! The table of all enclaves.

use formats::time::Utc;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::enclaves::Enclave;
use super::figures::{Figures, Used};
use super::levels::{self, Level};
use super::numbers::{percent, quantile, rate};
use super::text::{GAP, certificate, drift, lost, plain, silence, state, text, up, value};

/// The longest address that is not cut, in characters.
const ADDRESS: usize = 32;

/// A column of figures.
struct Column {
    name: &'static str,
    /// Where there is no room, the columns of the highest rank go first.
    rank: u8,
    cell: fn(&Enclave, &Figures, Utc) -> Span<'static>,
}

/// Behind the enclave's address and its state.
const COLUMNS: [Column; 10] = [
    Column { name: "UP", rank: 10, cell: up },
    Column { name: "FILES/S", rank: 1, cell: |_, figures, _| plain(&rate(figures.files_per_second)) },
    Column { name: "ERR/S", rank: 2, cell: |_, figures, _| plain(&rate(figures.errors_per_second)) },
    Column { name: "P50", rank: 5, cell: |_, figures, _| plain(&quantile(figures.latency.map(|latency| latency.p50))) },
    Column { name: "P99", rank: 3, cell: |_, figures, _| plain(&quantile(figures.latency.map(|latency| latency.p99))) },
    Column { name: "BUSY", rank: 7, cell: |_, figures, _| part(figures.in_flight, levels::near_limit) },
    Column { name: "MEM", rank: 4, cell: |_, figures, _| part(figures.memory_bytes, levels::memory) },
    Column { name: "CERT", rank: 6, cell: |_, figures, _| certificate(figures) },
    Column { name: "DRIFT", rank: 9, cell: |_, figures, _| drift(figures) },
    Column { name: "LOST", rank: 8, cell: |_, figures, _| lost(figures) },
];

/// What is used of something, in per cent.
fn part(used: Option<Used>, level: fn(Used) -> Level) -> Span<'static> {
    used.map_or_else(|| plain("–"), |used| value(&percent(used.part()), level(used)))
}

/// An enclave in the table.
struct Row {
    names: [Span<'static>; 2],
    rest: Rest,
}

/// What is behind its address and its state.
enum Rest {
    /// A cell for each column.
    Figures(Vec<Span<'static>>),
    /// The reason why there are none.
    Words(String),
}

impl Row {
    fn head() -> Row {
        let name = |name| text(name, Style::new().bold());
        Row {
            names: ["ENCLAVE", "STATE"].map(name),
            rest: Rest::Figures(COLUMNS.iter().map(|column| name(column.name)).collect()),
        }
    }

    fn of(enclave: &Enclave, now: Utc) -> Row {
        let rest = match (&enclave.silence, &enclave.figures) {
            (Some(why), _) => Rest::Words(silence(why, now)),
            (None, None) => Rest::Words(String::new()),
            (None, Some(figures)) => {
                Rest::Figures(COLUMNS.iter().map(|column| (column.cell)(enclave, figures, now)).collect())
            }
        };
        Row { names: [plain(&address(enclave)), state(enclave)], rest }
    }

    fn cell(&self, column: usize) -> Option<&Span<'static>> {
        match &self.rest {
            Rest::Figures(cells) => cells.get(column),
            Rest::Words(_) => None,
        }
    }

    /// As a line, in which names and words begin at the left of their column, and numbers end at its right.
    fn line(self, names: [usize; 2], columns: &[(usize, usize)]) -> Line<'static> {
        let space = |wide: usize, cell: &Span<'_>| Span::raw(" ".repeat(wide.saturating_sub(cell.width())));
        let mut line = Line::default();
        for ((cell, wide), gap) in self.names.iter().zip(names).zip(["", GAP]) {
            line.extend([Span::raw(gap), cell.clone(), space(wide, cell)]);
        }
        for (cell, wide) in columns.iter().filter_map(|(column, wide)| Some((self.cell(*column)?, *wide))) {
            line.extend([Span::raw(GAP), space(wide, cell), cell.clone()]);
        }
        if let Rest::Words(words) = self.rest {
            line.extend([Span::raw(GAP), plain(&words)]);
        }
        line
    }
}

/// An address, shortened.
fn address(enclave: &Enclave) -> String {
    let shown = enclave.address.strip_prefix("http://").unwrap_or(&enclave.address);
    match shown.char_indices().nth(ADDRESS) {
        Some(_) => shown.chars().take(ADDRESS - 1).chain(['…']).collect(),
        None => shown.to_owned(),
    }
}

/// The table: its head, and a line for each enclave. Where `width` is not enough, columns are left out.
pub(super) fn overview(enclaves: &[Enclave], now: Utc, width: usize) -> (Line<'static>, Vec<Line<'static>>) {
    let mut rows = vec![Row::head()];
    rows.extend(enclaves.iter().map(|enclave| Row::of(enclave, now)));
    let names = [0, 1].map(|at| rows.iter().map(|row| row.names[at].width()).max().unwrap_or(0));
    let wide = |column| rows.iter().filter_map(|row| row.cell(column)).map(Span::width).max().unwrap_or(0);
    let mut columns: Vec<(usize, usize)> = (0..COLUMNS.len()).map(|column| (column, wide(column))).collect();
    let whole =
        |columns: &[(usize, usize)]| names[0] + columns.iter().fold(names[1], |sum, (_, wide)| sum + GAP.len() + wide);
    while whole(&columns) + GAP.len() > width {
        let Some((least, _)) = columns.iter().max_by_key(|(column, _)| COLUMNS[*column].rank).copied() else { break };
        columns.retain(|(column, _)| *column != least);
    }
    let mut lines = rows.into_iter().map(|row| row.line(names, &columns));
    let head = lines.next().unwrap_or_default();
    (head, lines.collect())
}
