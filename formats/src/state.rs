//! What an enclave holds, described without a secret: the name of each item, the hash of its canonical form, and what
//! people need to recognise it.
//!
//! An enclave attests the SHA-256 of its [`State`], and serves the state itself. A sealed bundle of version 2 has a
//! [`Manifest`]: the state that it changes, and the same description of each item in it, so that whoever signs the bundle
//! knows what it does without being able to read it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::certificates::{self, Parts};
use crate::digest::{Sha256, sha256};
use crate::items::{CHANGES, ITEMS};
use crate::jwks::GrantKeys;
use crate::object::{Keep, Object, shown};
use crate::refusal::{Refusal, refuse};
use crate::service::ServiceUrl;
use crate::time::Utc;

/// Most ids that a description lists. Beyond them it has their hash.
pub const MAX_IDS: usize = 1000;

/// An item, described. Members that do not concern the item are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// How many keys or ids there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Their ids, sorted by their bytes, if there are at most [`MAX_IDS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<String>>,
    /// The SHA-256 of the canonical form of the ids, if there are more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids_sha256: Option<Sha256>,
    /// The last second at which the client's certificate chain is valid, as RFC 3339 writes it in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// The SHA-256 of the item's canonical form (docs/FORMATS.md).
    pub sha256: Sha256,
    /// The watermark service's URL, without a trailing slash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// Descriptions by the names of the items. Their JSON is canonical: sorted, and without white space.
pub type Items = BTreeMap<String, Item>;

/// All items in force. The default is that of an enclave that has been given nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The items.
    pub items: Items,
}

/// What a bundle does: to which state, and with which items.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The SHA-256 of the state from which on the enclave may call itself ready, if there are bundles to follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complete_at: Option<Sha256>,
    /// The SHA-256 of the state that the bundle changes. The enclave refuses it in any other.
    pub from: Sha256,
    /// The bundle's items.
    pub items: Items,
}

impl Item {
    /// MTLS_CLIENT_CERT_JSON: the certificates and the key as PEM ([`crate::pem`]), and when the chain's first certificate
    /// expires.
    pub fn certificates(pem: &Parts<String>, not_after: Utc) -> Item {
        let files = Parts(pem.0.each_ref().map(|text| text.as_bytes().to_vec()));
        let sha256 = sha256(certificates::write(&files).as_bytes());
        Item { not_after: Some(not_after.to_string()), sha256, ..Item::default() }
    }

    /// ECS_WATERMARK_ENDPOINT.
    pub fn service(url: &ServiceUrl) -> Item {
        Item { sha256: sha256(url.base().as_bytes()), url: Some(url.base().to_owned()), ..Item::default() }
    }

    /// FILE_KEYS and FILE_KEYS_ADD: each key's id and digest.
    pub fn file_keys<'k>(keys: impl Iterator<Item = (&'k str, &'k Sha256)>) -> Item {
        Item::keyed(keys.map(|(id, digest)| (id, digest.as_ref())).collect())
    }

    /// GRANT_KEYS and GRANT_KEYS_ADD.
    pub fn grant_keys(keys: &GrantKeys) -> Item {
        Item::keyed(keys.0.iter().map(|key| (&*key.kid, &*key.public)).collect())
    }

    /// FILE_KEYS_REMOVE and GRANT_KEYS_REMOVE: the ids.
    pub fn removed<'k>(ids: impl Iterator<Item = &'k str>) -> Item {
        Item::keyed(ids.map(|id| (id, &[][..])).collect())
    }

    /// The item's JSON, which is canonical.
    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are JSON")
    }

    /// The canonical form: for each key a byte with the length of the id, the id, a byte with the length of what
    /// identifies the key, and that. The ids alone have the same form, with nothing that identifies a key.
    fn keyed(mut keys: Vec<(&str, &[u8])>) -> Item {
        keys.sort_unstable();
        let (mut whole, mut of_ids) = (Canonical::default(), Canonical::default());
        for (id, key) in &keys {
            whole.add(id, key);
            of_ids.add(id, &[]);
        }
        let few = keys.len() <= MAX_IDS;
        Item {
            count: Some(keys.len()),
            ids: few.then(|| keys.iter().map(|(id, _)| (*id).to_owned()).collect()),
            ids_sha256: (!few).then(|| of_ids.sha256()),
            sha256: whole.sha256(),
            ..Item::default()
        }
    }
}

/// Hashes the canonical form of keys as they come.
struct Canonical(ring::digest::Context);

impl Default for Canonical {
    fn default() -> Canonical {
        Canonical(ring::digest::Context::new(&ring::digest::SHA256))
    }
}

impl Canonical {
    fn add(&mut self, id: &str, key: &[u8]) {
        for part in [id.as_bytes(), key] {
            // Ids have at most 128 bytes, and what identifies a key has at most 65.
            self.0.update(&[u8::try_from(part.len()).unwrap_or(u8::MAX)]);
            self.0.update(part);
        }
    }

    fn sha256(self) -> Sha256 {
        Sha256::from_slice(self.0.finish().as_ref()).expect("SHA-256 has 32 bytes")
    }
}

impl State {
    /// The state as the enclave serves it, and whose SHA-256 it attests.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are JSON")
    }

    /// The SHA-256 that the enclave attests.
    pub fn sha256(&self) -> Sha256 {
        sha256(self.to_json().as_bytes())
    }

    /// Parses a state; `None` if the bytes are not one. Compare their SHA-256 with the attested one first.
    pub fn parse(json: &[u8]) -> Option<State> {
        serde_json::from_slice(json).ok()
    }
}

/// What an enclave has to know of a manifest: the rest it finds out by itself, and compares.
pub struct Told<'a> {
    /// See [`Manifest::from`].
    pub from: Sha256,
    /// See [`Manifest::complete_at`].
    pub complete_at: Option<Sha256>,
    items: Object<'a>,
}

const MANIFEST: &str = "manifest";

impl<'a> Told<'a> {
    /// Parses the manifest of a bundle: the enclave's side.
    ///
    /// # Errors
    /// It is not one, or has a member that this version does not know.
    pub fn parse(json: &'a [u8]) -> Result<Told<'a>, Refusal> {
        let manifest = Object::parse(MANIFEST, json, Keep::Named(&["complete_at", "from", "items"]))?;
        if let Some(name) = manifest.ignored.first() {
            return refuse(MANIFEST, format!("has a member that this version does not know: {name}"));
        }
        let hash = |name| {
            let hash = Sha256::from_hex(&manifest.text(MANIFEST, name)?);
            hash.map_or_else(|| refuse(format!("{MANIFEST}.{name}"), "is not a SHA-256 in hex"), Ok)
        };
        let complete_at = manifest.get("complete_at").is_some().then(|| hash("complete_at")).transpose()?;
        let from = hash("from")?;
        let Some(items) = manifest.get("items") else { return refuse("manifest.items", "is missing") };
        let items = Object::parse("manifest.items", items.get().as_bytes(), Keep::Most(ITEMS.len() + CHANGES.len()))?;
        Ok(Told { from, complete_at, items })
    }

    /// Checks that the bundle holds what the manifest says.
    ///
    /// # Errors
    /// The first item that is missing, is another, or is not in the manifest.
    pub fn describes(&self, found: &Items) -> Result<(), Refusal> {
        for (name, told) in &self.items.known {
            match found.get(&**name) {
                None => return refuse(shown(name), "is in the manifest and not in the bundle"),
                Some(item) if item.to_json() != told.get() => return refuse(&**name, "is not what the manifest says"),
                Some(_) => {}
            }
        }
        match found.keys().find(|name| !self.items.known.iter().any(|(told, _)| told == *name)) {
            Some(name) => refuse(name, "is in the bundle and not in its manifest"),
            None => Ok(()),
        }
    }
}

impl Manifest {
    /// The manifest as a bundle holds it.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are JSON")
    }

    /// Parses the manifest of a bundle: a signer's side.
    ///
    /// # Errors
    /// It is not one, or has a member that this version does not know.
    pub fn parse(json: &[u8]) -> Result<Manifest, Refusal> {
        // serde_json's own message may quote a name.
        serde_json::from_slice(json).or_else(|e| {
            refuse(MANIFEST, format!("is not a manifest that this version can read (column {})", e.column()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(pairs: &[(&str, &[&str])]) -> Items {
        pairs.iter().map(|(name, ids)| ((*name).to_owned(), Item::removed(ids.iter().copied()))).collect()
    }

    #[test]
    fn the_state_of_an_enclave_without_secrets_is_an_empty_object() {
        assert_eq!(State::default().to_json(), r#"{"items":{}}"#);
    }

    #[test]
    fn past_a_thousand_ids_a_description_has_their_hash() {
        let ids: Vec<String> = (0..=MAX_IDS).map(|n| format!("{n:05}")).collect();
        let describe = |most: usize| Item::removed(ids[..most].iter().map(String::as_str));
        let (few, many) = (describe(MAX_IDS), describe(MAX_IDS + 1));
        assert_eq!((few.count, few.ids.map(|ids| ids.len()), few.ids_sha256), (Some(1000), Some(1000), None));
        // Ids that go are described by nothing else.
        assert_eq!((many.count, many.ids, many.ids_sha256), (Some(1001), None, Some(many.sha256)));
    }

    #[test]
    fn no_two_sets_of_keys_have_one_description() {
        let [one, two] = [sha256(b"1"), sha256(b"2")];
        let describe = |keys: &[(&str, &Sha256)]| Item::file_keys(keys.iter().copied()).sha256;
        let different = [
            describe(&[("a", &one)]),
            describe(&[("b", &one)]),
            describe(&[("a", &two)]),
            describe(&[("a", &one), ("b", &two)]),
            describe(&[("ab", &one)]),
        ];
        for (i, item) in different.iter().enumerate() {
            assert!(!different[..i].contains(item), "{i}");
        }
    }

    #[test]
    fn a_bundle_that_is_not_what_its_manifest_says_is_refused_whichever_way() {
        let told = items(&[("FILE_KEYS_REMOVE", &["a"]), ("GRANT_KEYS_REMOVE", &["b"])]);
        let manifest = Manifest { complete_at: None, from: Sha256::default(), items: told.clone() };
        let json = manifest.to_json();
        let describes = |found: &Items| Told::parse(json.as_bytes()).unwrap().describes(found);
        describes(&told).unwrap();
        for (found, field) in [
            (items(&[("FILE_KEYS_REMOVE", &["a"])]), "GRANT_KEYS_REMOVE"),
            (items(&[("FILE_KEYS_REMOVE", &["x"]), ("GRANT_KEYS_REMOVE", &["b"])]), "FILE_KEYS_REMOVE"),
            (items(&[("A", &["a"]), ("FILE_KEYS_REMOVE", &["a"]), ("GRANT_KEYS_REMOVE", &["b"])]), "A"),
        ] {
            assert_eq!(describes(&found).unwrap_err().field, field);
        }
        // Said twice: whichever of the two a signer saw.
        let twice = json.replacen("\"items\":{", "\"items\":{\"FILE_KEYS_REMOVE\":{},", 1);
        assert!(Told::parse(twice.as_bytes()).unwrap().describes(&told).is_err());
        assert_eq!(Manifest::parse(manifest.to_json().as_bytes()), Ok(manifest));
        let refusal = Manifest::parse(br#"{"from":"","items":{},"secret":1}"#).unwrap_err();
        assert!(!refusal.reason.contains("secret"), "{refusal}");
        for other in ["{}", r#"{"from":"00","items":{}}"#, r#"{"from":null,"items":{}}"#, r#"{"items":{}}"#, "[]"] {
            assert!(Told::parse(other.as_bytes()).is_err() && Manifest::parse(other.as_bytes()).is_err(), "{other}");
        }
        let unknown = json.replacen('{', "{\"expires\":1,", 1);
        assert!(Told::parse(unknown.as_bytes()).is_err(), "what it does not know may restrict something");
    }
}
