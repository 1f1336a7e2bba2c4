//! Watches one enclave: does what [`Watch`] says is next, and tells it what happened.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use formats::attestation::BundleId;
use formats::bundle::Received;
use formats::digest::Sha256;
use formats::sealed_bundle::Destination;
use formats::sealed_bundle::v2::{self, SealedBundle};
use formats::state::{Manifest, State};
use serde_json::{Value, json};

use super::enclaves::Target;
use super::pass;
use super::plan::{Held, Plan};
use super::policy;
use super::report::Standing;
use super::shared::Shared;
use super::snapshot::Snapshot;
use super::watch::{Action, Context, Event, Note, Seen, Watch};
use crate::attest::Attested;
use crate::daemon::Daemon;
use crate::failure::{Class, Failure};
use crate::keys::{NO_RANDOM, fill_random};
use crate::manifest;

/// One enclave, and the last that is known of it.
struct Enclave<'k> {
    shared: &'k Shared,
    target: Target,
    number: u64,
    name: String,
    /// `None` before it is known how to reach it.
    daemon: Option<Daemon>,
    attested: Option<Attested>,
    state: State,
    snapshot: std::sync::Arc<Snapshot>,
    /// The bundle that was sent last, and the answer to it.
    sent: Option<(BundleId, Value)>,
    /// What was last told to be wrong, and is not told again while it lasts.
    trouble: Option<String>,
}

/// Watches the enclave at an address until it is no longer to be watched, or by another watch.
pub(crate) fn watch(shared: &Shared, target: Target, number: u64) {
    let name = target.to_string();
    let snapshot = shared.lock().snapshot.clone();
    let (daemon, state, attested, sent, trouble) = Default::default();
    let mut enclave = Enclave { shared, target, number, name, daemon, attested, state, snapshot, sent, trouble };
    enclave.run();
    let mut known = shared.lock();
    if !known.watched.contains_key(&enclave.target) {
        shared.report.forget(&enclave.name);
        known.places.remove(&enclave.name);
        known.boots.remove(&enclave.target);
    }
}

impl Enclave<'_> {
    fn run(&mut self) {
        let (mut watch, mut event, start) = (Watch::default(), Event::Waited, Instant::now());
        loop {
            let reached = !matches!(event, Event::Unreachable | Event::NotAttested);
            let (action, notes) = {
                let mut known = self.shared.lock();
                let known = &mut *known;
                if known.watched.get(&self.target) != Some(&self.number) {
                    return;
                }
                self.snapshot = known.snapshot.clone();
                let (places, name, most) = (&mut known.places, &self.name, self.shared.max_enclaves);
                let mut context = Context {
                    sources: &self.snapshot.items,
                    complete: self.snapshot.items.len() == self.shared.items,
                    revision: self.snapshot.revision,
                    enclave: &self.name,
                    history: &mut known.history,
                    interval: self.shared.interval,
                    now: start.elapsed(),
                    has_place: &mut || places.contains(name) || places.len() < most && places.insert(name.clone()),
                };
                let next = watch.next(event, &mut context);
                // Before anything is sent, so that a keeper that is killed now knows what it has seen.
                self.shared.remember(known);
                next
            };
            notes.into_iter().for_each(|note| self.tell(note));
            let (current, held) = (reached && watch.is_current(), watch.held());
            event = match action {
                Action::Wait(pause) => {
                    let attested = reached && self.attested.is_some();
                    self.shared.report.standing(&self.name, Standing { attested, current, held });
                    self.wait(pause);
                    Event::Waited
                }
                Action::Look => self.look(),
                Action::Fetch(_) => self.fetch(),
                Action::Send(plan) => self.send(&plan),
            };
        }
    }

    /// Waits for about so long, or until there is something new to do.
    fn wait(&self, pause: Duration) {
        // A tenth more or less, so that keepers that were started together do not stay together.
        let mut random = [0; 1];
        let _ = fill_random(&mut random);
        let end = Instant::now() + pause * (900 + u32::from(random[0]) * 200 / 255) / 1000;
        let mut known = self.shared.lock();
        while known.snapshot.revision == self.snapshot.revision && known.watched.get(&self.target) == Some(&self.number)
        {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            known = self.shared.changed.wait_timeout(known, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn look(&mut self) -> Event {
        let daemon = match self.daemon.take().map_or_else(|| self.reach(), Ok) {
            Ok(daemon) => daemon,
            Err(error) => {
                // The CA certificates may be there at the next look.
                self.attested = None;
                self.trouble("not_watched", &error);
                return Event::Unreachable;
            }
        };
        match self.shared.policies.attest(&daemon) {
            Ok(attested) => {
                self.no_trouble();
                let Attested { boot_nonce, in_force, state_sha256, .. } = &attested;
                let seen = Seen { boot_nonce: *boot_nonce, counter: in_force.counter, state_sha256: *state_sha256 };
                (self.attested, self.daemon) = (Some(attested), Some(daemon));
                self.shared.lock().boots.insert(self.target.clone(), seen);
                Event::Attested(seen)
            }
            Err(error) => {
                self.attested = None;
                let (event, word) = match Failure::class_of(&error) {
                    Class::TryAgain => (Event::Unreachable, "unreachable"),
                    _ => (Event::NotAttested, "not_attested"),
                };
                self.trouble(word, &error);
                event
            }
        }
    }

    /// How the enclave is reached.
    fn reach(&self) -> Result<Daemon> {
        let endpoint = &self.target.endpoint;
        Ok(self.shared.cacert_for(endpoint).daemon(endpoint)?.at(self.target.address).asked_once())
    }

    fn fetch(&mut self) -> Event {
        let state = match (&self.attested, &self.daemon) {
            (Some(attested), Some(daemon)) => policy::state_of(daemon, attested),
            _ => Err(anyhow!("it is not attested")),
        };
        match state {
            Ok(state) => {
                self.state = state.clone();
                Event::State(state)
            }
            Err(error) => {
                self.trouble("state_not_attested", &error);
                Event::NoState
            }
        }
    }

    fn send(&mut self, plan: &Plan) -> Event {
        let (sealed, expected) = match self.seal(plan) {
            Ok(sealed) => sealed,
            Err(error) => {
                self.shared.report.bundle("not_sealed");
                self.line("not_sealed", json!({"items": plan.send, "error": format!("{error:#}")}));
                return Event::NotSealed;
            }
        };
        let id = sealed.line.id();
        let mut told = json!({"items": plan.send, "counter": id.counter, "bundle_sha256": id.sha256});
        self.line("sealed", told.clone());
        let answer = match &self.daemon {
            Some(daemon) => pass::deliver(self.shared, daemon, &sealed),
            None => Err(anyhow!("it is not attested")),
        };
        let answered = answer.as_ref().err().is_none_or(|error| Failure::class_of(error) != Class::TryAgain);
        let answer = answer.unwrap_or_else(|error| json!({"ok": false, "error": format!("{error:#}")}));
        told["answer"] = answer.clone();
        self.line("sent", told);
        self.sent = Some((id, answer));
        Event::Sent { expected, answered }
    }

    /// Seals the items to the enclave that was attested, in the state that it attested. Returns the state after it too.
    fn seal(&self, plan: &Plan) -> Result<(SealedBundle, Sha256)> {
        let attested = self.attested.as_ref().context("the enclave is not attested")?;
        let from = attested.state_sha256.context("the enclave attests no state")?;
        let bundle = self.snapshot.bundle(&plan.send, &self.state.items, plan.all).to_json();
        let items = manifest::describe(&Received::parse_v2(&bundle)?)?;
        let mut after = self.state.clone();
        for name in &plan.send {
            let item = self.snapshot.items.get(name).context("a source is gone")?;
            after.items.insert(name.clone(), item.clone());
        }
        let to = Destination { sealing_key: attested.sealing_key, boot_nonce: attested.boot_nonce };
        let manifest = Manifest { complete_at: None, from, items };
        let mut sealed = v2::seal(&bundle, &manifest, &to, plan.counter).map_err(|_| anyhow!(NO_RANDOM))?;
        self.shared.operators.sign(&mut sealed.line);
        Ok((sealed, after.sha256()))
    }

    fn tell(&mut self, note: Note) {
        let report = &self.shared.report;
        match note {
            Note::Boot(boot_nonce) => {
                report.boot();
                let counter = self.attested.as_ref().map_or(0, |attested| attested.in_force.counter);
                let module = self.attested.as_ref().map(|attested| attested.module_id.clone());
                self.line("boot", json!({"boot_nonce": boot_nonce, "module_id": module, "counter": counter}));
            }
            Note::Confirmed => {
                report.bundle("confirmed");
                let state = self.attested.as_ref().and_then(|attested| attested.state_sha256);
                self.sent = None;
                self.line("confirmed", json!({"state_sha256": state}));
            }
            Note::NotConfirmed { attempts, pause } => {
                report.bundle("not_confirmed");
                let (id, answer) = self.sent.take().unzip();
                let ok = answer.as_ref().is_some_and(|answer| answer["ok"] == true);
                let reason = match ok {
                    true => {
                        "the answer said that the bundle is in force, and the enclave does not attest it: somebody on \
                             the way withholds it, or the enclave was sent another"
                    }
                    false => "the enclave does not attest that the bundle is in force",
                };
                let told = json!({
                    "reason": reason, "answer": answer, "attempts": attempts, "pause_seconds": pause.as_secs(),
                    "counter": id.map(|id| id.counter),
                });
                self.line("not_confirmed", told);
            }
            Note::NoStateAttested => self.line(
                "no_state",
                json!({"reason": "the enclave takes bundles of version 1 only: use a later image, or teemark secrets"}),
            ),
            Note::Held(held) => {
                let held: Vec<Value> = held.iter().map(|(item, held)| told_of(item, *held)).collect();
                self.line("held", json!({"items": held}));
            }
            Note::Current => self.line("current", json!({})),
            Note::NoPlace => {
                let most = self.shared.max_enclaves;
                self.line(
                    "no_place",
                    json!({"reason": format!("max_enclaves is {most}, and as many were given secrets")}),
                );
            }
        }
    }

    fn line(&self, event: &str, mut members: Value) {
        members["enclave"] = self.name.clone().into();
        self.shared.report.line(event, members);
    }

    /// Tells what is wrong, unless it has been told already.
    fn trouble(&mut self, event: &str, error: &anyhow::Error) {
        let told = format!("{event}: {error:#}");
        if self.trouble.as_ref() != Some(&told) {
            self.line(event, json!({"error": format!("{error:#}")}));
            self.trouble = Some(told);
        }
    }

    fn no_trouble(&mut self) {
        if self.trouble.take().is_some() {
            self.line("reached", json!({}));
        }
    }
}

fn told_of(item: &str, held: Held) -> Value {
    json!({"item": item, "why": held.to_string(), "reason": held.reason()})
}
