//! Progress bars for what takes long enough to make an operator wonder.

use std::cell::Cell;
use std::ops::Deref;

use indicatif::{ProgressBar, ProgressStyle};

/// Below this many bytes a command is done before a bar could be read.
const WORTH_A_BAR: u64 = 4 << 20;

/// What a command shows of its progress on stderr: of one file a bar for each of its steps, of several one bar over all of
/// them. Bars stay hidden where stderr is no terminal, for little, and where the length is unknown.
pub(crate) struct Progress {
    /// The bar over several files.
    all: Option<ProgressBar>,
    /// What it stands at for the files that are done.
    done: Cell<u64>,
}

/// The bar of one step, which goes with it.
pub(crate) struct Step {
    bar: ProgressBar,
    shared: bool,
}

/// Whether a step is the one that a file's share of the bar over all is counted by.
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

    /// A file of this length is done with, well or not.
    pub(crate) fn end(&self, length: u64) {
        self.done.set(self.done.get() + length);
        if let Some(all) = &self.all {
            all.set_position(self.done.get());
        }
    }

    /// A step over this many bytes.
    pub(crate) fn step(&self, length: Option<u64>, name: &'static str, counts: Counts) -> Step {
        match &self.all {
            None => Step { bar: bar(length, name), shared: false },
            Some(_) if counts == Counts::No => Step { bar: ProgressBar::hidden(), shared: false },
            Some(all) => {
                // A step that is done once more, as after a refusal for a while, counts once.
                all.set_position(self.done.get());
                Step { bar: all.clone(), shared: true }
            }
        }
    }

    /// Runs what says something on stderr, with the bar over all out of its way.
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
