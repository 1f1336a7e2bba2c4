//! `make bench`: teemarkd beside what people would run instead, on one machine, in one run. docs/PERFORMANCE.md says what
//! is measured and how; this program measures it and writes its tables and pictures.
//!
//! ```text
//! main          what to measure, and in which order
//! cell          what is measured: routes, sizes, clients
//! rounds        programs in turn                        load           clients in a closed loop
//! server        the programs under test                 process        CPU, memory and threads of one
//! client        HTTP                                    request        what is asked, and what has to come back
//! statement     what answers are signed over            grants         grants for requests
//! service       the watermark service                   material       certificates, keys, files
//! forwarding    bytes through forwarders                memory         idle, and for one large file
//! log           with a collector that reads, or never
//! system_calls  by strace                               floor          what cannot cost less
//! results       all of it, kept as JSON                 spread         median and range
//! targets       what is to be reached                   tables, plots, document
//! ```

#![forbid(unsafe_code)]

mod cell;
mod client;
mod document;
mod floor;
mod forwarding;
mod grants;
mod load;
mod log;
mod material;
mod memory;
mod plots;
mod process;
mod request;
mod results;
mod rounds;
mod server;
mod service;
mod spread;
mod statement;
mod system_calls;
mod tables;
mod targets;

use std::env;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cell::{Cell, axis_cells, floor_cell, main_cells, trust_cells};
use crate::forwarding::EXPOSE;
use crate::grants::Issuer;
use crate::material::Material;
use crate::process::{OTHER_CORE, pin};
use crate::results::{Machine, Results, save};
use crate::rounds::Pace;
use crate::server::{Program, Setting};

const OUT: &str = "out/bench";
const DOCUMENT: &str = "docs/PERFORMANCE.md";
const PICTURES: &str = "docs/pictures";

/// Seconds of one measurement, and how often each is made.
const SECONDS: f64 = 0.5;
const ROUNDS: usize = 5;
/// Cells without a target are measured less often.
const AXIS_ROUNDS: usize = 3;

const PARTS: [&str; 7] = ["floors", "cells", "trust", "log", "forwarding", "memory", "system-calls"];

/// What was asked for, by arguments and the environment (bench/run.sh).
struct Options {
    programs: Vec<Program>,
    /// `teemark expose`, which only forwards.
    expose: Option<Program>,
    full: bool,
    /// The parts to measure; the others are taken from an earlier run.
    parts: Vec<String>,
    /// The only cell to measure of that part.
    cell: Option<String>,
    pace: Pace,
    axis_pace: Pace,
    /// A run that does not touch the documents.
    trial: bool,
}

fn main() -> Result<()> {
    let options = Options::read()?;
    pin(OTHER_CORE)?;
    let out = Path::new(OUT);
    fs::create_dir_all(out)?;
    measure(&options, out)?;

    let results = Results::load(out);
    let targets = targets::all(&results);
    let folder = if options.trial { out } else { Path::new(PICTURES) };
    let document = if options.trial { out.join("PERFORMANCE.md") } else { DOCUMENT.into() };
    fs::write(&document, document::fill(&fs::read_to_string(DOCUMENT)?, &tables::all(&results))?)?;
    for (name, picture) in plots::all(&results) {
        fs::write(folder.join(name), picture)?;
    }
    let missed = targets.iter().filter(|target| !target.is_met()).count();
    println!("{}\n{} of {} targets are missed.", tables::targets(&targets), missed, targets.len());
    println!("Written: {}, the pictures in {}, the figures in {OUT}", document.display(), folder.display());
    Ok(())
}

/// Measures each part, and keeps it as soon as it is there.
fn measure(options: &Options, out: &Path) -> Result<()> {
    let Options { programs, full, pace, axis_pace, .. } = options;
    let folder = tempfile::tempdir()?;
    let material = Material::make(folder.path())?;
    let service = service::start(&material.certs)?;
    let setting = Setting { material, issuer: Issuer::generate()?, service };
    let daemons: Vec<_> = programs.iter().filter(|program| program.is_daemon()).cloned().collect();
    let own: Vec<_> = daemons.iter().chain(&options.expose).cloned().collect();
    let part = |name: &str| {
        let wanted = options.parts.iter().any(|part| part == name);
        if wanted {
            eprintln!("{name}");
        }
        wanted
    };
    if !options.parts.is_empty() {
        process::raise_open_files(server::OPEN_FILES)?;
        save(out, "machine", &Machine::look())?;
    }
    if part("floors") {
        save(out, "floors", &floor::run()?)?;
    }
    let chosen = |cells: Vec<Cell>| -> Vec<Cell> {
        cells.into_iter().filter(|cell| options.cell.as_ref().is_none_or(|name| *name == cell.to_string())).collect()
    };
    let any = main_cells().into_iter().chain([floor_cell()]).chain(axis_cells(*full));
    ensure!(
        options.cell.is_none() || !chosen(any.collect()).is_empty(),
        "BENCH_CELL names no cell; docs/PERFORMANCE.md has their names"
    );
    if part("cells") {
        let mut cells = rounds::run(&setting, programs, &chosen(main_cells()), *pace)?;
        let quick: Vec<_> = programs.iter().filter(|program| !program.name.ends_with("-static")).cloned().collect();
        let others = if *full { programs } else { &quick };
        cells.extend(rounds::run(&setting, others, &chosen(vec![floor_cell()]), *pace)?);
        cells.extend(rounds::run(&setting, others, &chosen(axis_cells(*full)), *axis_pace)?);
        save(out, "cells", &cells)?;
    }
    if part("trust") {
        save(out, "trust", &rounds::run(&setting, &daemons, &trust_cells(), *pace)?)?;
    }
    if part("log") {
        save(out, "log", &log::run(&setting, &programs[0], *pace)?)?;
    }
    if part("forwarding") {
        save(out, "forwarding", &forwarding::run(&own, *axis_pace)?)?;
    }
    if part("memory") {
        save(out, "memory", &memory::run(&setting, programs)?)?;
    }
    if part("system-calls") {
        save(out, "system-calls", &system_calls::run(&setting, programs)?)?;
    }
    Ok(())
}

impl Options {
    fn read() -> Result<Options> {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let number =
            |name: &str| set(name).map(|value| value.parse::<f64>().with_context(|| name.to_owned())).transpose();
        let (mut programs, mut expose) = (Vec::new(), None);
        for argument in env::args().skip(1) {
            let (name, path) = argument.split_once('=').with_context(|| format!("{argument:?} is not NAME=PATH"))?;
            let path = fs::canonicalize(path).with_context(|| path.to_owned())?;
            let program = |name: &str| Program { name: name.to_owned(), path, collector: None };
            match name {
                "teemark" => expose = Some(program(EXPOSE)),
                _ => programs.push(program(name)),
            }
        }
        let duration = Duration::from_secs_f64(number("BENCH_SECONDS")?.unwrap_or(SECONDS));
        let rounds = set("BENCH_ROUNDS").map(|rounds| rounds.parse::<usize>()).transpose().context("BENCH_ROUNDS")?;
        ensure!(rounds != Some(0), "BENCH_ROUNDS is at least 1");
        let pace = |usual| Pace { duration, rounds: rounds.unwrap_or(usual) };
        let parts = match set("BENCH_PARTS") {
            Some(parts) => parts.split(',').filter(|part| *part != "none").map(str::to_owned).collect(),
            None => PARTS.map(str::to_owned).to_vec(),
        };
        for part in &parts {
            ensure!(PARTS.contains(&part.as_str()), "BENCH_PARTS: {part:?} is none of {}", PARTS.join(","));
        }
        let trial = ["BENCH_SECONDS", "BENCH_ROUNDS", "BENCH_PARTS", "BENCH_CELL", "TEEMARKD"]
            .into_iter()
            .any(|name| set(name).is_some());
        Ok(Options {
            programs,
            expose,
            full: set("FULL").is_some(),
            parts,
            cell: set("BENCH_CELL"),
            pace: pace(ROUNDS),
            axis_pace: pace(AXIS_ROUNDS),
            trial,
        })
    }
}
