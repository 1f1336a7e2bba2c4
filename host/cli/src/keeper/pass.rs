//! Several operators: a bundle needs as many signatures as the image's threshold says, each by a keeper on a machine of its
//! own. The one that seals passes the bundle on; the next checks its manifest against its own sources and the enclave's
//! document, signs, and passes it on or sends it. None of them has to believe another, and none signs for a stranger.

use std::io;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use formats::items::{FILE_KEYS, FILE_KEYS_ADD, FILE_KEYS_REMOVE};
use formats::sealed_bundle::v2::{Line, MAX_LINE, SealedBundle};
use formats::state::{Item, Items, Manifest};
use formats::time::now_ms;
use serde_json::{Value, json};

use super::enclaves::Target;
use super::policy;
use super::serve::{Answer, Request};
use super::shared::Shared;
use super::snapshot::Snapshot;
use crate::daemon::Daemon;
use crate::failure::{Class, Failure};
use crate::handshake;
use crate::seal::is_far_ahead;

/// Longest wait for the bundle before it.
const WAIT: Duration = Duration::from_secs(5);
/// Time in which what follows a line has to arrive, as at the daemon.
const TRANSFER: Duration = Duration::from_secs(10);

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
    if shared.operators.signers(&sealed.line).len() >= shared.signatures {
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

/// Answers another keeper that passes a bundle on. Past its line nothing is read unless another operator has signed it, for a
/// boot that this keeper watches; then one bundle is read and looked into at a time.
///
/// # Errors
/// The bundle does not arrive whole, or not in time.
pub(crate) fn answer(shared: &Shared, request: &mut Request<'_>) -> io::Result<Answer> {
    if (request.method.as_str(), request.path.as_str()) != ("POST", "/sealed-bundle") {
        return Ok(Answer::json(404, &json!({"error": "there is POST /sealed-bundle", "code": "not_found"})));
    }
    let line = request.body.line(MAX_LINE)?.unwrap_or_default();
    let (line, target) = match check_line(shared, &line) {
        Ok(checked) => checked,
        Err(error) => return Ok(not_signed(shared, &error)),
    };
    let Some(_turn) = shared.turns.take(WAIT) else {
        let busy = Failure::try_again("busy", "this keeper is busy with another bundle");
        return Ok(not_signed(shared, &busy.into()));
    };
    let rest = request.body.rest(TRANSFER)?;
    let told = SealedBundle::complete(line, rest).map_err(Into::into);
    Ok(match told.and_then(|sealed| sign_and_deliver(shared, sealed, &target)) {
        Ok(told) => Answer::json(200, &told),
        Err(error) => not_signed(shared, &error),
    })
}

fn not_signed(shared: &Shared, error: &anyhow::Error) -> Answer {
    let error_text = format!("{error:#}");
    shared.report.passed("not_signed", json!({"error": error_text}));
    match Failure::class_of(error) {
        // The one that passed it on is to try again soon, as if the enclave had said so.
        Class::TryAgain => Answer::json(503, &json!({"error": error_text, "code": "busy"})),
        _ => {
            Answer::json(400, &json!({"ok": false, "field": "bundle", "error": error_text, "code": "invalid_request"}))
        }
    }
}

/// Checks what a line alone tells. Returns the address of the enclave that it is for, too.
fn check_line(shared: &Shared, line: &[u8]) -> Result<(Line, Target)> {
    if !Line::is_one(line) {
        bail!("it is not sealed in version 2");
    }
    let line = Line::parse(line)?;
    shared.operators.check_signatures(&line)?;
    let known = shared.lock();
    let found = known.boots.iter().find(|(_, seen)| seen.boot_nonce == line.boot_nonce);
    let (target, seen) = found.context("it is for a boot that this keeper has not attested")?;
    check_counter(line.counter, seen.counter, now_ms())?;
    Ok((line, target.clone()))
}

fn check_counter(counter: u64, in_force: u64, now_ms: u64) -> Result<()> {
    if counter <= in_force {
        bail!("its counter {counter} is not above {in_force}, which is in force");
    }
    if is_far_ahead(counter, in_force, now_ms) {
        bail!(
            "its counter {counter} is minutes above both this machine's time, {now_ms}, and the counter in force, {in_force}: \
             the enclave would take none below it any more. Is a clock wrong?"
        );
    }
    Ok(())
}

fn sign_and_deliver(shared: &Shared, mut sealed: SealedBundle, target: &Target) -> Result<Value> {
    let manifest = Manifest::parse(&sealed.manifest)?;
    let snapshot = shared.lock().snapshot.clone();
    let daemon = shared.cacert_for(&target.endpoint).daemon(&target.endpoint)?.at(target.address).asked_once();
    let attested = shared.policies.attest(&daemon).context("the enclave that it is for")?;
    if attested.boot_nonce != sealed.line.boot_nonce {
        bail!("it is for a boot that has ended");
    }
    check_counter(sealed.line.counter, attested.in_force.counter, now_ms())?;
    if attested.state_sha256 != Some(manifest.from) {
        bail!("it changes another state than the one in force");
    }
    let in_force = policy::state_of(&daemon, &attested)?;
    check(&manifest, &snapshot, &in_force.items)?;
    shared.operators.sign(&mut sealed.line);
    let told = deliver(shared, &daemon, &sealed)?;
    let items: Vec<_> = manifest.items.keys().collect();
    let signatures = shared.operators.signers(&sealed.line).len();
    let line = json!({"enclave": target.to_string(), "items": items, "counter": sealed.line.counter, "signatures": signatures});
    shared.report.passed("signed", line);
    Ok(told)
}

/// Checks that a bundle brings what this keeper's own sources have and the enclave has not, and nothing else.
fn check(manifest: &Manifest, snapshot: &Snapshot, in_force: &Items) -> Result<()> {
    if manifest.complete_at.is_some() {
        bail!("it has complete_at, which no keeper sets");
    }
    let is_in_force =
        |(name, item): (&String, &Item)| in_force.get(name).is_some_and(|found| found.sha256 == item.sha256);
    if manifest.items.iter().all(is_in_force) {
        bail!("it changes nothing: it has no item, or all that it has is in force already");
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
        let has = |more: &[(&str, Item)]| Snapshot::of(more, &[keys(&["a", "b"])]).items;
        let [other, same] = ["https://old", "https://h"].map(|url| has(&[(ENDPOINT, item(url))]));
        assert!(check(&[(ENDPOINT, item("https://h"))], &other));
        assert!(check(&[(ENDPOINT, item("https://h")), (FILE_KEYS, file_keys.clone())], &same));
        for (items, in_force) in [
            (vec![], &before),
            (vec![(ENDPOINT, item("https://h"))], &same),
            (vec![(FILE_KEYS, file_keys.clone())], &snapshot.items),
            (vec![(FILE_KEYS_ADD, add.clone())], &snapshot.items),
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

    #[test]
    fn a_counter_that_would_use_up_others_is_not_signed() {
        for (counter, in_force, good) in
            [(1, 0, true), (0, 0, false), (7, 7, false), (u64::MAX, 7, false), (u64::MAX, u64::MAX - 1, true)]
        {
            assert_eq!(check_counter(counter, in_force, 1_000_000).is_ok(), good, "{counter} after {in_force}");
        }
    }
}
