//! What to do next about one enclave, given what was seen and the time. Nothing here has an effect: the caller does what it
//! is told to, and comes back with what happened.

use std::collections::BTreeMap;
use std::time::Duration;

use formats::attestation::BootNonce;
use formats::digest::Sha256;
use formats::state::State;

use super::history::History;
use super::plan::{Held, InForce, Plan, plan};
use super::snapshot::Revision;

/// Longest pause after a document that did not pass, or a bundle that is not in force.
const LONGEST: Duration = Duration::from_secs(60);
/// After so many bundles that did not come into force, for one boot and one revision of the sources, the pause is
/// [`RESIGNED`].
const ATTEMPTS: u32 = 10;
/// How many counters in a row are tried: see [`Watch::compare`].
const COUNTERS: u32 = 64;
/// Pause between further attempts then.
const RESIGNED: Duration = Duration::from_secs(600);

/// What an attestation document says, of one that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) boot_nonce: BootNonce,
    pub(crate) counter: u64,
    /// `None` from a teemark that takes bundles of version 1 only.
    pub(crate) state_sha256: Option<Sha256>,
}

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The pause is over.
    Waited,
    /// Nobody answered, or not with a whole answer.
    Unreachable,
    /// What answered is not an enclave that may be given secrets.
    NotAttested,
    /// A document passed all checks.
    Attested(Seen),
    /// The enclave's state, checked against the document.
    State(State),
    /// The state could not be had, or is not the attested one.
    NoState,
    /// A bundle was sent, or the attempt to send it failed.
    Sent {
        /// The state that it leads to.
        expected: Sha256,
        /// Whether there was an answer other than that there is no room at the moment.
        answered: bool,
    },
    /// No bundle could be made.
    NotSealed,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Wait for this long, or until the sources change.
    Wait(Duration),
    /// Ask for an attestation document.
    Look,
    /// Ask for the state with this hash.
    Fetch(Sha256),
    /// Seal these items and send them.
    Send(Plan),
}

/// What is worth a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// A boot that was not seen before here.
    Boot(BootNonce),
    /// The enclave has the state that the bundle leads to.
    Confirmed,
    /// It does not.
    NotConfirmed {
        /// How many attempts for this boot and these sources were answered.
        attempts: u32,
        /// Before the next.
        pause: Duration,
    },
    /// It attests no state.
    NoStateAttested,
    /// Items that differ and are not sent.
    Held(BTreeMap<String, Held>),
    /// It has everything that the sources have.
    Current,
    /// There is no place for another enclave.
    NoPlace,
}

/// What the keeper knows of one enclave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    boot: Option<BootNonce>,
    /// The state and the revision of the sources that were found to need nothing.
    done: Option<(Sha256, Revision)>,
    /// What was last noted as held, and whether it is current.
    told: Option<Note>,
    /// The document that is being looked into.
    seen: Option<Seen>,
    /// The state that a bundle should have led to, and whether it was answered, until the next document.
    expected: Option<(Sha256, bool)>,
    /// Documents in a row that did not pass.
    refusals: u32,
    /// Bundles that did not come into force, for this boot and this revision.
    sent: u32,
    /// Those of them that were answered, so that another will hardly fare better.
    attempts: u32,
    revision: Revision,
    /// When the next bundle may be sent, on the caller's clock.
    not_before: Duration,
}

/// What an action depends on besides what happened.
pub(crate) struct Context<'a> {
    /// What the sources have.
    pub(crate) sources: &'a formats::state::Items,
    /// Whether that is all that they are to have: a command may not have ended yet.
    pub(crate) complete: bool,
    /// Which revision of the sources that is.
    pub(crate) revision: Revision,
    /// The address.
    pub(crate) enclave: &'a str,
    pub(crate) history: &'a mut History,
    /// Between two looks.
    pub(crate) interval: Duration,
    /// A clock that only goes forward.
    pub(crate) now: Duration,
    /// Whether this address may have an enclave that is given secrets.
    pub(crate) has_place: &'a mut dyn FnMut() -> bool,
}

impl Watch {
    /// What to do after this, and what to tell.
    pub(crate) fn next(&mut self, event: Event, context: &mut Context<'_>) -> (Action, Vec<Note>) {
        let mut notes = Vec::new();
        if self.revision != context.revision {
            self.revision = context.revision;
            (self.sent, self.attempts, self.not_before) = (0, 0, Duration::ZERO);
        }
        let action = match event {
            Event::Waited | Event::Sent { .. } => {
                if let Event::Sent { expected, answered } = event {
                    self.expected = Some((expected, answered));
                    self.sent = self.sent.saturating_add(1);
                }
                Action::Look
            }
            Event::Unreachable | Event::NoState => {
                // An enclave that starts again is to be found within a round.
                Action::Wait(context.interval)
            }
            Event::NotSealed => self.failed(context, &mut notes),
            Event::NotAttested => {
                self.refusals = self.refusals.saturating_add(1);
                Action::Wait(doubled(context.interval, self.refusals))
            }
            Event::Attested(seen) => self.attested(seen, context, &mut notes),
            Event::State(state) => self.compare(state, context, &mut notes),
        };
        (action, notes)
    }

    fn attested(&mut self, seen: Seen, context: &mut Context<'_>, notes: &mut Vec<Note>) -> Action {
        self.refusals = 0;
        if self.boot != Some(seen.boot_nonce) {
            *self = Watch { boot: Some(seen.boot_nonce), revision: self.revision, ..Watch::default() };
            notes.push(Note::Boot(seen.boot_nonce));
        }
        self.seen = Some(seen);
        let Some(state) = seen.state_sha256 else {
            self.tell(Note::NoStateAttested, notes);
            return Action::Wait(context.interval);
        };
        match self.expected.take() {
            Some((expected, _)) if expected == state => {
                notes.push(Note::Confirmed);
                (self.sent, self.attempts, self.not_before) = (0, 0, Duration::ZERO);
            }
            Some((_, true)) => return self.failed(context, notes),
            Some((_, false)) => {
                // Somebody may be using up the enclave's places: to wait for long is what they want.
                self.told = None;
                notes.push(Note::NotConfirmed { attempts: self.attempts, pause: context.interval });
                return Action::Wait(context.interval);
            }
            None => {}
        }
        if self.done == Some((state, context.revision)) {
            return Action::Wait(context.interval);
        }
        Action::Fetch(state)
    }

    fn compare(&mut self, state: State, context: &mut Context<'_>, notes: &mut Vec<Note>) -> Action {
        let Some(Seen { boot_nonce, counter, .. }) = self.seen else { return Action::Look };
        let hash = state.sha256();
        context.history.boot_has(context.enclave, boot_nonce, &state.items);
        let in_force = InForce { boot_nonce, counter, state };
        let mut plan = plan(context.sources, &in_force, context.history);
        if !plan.held.is_empty() {
            self.tell(Note::Held(plan.held.clone()), notes);
        }
        if plan.send.is_empty() {
            if plan.held.is_empty() && context.complete {
                self.tell(Note::Current, notes);
            }
            self.done = Some((hash, context.revision));
            return Action::Wait(context.interval);
        }
        if !(context.has_place)() {
            self.tell(Note::NoPlace, notes);
            return Action::Wait(context.interval);
        }
        if context.now < self.not_before {
            return Action::Wait(context.interval.min(self.not_before - context.now));
        }
        // The enclave takes one transfer of a counter at a time, and somebody who has recorded the last one may be making it.
        plan.counter = plan.counter.saturating_add((self.sent % COUNTERS).into());
        plan.all = self.attempts > 0;
        Action::Send(plan)
    }

    /// A bundle did not come into force, and another will hardly fare better.
    fn failed(&mut self, context: &Context<'_>, notes: &mut Vec<Note>) -> Action {
        self.attempts = self.attempts.saturating_add(1);
        let pause = if self.attempts < ATTEMPTS { doubled(context.interval, self.attempts) } else { RESIGNED };
        self.not_before = context.now + pause;
        self.told = None;
        notes.push(Note::NotConfirmed { attempts: self.attempts, pause });
        // The enclave is looked at all the same: it may restart, or somebody else may send what it needs.
        Action::Wait(context.interval)
    }

    /// Tells something that lasts only when it begins.
    fn tell(&mut self, note: Note, notes: &mut Vec<Note>) {
        if self.told.as_ref() != Some(&note) {
            self.told = Some(note.clone());
            notes.push(note);
        }
    }

    /// Whether the enclave had everything that the sources have, or what is held back, when it was last looked at.
    pub(crate) fn is_current(&self) -> bool {
        matches!(self.told, Some(Note::Current))
    }

    /// How many items are held back.
    pub(crate) fn held(&self) -> usize {
        match &self.told {
            Some(Note::Held(held)) => held.len(),
            _ => 0,
        }
    }
}

/// The pause after so many failures: the interval, doubled each time, up to [`LONGEST`] or one interval if that is longer.
fn doubled(interval: Duration, failures: u32) -> Duration {
    let factor = 2_u32.saturating_pow(failures.saturating_sub(1));
    interval.saturating_mul(factor).min(LONGEST.max(interval))
}

#[cfg(test)]
mod tests {
    use formats::digest::sha256;
    use formats::state::{Item, Items};

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(5);

    /// A keeper that watches one enclave, on a clock of its own.
    struct Scene {
        watch: Watch,
        history: History,
        sources: Items,
        /// How many items the sources are to have.
        items: usize,
        revision: Revision,
        now: Duration,
        places: bool,
        notes: Vec<Note>,
        enclave: Enclave,
    }

    /// An enclave, and what the way to it does.
    struct Enclave {
        boot: u8,
        counter: u64,
        state: State,
        way: Way,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Way {
        Clear,
        /// Nobody answers.
        Down,
        /// Another image, or another instance, answers.
        Stranger,
        /// Bundles do not arrive, whatever is answered.
        Withholds,
        /// There is no room for bundles, or no answer to them.
        Busy,
        /// The state is not the attested one.
        Forges,
    }

    impl Scene {
        fn new() -> Scene {
            let mut scene = Scene {
                watch: Watch::default(),
                history: History::default(),
                sources: Items::new(),
                items: 1,
                revision: Revision::default(),
                now: Duration::ZERO,
                places: true,
                notes: Vec::new(),
                enclave: Enclave { boot: 1, counter: 0, state: State::default(), way: Way::Clear },
            };
            scene.source_becomes("a", 100);
            scene
        }

        fn source_becomes(&mut self, value: &str, modified_ms: u64) {
            let sha256 = sha256(value.as_bytes());
            self.sources.insert("K".into(), Item { sha256, ..Item::default() });
            self.history.sources_have("K", sha256, Some(modified_ms), 1_000_000);
            self.revision = self.revision.next();
        }

        fn restart(&mut self) {
            let (boot, way) = (self.enclave.boot + 1, self.enclave.way);
            self.enclave = Enclave { boot, counter: 0, state: State::default(), way };
        }

        /// Runs for so long. Returns how many bundles were sent.
        fn run(&mut self, time: Duration) -> usize {
            let (end, mut sent, mut event) = (self.now + time, 0, Event::Waited);
            loop {
                let places = self.places;
                let mut context = Context {
                    sources: &self.sources,
                    complete: self.sources.len() == self.items,
                    revision: self.revision,
                    enclave: "e",
                    history: &mut self.history,
                    interval: INTERVAL,
                    now: self.now,
                    has_place: &mut || places,
                };
                let (action, notes) = self.watch.next(event, &mut context);
                self.notes.extend(notes);
                let way = self.enclave.way;
                event = match action {
                    Action::Wait(pause) => {
                        assert!(pause > Duration::ZERO, "it never spins");
                        self.now += pause;
                        if self.now >= end {
                            return sent;
                        }
                        Event::Waited
                    }
                    Action::Look if way == Way::Down => Event::Unreachable,
                    Action::Look if way == Way::Stranger => Event::NotAttested,
                    Action::Look => Event::Attested(Seen {
                        boot_nonce: BootNonce::from_bytes([self.enclave.boot; 32]),
                        counter: self.enclave.counter,
                        state_sha256: Some(self.enclave.state.sha256()),
                    }),
                    Action::Fetch(_) if way == Way::Forges => Event::NoState,
                    Action::Fetch(hash) => {
                        assert_eq!(hash, self.enclave.state.sha256());
                        Event::State(self.enclave.state.clone())
                    }
                    Action::Send(plan) => {
                        assert_eq!(plan.send, ["K"]);
                        sent += 1;
                        let state = State { items: self.sources.clone() };
                        let expected = state.sha256();
                        if way == Way::Clear {
                            (self.enclave.counter, self.enclave.state) = (plan.counter, state);
                        }
                        Event::Sent { expected, answered: way != Way::Busy }
                    }
                };
            }
        }

        fn is_done(&self) -> bool {
            self.enclave.state.items == self.sources
        }
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn an_enclave_is_given_its_secrets_once_and_is_then_only_looked_at() {
        let mut scene = Scene::new();
        assert_eq!(scene.run(seconds(1)), 1);
        assert!(scene.is_done() && scene.watch.is_current());
        assert_eq!(scene.run(seconds(3600)), 0);
        assert_eq!(scene.notes, [Note::Boot(BootNonce::from_bytes([1; 32])), Note::Confirmed, Note::Current]);
    }

    #[test]
    fn an_enclave_is_not_current_before_every_source_has_a_value() {
        let mut scene = Scene::new();
        let sources = std::mem::take(&mut scene.sources);
        scene.run(seconds(60));
        assert!(!scene.watch.is_current() && !scene.notes.contains(&Note::Current));
        (scene.sources, scene.items, scene.revision) = (sources, 2, scene.revision.next());
        assert_eq!(scene.run(seconds(60)), 1);
        assert!(!scene.watch.is_current() && !scene.notes.contains(&Note::Current));
        (scene.items, scene.revision) = (1, scene.revision.next());
        scene.run(seconds(60));
        assert!(scene.watch.is_current());
    }

    #[test]
    fn a_restarted_enclave_has_its_secrets_again_within_two_rounds_however_long_it_was_away() {
        let mut scene = Scene::new();
        scene.run(seconds(1));
        for away in [1, 60, 86_400] {
            scene.enclave.way = Way::Down;
            scene.run(seconds(away));
            scene.restart();
            scene.enclave.way = Way::Clear;
            scene.run(2 * INTERVAL);
            assert!(scene.is_done(), "after {away} s");
        }
    }

    #[test]
    fn what_changes_in_the_sources_is_in_force_within_two_rounds() {
        let mut scene = Scene::new();
        scene.run(seconds(1));
        for (n, value) in ["b", "c", "a"].into_iter().enumerate() {
            scene.source_becomes(value, 200 + n as u64);
            assert_eq!(scene.run(2 * INTERVAL), 1);
            assert!(scene.is_done());
        }
    }

    #[test]
    fn a_stranger_and_a_forger_are_sent_nothing_and_the_enclave_is_found_again() {
        for way in [Way::Stranger, Way::Forges] {
            let mut scene = Scene::new();
            scene.enclave.way = way;
            assert_eq!(scene.run(seconds(3600)), 0, "{way:?}");
            scene.enclave.way = Way::Clear;
            scene.run(LONGEST + INTERVAL);
            assert!(scene.is_done());
        }
    }

    #[test]
    fn a_parent_that_withholds_bundles_is_tried_less_and_less_and_never_given_up() {
        let mut scene = Scene::new();
        scene.enclave.way = Way::Withholds;
        let first = scene.run(seconds(600));
        assert!((5..=15).contains(&first), "{first}");
        let hour = scene.run(seconds(3600));
        assert!((1..=7).contains(&hour), "{hour}");
        assert!(!scene.notes.contains(&Note::Confirmed) && !scene.watch.is_current());
        // A change of the sources, or a restart, is worth another attempt at once.
        scene.source_becomes("b", 200);
        assert_eq!(scene.run(INTERVAL), 1);
        scene.run(seconds(3600));
        scene.enclave.way = Way::Clear;
        scene.restart();
        scene.run(2 * INTERVAL);
        assert!(scene.is_done());
    }

    #[test]
    fn an_attack_on_the_enclaves_places_delays_it_by_no_more_than_a_round() {
        for attack in [seconds(30), seconds(600), seconds(7200)] {
            let mut scene = Scene::new();
            scene.enclave.way = Way::Busy;
            let rounds = usize::try_from(attack.as_secs() / INTERVAL.as_secs()).unwrap();
            assert_eq!(scene.run(attack), rounds);
            scene.enclave.way = Way::Clear;
            scene.run(INTERVAL);
            assert!(scene.is_done(), "after {attack:?}");
        }
    }

    #[test]
    fn the_parent_lets_bundles_through_at_last() {
        let mut scene = Scene::new();
        scene.enclave.way = Way::Withholds;
        scene.run(seconds(7200));
        scene.enclave.way = Way::Clear;
        scene.run(RESIGNED + 2 * INTERVAL);
        assert!(scene.is_done());
    }

    #[test]
    fn what_is_held_back_is_told_once_and_not_sent() {
        let mut scene = Scene::new();
        scene.run(seconds(1));
        (scene.enclave.counter, scene.enclave.state) = (500, State { items: Items::new() });
        let by_hand = Item { sha256: sha256(b"by hand"), ..Item::default() };
        scene.enclave.state.items.insert("K".into(), by_hand);
        assert_eq!(scene.run(seconds(3600)), 0);
        let held = scene.notes.iter().filter(|note| matches!(note, Note::Held(_))).count();
        assert_eq!((held, scene.watch.held(), scene.watch.is_current()), (1, 1, false));
    }

    #[test]
    fn without_a_place_nothing_is_sent() {
        let mut scene = Scene::new();
        scene.places = false;
        assert_eq!(scene.run(seconds(3600)), 0);
        assert_eq!(scene.notes.iter().filter(|note| **note == Note::NoPlace).count(), 1);
        scene.places = true;
        scene.run(INTERVAL);
        assert!(scene.is_done());
    }

    /// Every sequence of six things that can happen: afterwards, on a clear way, the enclave has its secrets, and no more
    /// bundles are sent than there were boots, changes and attempts.
    #[test]
    fn whatever_has_happened_the_enclave_has_its_secrets_in_the_end() {
        let ways = [Way::Clear, Way::Down, Way::Stranger, Way::Withholds, Way::Forges, Way::Busy];
        for number in 0..8_usize.pow(5) {
            let (mut scene, mut left) = (Scene::new(), number);
            for step in 0..5_u64 {
                match left % 8 {
                    6 => scene.restart(),
                    7 => scene.source_becomes(["b", "c", "d", "e", "f"][usize::try_from(step).unwrap()], 200 + step),
                    way => scene.enclave.way = ways[way],
                }
                scene.run(seconds(7));
                left /= 8;
            }
            scene.enclave.way = Way::Clear;
            scene.run(LONGEST + 2 * INTERVAL);
            assert!(scene.is_done() && scene.watch.is_current(), "sequence {number}");
            assert_eq!(scene.run(seconds(60)), 0, "sequence {number}");
        }
    }
}
