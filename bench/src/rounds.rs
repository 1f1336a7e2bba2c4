//! Programs in turn, in every cell: A B C, then C B A, so that what disturbs the machine disturbs all of them.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cell::Cell;
use crate::load::{self, Measurement};
use crate::request::Request;
use crate::server::{Collector, Program, Server, Setting};

/// Grows once the sockets and the daemon's own memory are full of records that nobody reads.
const DROPPED: &str = "teemark_log_lines_dropped_total";

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Of one measurement. Requests in flight at its end are awaited, so that a large file has its answers too.
    pub(crate) duration: Duration,
    pub(crate) rounds: usize,
}

/// Measures each program in each cell.
pub(crate) fn run(setting: &Setting, programs: &[Program], cells: &[Cell], pace: Pace) -> Result<Vec<Measurement>> {
    let mut all = Vec::new();
    for cell in cells {
        // New ones, so that none holds memory of another cell.
        let servers = programs.iter().map(|program| program.start(setting, cell.grant)).collect::<Result<Vec<_>>>()?;
        let servers: Vec<_> = programs.iter().zip(&servers).collect();
        let request = Request::new(cell, setting.material.sample(cell.size, cell.content)?)?;
        let measure = |program: &Program, server: &Server, cell: &Cell, duration: Duration| {
            load::measure(server, cell, &request, &setting.issuer, duration)
                .with_context(|| format!("{}, {cell}", program.name))
        };
        for (program, server) in &servers {
            measure(program, server, &cell.warm_up(), pace.duration / 10)?;
            while program.collector == Some(Collector::NeverReads) && server.counter(DROPPED)? == 0 {
                measure(program, server, cell, pace.duration)?;
            }
        }
        for round in 0..pace.rounds {
            let mut turns = servers.clone();
            if round % 2 == 1 {
                turns.reverse();
            }
            for (program, server) in turns {
                let measured = measure(program, server, cell, pace.duration)?;
                all.push(Measurement { program: program.name.clone(), round, ..measured });
            }
        }
        eprintln!("  {cell}: {}", shown(programs, &all, cell));
    }
    Ok(all)
}

/// The last round's figures, for a reader who waits.
fn shown(programs: &[Program], all: &[Measurement], cell: &Cell) -> String {
    let last = |name: &str| all.iter().rev().find(|m| m.program == name && m.cell == *cell).map_or(0.0, |m| m.cpu_us);
    let figures = programs.iter().map(|program| format!("{} {:.0}", program.name, last(&program.name)));
    figures.collect::<Vec<_>>().join(", ") + " µs"
}
