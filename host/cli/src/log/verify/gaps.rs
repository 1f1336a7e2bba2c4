//! The records of a chain that are missing, and what explains that they are: what the enclave says it dropped, and what
//! the collector removed.

use std::rc::Rc;

use formats::log::{Head, Record};

use super::verdict::{MOST, SignedTo, Verdict, records};
use crate::log::files::DayEnd;

/// The records of a chain that are missing, in at most [`MOST`] places: there each has a line, which may be long.
#[derive(Clone, Default)]
pub(super) struct Gaps(Vec<Gap>);

/// Records that are missing one after the other.
#[derive(Clone)]
struct Gap {
    from: u64,
    to: u64,
    /// The line after them, which cannot be checked alone; none if that is missing for another reason.
    next: Option<Rc<[u8]>>,
    /// How far everything before them is proven.
    since: Option<SignedTo>,
}

/// What a record says was dropped. It counts once a checkpoint has signed that record.
#[derive(Clone)]
pub(super) struct Claim {
    /// The record's number.
    pub(super) by: u64,
    pub(super) from: u64,
    pub(super) last: Head,
}

impl Gaps {
    /// These records are missing before this line.
    pub(super) fn add(&mut self, from: u64, to: u64, next: &[u8], verdict: &mut Verdict) {
        if self.0.len() < MOST {
            self.0.push(Gap { from, to, next: Some(next.into()), since: verdict.signed });
        } else {
            verdict.find(missing(from, to));
        }
    }

    /// Records that were missing are here. Gives how far everything before them is proven, if they were.
    pub(super) fn fill(&mut self, first: u64, last: u64, verdict: &mut Verdict) -> Option<Option<SignedTo>> {
        let at = self.0.iter().position(|gap| gap.from <= first && last <= gap.to)?;
        let Gap { from, to, next, since } = self.0.remove(at);
        if last < to {
            self.0.insert(at, Gap { from: last + 1, to, next, since });
        }
        if from < first && self.0.len() < MOST {
            self.0.insert(at, Gap { from, to: first - 1, next: None, since });
        } else if from < first {
            verdict.find_since(since, missing(from, first - 1));
        }
        Some(since)
    }

    /// The enclave says, and has signed, that it dropped these records.
    pub(super) fn explain(&mut self, Claim { by, from, last }: &Claim, verdict: &mut Verdict) {
        let mut left = Vec::new();
        for gap in std::mem::take(&mut self.0) {
            let (start, end) = (gap.from.max(*from), gap.to.min(last.number));
            if start > end {
                left.push(gap);
                continue;
            }
            let Gap { from: first, to, next, since } = gap;
            verdict.drop(format!("{}, says record {by}: no collector took them in time", records(start, end)));
            if first < start {
                left.push(Gap { from: first, to: start - 1, next: None, since });
            }
            if end < to {
                left.push(Gap { from: end + 1, to, next, since });
            } else if let Some(next) = next {
                let record = Record::parse(&next);
                if to < last.number {
                    // Of what was not all dropped the hash before it is not known.
                    let finding = format!("record {} cannot be checked: the one before it is missing", to + 1);
                    verdict.find_since(since, finding);
                } else if !record.is_some_and(|record| record.is_after(last.hash)) {
                    verdict.find_since(since, format!("record {} does not fit: it was changed", to + 1));
                }
            }
        }
        self.0 = left;
    }

    /// The collector has removed the records of days that it was not to keep. `days` are those that it may have removed.
    pub(super) fn remove(&mut self, days: &[DayEnd], verdict: &mut Verdict) {
        self.0.retain(|Gap { from, to, next, .. }| {
            let next = next.as_ref().and_then(|next| Record::parse(next));
            let by = days.iter().find(|end| next.is_some_and(|next| next.follows(&end.head)));
            verdict.removed.extend(by.map(|end| format!("{}, of {} and before", records(*from, *to), end.day)));
            by.is_none()
        });
    }

    /// Names those that are left, with what these records, which no checkpoint has signed, say of them.
    pub(super) fn name(&self, claims: &[Claim], verdict: &mut Verdict) {
        for Gap { from, to, since, .. } in &self.0 {
            let claimed = claims.iter().find(|claim| claim.from <= *to && *from <= claim.last.number);
            let claim = claimed.map_or(String::new(), |claim| {
                format!("; record {} says that the enclave dropped them, and no checkpoint has signed it", claim.by)
            });
            verdict.find_since(*since, missing(*from, *to) + &claim);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

fn missing(from: u64, to: u64) -> String {
    format!("{} {} missing", records(from, to), if from == to { "is" } else { "are" })
}

#[cfg(test)]
mod tests {
    use formats::log::Kind;

    use super::*;

    /// So many records, each with its line.
    fn chain(length: usize) -> Vec<(Head, Vec<u8>)> {
        let mut head = Head::default();
        let mut next = |_| {
            let mut line = Vec::new();
            head.write(Kind::Log, b"x", &mut line);
            line.pop();
            (head, line)
        };
        (0..length).map(&mut next).collect()
    }

    fn fill(gaps: &mut Gaps, number: u64) -> bool {
        gaps.fill(number, number, &mut Verdict::new(String::new())).is_some()
    }

    /// The findings that name what is missing.
    fn named(gaps: &Gaps) -> Vec<String> {
        let mut verdict = Verdict::new(String::new());
        gaps.name(&[], &mut verdict);
        verdict.findings
    }

    #[test]
    fn a_record_that_comes_late_leaves_what_is_before_and_after_it_missing() {
        let mut gaps = Gaps::default();
        gaps.add(3, 7, &chain(8)[7].1, &mut Verdict::new(String::new()));
        assert!(!fill(&mut gaps, 2) && !fill(&mut gaps, 8));
        assert!(fill(&mut gaps, 5) && !fill(&mut gaps, 5));
        assert_eq!(named(&gaps), ["records 3 to 4 are missing", "records 6 to 7 are missing"]);
        assert!(fill(&mut gaps, 4) && fill(&mut gaps, 6) && fill(&mut gaps, 7));
        assert_eq!(named(&gaps), ["record 3 is missing"]);
        assert!(fill(&mut gaps, 3));
        assert_eq!(named(&gaps), [""; 0]);
    }

    #[test]
    fn a_claim_explains_the_records_that_it_names_and_no_others() {
        let records = chain(12);
        let mut verdict = Verdict::new(String::new());
        let mut gaps = Gaps::default();
        gaps.add(2, 4, &records[4].1, &mut Verdict::new(String::new()));
        gaps.add(7, 9, &records[9].1, &mut Verdict::new(String::new()));
        gaps.explain(&Claim { by: 12, from: 3, last: records[7].0 }, &mut verdict);
        assert_eq!(named(&gaps), ["record 2 is missing", "record 9 is missing"]);
        let told = ["records 3 to 4, says record 12: no collector took them in time".to_owned()];
        assert_eq!((verdict.dropped.len(), &verdict.dropped[..1]), (2, &told[..]));
        // Record 5 is here, and the claim gives no hash for the record before it.
        assert_eq!(verdict.findings, ["record 5 cannot be checked: the one before it is missing"]);
    }

    #[test]
    fn the_record_after_what_was_dropped_has_to_follow_the_last_one_that_was() {
        let (records, claim) = (chain(6), |last| Claim { by: 6, from: 2, last });
        for (last, findings) in [
            (records[3].0, vec![]),
            (Head { number: 4, hash: records[2].0.hash }, vec!["record 5 does not fit: it was changed"]),
        ] {
            let mut verdict = Verdict::new(String::new());
            let mut gaps = Gaps::default();
            gaps.add(2, 4, &records[4].1, &mut Verdict::new(String::new()));
            gaps.explain(&claim(last), &mut verdict);
            assert_eq!((verdict.findings, named(&gaps).len()), (findings.into_iter().map(str::to_owned).collect(), 0));
        }
    }

    #[test]
    fn what_the_collector_removed_is_what_ended_with_the_record_that_the_next_one_follows() {
        let records = chain(6);
        let day = |head| DayEnd { day: "2025-11-29".to_owned(), head };
        for (end, missing) in [(records[3].0, 0), (records[2].0, 1)] {
            let mut verdict = Verdict::new(String::new());
            let mut gaps = Gaps::default();
            gaps.add(1, 4, &records[4].1, &mut Verdict::new(String::new()));
            gaps.remove(&[day(end)], &mut verdict);
            assert_eq!((verdict.removed.len(), named(&gaps).len()), (1 - missing, missing));
        }
    }
}
