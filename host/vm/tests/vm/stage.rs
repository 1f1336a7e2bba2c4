//! What a scenario prints while it runs, and what is shown if it fails.

use std::cell::RefCell;
use std::time::Instant;

use anyhow::{Context, Result};
use teemark_vm::Console;

/// Lines of a console that are shown after a failure.
const SHOWN: usize = 150;

/// One scenario's steps and consoles.
pub(crate) struct Stage {
    start: Instant,
    consoles: RefCell<Vec<Console>>,
}

impl Stage {
    pub(crate) fn new() -> Stage {
        Stage { start: Instant::now(), consoles: RefCell::default() }
    }

    /// Does a step, and prints it with the time that it took.
    pub(crate) fn step<T>(&self, what: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = act().with_context(|| what.to_owned())?;
        println!("ok {:6.1} s  {what}", start.elapsed().as_secs_f64());
        Ok(result)
    }

    /// Prints a figure under the last step.
    pub(crate) fn figure(&self, text: &str) {
        println!("             {text}");
    }

    /// Shows this console if the scenario fails.
    pub(crate) fn watch(&self, console: &Console) {
        self.consoles.borrow_mut().push(console.clone());
    }

    /// Prints why it failed, and the end of each console with the seconds since the scenario's start.
    pub(crate) fn failed(&self, why: &anyhow::Error) {
        println!("FAILED       {why:#}");
        for console in self.consoles.borrow().iter() {
            let lines = console.lines();
            println!("\n--- the {}'s console", console.name());
            for line in &lines[lines.len().saturating_sub(SHOWN)..] {
                println!("{:8.3} {}", line.at.duration_since(self.start).as_secs_f64(), line.text);
            }
        }
    }
}
