//! Says in plain words what a bundle changes, from its manifest and the state in force.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use formats::items::{
    CERTIFICATES, ENDPOINT, FILE_KEYS, FILE_KEYS_ADD, FILE_KEYS_REMOVE, GRANT_KEYS, GRANT_KEYS_ADD, GRANT_KEYS_REMOVE,
};
use formats::state::{Item, Manifest, State};

/// Most ids that a line names.
const NAMED: usize = 50;

/// What the bundle does, a line each, without ends.
///
/// # Errors
/// It has an item that this teemark does not know, so nobody can say what it does.
pub(crate) fn explain(before: &State, manifest: &Manifest) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for (name, item) in &manifest.items {
        let in_force = |name: &str| before.items.get(name);
        lines.extend(match name.as_str() {
            CERTIFICATES => vec![certificate(in_force(name), item)],
            ENDPOINT => vec![service(in_force(name), item)],
            FILE_KEYS => replaced("file keys", in_force(name), item),
            GRANT_KEYS => replaced("grant keys", in_force(name), item),
            FILE_KEYS_ADD => vec![format!("file keys: {} added: {}", count(item), ids(item))],
            FILE_KEYS_REMOVE => vec![format!("file keys: {} removed: {}", count(item), ids(item))],
            GRANT_KEYS_ADD => vec![format!("grant keys: {} added: {}", count(item), ids(item))],
            GRANT_KEYS_REMOVE => vec![format!("grant keys: {} removed: {}", count(item), ids(item))],
            _ => bail!("the bundle has the item {name}, which this teemark does not know; do not sign it"),
        });
    }
    if lines.is_empty() {
        lines.push("nothing: the bundle has no item".to_owned());
    }
    if let Some(state) = manifest.complete_at {
        lines.push(format!("the enclave is not ready before it has state {state}: more bundles are to follow"));
    }
    Ok(lines)
}

fn certificate(before: Option<&Item>, item: &Item) -> String {
    let end = |item: &Item| item.not_after.clone().unwrap_or_else(|| "an unknown time".to_owned());
    match before {
        Some(before) if before.sha256 == item.sha256 => format!("client certificate: as in force, until {}", end(item)),
        Some(before) => {
            format!("client certificate: another one, until {}; the one in force ends {}", end(item), end(before))
        }
        None => format!("client certificate: a first one, until {}", end(item)),
    }
}

fn service(before: Option<&Item>, item: &Item) -> String {
    let url = |item: &Item| item.url.clone().unwrap_or_else(|| "an unknown URL".to_owned());
    match before {
        Some(before) if before.sha256 == item.sha256 => format!("watermark service: as in force, {}", url(item)),
        Some(before) => format!("watermark service: from {} to {}", url(before), url(item)),
        None => format!("watermark service: {}", url(item)),
    }
}

/// What becomes of the keys in force if these replace them.
fn replaced(what: &str, before: Option<&Item>, item: &Item) -> Vec<String> {
    match before {
        Some(before) if before.sha256 == item.sha256 => vec![format!("{what}: as in force, {}", count(item))],
        None => vec![format!("{what}: {} added: {}", count(item), ids(item))],
        Some(before) => {
            let mut lines = vec![format!("{what}: {} replace the {} in force", count(item), count(before))];
            let (Some(old), Some(new)) = (&before.ids, &item.ids) else {
                lines.push(format!("{what}: in force: {}; in the bundle: {}", ids(before), ids(item)));
                return lines;
            };
            let [old, new] = [old, new].map(|ids| ids.iter().map(String::as_str).collect::<BTreeSet<_>>());
            let list = |ids: &mut dyn Iterator<Item = &str>| named(&ids.collect::<Vec<_>>());
            let none = "none".to_owned();
            let (added, removed) = (list(&mut new.difference(&old).copied()), list(&mut old.difference(&new).copied()));
            let stay = list(&mut old.intersection(&new).copied());
            lines.push(format!("{what}: added: {}", added.as_ref().unwrap_or(&none)));
            lines.push(format!("{what}: removed: {}", removed.as_ref().unwrap_or(&none)));
            if let Some(stay) = stay {
                let keys = match (added, removed) {
                    (None, None) => "at least one has another key than before",
                    _ => "each may have another key than before",
                };
                lines.push(format!("{what}: in both: {stay} ({keys})"));
            }
            lines
        }
    }
}

fn count(item: &Item) -> String {
    match item.count {
        Some(1) => "1 key".to_owned(),
        Some(n) => format!("{n} keys"),
        None => "an unknown number of keys".to_owned(),
    }
}

fn ids(item: &Item) -> String {
    match (&item.ids, item.ids_sha256) {
        (Some(ids), _) => named(&ids.iter().map(String::as_str).collect::<Vec<_>>()).unwrap_or_else(|| "none".into()),
        (None, Some(hash)) => format!("too many to list; the SHA-256 of their ids is {hash}"),
        (None, None) => "not listed".to_owned(),
    }
}

fn named(ids: &[&str]) -> Option<String> {
    let first = ids.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match ids.len() {
        0 => None,
        n if n > NAMED => Some(format!("{first} and {} more (--json has all)", n - NAMED)),
        _ => Some(first),
    }
}

#[cfg(test)]
mod tests {
    use formats::digest::{Sha256, sha256};
    use formats::state::Items;

    use super::*;

    fn keys(ids: &[(&str, u8)]) -> Item {
        let digests: Vec<_> = ids.iter().map(|(id, key)| (*id, sha256(&[*key]))).collect();
        Item::file_keys(digests.iter().map(|(id, digest)| (*id, digest)))
    }

    fn explained(before: &[(&str, Item)], bundle: &[(&str, Item)]) -> String {
        let items =
            |list: &[(&str, Item)]| list.iter().cloned().map(|(n, item)| (n.to_owned(), item)).collect::<Items>();
        let manifest = Manifest { complete_at: None, from: Sha256::default(), items: items(bundle) };
        explain(&State { items: items(before) }, &manifest).unwrap().join("\n")
    }

    fn service(url: &str) -> Item {
        Item { url: Some(url.into()), sha256: sha256(url.as_bytes()), ..Item::default() }
    }

    fn certificate(end: &str) -> Item {
        Item { not_after: Some(end.into()), sha256: sha256(end.as_bytes()), ..Item::default() }
    }

    #[test]
    fn each_item_is_told_against_what_is_in_force() {
        let before = [
            (CERTIFICATES, certificate("2027-01-01T00:00:00Z")),
            (ENDPOINT, service("https://a")),
            (FILE_KEYS, keys(&[("k1", 1), ("k2", 2)])),
        ];
        for (name, item, told) in [
            (
                CERTIFICATES,
                certificate("2028-01-01T00:00:00Z"),
                "another one, until 2028-01-01T00:00:00Z; the one in force ends 2027",
            ),
            (CERTIFICATES, certificate("2027-01-01T00:00:00Z"), "as in force"),
            (ENDPOINT, service("https://b"), "watermark service: from https://a to https://b"),
            (
                FILE_KEYS,
                keys(&[("k2", 2), ("k3", 3)]),
                "file keys: added: k3\nfile keys: removed: k1\nfile keys: in both: k2 (each may",
            ),
            (
                FILE_KEYS,
                keys(&[("k1", 1), ("k2", 9)]),
                "added: none\nfile keys: removed: none\nfile keys: in both: k1, k2 (at least one has",
            ),
            (FILE_KEYS, keys(&[("k1", 1), ("k2", 2)]), "file keys: as in force, 2 keys"),
            (FILE_KEYS_ADD, keys(&[("k3", 3)]), "file keys: 1 key added: k3"),
            (FILE_KEYS_REMOVE, Item::removed(["k1"].into_iter()), "1 key removed: k1"),
            (GRANT_KEYS, keys(&[("g", 1)]), "grant keys: 1 key added: g"),
        ] {
            let lines = explained(&before, &[(name, item)]);
            assert!(lines.contains(told), "{told} in {lines}");
        }
        assert!(explained(&[], &[(CERTIFICATES, certificate("2028-01-01T00:00:00Z"))]).contains("a first one"));
        assert!(explained(&before, &[]).contains("nothing"));
    }

    #[test]
    fn many_ids_are_counted_and_an_item_that_nobody_knows_is_not_explained_away() {
        let ids: Vec<String> = (0..60).map(|n| format!("k{n:02}")).collect();
        let item = Item::removed(ids.iter().map(String::as_str));
        assert!(explained(&[], &[(FILE_KEYS_REMOVE, item)]).ends_with("k49 and 10 more (--json has all)"));
        let items = [("NEW_ITEM".to_owned(), Item::default())].into();
        let manifest = Manifest { complete_at: None, from: Sha256::default(), items };
        assert!(explain(&State::default(), &manifest).unwrap_err().to_string().contains("do not sign"));
    }
}
