//! Which addresses have a watch. One that ends, by a fault of the keeper's own, is started again.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::JoinHandle;

use anyhow::Result;

use super::enclaves::Target;

/// The addresses that are watched, each with the number of its watch.
pub(crate) type Watched = BTreeMap<Target, u64>;

/// The threads of the watches.
#[derive(Default)]
pub(crate) struct Watches {
    threads: BTreeMap<u64, JoinHandle<()>>,
    last: u64,
}

/// What is worth a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is no longer to be watched.
    Left(Target),
    /// Its watch could not be started, or has ended; another is started at the next opportunity, or now.
    NotWatched(Target, String),
}

impl Watches {
    /// Lets exactly these addresses be watched. `start` starts a watch with a number, which ends when it is no longer the
    /// address's.
    pub(crate) fn keep(
        &mut self,
        watched: &mut Watched,
        targets: &BTreeSet<Target>,
        mut start: impl FnMut(Target, u64) -> Result<JoinHandle<()>>,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let has_ended = |number: &u64| self.threads.get(number).is_none_or(JoinHandle::is_finished);
        watched.retain(|target, number| {
            if !targets.contains(target) {
                changes.push(Change::Left(target.clone()));
                return false;
            }
            if has_ended(number) {
                let why = "its watch has ended by a fault of the keeper, which standard error has; another is started";
                changes.push(Change::NotWatched(target.clone(), why.to_owned()));
                return false;
            }
            true
        });
        self.threads.retain(|_, thread| !thread.is_finished());
        for target in targets {
            if watched.contains_key(target) {
                continue;
            }
            self.last += 1;
            match start(target.clone(), self.last) {
                Ok(thread) => {
                    self.threads.insert(self.last, thread);
                    watched.insert(target.clone(), self.last);
                }
                Err(error) => changes.push(Change::NotWatched(target.clone(), format!("{error:#}"))),
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use anyhow::bail;

    use super::*;

    #[test]
    fn a_watch_that_panics_or_cannot_be_started_is_started_again_at_the_next_round() {
        let target = Target { endpoint: "http://h".into(), address: "127.0.0.1:1".parse().unwrap() };
        let targets: BTreeSet<_> = [target.clone()].into();
        let (mut watches, mut watched) = (Watches::default(), Watched::new());
        let changes = watches.keep(&mut watched, &targets, |_, _| bail!("no thread"));
        assert_eq!(changes, [Change::NotWatched(target.clone(), "no thread".into())]);
        let changes = watches.keep(&mut watched, &targets, |_, _| Ok(thread::spawn(|| panic!("this is the test's"))));
        assert!(changes.is_empty() && watched.len() == 1);
        while !watches.threads.values().all(JoinHandle::is_finished) {
            thread::yield_now();
        }
        let (end, ended) = mpsc::channel::<()>();
        let mut ended = Some(ended);
        let mut start = |_, _| {
            let ended = ended.take().unwrap();
            Ok(thread::spawn(move || _ = ended.recv()))
        };
        let changes = watches.keep(&mut watched, &targets, &mut start);
        assert!(matches!(&changes[..], [Change::NotWatched(of, _)] if *of == target), "{changes:?}");
        assert_eq!(watched.get(&target), Some(&3));
        // It goes on, and a second one is not started.
        assert!(watches.keep(&mut watched, &targets, &mut start).is_empty());
        assert_eq!(watches.keep(&mut watched, &BTreeSet::new(), &mut start), [Change::Left(target)]);
        assert!(watched.is_empty());
        drop(end);
    }
}
