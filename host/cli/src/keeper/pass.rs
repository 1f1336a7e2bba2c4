//! Several operators: a bundle needs as many signatures as the image's threshold says, each by a keeper on a machine of its
//! own. The one that seals passes the bundle on; the next checks its manifest against its own sources and the enclave's
//! document, signs, and passes it on or sends it. None of them has to believe another.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use formats::items::{FILE_KEYS, FILE_KEYS_ADD, FILE_KEYS_REMOVE};
use formats::sealed_bundle::v2::{Line, SealedBundle};
use formats::state::{Items, Manifest};
use ring::signature::KeyPair;
use serde_json::{Value, json};

use super::act::Shared;
use super::policy;
use super::serve::{Answer, Request};
use super::sources::Snapshot;
use crate::daemon::Daemon;
use crate::handshake;
use crate::seal;

/// Sends a bundle to the enclave if it has enough signatures, or else to the next keeper that takes it.
///
/// # Errors
/// The enclave or the last keeper refuses it, or does not answer.
pub(crate) fn deliver(shared: &Shared, enclave: &Daemon, sealed: &SealedBundle) -> Result<Value> {
    let bytes = sealed.to_bytes();
    let told = |accepted: handshake::Accepted| {
        json!({"ok": true, "updated": accepted.updated, "ignored": accepted.ignored, "warnings": accepted.warnings,
               "missing": accepted.missing})
    };
    if seal::signers(&sealed.line).len() >= shared.signatures {
        return handshake::send_once(enclave, &bytes).map(told);
    }
    let mut last = None;
    for next in &shared.next {
        let passed = shared.cacert_for(next).daemon(next).and_then(|keeper| handshake::send_once(&keeper, &bytes));
        match passed {
            Ok(accepted) => return Ok(told(accepted)),
            Err(error) => last = Some(error.context(format!("the keeper at {next}"))),
        }
    }
    Err(last.unwrap_or_else(|| anyhow!("it needs more signatures, and no further keeper is named (next)")))
}

/// Answers another keeper that passes a bundle on.
pub(crate) fn answer(shared: &Arc<Shared>, request: &Request) -> Answer {
    if (request.method.as_str(), request.path.as_str()) != ("POST", "/sealed-bundle") {
        return Answer::json(404, &json!({"error": "there is POST /sealed-bundle", "code": "not_found"}));
    }
    match sign_and_deliver(shared, &request.body) {
        Ok(told) => Answer::json(200, &told),
        Err(error) => {
            shared.report.line("not_signed", json!({"error": format!("{error:#}")}));
            let told =
                json!({"ok": false, "field": "bundle", "error": format!("{error:#}"), "code": "invalid_request"});
            Answer::json(400, &told)
        }
    }
}

fn sign_and_deliver(shared: &Shared, bytes: &[u8]) -> Result<Value> {
    if !Line::is_one(bytes) {
        bail!("it is not sealed in version 2");
    }
    let mut sealed = SealedBundle::parse(bytes)?;
    let manifest = Manifest::parse(&sealed.manifest)?;
    let (target, snapshot) = {
        let known = shared.lock();
        let boot = sealed.line.boot_nonce;
        let target = known.boots.iter().find(|(_, found)| **found == boot).map(|(target, _)| target.clone());
        (target.context("it is for a boot that this keeper has not attested")?, known.snapshot.clone())
    };
    let daemon = shared.cacert_for(&target.endpoint).daemon(&target.endpoint)?.at(target.address);
    let attested = shared.policies.attest(&daemon).context("the enclave that it is for")?;
    if attested.boot_nonce != sealed.line.boot_nonce {
        bail!("it is for a boot that has ended");
    }
    if sealed.line.counter <= attested.in_force.counter {
        bail!("its counter {} is not above {}, which is in force", sealed.line.counter, attested.in_force.counter);
    }
    if attested.state_sha256 != Some(manifest.from) {
        bail!("it changes another state than the one in force");
    }
    let in_force = policy::state_of(&daemon, &attested)?;
    check(&manifest, &snapshot, &in_force.items)?;
    if sealed.line.signatures.iter().any(|signed| signed.key.as_ref() == shared.operator.public_key().as_ref()) {
        bail!("this keeper has signed it already: there are too few keepers for the threshold, or one of them is away");
    }
    sealed.line.sign(&shared.operator);
    let told = deliver(shared, &daemon, &sealed)?;
    let items: Vec<_> = manifest.items.keys().collect();
    let signatures = seal::signers(&sealed.line).len();
    let line = json!({"enclave": target.to_string(), "items": items, "counter": sealed.line.counter, "signatures": signatures});
    shared.report.line("signed", line);
    Ok(told)
}

/// Checks that a bundle brings what this keeper's own sources have, and nothing else.
fn check(manifest: &Manifest, snapshot: &Snapshot, in_force: &Items) -> Result<()> {
    if manifest.complete_at.is_some() {
        bail!("it has complete_at, which no keeper sets");
    }
    let changes = snapshot.changes(in_force.get(FILE_KEYS));
    for (name, item) in &manifest.items {
        let own = match name.as_str() {
            FILE_KEYS_ADD | FILE_KEYS_REMOVE => {
                let changes = changes.as_ref().context("it changes file keys that this keeper does not know")?;
                changes.get(name)
            }
            _ => snapshot.items.get(name),
        };
        match own {
            Some(own) if own == item => {}
            Some(_) => bail!("it has another {name} than this keeper's sources"),
            None => bail!("it has {name}, which this keeper's sources do not have"),
        }
    }
    let both = [FILE_KEYS_ADD, FILE_KEYS_REMOVE].map(|name| manifest.items.contains_key(name));
    if both.contains(&true) {
        // Half of the difference would lead to another state than the sources'.
        let whole = changes.is_some_and(|changes| changes.keys().all(|name| manifest.items.contains_key(name)));
        if !whole || manifest.items.contains_key(FILE_KEYS) {
            bail!("it has a part of the difference to this keeper's file keys");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use formats::digest::{Sha256, sha256};
    use formats::items::{ENDPOINT, GRANT_KEYS};
    use formats::state::Item;

    use super::*;

    fn item(value: &str) -> Item {
        Item { sha256: sha256(value.as_bytes()), ..Item::default() }
    }

    fn manifest(items: &[(&str, Item)]) -> Manifest {
        let items = items.iter().map(|(name, item)| ((*name).to_owned(), item.clone())).collect();
        Manifest { complete_at: None, from: Sha256::default(), items }
    }

    #[test]
    fn only_what_the_own_sources_have_is_signed() {
        let keys = |ids: &[&str]| ids.iter().map(|id| ((*id).to_owned(), sha256(id.as_bytes()))).collect();
        let snapshot = Snapshot::of(&[(ENDPOINT, item("https://h"))], &[keys(&["a", "b"]), keys(&["b", "c"])]);
        let before = Snapshot::of(&[], &[keys(&["a", "b"])]).items;
        let [add, remove] = [FILE_KEYS_ADD, FILE_KEYS_REMOVE]
            .map(|name| snapshot.changes(before.get(FILE_KEYS)).unwrap().remove(name).unwrap());
        let file_keys = snapshot.items[FILE_KEYS].clone();
        let check = |items: &[(&str, Item)], in_force: &Items| check(&manifest(items), &snapshot, in_force).is_ok();
        assert!(check(&[(ENDPOINT, item("https://h"))], &before));
        assert!(check(&[(FILE_KEYS, file_keys.clone())], &Items::new()));
        assert!(check(&[(FILE_KEYS_ADD, add.clone()), (FILE_KEYS_REMOVE, remove.clone())], &before));
        for (items, in_force) in [
            (vec![(ENDPOINT, item("https://evil"))], &before),
            (vec![(GRANT_KEYS, item("g"))], &before),
            (vec![("NEW_ITEM", item("n"))], &before),
            (vec![(FILE_KEYS_ADD, add.clone())], &before),
            (vec![(FILE_KEYS_REMOVE, remove.clone())], &before),
            (vec![(FILE_KEYS_ADD, remove.clone()), (FILE_KEYS_REMOVE, remove.clone())], &before),
            (vec![(FILE_KEYS_ADD, add.clone()), (FILE_KEYS_REMOVE, remove.clone())], &Items::new()),
            (vec![(FILE_KEYS, file_keys), (FILE_KEYS_ADD, add), (FILE_KEYS_REMOVE, remove)], &before),
        ] {
            assert!(!check(&items, in_force), "{items:?}");
        }
    }
}
