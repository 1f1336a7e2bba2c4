//! The pictures of docs/PERFORMANCE.md, as SVG.

use kuva::prelude::SvgBackend;
use kuva::prelude::{BarPlot, Layout, LegendPosition, Plot, ReferenceLine, render_multiple};

use crate::cell::main_cells;
use crate::forwarding::{Direction, Forwarded, STREAMS};
use crate::results::{DAEMON, Results};
use crate::spread::Spread;
use crate::targets::lane;

/// Okabe and Ito's, which tell apart for every eye.
const COLOURS: [&str; 6] = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"];

/// A picture's title, its upright axis, and a line across it.
struct Frame<'a> {
    title: &'a str,
    axis: &'a str,
    line: Option<f64>,
}

/// Each picture's name and text; only of what was measured.
pub(crate) fn all(results: &Results) -> Vec<(&'static str, String)> {
    let pictures = [
        ("performance-cpu.svg", cpu(results)),
        ("performance-forwarding.svg", forwarding(&results.forwarding)),
        ("performance-memory.svg", memory(results)),
    ];
    pictures.into_iter().filter_map(|(name, picture)| Some((name, picture?))).collect()
}

fn cpu(results: &Results) -> Option<String> {
    let programs = results.programs();
    let others: Vec<_> = programs.iter().map(String::as_str).filter(|program| *program != DAEMON).collect();
    let cells: Vec<_> =
        main_cells().into_iter().filter(|cell| others.iter().all(|o| results.ratio(o, cell).is_some())).collect();
    let groups: Vec<_> = cells
        .iter()
        .map(|cell| (cell.to_string(), others.iter().filter_map(|other| results.ratio(other, cell)).collect()))
        .collect();
    let legend: Vec<_> = others.iter().map(|other| format!("over {other}'s")).collect();
    let frame = Frame {
        title: "CPU a request: teemarkd's over others', 8 clients (below 1: teemarkd needs less)",
        axis: "ratio, median and range",
        line: Some(1.0),
    };
    bars(&frame, &legend, groups)
}

fn forwarding(all: &[Forwarded]) -> Option<String> {
    let mut programs: Vec<String> = Vec::new();
    for f in all {
        if !programs.contains(&f.program) {
            programs.push(f.program.clone());
        }
    }
    let mut groups = Vec::new();
    for streams in STREAMS {
        for direction in [Direction::Up, Direction::Down] {
            let of = |program: &String| {
                let lane = all.iter().filter(|f| f.program == *program && f.streams == streams);
                Spread::of(lane.filter(|f| f.direction == direction).map(|f| f.cpu_ns))
            };
            groups.push((lane(streams, direction), programs.iter().filter_map(of).collect()));
        }
    }
    let frame = Frame { title: "CPU of a forwarder a KiB", axis: "nanoseconds, median and range", line: None };
    bars(&frame, &programs, groups)
}

fn memory(results: &Results) -> Option<String> {
    let programs: Vec<_> = results.memory.iter().map(|m| m.program.clone()).collect();
    let of = |times: fn(&crate::memory::MemoryUse) -> f64| {
        results.memory.iter().filter_map(|m| Spread::of([times(m)])).collect::<Vec<_>>()
    };
    let groups = vec![("raw".to_owned(), of(|m| m.raw.times())), ("JSON".to_owned(), of(|m| m.json.times()))];
    let frame =
        Frame { title: "Peak memory above idle for one file of 64 MiB", axis: "times the file", line: Some(1.0) };
    bars(&frame, &programs, groups)
}

/// Bars in groups, one of each colour in a group, with their ranges.
fn bars(frame: &Frame<'_>, legend: &[String], groups: Vec<(String, Vec<Spread>)>) -> Option<String> {
    if legend.is_empty() || groups.is_empty() || groups.iter().any(|(_, bars)| bars.len() != legend.len()) {
        return None;
    }
    let ranges: Vec<_> =
        groups.iter().flat_map(|(_, bars)| bars).map(|b| (b.median - b.least, b.most - b.median)).collect();
    let mut plot = BarPlot::new();
    for (name, bars) in groups {
        plot = plot.with_group(name, bars.iter().map(|bar| bar.median).zip(COLOURS.into_iter().cycle()));
    }
    plot = plot.with_legend(legend.iter().map(String::as_str).collect());
    if ranges.iter().any(|&range| range != (0.0, 0.0)) {
        plot = plot.with_asymmetric_error(ranges);
    }
    let plots = vec![Plot::Bar(plot)];
    let mut layout = Layout::auto_from_plots(&plots)
        .with_title(frame.title)
        .with_title_size(16)
        .with_y_label(frame.axis)
        .with_width(820.0)
        .with_height(380.0)
        .with_legend_position(LegendPosition::OutsideBottomColumns);
    if let Some(y) = frame.line {
        layout = layout.with_reference_line(ReferenceLine::horizontal(y));
    }
    Some(SvgBackend.render_scene(&render_multiple(plots, layout)))
}
