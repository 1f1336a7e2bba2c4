//! What a request and the image cost, counted and held against what was recorded: `make costs`.
//!
//! Time is not measured, so neither a slow machine nor a busy one changes a figure. For each route and size one client
//! asks over one kept connection, and the service answers at once:
//!
//! - [`callgrind`]: the instructions of the daemon that is shipped, and which of them copy, wipe and encrypt;
//! - [`allocations`]: blocks and bytes of the heap, by the same library in this program's allocator that counts;
//! - [`system_calls`]: system calls, and what the kernel copies, starts and opens in them;
//! - [`sizes`]: bytes of the daemon by crate and of the image by part.
//!
//! tests/costs/recorded.txt has the values, and [`recorded`] how far each may go. To accept new ones:
//! `make costs RECORD=1`.
//!
//! ```text
//! costs             measure, print the table, fail if something grew or is missing
//! costs --record    measure, and write the file
//! costs daemon      for itself: be the daemon whose allocations are counted
//! ```

mod allocations;
mod callgrind;
mod client;
mod material;
mod recorded;
mod service;
mod sizes;
#[path = "../support/mod.rs"]
mod support;
mod system_calls;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use material::{Material, ROUTES, SIZES, Sample};
use recorded::{Figure, Recorded};

/// One thing to measure; they do not disturb each other. Each attempt takes its time more than the one before.
type Job<'a> = Box<dyn Fn(usize) -> Vec<Figure> + Send + 'a>;

/// How often something is measured that is past its limit.
const ATTEMPTS: usize = 3;

/// Jobs at once: more than processors, since those that hold the daemon up mostly wait.
const AT_ONCE: usize = 4;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("daemon") => allocations::daemon(),
        Some("--record") if !callgrind::comparable() => {
            eprintln!("costs: not recorded: instructions are counted on x86-64 with AVX2 only");
            ExitCode::FAILURE
        }
        Some("--record") => {
            Recorded::write(&measure(None));
            ExitCode::SUCCESS
        }
        _ => {
            let recorded = Recorded::read();
            recorded.compare(&measure(Some(&recorded)))
        }
    }
}

/// The shipped daemon with its symbols, which image/programs.sh built.
fn daemon() -> PathBuf {
    env::var_os("TEEMARKD").expect("TEEMARKD is not set: run `make costs`").into()
}

/// Every figure, in the order of the table. Where one exceeds what was recorded, it is measured again, and the least
/// counts: whatever this machine is busy with can only add to it.
fn measure(recorded: Option<&Recorded>) -> Vec<Figure> {
    let material = Material::make();
    let samples: Vec<Sample> =
        SIZES.into_iter().flat_map(|size| ROUTES.map(|route| material.sample(route, size))).collect();
    let mut jobs: Vec<Job<'_>> = vec![];
    for sample in &samples {
        let material = &material;
        jobs.push(Box::new(move |attempt| callgrind::measure(material, sample, attempt)));
        jobs.push(Box::new(move |attempt| allocations::measure(material, sample, attempt)));
        jobs.push(Box::new(move |attempt| system_calls::measure(material, sample, attempt)));
    }
    jobs.push(Box::new(|_| sizes::measure()));
    run(jobs, recorded)
}

/// Runs the jobs and gives what they measured in their order. The last ones are the shortest, so they begin last.
fn run(jobs: Vec<Job<'_>>, recorded: Option<&Recorded>) -> Vec<Figure> {
    let mut measured: Vec<Vec<Figure>> = jobs.iter().map(|_| vec![]).collect();
    let waiting = Mutex::new(jobs.into_iter().zip(&mut measured).rev());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().expect("another job has failed").next();
                    let Some((job, result)) = next else { return };
                    *result = job(0);
                    for attempt in 1..ATTEMPTS {
                        if recorded.is_some_and(|recorded| recorded.exceeds(result)) {
                            Figure::lessen(result, job(attempt));
                        }
                    }
                }
            });
        }
    });
    measured.concat()
}
