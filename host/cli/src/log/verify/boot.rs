//! The records of one boot, which may be of several starts: the enclave's own, and those that somebody put beside it.

use std::fmt::Arguments;

use formats::log::Record;

use super::branches::Branches;
use super::chain::Anchors;
use super::verdict::Verdict;
use crate::log::files::DayEnd;

/// Most starts of one boot that are followed.
const STARTS: usize = 8;

/// Checks the lines of one boot, in their order.
pub(super) struct Checker<'a> {
    anchors: &'a Anchors<'a>,
    /// At least one.
    starts: Vec<Branches<'a>>,
    /// The start that the last record is of.
    at: usize,
    /// What was found that is about all of them.
    of_all: Verdict,
}

impl<'a> Checker<'a> {
    pub(super) fn new(anchors: &'a Anchors<'a>, name: &str) -> Checker<'a> {
        let of_all = Verdict::new(name.to_owned());
        let starts = vec![Branches::new(anchors, of_all.clone())];
        Checker { anchors, starts, at: 0, of_all }
    }

    /// Takes the next line, without its end. `place` is where it stands, for messages.
    pub(super) fn take(&mut self, line: &[u8], place: Arguments<'_>) {
        let Some(record) = Record::parse(line) else {
            return self.find(&format!("{place} is not a record"));
        };
        let after = self.starts[self.at].last();
        if let Some(start) = self.starts.iter().position(|start| start.go_on_with(&record)) {
            self.at = start;
        } else if record.head.number == 1 && after > 0 {
            self.find(&format!("another chain begins after record {after}: of another start, replayed, or made up"));
            if self.starts.len() < STARTS {
                self.starts.push(Branches::new(self.anchors, self.of_all.clone()));
            }
            self.at = self.starts.len() - 1;
        }
        self.starts[self.at].take(&record, line);
    }

    fn find(&mut self, finding: &str) {
        self.of_all.find(finding.to_owned());
        self.starts.iter_mut().for_each(|start| start.find(finding));
    }

    /// There are no more lines. The verdict is on the start of which the enclave signed most; what was found of another
    /// is not this one's fault. `days` is what the collector wrote down of the boot's days.
    pub(super) fn end(mut self, days: &[DayEnd], now_ms: u64) -> Verdict {
        let starts = (0..self.starts.len()).rev();
        let at = starts.max_by_key(|at| self.starts[*at].trust()).unwrap_or_default();
        self.starts.swap_remove(at).end(days, now_ms)
    }

    /// Most lines, records and gaps that one of the starts holds.
    #[cfg(test)]
    pub(super) fn holds(&self) -> [usize; 4] {
        let each = self.starts.iter().map(Branches::holds);
        each.fold([0; 4], |most, one| std::array::from_fn(|at| most[at].max(one[at])))
    }
}
