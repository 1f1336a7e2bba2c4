//! Everything that was measured, kept as JSON in out/bench: one file a part.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cell::Cell;
use crate::floor::Floors;
use crate::forwarding::Forwarded;
use crate::load::Measurement;
use crate::memory::MemoryUse;
use crate::spread::Spread;
use crate::system_calls::SystemCalls;

/// The program that the others are held against.
pub(crate) const DAEMON: &str = "teemarkd";

#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) cells: Vec<Measurement>,
    pub(crate) trust: Vec<Measurement>,
    pub(crate) floors: Option<Floors>,
    pub(crate) log: Vec<Measurement>,
    pub(crate) forwarding: Vec<Forwarded>,
    pub(crate) memory: Vec<MemoryUse>,
    pub(crate) system_calls: Vec<SystemCalls>,
}

/// Where and when.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    /// Processes that wanted a core, on average of the last minute, when the run began.
    pub(crate) load: String,
    /// teemarkd's commit.
    pub(crate) commit: String,
}

impl Results {
    /// What the folder has of an earlier run.
    pub(crate) fn load(folder: &Path) -> Results {
        Results {
            machine: read(folder, "machine").unwrap_or_default(),
            cells: read(folder, "cells").unwrap_or_default(),
            trust: read(folder, "trust").unwrap_or_default(),
            log: read(folder, "log").unwrap_or_default(),
            floors: read(folder, "floors"),
            forwarding: read(folder, "forwarding").unwrap_or_default(),
            memory: read(folder, "memory").unwrap_or_default(),
            system_calls: read(folder, "system-calls").unwrap_or_default(),
        }
    }

    /// The cells that were measured, in their order.
    pub(crate) fn measured_cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for Measurement { cell, .. } in &self.cells {
            if !cells.contains(cell) {
                cells.push(*cell);
            }
        }
        cells
    }

    /// The programs that were measured, in their order.
    pub(crate) fn programs(&self) -> Vec<String> {
        let mut programs: Vec<String> = Vec::new();
        let first = self.cells.first().map(|m| m.cell);
        for m in self.cells.iter().filter(|m| Some(m.cell) == first && m.round == 0) {
            programs.push(m.program.clone());
        }
        programs
    }

    /// One figure of a program in a cell.
    pub(crate) fn figure(&self, program: &str, cell: &Cell, of: impl Fn(&Measurement) -> f64) -> Option<Spread> {
        Spread::of(self.cells.iter().filter(|m| m.program == program && m.cell == *cell).map(of))
    }

    /// The daemon's CPU time a request over another program's, each of one round.
    pub(crate) fn ratio(&self, other: &str, cell: &Cell) -> Option<Spread> {
        let of = |program: &'_ str| {
            let program = program.to_owned();
            self.cells.iter().filter(move |m| m.cell == *cell && m.program == program)
        };
        let ratios = of(DAEMON).filter_map(|own| {
            let other = of(other).find(|other| other.round == own.round)?;
            Some(own.cpu_us / other.cpu_us)
        });
        Spread::of(ratios)
    }

    /// What `with` costs more than `without`, in microseconds of CPU a request: of the daemon, each of one round.
    pub(crate) fn trust_cost(&self, with: &Cell, without: &Cell) -> Option<Spread> {
        let own = || self.trust.iter().filter(|m| m.program == DAEMON);
        let costs = own().filter(|m| m.cell == *with).filter_map(|with| {
            let without = own().find(|m| m.cell == *without && m.round == with.round)?;
            Some(with.cpu_us - without.cpu_us)
        });
        Spread::of(costs)
    }
}

pub(crate) fn save(folder: &Path, part: &str, value: &impl Serialize) -> Result<()> {
    fs::create_dir_all(folder)?;
    let path = folder.join(part).with_extension("json");
    fs::write(&path, serde_json::to_string_pretty(value)? + "\n").with_context(|| path.display().to_string())
}

fn read<T: DeserializeOwned>(folder: &Path, part: &str) -> Option<T> {
    serde_json::from_slice(&fs::read(folder.join(part).with_extension("json")).ok()?).ok()
}

impl Machine {
    pub(crate) fn look() -> Machine {
        let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = file("/proc/cpuinfo");
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
        Machine {
            processor: model.unwrap_or("unknown").to_owned(),
            cores: cpu.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: file("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            commit: std::env::var("COMMIT").unwrap_or_default(),
        }
    }
}
