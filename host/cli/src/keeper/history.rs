//! What a keeper has seen, so that it never sends back what an enclave has left.
//!
//! The keeper may be stopped at any moment, so this is kept in a file, which holds hashes and times, nothing secret.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use formats::attestation::BootNonce;
use formats::digest::Sha256;
use formats::state::{Item, Items};
use serde::{Deserialize, Serialize};

use crate::output::{self, Existing, Readers};

/// The file's name in its folder.
const FILE: &str = "history.json";
/// Most earlier values that are remembered for an item.
const MAX_EARLIER: usize = 1000;
/// Most boots that are remembered for an address, and for all addresses together that are no longer watched. A boot that has
/// ended never comes back, so a parent that restarts its enclave pushes out nothing that matters, and nobody else's boots.
const MAX_BOOTS: usize = 16;
const MAX_UNWATCHED: usize = 1000;

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct History {
    /// The items of the sources.
    items: BTreeMap<String, Known>,
    /// The boots that were seen, in the order in which they were first seen.
    boots: Vec<Boot>,
    /// Whether there is something that the file does not have.
    #[serde(skip)]
    changed: bool,
}

/// An item of the sources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    sha256: Sha256,
    /// When the sources changed to it, in milliseconds since 1970; 0 if that is not known.
    changed_ms: u64,
    /// The values before it, the last one last.
    earlier: Vec<Sha256>,
}

/// One boot of the enclave at one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Boot {
    enclave: String,
    boot_nonce: BootNonce,
    /// The items of which it has had the present value.
    had: BTreeSet<String>,
    /// The items of which it has another value.
    other: BTreeMap<String, Other>,
}

/// A value in force that is not the present one of the sources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Other {
    sha256: Sha256,
    /// Whether the sources have changed since it was first seen there.
    overtaken: bool,
}

impl History {
    /// Takes note of an item of the sources. `modified_ms` is when the newest of its files was changed, if it is from files.
    /// Returns whether it has changed.
    pub(crate) fn sources_have(&mut self, name: &str, sha256: Sha256, modified_ms: Option<u64>, now_ms: u64) -> bool {
        let modified_ms = modified_ms.map(|modified| modified.min(now_ms));
        let known = match self.items.get_mut(name) {
            Some(known) if known.sha256 == sha256 => return false,
            Some(known) => known,
            None => {
                let changed_ms = modified_ms.unwrap_or(0);
                self.items.insert(name.to_owned(), Known { sha256, changed_ms, earlier: Vec::new() });
                self.changed = true;
                return true;
            }
        };
        // A file that was put back has an earlier time, and yet it has changed now.
        let changed_ms = modified_ms.filter(|modified| *modified > known.changed_ms).unwrap_or(now_ms);
        known.changed_ms = changed_ms.max(known.changed_ms);
        known.earlier.retain(|earlier| *earlier != sha256);
        known.earlier.push(std::mem::replace(&mut known.sha256, sha256));
        let excess = known.earlier.len().saturating_sub(MAX_EARLIER);
        known.earlier.drain(..excess);
        for boot in &mut self.boots {
            boot.had.remove(name);
            if let Some(other) = boot.other.get_mut(name) {
                other.overtaken = true;
            }
        }
        self.changed = true;
        true
    }

    /// Takes note of what the enclave at an address has in force.
    pub(crate) fn boot_has(&mut self, enclave: &str, boot_nonce: BootNonce, in_force: &Items) {
        let is_it = |boot: &Boot| boot.boot_nonce == boot_nonce && boot.enclave == enclave;
        let at = self.boots.iter().position(is_it).unwrap_or_else(|| {
            keep_last(&mut self.boots, MAX_BOOTS - 1, |boot| boot.enclave == enclave);
            let (had, other) = Default::default();
            self.boots.push(Boot { enclave: enclave.to_owned(), boot_nonce, had, other });
            self.changed = true;
            self.boots.len() - 1
        });
        let Boot { had, other, .. } = &mut self.boots[at];
        for (name, known) in &self.items {
            let Some(Item { sha256, .. }) = in_force.get(name) else { continue };
            if *sha256 == known.sha256 {
                self.changed |= had.insert(name.clone()) | other.remove(name).is_some();
            } else if other.get(name).is_none_or(|other| other.sha256 != *sha256) {
                other.insert(name.clone(), Other { sha256: *sha256, overtaken: false });
                self.changed = true;
            }
        }
    }

    /// Forgets most of what was seen at addresses that are no longer watched.
    pub(crate) fn keep_watched(&mut self, watched: &BTreeSet<String>) {
        let before = self.boots.len();
        keep_last(&mut self.boots, MAX_UNWATCHED, |boot| !watched.contains(&boot.enclave));
        self.changed |= self.boots.len() < before;
    }

    /// Whether a boot has had the present value of an item.
    pub(crate) fn has_had(&self, boot_nonce: BootNonce, name: &str) -> bool {
        self.boots.iter().any(|boot| boot.boot_nonce == boot_nonce && boot.had.contains(name))
    }

    /// Whether the sources have changed since this value of an item was first seen in a boot.
    pub(crate) fn is_overtaken(&self, boot_nonce: BootNonce, name: &str, sha256: &Sha256) -> bool {
        let overtaken = |boot: &Boot| boot.other.get(name).is_some_and(|o| o.sha256 == *sha256 && o.overtaken);
        self.boots.iter().any(|boot| boot.boot_nonce == boot_nonce && overtaken(boot))
    }

    /// Whether the sources had this value of an item before the present one.
    pub(crate) fn is_earlier(&self, name: &str, sha256: &Sha256) -> bool {
        self.items.get(name).is_some_and(|known| known.earlier.contains(sha256))
    }

    /// When the sources changed to the present value of an item, in milliseconds since 1970; 0 if that is not known.
    pub(crate) fn changed_ms(&self, name: &str) -> u64 {
        self.items.get(name).map_or(0, |known| known.changed_ms)
    }
}

/// Removes the first of those boots, if they are more than `most`.
fn keep_last(boots: &mut Vec<Boot>, most: usize, of: impl Fn(&Boot) -> bool) {
    let mut excess = boots.iter().filter(|boot| of(boot)).count().saturating_sub(most);
    boots.retain(|boot| {
        let goes = excess > 0 && of(boot);
        excess -= usize::from(goes);
        !goes
    });
}

/// Where the history is kept.
pub(crate) struct Store(Option<PathBuf>);

impl Store {
    /// A folder, or nowhere.
    pub(crate) fn new(folder: Option<&Path>) -> Store {
        Store(folder.map(|folder| folder.join(FILE)))
    }

    /// Reads what is remembered; nothing, if there is no file yet.
    ///
    /// # Errors
    /// The file is there, and cannot be read.
    pub(crate) fn read(&self) -> Result<History> {
        let Some(path) = self.0.as_deref() else { return Ok(History::default()) };
        let in_file = || format!("the keeper's history {}", path.display());
        match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(History::default()),
            Err(error) => Err(error).with_context(in_file),
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(in_file),
        }
    }

    /// Writes what has changed, if anything has.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, history: &mut History) -> Result<()> {
        if !history.changed {
            return Ok(());
        }
        if let Some(path) = self.0.as_deref() {
            let bytes = serde_json::to_vec(history).context("the keeper's history is not JSON")?;
            output::write(path, &bytes, Existing::Replace, Readers::Owner, "")?;
        }
        history.changed = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use formats::digest::sha256;

    use super::*;

    fn has(name: &str, sha256: Sha256) -> Items {
        [(name.to_owned(), Item { sha256, ..Item::default() })].into()
    }

    fn boot(byte: u8) -> BootNonce {
        BootNonce::from_bytes([byte; 32])
    }

    #[test]
    fn an_item_is_as_old_as_its_files_and_changes_when_they_do() {
        let [a, b] = [sha256(b"a"), sha256(b"b")];
        let mut history = History::default();
        assert!(history.sources_have("K", a, Some(100), 1000));
        assert!(!history.sources_have("K", a, Some(900), 1000), "a file that was only touched");
        assert_eq!(history.changed_ms("K"), 100);
        history.sources_have("K", b, Some(200), 1000);
        assert_eq!((history.changed_ms("K"), history.is_earlier("K", &a)), (200, true));
        // An old file is put back: it is the newest all the same.
        history.sources_have("K", a, Some(100), 1000);
        assert_eq!(
            (history.changed_ms("K"), history.is_earlier("K", &a), history.is_earlier("K", &b)),
            (1000, false, true)
        );
        history.sources_have("K", b, Some(9999), 1001);
        assert_eq!(history.changed_ms("K"), 1001, "a file from the future is from now");
        history.sources_have("E", a, None, 5000);
        assert_eq!(history.changed_ms("E"), 0, "nobody knows how old a command's first output is");
        history.sources_have("E", b, None, 6000);
        assert_eq!(history.changed_ms("E"), 6000);
    }

    #[test]
    fn what_a_boot_has_had_is_remembered_until_the_sources_change() {
        let [a, b] = [sha256(b"a"), sha256(b"b")];
        let mut history = History::default();
        history.sources_have("K", a, Some(1), 9);
        history.boot_has("e", boot(1), &has("K", b));
        assert!(!history.has_had(boot(1), "K"));
        history.boot_has("e", boot(1), &has("K", a));
        history.boot_has("e", boot(1), &has("K", b));
        assert!(history.has_had(boot(1), "K") && !history.has_had(boot(2), "K"));
        history.sources_have("K", b, Some(2), 9);
        assert!(!history.has_had(boot(1), "K"));
    }

    #[test]
    fn a_parent_that_restarts_its_enclave_pushes_out_nothing_that_was_seen_of_others() {
        let a = sha256(b"a");
        let mut history = History::default();
        history.sources_have("K", a, Some(1), 9);
        history.boot_has("e", boot(1), &has("K", a));
        for n in 0..2000_u64 {
            history.boot_has("hostile", BootNonce::from_bytes(*sha256(&n.to_be_bytes()).as_bytes()), &has("K", a));
        }
        history.keep_watched(&["e".to_owned(), "hostile".to_owned()].into());
        assert!(history.has_had(boot(1), "K"));
    }

    #[test]
    fn a_value_that_was_seen_before_the_sources_changed_is_overtaken_and_no_other() {
        let [a, b, hand, later] = [b"a", b"b", b"h", b"l"].map(|value| sha256(value));
        let mut history = History::default();
        history.sources_have("K", a, Some(1), 9);
        history.boot_has("e", boot(1), &has("K", hand));
        assert!(!history.is_overtaken(boot(1), "K", &hand));
        history.sources_have("K", b, Some(2), 9);
        assert!(history.is_overtaken(boot(1), "K", &hand));
        assert!(!history.is_overtaken(boot(1), "K", &later) && !history.is_overtaken(boot(2), "K", &hand));
        // The value of the sources was there, and then the other again.
        history.boot_has("e", boot(1), &has("K", b));
        history.boot_has("e", boot(1), &has("K", hand));
        assert!(!history.is_overtaken(boot(1), "K", &hand));
    }

    #[test]
    fn the_history_is_bounded_and_outlives_the_keeper() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(Some(folder.path()));
        let mut history = store.read().unwrap();
        for n in 0..2 * MAX_EARLIER as u64 {
            history.sources_have("K", sha256(&n.to_be_bytes()), Some(n), 9);
            let boot = BootNonce::from_bytes(*sha256(&n.to_be_bytes()).as_bytes());
            history.boot_has("one of its own", boot, &Items::new());
            history.boot_has(&format!("gone {n}"), boot, &Items::new());
        }
        history.keep_watched(&["one of its own".to_owned()].into());
        assert_eq!((history.items["K"].earlier.len(), history.boots.len()), (MAX_EARLIER, MAX_BOOTS + MAX_UNWATCHED));
        store.write(&mut history).unwrap();
        assert_eq!(store.read().unwrap(), history);
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(store.read().unwrap_err().to_string().contains("history.json"));
    }
}
