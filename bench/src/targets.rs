//! How fast and how small teemarkd is to be, as it was set before anything was optimised, held against what was measured.

use crate::cell::{Cell, KIB, MIB, Route, floor_cell, main_cells};
use crate::forwarding::{Direction, Forwarded, SOCAT_64K, STREAMS};
use crate::log;
use crate::results::{DAEMON, Results};
use crate::spread::Spread;

pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) most: f64,
    pub(crate) measured: Spread,
}

impl Target {
    pub(crate) fn is_met(&self) -> bool {
        self.measured.median <= self.most
    }
}

/// CPU time a request over a peer's, for files of 4 KiB, 64 KiB, 1 MiB and 16 MiB.
const AGAINST: [(&str, [f64; 4]); 3] = [
    ("async-pooled", [1.0, 0.8, 0.6, 0.5]),
    ("async-pooled-static", [0.7, 0.5, 0.4, 0.4]),
    ("async-as-deployed", [0.1, 0.25, 0.4, 0.5]),
];
const FORWARDING: f64 = 0.7;
const GRANT: f64 = 2.2;
const SEALING: f64 = 1.5;
const FLOOR: f64 = 1.6;
const FULL_PIPE: f64 = 1.1;
/// Times the file, above idle.
const RAW_MEMORY: f64 = 1.5;
const JSON_MEMORY: f64 = 2.4;
/// In MiB.
const IDLE: f64 = 2.5;
const CONNECTIONS: f64 = 8.0;

/// The targets for which there are measurements.
pub(crate) fn all(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut add = |what: String, most, measured: Option<Spread>| {
        targets.extend(measured.map(|measured| Target { what, most, measured }));
    };
    for (peer, limits) in AGAINST {
        for (cell, limit) in main_cells().iter().zip(limits.iter().flat_map(|&limit| [limit; 2])) {
            add(format!("CPU a request, {cell}, over {peer}'s"), limit, results.ratio(peer, cell));
        }
    }
    for streams in STREAMS {
        for direction in [Direction::Up, Direction::Down] {
            let what = format!("CPU a forwarded KiB, {}, over {SOCAT_64K}'s", lane(streams, direction));
            add(what, FORWARDING, forwarding_ratio(&results.forwarding, DAEMON, SOCAT_64K, streams, direction));
        }
    }
    if let Some(floors) = &results.floors {
        let plain = Cell::new(Route::Raw, 4 * KIB);
        let over = |cost: Option<Spread>, floor: f64| cost.map(|cost| cost.scaled(1.0 / floor));
        let grant = results.trust_cost(&Cell { grant: true, ..plain }, &plain);
        add("A grant, over ring's Ed25519 verification".into(), GRANT, over(grant, floors.verification));
        let sealed = results.trust_cost(&Cell { sealed: true, ..plain }, &plain);
        add("A sealed answer of 4 KiB, over X25519 and AES-GCM".into(), SEALING, over(sealed, floors.sealing));
        let file = results.figure(DAEMON, &floor_cell(), |m| m.cpu_us);
        add(format!("CPU a request, {}, over its floor", floor_cell()), FLOOR, over(file, floors.file()));
    }
    let slowdown = log::slowdown(&results.log, log::NEVER_READS);
    add(
        "The median answer while nobody reads the log, over that with a collector that reads".into(),
        FULL_PIPE,
        slowdown,
    );
    if let Some(own) = results.memory.iter().find(|memory| memory.program == DAEMON) {
        let mut one = |what: &str, most, value| add(what.into(), most, Spread::of([value]));
        let mib = |kib: u64| kib as f64 * KIB as f64 / MIB as f64;
        one("Memory of one file of 64 MiB, raw, times the file", RAW_MEMORY, own.raw.times());
        one("Memory of one file of 64 MiB, JSON, times the file", JSON_MEMORY, own.json.times());
        one("Memory idle, MiB", IDLE, mib(own.idle));
        one("Memory with 256 idle connections, MiB", CONNECTIONS, mib(own.connections));
    }
    targets
}

/// `64 streams down`.
pub(crate) fn lane(streams: usize, direction: Direction) -> String {
    let direction = if direction == Direction::Up { "up" } else { "down" };
    if streams == 1 { format!("1 stream {direction}") } else { format!("{streams} streams {direction}") }
}

/// One forwarder's CPU time a KiB over another's, each of one round.
pub(crate) fn forwarding_ratio(
    all: &[Forwarded],
    own: &str,
    other: &str,
    streams: usize,
    direction: Direction,
) -> Option<Spread> {
    let of = |name: &'_ str| {
        let name = name.to_owned();
        all.iter().filter(move |f| f.program == name && f.streams == streams && f.direction == direction)
    };
    Spread::of(of(own).filter_map(|own| Some(own.cpu_ns / of(other).find(|f| f.round == own.round)?.cpu_ns)))
}
