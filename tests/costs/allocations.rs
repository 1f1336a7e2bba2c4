//! Blocks and bytes that a request takes from the heap.
//!
//! This program is the daemon then: the same library with the same allocator, which counts here. The difference of two
//! runs is taken, of which one has twice as many requests.
#![allow(unsafe_code)] // an allocator that counts

use std::alloc::{GlobalAlloc, Layout};
use std::env;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use teemarkd::allocator::Allocator;
use teemarkd::boot;
use teemarkd::logging::Log;
use teemarkd::settings::Settings;

use crate::client;
use crate::material::{Material, Sample};
use crate::recorded::Figure;
use crate::system_calls::Held;

/// How the daemon's last line begins.
const COUNTED: &str = "allocations: ";

#[global_allocator]
static ALLOCATOR: Counting =
    Counting { allocator: Allocator::new(), blocks: AtomicU64::new(0), bytes: AtomicU64::new(0) };

/// The daemon's allocator. A block that grows counts as what it grows by.
struct Counting {
    allocator: Allocator,
    blocks: AtomicU64,
    bytes: AtomicU64,
}

impl Counting {
    fn count(&self, bytes: usize) {
        self.blocks.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

// SAFETY: every call goes on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size());
        // SAFETY: the caller's layout.
        unsafe { self.allocator.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size());
        // SAFETY: the caller's layout.
        unsafe { self.allocator.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        self.count(new.saturating_sub(layout.size()));
        // SAFETY: the caller's block, layout and size.
        unsafe { self.allocator.realloc(block, layout, new) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's block and layout.
        unsafe { self.allocator.dealloc(block, layout) }
    }
}

/// Runs the daemon as its own program does, but for the log: no request writes to it.
pub(crate) fn daemon() -> ExitCode {
    log::set_logger(&Lines).map(|()| log::set_max_level(log::LevelFilter::Info)).expect("it is the first");
    let signals = boot::block_signals();
    let settings = Settings::read(|name| env::var_os(name)).expect("settings");
    // Decisions are records in it, as in the daemon's own.
    Log::start(settings.log.clone()).expect("a log");
    boot::run(&settings, &signals.expect("signals"), &ALLOCATOR.allocator).expect("the daemon runs");
    let (blocks, bytes) = (&ALLOCATOR.blocks, &ALLOCATOR.bytes);
    eprintln!("{COUNTED}{} {}", blocks.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed));
    ExitCode::SUCCESS
}

struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // In one piece: whoever reads the log sees no half of a line.
        let _ = io::stderr().write_all(format!("{}\n", record.args()).as_bytes());
    }

    fn flush(&self) {}
}

pub(crate) fn measure(material: &Material, sample: &Sample, attempt: usize) -> Vec<Figure> {
    // What the start takes differs by a few blocks from run to run: they are to vanish among so many requests.
    let requests = if sample.size <= 64 << 10 { 12 } else { 4 };
    let count = |requests| count(material, sample, requests, attempt);
    let (once, twice) = (count(requests), count(2 * requests));
    let each = |i: usize| (twice[i] - once[i]).div_ceil(requests as u64);
    vec![Figure::new(sample, "allocations", each(0)), Figure::new(sample, "bytes-allocated", each(1))]
}

/// Blocks and bytes.
fn count(material: &Material, sample: &Sample, requests: usize, attempt: usize) -> [u64; 2] {
    let program = env::current_exe().unwrap();
    // A buffer that takes what has arrived is larger or smaller with it.
    let mut held = Held::start(material, &[program.to_str().unwrap(), "daemon"], attempt);
    client::ask(&mut held.daemon, sample, requests);
    let log = held.daemon.process.log();
    let (_, counted) = log.rsplit_once(COUNTED).expect("the last line");
    let (blocks, bytes) = counted.trim().split_once(' ').unwrap();
    [blocks, bytes].map(|n| n.parse().unwrap())
}
