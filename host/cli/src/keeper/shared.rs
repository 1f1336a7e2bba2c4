//! What all threads of a keeper share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;

use super::enclaves::Target;
use super::history::{History, Store};
use super::operators::Operators;
use super::policy::Policies;
use super::report::Report;
use super::snapshot::Snapshot;
use super::turns::Turns;
use super::watch::Seen;
use super::watches::Watched;
use crate::daemon::Cacert;

/// What all watches share.
pub(crate) struct Shared {
    pub(crate) operators: Operators,
    pub(crate) policies: Policies,
    pub(crate) cacert: Cacert,
    /// How many operators have to sign a bundle, and the keepers that sign next.
    pub(crate) signatures: usize,
    pub(crate) next: Vec<String>,
    pub(crate) interval: Duration,
    /// How many items the sources are to have.
    pub(crate) items: usize,
    pub(crate) max_enclaves: usize,
    pub(crate) report: Arc<Report>,
    pub(crate) store: Store,
    pub(crate) known: Mutex<Known>,
    /// For the bundles that others pass on.
    pub(crate) turns: Turns,
    /// Tells that the sources have changed, or that an enclave is no longer watched.
    pub(crate) changed: Condvar,
}

/// What changes while the keeper runs.
pub(crate) struct Known {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) history: History,
    /// The addresses whose enclaves have been given secrets.
    pub(crate) places: BTreeSet<String>,
    /// What was last attested at each address.
    pub(crate) boots: BTreeMap<Target, Seen>,
    /// The addresses that are watched, each with the number of its watch.
    pub(crate) watched: Watched,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The CAs that count at an address: those that are named are for https.
    pub(crate) fn cacert_for(&self, endpoint: &str) -> Cacert {
        if endpoint.starts_with("https") { self.cacert.clone() } else { Cacert { cacert: None } }
    }

    /// Writes the history, if it has changed. What cannot be written now is written with the next change.
    pub(crate) fn remember(&self, known: &mut Known) {
        if let Err(error) = self.store.write(&mut known.history) {
            self.report.history_fault();
            self.report.line("history_not_written", json!({"error": format!("{error:#}")}));
        }
    }
}
