//! Progress bars for commands that take a while.

use std::cell::Cell;
use std::ops::Deref;

use indicatif::{ProgressBar, ProgressStyle};

/// Smallest input, in bytes, that gets a bar; with less the command is done before it can be read.
const WORTH_A_BAR: u64 = 4 << 20;

/// The progress of a command on stderr: for one file a bar for each of its steps, for several files one bar over all of
/// them. Bars are hidden if stderr is not a terminal, for small inputs and for inputs of unknown length.
pub(crate) struct Progress {
    /// The bar over several files.
    all: Option<ProgressBar>,
    /// Bytes of the files that are done.
    done: Cell<u64>,
}

/// The bar of one step, which disappears when this is dropped.
pub(crate) struct Step {
    bar: ProgressBar,
    shared: bool,
}

/// Whether a step moves the bar over all files; one step of each file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counts {
    Yes,
    No,
}

impl Progress {
    /// For files of these lengths.
    pub(crate) fn over(lengths: &[u64]) -> Progress {
        let all = (lengths.len() > 1).then(|| bar(Some(lengths.iter().sum()), ""));
        Progress { all, done: Cell::new(0) }
    }

    /// Begins file `number` of several, counted from 1.
    pub(crate) fn begin(&self, number: usize, of: usize) {
        if let Some(all) = &self.all {
            all.set_message(format!("{number} of {of}"));
        }
    }

    /// Ends a file of this length, whether it succeeded or not.
    pub(crate) fn end(&self, length: u64) {
        self.done.set(self.done.get() + length);
        if let Some(all) = &self.all {
            all.set_position(self.done.get());
        }
    }

    /// Begins a step over this many bytes.
    pub(crate) fn step(&self, length: Option<u64>, name: &'static str, counts: Counts) -> Step {
        match &self.all {
            None => Step { bar: bar(length, name), shared: false },
            Some(_) if counts == Counts::No => Step { bar: ProgressBar::hidden(), shared: false },
            Some(all) => {
                // A step that is repeated, because the daemon asked to wait, counts once.
                all.set_position(self.done.get());
                Step { bar: all.clone(), shared: true }
            }
        }
    }

    /// Runs something that writes to stderr, with the bar over all files hidden.
    pub(crate) fn aside(&self, says: impl FnOnce()) {
        match &self.all {
            Some(all) => all.suspend(says),
            None => says(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(all) = &self.all {
            all.finish_and_clear();
        }
    }
}

impl Deref for Step {
    type Target = ProgressBar;

    fn deref(&self) -> &ProgressBar {
        &self.bar
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.shared {
            self.bar.finish_and_clear();
        }
    }
}

fn bar(length: Option<u64>, step: &'static str) -> ProgressBar {
    match length {
        Some(length) if length > WORTH_A_BAR => {
            let style = ProgressStyle::with_template("{msg:10} {bar:40} {bytes}/{total_bytes} {eta}");
            let bar = ProgressBar::new(length).with_message(step);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        }
        _ => ProgressBar::hidden(),
    }
}
