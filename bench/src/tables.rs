//! The tables of docs/PERFORMANCE.md, by the names of their places in it. What is bold is worse than what it is compared
//! with.

use crate::cell::{Cell, KIB, MIB, floor_cell, main_cells};
use crate::floor::Floors;
use crate::forwarding::{Direction, EXPOSE, Forwarded, STREAMS};
use crate::load::Measurement;
use crate::log;
use crate::results::{DAEMON, Results};
use crate::spread::Spread;
use crate::targets::{self, Target, forwarding_ratio, lane};

/// Each place's name and text; only of what was measured.
pub(crate) fn all(results: &Results) -> Vec<(&'static str, String)> {
    let (main, other): (Vec<_>, Vec<_>) =
        results.measured_cells().into_iter().partition(|cell| main_cells().contains(cell));
    let mut tables = vec![("machine", machine(results)), ("targets", targets(&targets::all(results)))];
    tables.push(("cpu", cpu(results, &main)));
    tables.push(("cpu-axes", cpu(results, &other)));
    tables.push(("rates", rates(results, &[main, other].concat())));
    tables.push(("trust", trust(results)));
    tables.push(("log", log_table(&results.log)));
    tables.push(("floors", results.floors.as_ref().map(|floors| floor_table(results, floors)).unwrap_or_default()));
    tables.push(("forwarding", forwarding(&results.forwarding)));
    tables.push(("memory", memory(results)));
    tables.push(("system-calls", system_calls(results)));
    tables.retain(|(_, text)| text.lines().count() > 2 || text.starts_with("On "));
    tables
}

fn machine(results: &Results) -> String {
    let m = &results.machine;
    let commit = if m.commit.is_empty() { String::new() } else { format!(" teemarkd is commit {}.", m.commit) };
    format!(
        "On {} cores of {}, Linux {}, load average {} at the start.{commit}\n",
        m.cores, m.processor, m.kernel, m.load
    )
}

/// The targets, those that are missed in bold.
pub(crate) fn targets(targets: &[Target]) -> String {
    let rows = targets.iter().map(|target| {
        let measured = bold_if(!target.is_met(), &spread(target.measured));
        vec![target.what.clone(), figure(target.most), measured, if target.is_met() { "met" } else { "missed" }.into()]
    });
    table(&["", "at most", "measured: median (range)", ""], rows)
}

fn cpu(results: &Results, cells: &[Cell]) -> String {
    let mut programs = results.programs();
    programs.retain(|program| cells.iter().any(|cell| results.figure(program, cell, |m| m.cpu_us).is_some()));
    let others: Vec<_> = programs.iter().filter(|program| *program != DAEMON).collect();
    let heads = ["file and route".to_owned()]
        .into_iter()
        .chain(programs.iter().map(|program| format!("{program} µs")))
        .chain(others.iter().map(|other| format!("teemarkd / {other}")));
    let rows = cells.iter().map(|cell| {
        let mut row = vec![cell.to_string()];
        row.extend(programs.iter().map(|p| median(results.figure(p, cell, |m| m.cpu_us))));
        row.extend(others.iter().map(|other| ratio(results.ratio(other, cell))));
        row
    });
    table(&heads.collect::<Vec<_>>(), rows)
}

fn rates(results: &Results, cells: &[Cell]) -> String {
    /// A figure, and whether less of it is better.
    type Column = (fn(&Measurement) -> f64, bool);
    const COLUMNS: [Column; 5] = [
        (|m| m.per_second, false),
        (|m| m.p50_ms, true),
        (|m| m.p99_ms, true),
        (|m| m.peak_kib as f64 * KIB as f64 / MIB as f64, true),
        (|m| m.threads as f64, true),
    ];
    let programs = results.programs();
    let mut rows = Vec::new();
    for cell in cells {
        for program in programs.iter().filter(|p| results.figure(p, cell, |m| m.per_second).is_some()) {
            let mut row = vec![cell.to_string(), program.clone()];
            for (of, less_is_better) in COLUMNS {
                let median_of = |program: &String| results.figure(program, cell, of).map(|spread| spread.median);
                let own = median_of(program);
                let better = |other: f64| own.is_some_and(|own| if less_is_better { other < own } else { other > own });
                let is_beaten = program == DAEMON && programs.iter().filter_map(median_of).any(better);
                row.push(bold_if(is_beaten, &own.map(figure).unwrap_or_default()));
            }
            rows.push(row);
        }
    }
    table(&["file and route", "program", "requests/s", "p50 ms", "p99 ms", "peak MiB", "threads"], rows)
}

fn trust(results: &Results) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for m in results.trust.iter().filter(|m| m.program == DAEMON && m.round == 0) {
        let plain = Cell { grant: false, sealed: false, ..m.cell };
        let all = results.trust.iter().filter(|other| other.program == DAEMON && other.cell == m.cell);
        let own = Spread::of(all.map(|m| m.cpu_us));
        let cost = results.trust_cost(&m.cell, &plain).filter(|_| m.cell != plain);
        rows.push(vec![m.cell.to_string(), median(own), cost.map(spread).unwrap_or_default()]);
    }
    table(&["request", "CPU µs", "more than without, µs"], rows)
}

fn log_table(all: &[Measurement]) -> String {
    let rows = all.iter().filter(|m| m.round == 0).map(|m| {
        let of = |figure: fn(&Measurement) -> f64| {
            median(Spread::of(all.iter().filter(|other| other.program == m.program).map(figure)))
        };
        let slowdown = log::slowdown(all, &m.program).filter(|_| m.program != log::READS);
        vec![
            m.program.trim_start_matches("teemarkd, ").to_owned(),
            of(|m| m.cpu_us),
            of(|m| m.p50_ms),
            slowdown.map(spread).unwrap_or_default(),
        ]
    });
    table(&["collector", "CPU µs", "p50 ms", "p50 over that with one that reads"], rows)
}

fn floor_table(results: &Results, floors: &Floors) -> String {
    let mut rows = vec![
        ("open the file (AES-256-GCM)", floors.open),
        ("TLS to the service and back, 4/3 of the bytes twice (AES-256-GCM in records)", floors.tls),
        ("SHA-256 of the encrypted and of the marked file", floors.sha256),
        ("base64, encoded and decoded once", floors.base64),
        ("scanning the service's JSON", floors.json),
        ("the kernel's copies (a bare echo of the same bytes)", floors.kernel),
        ("together", floors.file()),
    ];
    let own = results.figure(DAEMON, &floor_cell(), |m| m.cpu_us);
    rows.extend(own.map(|own| ("teemarkd", own.median)));
    rows.push(("a grant: ring's Ed25519 verification", floors.verification));
    rows.push(("a sealed answer: an X25519 pair and AES-256-GCM of 4 KiB", floors.sealing));
    table(&["", "CPU µs"], rows.into_iter().map(|(what, us)| vec![what.to_owned(), figure(us)]))
}

fn forwarding(all: &[Forwarded]) -> String {
    const OWN: [&str; 2] = [DAEMON, EXPOSE];
    let mut programs: Vec<&str> = Vec::new();
    for f in all {
        if !programs.contains(&f.program.as_str()) {
            programs.push(&f.program);
        }
    }
    let lanes = STREAMS.into_iter().flat_map(|n| [Direction::Up, Direction::Down].map(|direction| (n, direction)));
    let lanes: Vec<_> = lanes.collect();
    let heads = ["ns a KiB (MiB/s)".to_owned()].into_iter().chain(lanes.iter().map(|&(n, d)| lane(n, d)));
    let rows = programs.iter().map(|program| {
        let mut row = vec![(*program).to_owned()];
        for &(streams, direction) in &lanes {
            let of = |what: fn(&Forwarded) -> f64| {
                let lane = all.iter().filter(|f| f.program == *program && f.streams == streams);
                median(Spread::of(lane.filter(|f| f.direction == direction).map(what)))
            };
            let text = format!("{} ({})", of(|f| f.cpu_ns), of(|f| f.mib_per_second));
            let is_beaten = |other: &&str| {
                let ratio = forwarding_ratio(all, program, other, streams, direction);
                !OWN.contains(other) && ratio.is_some_and(|ratio| ratio.median > 1.0)
            };
            row.push(bold_if(OWN.contains(program) && programs.iter().any(is_beaten), &text));
        }
        row
    });
    table(&heads.collect::<Vec<_>>(), rows)
}

fn memory(results: &Results) -> String {
    let mib = |kib: u64| kib as f64 * KIB as f64 / MIB as f64;
    let rows = results.memory.iter().map(|m| {
        let figures = |m: &crate::memory::MemoryUse| {
            [mib(m.idle), mib(m.connections), m.raw.times(), m.json.times(), mib(m.raw.after), mib(m.json.after)]
        };
        let mut row = vec![m.program.clone()];
        for (i, value) in figures(m).into_iter().enumerate() {
            let is_beaten = m.program == DAEMON && results.memory.iter().any(|other| figures(other)[i] < value);
            row.push(bold_if(is_beaten, &figure(value)));
        }
        row
    });
    let heads = ["", "idle", "256 idle connections", "raw, times", "JSON, times", "after raw", "after JSON"];
    table(&heads, rows)
}

fn system_calls(results: &Results) -> String {
    let cells: Vec<_> = main_cells().into_iter().map(|cell| Cell { clients: 1, ..cell }).collect();
    let mut programs: Vec<&str> = Vec::new();
    for calls in &results.system_calls {
        if !programs.contains(&calls.program.as_str()) {
            programs.push(&calls.program);
        }
    }
    let of = |program: &str, cell: &Cell| {
        results.system_calls.iter().find(|c| c.program == program && c.cell == *cell).map(|c| c.a_request)
    };
    let heads = [String::new()].into_iter().chain(main_cells().into_iter().map(|cell| cell.to_string()));
    let rows = programs.iter().map(|program| {
        let mut row = vec![(*program).to_owned()];
        for cell in &cells {
            let own = of(program, cell).unwrap_or_default();
            let is_beaten =
                *program == DAEMON && programs.iter().any(|other| of(other, cell).is_some_and(|other| other < own));
            row.push(bold_if(is_beaten, &figure(own)));
        }
        row
    });
    table(&heads.collect::<Vec<_>>(), rows)
}

fn table(heads: &[impl AsRef<str>], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(heads.iter().map(AsRef::as_ref).collect());
    text += &format!("|{}\n", "---|".repeat(heads.len()));
    rows.into_iter().for_each(|row| text += &line(row.iter().map(String::as_str).collect()));
    text
}

/// A ratio, in bold where the daemon needs more.
fn ratio(ratio: Option<Spread>) -> String {
    ratio.map(|ratio| bold_if(ratio.median > 1.0, &spread(ratio))).unwrap_or_default()
}

fn bold_if(bold: bool, text: &str) -> String {
    if bold { format!("**{text}**") } else { text.to_owned() }
}

fn median(spread: Option<Spread>) -> String {
    spread.map(|spread| figure(spread.median)).unwrap_or_default()
}

/// `0.62 (0.58 to 0.70)`.
fn spread(spread: Spread) -> String {
    let Spread { median, least, most } = spread;
    if least == most { figure(median) } else { format!("{} ({} to {})", figure(median), figure(least), figure(most)) }
}

/// Three digits, where there are as many.
fn figure(value: f64) -> String {
    match value.abs() {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::rates;
    use crate::cell::{Cell, MIB, Route};
    use crate::load::Measurement;
    use crate::results::{DAEMON, Results};

    #[test]
    fn a_figure_of_the_daemon_that_is_worse_than_anothers_is_bold() {
        let cell = Cell::new(Route::Raw, MIB);
        let of = |program: &str, per_second, p50_ms, peak_kib| Measurement {
            program: program.to_owned(),
            cell,
            round: 0,
            answers: 1,
            cpu_us: 1.0,
            per_second,
            p50_ms,
            p99_ms: 3.0,
            peak_kib,
            threads: 4,
        };
        let cells = vec![of(DAEMON, 100.0, 2.5, 1024), of("other", 200.0, 1.5, 2048), of("another", 50.0, 9.0, 4096)];
        let table = rates(&Results { cells, ..Results::default() }, &[cell]);
        let rows: Vec<_> = table.lines().skip(2).collect();
        let expected = [
            "| 1 MiB raw | teemarkd | **100** | **2.50** | 3.00 | 1.00 | 4.00 |",
            "| 1 MiB raw | other | 200 | 1.50 | 3.00 | 2.00 | 4.00 |",
            "| 1 MiB raw | another | 50.0 | 9.00 | 3.00 | 4.00 | 4.00 |",
        ];
        assert_eq!(rows, expected);
    }
}
