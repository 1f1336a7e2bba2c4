//! A cell of the grid: one kind of file, requested in one way. This file has the list of all cells.

use std::fmt;

use serde::{Deserialize, Serialize};

pub(crate) const KIB: usize = 1 << 10;
pub(crate) const MIB: usize = 1 << 20;

pub(crate) const SIZES: [usize; 4] = [4 * KIB, 64 * KIB, MIB, 16 * MIB];
/// The size that is not measured with more than [`USUAL_CLIENTS`].
const LARGEST: usize = 16 * MIB;
/// Sizes that the other axes begin from.
const MIDDLE: [usize; 2] = [64 * KIB, MIB];
pub(crate) const USUAL_CLIENTS: usize = 8;
const CLIENTS: [usize; 4] = [1, USUAL_CLIENTS, 64, 256];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Route {
    Json,
    Raw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Content {
    /// Random bytes, which go to the watermark service as base64.
    Binary,
    /// Text, which goes to it as text.
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) route: Route,
    /// Of the file before its encryption, in bytes.
    pub(crate) size: usize,
    pub(crate) content: Content,
    /// Requests in flight, each from a client of its own.
    pub(crate) clients: usize,
    /// Whether a client keeps its connection for the next request.
    pub(crate) keep_alive: bool,
    /// Whether each request has a grant.
    pub(crate) grant: bool,
    /// Whether the answer is sealed to the user.
    pub(crate) sealed: bool,
}

impl Cell {
    pub(crate) const fn new(route: Route, size: usize) -> Cell {
        Cell {
            route,
            size,
            content: Content::Binary,
            clients: USUAL_CLIENTS,
            keep_alive: true,
            grant: false,
            sealed: false,
        }
    }

    /// The same with as many clients as it takes to have every part of a server run once.
    pub(crate) fn warm_up(self) -> Cell {
        Cell { clients: if self.size < LARGEST { self.clients.min(USUAL_CLIENTS) } else { 1 }, ..self }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Route::Json => "JSON",
            Route::Raw => "raw",
        })
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", size(self.size), self.route)?;
        if self.content == Content::Text {
            f.write_str(", text")?;
        }
        match self.clients {
            1 => f.write_str(", 1 client")?,
            USUAL_CLIENTS => {}
            n => write!(f, ", {n} clients")?,
        }
        if !self.keep_alive {
            f.write_str(", a connection each")?;
        }
        match (self.grant, self.sealed) {
            (false, false) => Ok(()),
            (true, false) => f.write_str(", grant"),
            (false, true) => f.write_str(", sealed"),
            (true, true) => f.write_str(", grant and sealed"),
        }
    }
}

/// `64 KiB`.
pub(crate) fn size(bytes: usize) -> String {
    if bytes < MIB { format!("{} KiB", bytes / KIB) } else { format!("{} MiB", bytes / MIB) }
}

/// All sizes by both routes: what the targets are about.
pub(crate) fn main_cells() -> Vec<Cell> {
    SIZES.into_iter().flat_map(|size| [Route::Json, Route::Raw].map(|route| Cell::new(route, size))).collect()
}

/// One axis at a time from the middle sizes; with `full`, the whole grid.
pub(crate) fn axis_cells(full: bool) -> Vec<Cell> {
    if full {
        return grid();
    }
    let mut cells = Vec::new();
    for size in MIDDLE {
        let usual = Cell::new(Route::Raw, size);
        cells.extend([1, 64, 256].map(|clients| Cell { clients, ..usual }));
        cells.push(Cell { keep_alive: false, ..usual });
        cells.push(Cell { content: Content::Text, ..usual });
    }
    cells
}

fn grid() -> Vec<Cell> {
    let mut cells = Vec::new();
    for usual in main_cells() {
        for clients in CLIENTS.into_iter().filter(|&n| usual.size < LARGEST || n <= USUAL_CLIENTS) {
            for content in [Content::Binary, Content::Text] {
                cells.extend([true, false].map(|keep_alive| Cell { clients, content, keep_alive, ..usual }));
            }
        }
    }
    cells.retain(|cell| !main_cells().contains(cell) && *cell != floor_cell());
    cells
}

/// What a grant and a sealed answer cost: teemarkd's own.
pub(crate) fn trust_cells() -> Vec<Cell> {
    let sizes = [4 * KIB].into_iter().chain(MIDDLE);
    let kinds = [(false, false), (true, false), (false, true), (true, true)];
    sizes.flat_map(|size| kinds.map(|(grant, sealed)| Cell { grant, sealed, ..Cell::new(Route::Raw, size) })).collect()
}

/// The one with a floor to hold it against.
pub(crate) fn floor_cell() -> Cell {
    Cell { clients: 1, ..Cell::new(Route::Raw, LARGEST) }
}
