//! What the log costs a request, and whether a collector that stops reading makes it wait.

use anyhow::Result;

use crate::cell::{Cell, KIB, Route};
use crate::load::Measurement;
use crate::rounds::{self, Pace};
use crate::server::{Collector, Program, Setting};
use crate::spread::Spread;

/// The names under which the daemon is measured.
pub(crate) const NO_COLLECTOR: &str = "teemarkd, no collector";
pub(crate) const READS: &str = "teemarkd, one that reads";
pub(crate) const NEVER_READS: &str = "teemarkd, one that never reads";

/// The smallest file from one client: the shortest request, in which a wait would show most.
fn cell() -> Cell {
    Cell { clients: 1, ..Cell::new(Route::Raw, 4 * KIB) }
}

/// Measures the daemon with each kind of collector.
pub(crate) fn run(setting: &Setting, daemon: &Program, pace: Pace) -> Result<Vec<Measurement>> {
    let with = |name: &str, collector| Program { name: name.to_owned(), path: daemon.path.clone(), collector };
    let programs =
        [with(NO_COLLECTOR, None), with(READS, Some(Collector::Reads)), with(NEVER_READS, Some(Collector::NeverReads))];
    rounds::run(setting, &programs, &[cell()], pace)
}

/// The median time of an answer with one collector over that with one that reads, each of one round.
pub(crate) fn slowdown(all: &[Measurement], collector: &str) -> Option<Spread> {
    let of = |name: &'_ str| {
        let name = name.to_owned();
        all.iter().filter(move |m| m.program == name)
    };
    Spread::of(of(collector).filter_map(|own| Some(own.p50_ms / of(READS).find(|m| m.round == own.round)?.p50_ms)))
}
