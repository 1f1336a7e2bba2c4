//! What the sources have, and what of it an enclave is to be sent: no effects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use formats::bundle::Outgoing;
use formats::digest::Sha256;
use formats::file_keys::DeliveredKeys;
use formats::items::{FILE_KEYS, FILE_KEYS_ADD, FILE_KEYS_REMOVE};
use formats::state::{Item, Items};

use crate::manifest;

/// Key sets that are remembered, so that an enclave that has one of them is sent the difference only.
const KEY_SETS: usize = 8;

/// Counts the changes of the sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Revision(u64);

impl Revision {
    /// The one after it.
    pub(crate) fn next(self) -> Revision {
        Revision(self.0 + 1)
    }
}

/// The digest of each key, by its id.
pub(crate) type Digests = BTreeMap<String, Sha256>;

/// An item, and what it is in a bundle.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// A bundle with this item alone.
    pub(crate) outgoing: Outgoing,
    /// Its description.
    pub(crate) item: Item,
    /// When the newest of its files was changed, in milliseconds since 1970; `None` if it is not from files.
    pub(crate) modified_ms: Option<u64>,
}

/// What the sources have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) revision: Revision,
    /// The description of each item.
    pub(crate) items: Items,
    pieces: BTreeMap<String, Piece>,
    /// The last sets of file keys by the hash of their description, the present one last.
    key_sets: Vec<(Sha256, Arc<Digests>)>,
}

impl Snapshot {
    /// The bundle that brings these items to an enclave with this state: the difference alone, where the file keys in force
    /// are a set that is remembered, unless all of it is asked for.
    pub(crate) fn bundle(&self, names: &[String], in_force: &Items, all: bool) -> Outgoing {
        let mut whole = Outgoing::default();
        for piece in names.iter().filter_map(|name| self.pieces.get(name)) {
            let Outgoing { mtls_client_cert_json, ecs_watermark_endpoint, file_keys, grant_keys, .. } = &piece.outgoing;
            if mtls_client_cert_json.is_some() {
                whole.mtls_client_cert_json.clone_from(mtls_client_cert_json);
            }
            if ecs_watermark_endpoint.is_some() {
                whole.ecs_watermark_endpoint.clone_from(ecs_watermark_endpoint);
            }
            if grant_keys.is_some() {
                whole.grant_keys.clone_from(grant_keys);
            }
            if let Some(keys) = file_keys {
                match self.difference(in_force.get(FILE_KEYS)).filter(|_| !all) {
                    Some((add, remove)) => {
                        let added = keys.0.iter().filter(|(id, _)| add.contains_key(id)).cloned();
                        let added: DeliveredKeys = added.collect();
                        whole.file_keys_add = (!added.0.is_empty()).then_some(added);
                        whole.file_keys_remove = remove;
                    }
                    None => whole.file_keys = Some(keys.clone()),
                }
            }
        }
        whole
    }

    /// The keys that come and the ids of those that go, from the keys in force to the present ones: both, of an id that has
    /// another key. `None` if the keys in force are not known.
    fn difference(&self, in_force: Option<&Item>) -> Option<(Digests, BTreeSet<String>)> {
        let (_, to) = self.key_sets.last()?;
        let (_, from) = self.key_sets.iter().find(|(hash, _)| in_force.is_some_and(|item| item.sha256 == *hash))?;
        let other = |than: &Digests, (id, digest): &(&String, &Sha256)| than.get(*id) != Some(*digest);
        let add = to.iter().filter(|key| other(from, key)).map(|(id, digest)| (id.clone(), *digest)).collect();
        let remove = from.iter().filter(|key| other(to, key)).map(|(id, _)| id.clone()).collect();
        Some((add, remove))
    }

    /// The difference, described as in a manifest.
    pub(crate) fn changes(&self, in_force: Option<&Item>) -> Option<Items> {
        let (add, remove) = self.difference(in_force)?;
        let mut items = Items::new();
        if !add.is_empty() {
            items.insert(FILE_KEYS_ADD.to_owned(), manifest::keyed(&add));
        }
        if !remove.is_empty() {
            items.insert(FILE_KEYS_REMOVE.to_owned(), Item::removed(remove.iter().map(String::as_str)));
        }
        Some(items)
    }

    /// One with these items, and these sets of file keys, the last of which is the present one.
    #[cfg(test)]
    pub(crate) fn of(items: &[(&str, Item)], key_sets: &[Digests]) -> Snapshot {
        let mut items: Items = items.iter().map(|(name, item)| ((*name).to_owned(), item.clone())).collect();
        let key_sets: Vec<_> =
            key_sets.iter().map(|keys| (manifest::keyed(keys).sha256, Arc::new(keys.clone()))).collect();
        if let Some((_, keys)) = key_sets.last() {
            items.insert(FILE_KEYS.to_owned(), manifest::keyed(keys));
        }
        Snapshot { items, key_sets, ..Snapshot::default() }
    }

    /// Takes a new value of an item. Returns whether it is another one than before.
    pub(crate) fn replace(&mut self, name: &str, piece: Piece) -> bool {
        if self.items.get(name).is_some_and(|item| item.sha256 == piece.item.sha256) {
            return false;
        }
        if let Some(keys) = &piece.outgoing.file_keys {
            self.key_sets.retain(|(hash, _)| *hash != piece.item.sha256);
            self.key_sets.push((piece.item.sha256, Arc::new(manifest::digests(keys))));
            let excess = self.key_sets.len().saturating_sub(KEY_SETS);
            self.key_sets.drain(..excess);
        }
        self.items.insert(name.to_owned(), piece.item.clone());
        self.pieces.insert(name.to_owned(), piece);
        true
    }

    /// Each item, with when its newest file was changed.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (&String, &Piece)> {
        self.pieces.iter()
    }
}
