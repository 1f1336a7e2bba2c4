//! Describes a bundle as its manifest does, and the state that it leads to.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};
use formats::bundle::Received;
use formats::certificates::{Part, Parts};
use formats::digest::Sha256;
use formats::file_keys::DeliveredKeys;
use formats::items::{
    CERTIFICATES, CHANGES, ENDPOINT, FILE_KEYS, FILE_KEYS_ADD, FILE_KEYS_REMOVE, GRANT_KEYS, GRANT_KEYS_ADD,
    GRANT_KEYS_REMOVE,
};
use formats::pem;
use formats::state::{Item, Items, State};

use crate::certificate;

/// Describes each item of a bundle.
///
/// # Errors
/// The certificates or the key cannot be read; no message repeats any of them.
pub(crate) fn describe(bundle: &Received) -> Result<Items> {
    let mut items = Items::new();
    let mut add = |name: &str, item: Option<Item>| {
        if let Some(item) = item {
            items.insert(name.to_owned(), item);
        }
    };
    add(CERTIFICATES, bundle.certificates.as_ref().map(certificates).transpose().context(CERTIFICATES)?);
    add(ENDPOINT, bundle.service.as_ref().map(Item::service));
    add(FILE_KEYS, bundle.file_keys.as_ref().map(file_keys));
    add(FILE_KEYS_ADD, bundle.added_file_keys.as_ref().map(file_keys));
    add(GRANT_KEYS, bundle.grant_keys.as_ref().map(Item::grant_keys));
    add(GRANT_KEYS_ADD, bundle.added_grant_keys.as_ref().map(Item::grant_keys));
    for (name, ids) in [(FILE_KEYS_REMOVE, &bundle.removed_file_keys), (GRANT_KEYS_REMOVE, &bundle.removed_grant_keys)]
    {
        add(name, ids.as_ref().map(|ids| Item::removed(ids.iter().map(String::as_str))));
    }
    Ok(items)
}

/// The digest of each key by its id. Of an id that is there twice the last key counts.
pub(crate) fn digests(keys: &DeliveredKeys) -> BTreeMap<String, Sha256> {
    keys.0.iter().map(|(id, key)| (id.clone(), key.digest())).collect()
}

/// FILE_KEYS with these keys.
pub(crate) fn keyed(digests: &BTreeMap<String, Sha256>) -> Item {
    Item::file_keys(digests.iter().map(|(id, digest)| (id.as_str(), digest)))
}

fn file_keys(keys: &DeliveredKeys) -> Item {
    keyed(&digests(keys))
}

/// The item as the enclave describes it: from what the three parts hold, whatever their form.
fn certificates(parts: &Parts<String>) -> Result<Item> {
    let read = |part: Part| pem::certificates(part, parts.get(part).as_bytes()).map_err(|error| anyhow!("{error}"));
    let (chain, authority) = (read(Part::Certificate)?, read(Part::Authority)?);
    let key = pem::private_key(parts.get(Part::Key).as_bytes()).map_err(|error| anyhow!("{error}"))?;
    let Some(not_after) = certificate::earliest_end(&chain) else {
        bail!("{} holds something that is not an X.509 certificate", Part::Certificate.name());
    };
    let pem = Parts([pem::of_certificates(&chain), pem::of_key(&key), pem::of_certificates(&authority)]);
    Ok(Item::certificates(&pem, not_after))
}

/// The state that a bundle with these items leads to; `None` if it changes keys one by one, since the descriptions alone do
/// not tell which keys there are then.
pub(crate) fn after(before: &State, items: &Items) -> Option<State> {
    if CHANGES.iter().any(|name| items.contains_key(*name)) {
        return None;
    }
    let mut state = before.clone();
    state.items.extend(items.clone());
    Some(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const OTHER: &str = "/wECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn described(bundle: &str) -> Items {
        describe(&Received::parse_v2(bundle.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn the_order_of_keys_and_a_key_that_another_replaces_change_nothing() {
        let one = described(&format!(r#"{{"FILE_KEYS":{{"b":"{KEY}","a":"{OTHER}"}}}}"#));
        let two = described(&format!(r#"{{"FILE_KEYS":{{"a":"{KEY}","a":"{OTHER}","b":"{KEY}"}}}}"#));
        let three = described(&format!(r#"{{"FILE_KEYS":{{"a":"{KEY}","b":"{KEY}"}}}}"#));
        assert_eq!(one, two);
        assert_ne!(one, three);
        assert_eq!(one[FILE_KEYS].ids.as_deref(), Some(&["a".to_owned(), "b".to_owned()][..]));
    }

    #[test]
    fn a_bundle_with_whole_items_leads_to_a_known_state_and_one_with_changes_does_not() {
        let service = r#""ECS_WATERMARK_ENDPOINT":"https://h:8/""#;
        let before = State { items: described(&format!("{{{service}}}")) };
        let keys = described(&format!(r#"{{"FILE_KEYS":{{"k":"{KEY}"}}}}"#));
        let whole = State { items: described(&format!(r#"{{{service},"FILE_KEYS":{{"k":"{KEY}"}}}}"#)) };
        assert_eq!(after(&before, &keys), Some(whole));
        assert_eq!(before.items[ENDPOINT].url.as_deref(), Some("https://h:8"));
        for change in [format!(r#"{{"FILE_KEYS_ADD":{{"k":"{KEY}"}}}}"#), r#"{"FILE_KEYS_REMOVE":["k"]}"#.into()] {
            assert_eq!(after(&before, &described(&change)), None, "{change}");
        }
    }
}
