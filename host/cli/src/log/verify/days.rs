//! Which days the collector may have removed. It removes whole days, and of the first file what comes after the log's
//! beginning. So the record after what it removed is the first one of a file, and the removed days are between that file
//! and the one before. What is missing anywhere else was not removed by it, whatever its file `days` says.

use formats::log::{Kind, Record};

use crate::log::files::{DayEnd, is_day};

/// Looks through the files of a boot, in their order, for where days may have been removed.
pub(super) struct Days<'a> {
    ends: &'a [DayEnd],
    /// The ends of removed days: the first record of a file follows each.
    removed: Vec<DayEnd>,
    /// How many files there are so far.
    files: usize,
    /// The day of the file that is looked through.
    day: String,
    /// The day of the file before it, and whether records may have been removed of that one too.
    before: Option<(String, bool)>,
    /// How many lines of the file there are so far.
    lines: u64,
    /// Whether they are no more than a log's beginning, up to its first checkpoint, or nothing.
    is_beginning: bool,
    has_checkpoint: bool,
}

impl<'a> Days<'a> {
    /// `ends` is what the collector wrote down of the boot's days.
    pub(super) fn new(ends: &'a [DayEnd]) -> Days<'a> {
        Days {
            ends,
            removed: Vec::new(),
            files: 0,
            day: String::new(),
            before: None,
            lines: 0,
            is_beginning: true,
            has_checkpoint: false,
        }
    }

    /// The file of this day comes next.
    pub(super) fn next_file(&mut self, day: String) {
        let before = std::mem::replace(&mut self.day, day);
        self.before = (self.files > 0).then_some((before, self.files == 1 && self.is_beginning));
        self.files += 1;
        (self.lines, self.is_beginning, self.has_checkpoint) = (0, true, false);
    }

    /// Takes the file's next line.
    pub(super) fn take(&mut self, line: &[u8]) {
        self.lines += 1;
        // Nothing is asked of the others.
        if self.lines > 1 && (self.files > 1 || self.has_checkpoint) {
            self.is_beginning = false;
            return;
        }
        let record = Record::parse(line);
        if self.lines == 1
            && let Some(record) = &record
        {
            let ends = self.ends.iter().filter(|end| self.may_be_removed(&end.day) && record.follows(&end.head));
            let ends: Vec<DayEnd> = ends.cloned().collect();
            self.removed.extend(ends);
        }
        self.has_checkpoint = record.is_some_and(|record| record.kind == Kind::Checkpoint);
        self.is_beginning = self.has_checkpoint;
    }

    /// Whether a day is one between the files.
    fn may_be_removed(&self, day: &str) -> bool {
        let is_after = |(before, too): &(String, bool)| day > before.as_str() || (*too && day == before);
        is_day(&self.day) && day < self.day.as_str() && self.before.as_ref().is_none_or(is_after)
    }

    /// The ends of the days that may have been removed.
    pub(super) fn removed(self) -> Vec<DayEnd> {
        self.removed
    }
}
