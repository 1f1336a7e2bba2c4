//! What an enclave is to be sent, given what the sources have and what it has in force. Nothing here has an effect.
//!
//! The newest value wins, by the time of its sources: a bundle's counter is the time, in milliseconds since 1970, of the
//! newest source in it, as an operator's own bundle has the time at which it was sealed. So what has a higher counter was
//! put in force later than the sources have changed, and is left alone, unless the keeper knows it as one of the
//! sources' earlier values, or saw it there before the sources changed. The counter alone does not decide for long: the clock
//! that it came from may be ahead, and it is one for all items.

use std::collections::BTreeMap;

use formats::attestation::BootNonce;
use formats::digest::Sha256;
use formats::state::{Items, State};

use super::history::History;

/// What an enclave has attested, and the state that it serves.
#[derive(Clone, Debug)]
pub(crate) struct InForce {
    /// Which boot of the enclave this is.
    pub(crate) boot_nonce: BootNonce,
    /// The counter of the last bundle in force; 0 before the first.
    pub(crate) counter: u64,
    /// What is in force.
    pub(crate) state: State,
}

/// Why an item that differs is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// This boot has had the value of the sources and has left it; the sources have not changed since.
    Left,
    /// What is in force was put there after the sources changed.
    Newer,
}

impl Held {
    /// What to do about it.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Held::Left => "the enclave has had this value and has left it; it is sent again when its source changes",
            Held::Newer => {
                "what is in force was put there after the source changed, by its counter; it is replaced when the source \
                 changes"
            }
        }
    }
}

/// What to do about one enclave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The items to send.
    pub(crate) send: Vec<String>,
    /// The items that differ and are not sent.
    pub(crate) held: BTreeMap<String, Held>,
    /// The counter of the bundle.
    pub(crate) counter: u64,
    /// Whether file keys are to be sent as a whole, even if the difference is known: what was sent before did not come into
    /// force.
    pub(crate) all: bool,
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Held::Left => "left",
            Held::Newer => "newer",
        })
    }
}

/// Compares what the sources have with what is in force. Items that the sources do not have are left alone.
pub(crate) fn plan(sources: &Items, in_force: &InForce, history: &History) -> Plan {
    let InForce { boot_nonce, counter, state } = in_force;
    let mut plan = Plan::default();
    for (name, item) in sources {
        let held = match state.items.get(name).map(|item| item.sha256) {
            Some(found) if found == item.sha256 => continue,
            None => None,
            Some(_) if history.has_had(*boot_nonce, name) => Some(Held::Left),
            Some(found) if is_older(name, &found, in_force, history) => None,
            Some(_) => Some(Held::Newer),
        };
        match held {
            Some(held) => drop(plan.held.insert(name.clone(), held)),
            None => plan.send.push(name.clone()),
        }
    }
    let newest = plan.send.iter().map(|name| history.changed_ms(name)).max().unwrap_or(0);
    plan.counter = newest.max(counter.saturating_add(1));
    plan
}

/// Whether the sources have changed since this value was put in force.
fn is_older(name: &str, found: &Sha256, in_force: &InForce, history: &History) -> bool {
    history.is_earlier(name, found)
        || history.is_overtaken(in_force.boot_nonce, name, found)
        || history.changed_ms(name) > in_force.counter
}

#[cfg(test)]
mod tests {
    use formats::digest::sha256;
    use formats::state::Item;

    use super::*;

    /// The counter of a bundle by somebody whose clock is ahead.
    const FAR_AHEAD: u64 = 1 << 60;

    fn items(values: &[(&str, &str)]) -> Items {
        let item = |value: &str| Item { sha256: sha256(value.as_bytes()), ..Item::default() };
        values.iter().map(|(name, value)| ((*name).to_owned(), item(value))).collect()
    }

    fn in_force(boot: u8, counter: u64, values: &[(&str, &str)]) -> InForce {
        let boot_nonce = BootNonce::from_bytes([boot; 32]);
        InForce { boot_nonce, counter, state: State { items: items(values) } }
    }

    /// A keeper whose only item is K, and an enclave.
    #[derive(Clone)]
    struct Keeper {
        history: History,
        value: &'static str,
        modified_ms: u64,
        /// The boots that it has seen with its value.
        had: Vec<BootNonce>,
    }

    impl Keeper {
        fn new(value: &'static str, modified_ms: u64) -> Keeper {
            let mut keeper = Keeper { history: History::default(), value, modified_ms, had: Vec::new() };
            keeper.source_becomes(value, modified_ms);
            keeper
        }

        fn source_becomes(&mut self, value: &'static str, modified_ms: u64) {
            if self.value != value {
                self.had.clear();
            }
            (self.value, self.modified_ms) = (value, modified_ms);
            let sha256 = items(&[("K", value)])["K"].sha256;
            self.history.sources_have("K", sha256, Some(modified_ms), 1_000_000);
        }

        /// Looks at the enclave, and puts in force what it would send. Returns whether it sent something.
        fn looks(&mut self, enclave: &mut InForce) -> bool {
            self.sees(enclave);
            let plan = plan(&items(&[("K", self.value)]), enclave, &self.history);
            if plan.send.is_empty() {
                return false;
            }
            assert!(plan.counter > enclave.counter);
            assert!(!self.had.contains(&enclave.boot_nonce), "{} is sent, which the boot has left", self.value);
            (enclave.counter, enclave.state.items) = (plan.counter, items(&[("K", self.value)]));
            // The next document confirms it.
            self.sees(enclave);
            true
        }

        fn sees(&mut self, enclave: &InForce) {
            self.history.boot_has("e", enclave.boot_nonce, &enclave.state.items);
            if enclave.state.items == items(&[("K", self.value)]) {
                self.had.push(enclave.boot_nonce);
            }
        }

        /// Is started again without its history.
        fn forgets(&mut self) {
            *self = Keeper::new(self.value, self.modified_ms);
        }
    }

    fn value_in(enclave: &InForce) -> Sha256 {
        enclave.state.items["K"].sha256
    }

    #[test]
    fn an_empty_enclave_is_sent_everything_and_a_current_one_nothing() {
        let mut keeper = Keeper::new("a", 100);
        let mut enclave = in_force(1, 0, &[]);
        assert!(keeper.looks(&mut enclave));
        assert_eq!(enclave.counter, 100);
        assert!(!keeper.looks(&mut enclave));
        assert!(keeper.looks(&mut in_force(2, 0, &[])), "another boot");
    }

    #[test]
    fn an_item_that_the_sources_do_not_have_is_left_alone() {
        let keeper = Keeper::new("a", 100);
        let enclave = in_force(1, 7, &[("K", "a"), ("OTHER", "x")]);
        assert_eq!(plan(&items(&[("K", "a")]), &enclave, &keeper.history), Plan { counter: 8, ..Plan::default() });
    }

    #[test]
    fn what_is_missing_is_sent_whatever_the_counter() {
        let mut keeper = Keeper::new("a", 100);
        // Somebody has sent another item by hand since.
        let mut enclave = in_force(1, 500, &[("OTHER", "x")]);
        assert!(keeper.looks(&mut enclave));
        assert_eq!(enclave.counter, 501);
    }

    #[test]
    fn an_operators_own_bundle_is_left_in_force_until_the_source_changes_or_the_enclave_restarts() {
        let mut keeper = Keeper::new("a", 100);
        let mut enclave = in_force(1, 0, &[]);
        keeper.looks(&mut enclave);
        (enclave.counter, enclave.state.items) = (500, items(&[("K", "by hand")]));
        let held = plan(&items(&[("K", "a")]), &enclave, &keeper.history).held;
        assert_eq!(held["K"], Held::Left);
        assert!(!keeper.looks(&mut enclave));
        // The keeper was restarted, and remembers nothing.
        let mut fresh = Keeper::new("a", 100);
        assert!(!fresh.looks(&mut enclave));
        assert_eq!(plan(&items(&[("K", "a")]), &enclave, &fresh.history).held["K"], Held::Newer);
        for keeper in [&mut keeper, &mut fresh] {
            let mut enclave = enclave.clone();
            keeper.source_becomes("b", 600);
            assert!(keeper.looks(&mut enclave) && enclave.counter == 600);
            assert!(keeper.looks(&mut in_force(2, 0, &[])));
        }
    }

    #[test]
    fn an_earlier_value_of_the_source_is_replaced_whatever_the_counter() {
        let mut keeper = Keeper::new("a", 100);
        let mut enclave = in_force(1, 0, &[]);
        keeper.looks(&mut enclave);
        // The source changed before another operator's bundle raised the counter, and the keeper looks after it.
        enclave.counter = 500;
        keeper.source_becomes("b", 300);
        assert!(keeper.looks(&mut enclave));
        assert_eq!((value_in(&enclave), enclave.counter), (sha256(b"b"), 501));
    }

    #[test]
    fn a_source_that_goes_back_is_followed() {
        let mut keeper = Keeper::new("a", 100);
        let mut enclave = in_force(1, 0, &[]);
        for (value, modified) in [("a", 100), ("b", 200), ("a", 100), ("b", 200), ("b", 200)] {
            keeper.source_becomes(value, modified);
            keeper.looks(&mut enclave);
            assert_eq!(value_in(&enclave), sha256(value.as_bytes()));
        }
    }

    /// Two keepers whose sources change at different times, in every order of looks and changes: they never send for ever,
    /// and in the end both look at the newest value.
    #[test]
    fn two_keepers_agree_on_the_newest_value_in_every_order() {
        #[derive(Clone, Copy)]
        enum Step {
            Look(usize),
            Change(usize),
            Restart,
        }
        let steps = [Step::Look(0), Step::Look(1), Step::Change(0), Step::Change(1), Step::Restart];
        // Each sequence of six steps: 5^6.
        for number in 0..5_usize.pow(6) {
            let mut keepers = [Keeper::new("old", 100), Keeper::new("old", 100)];
            let (mut enclave, mut boot) = (in_force(0, 0, &[]), 0);
            let mut left = number;
            for _ in 0..6 {
                match steps[left % 5] {
                    Step::Look(n) => drop(keepers[n].looks(&mut enclave)),
                    Step::Change(n) => keepers[n].source_becomes("new", 200),
                    Step::Restart => {
                        boot += 1;
                        enclave = in_force(boot, 0, &[]);
                    }
                }
                left /= 5;
            }
            keepers.iter_mut().for_each(|keeper| keeper.source_becomes("new", 200));
            let sent: usize = (0..6).map(|n| usize::from(keepers[n % 2].looks(&mut enclave))).sum();
            assert!(sent <= 1, "sequence {number}: {sent} bundles after the last change");
            assert_eq!(value_in(&enclave), sha256(b"new"), "sequence {number}");
        }
    }

    #[test]
    fn a_slow_keeper_never_replaces_a_newer_value_by_its_old_one() {
        let (mut quick, mut slow) = (Keeper::new("old", 100), Keeper::new("old", 100));
        let mut enclave = in_force(1, 0, &[]);
        slow.looks(&mut enclave);
        quick.source_becomes("new", 200);
        assert!(quick.looks(&mut enclave));
        for _ in 0..5 {
            assert!(!slow.looks(&mut enclave) && !quick.looks(&mut enclave));
        }
        // The same where the slow one has not seen this boot with its old value.
        let mut restarted = in_force(2, 0, &[]);
        assert!(quick.looks(&mut restarted));
        assert!(!slow.looks(&mut restarted));
        assert_eq!(value_in(&restarted), sha256(b"new"));
    }

    #[test]
    fn a_change_of_the_source_wins_over_what_was_seen_before_it_however_far_ahead_the_counter_is() {
        let mut keeper = Keeper::new("a", 100);
        let mut enclave = in_force(1, 0, &[]);
        keeper.looks(&mut enclave);
        (enclave.counter, enclave.state.items) = (FAR_AHEAD, items(&[("K", "by hand")]));
        assert!(!keeper.looks(&mut enclave));
        for (value, modified) in [("b", 200), ("c", 300), ("d", 250)] {
            keeper.source_becomes(value, modified);
            assert!(keeper.looks(&mut enclave) && !keeper.looks(&mut enclave));
            assert_eq!(value_in(&enclave), sha256(value.as_bytes()));
        }
        // By hand once more: what this boot has left is not sent back.
        (enclave.counter, enclave.state.items) = (enclave.counter + 1, items(&[("K", "by hand")]));
        assert!(!keeper.looks(&mut enclave) && !keeper.looks(&mut enclave));
    }

    #[test]
    fn keys_by_hand_do_not_hold_a_certificate_back_from_a_keeper_that_has_lost_its_history() {
        let sources = |certificate| items(&[("C", certificate), ("K", "k")]);
        let have = |history: &mut History, sources: &Items, modified_ms| {
            for (name, item) in sources {
                history.sources_have(name, item.sha256, Some(modified_ms), 1_000_000);
            }
        };
        let enclave = in_force(1, 500, &[("C", "c1"), ("K", "by hand")]);
        let mut fresh = History::default();
        have(&mut fresh, &sources("c2"), 100);
        fresh.boot_has("e", enclave.boot_nonce, &enclave.state.items);
        let held = plan(&sources("c2"), &enclave, &fresh).held;
        assert_eq!(held.into_iter().collect::<Vec<_>>(), [("C".into(), Held::Newer), ("K".into(), Held::Newer)]);
        have(&mut fresh, &sources("c3"), 200);
        let plan = plan(&sources("c3"), &enclave, &fresh);
        assert_eq!((plan.send, plan.held), (vec!["C".to_owned()], [("K".to_owned(), Held::Newer)].into()));
    }

    /// Two keepers that each see the source's values in their order, somebody who sends by hand with a clock that is ahead,
    /// and keepers that lose their history, in every order: no keeper ever sends what a boot has had and has left (see
    /// `looks`), and the next change of the source that follows a look is in force everywhere, after one bundle.
    #[test]
    fn the_next_change_of_the_source_wins_whatever_has_happened() {
        const VALUES: [(&str, u64); 3] = [("v1", 100), ("v2", 200), ("v3", 300)];
        for number in 0..7_usize.pow(6) {
            let mut keepers = [0, 1].map(|_| Keeper::new("v1", 100));
            let (mut enclave, mut boot, mut at) = (in_force(0, 0, &[]), 0, [0, 0]);
            let mut left = number;
            for _ in 0..6 {
                match left % 7 {
                    n @ (0 | 1) => _ = keepers[n].looks(&mut enclave),
                    n @ (2 | 3) => {
                        at[n - 2] = (at[n - 2] + 1).min(VALUES.len() - 1);
                        let (value, modified) = VALUES[at[n - 2]];
                        keepers[n - 2].source_becomes(value, modified);
                    }
                    4 => {
                        boot += 1;
                        enclave = in_force(boot, 0, &[]);
                    }
                    5 => {
                        let counter = FAR_AHEAD.max(enclave.counter + 1);
                        enclave = in_force(boot, counter, &[("K", "by hand")]);
                    }
                    _ => keepers[0].forgets(),
                }
                left /= 7;
            }
            for keeper in &mut keepers {
                keeper.looks(&mut enclave);
            }
            keepers.iter_mut().for_each(|keeper| keeper.source_becomes("last", 400));
            let sent: usize = (0..6).map(|n| usize::from(keepers[n % 2].looks(&mut enclave))).sum();
            assert_eq!((sent, value_in(&enclave)), (1, sha256(b"last")), "sequence {number}");
        }
    }
}
