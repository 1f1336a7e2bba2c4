//! A bundle that has been checked against the image: its certificates are valid, and its service is on the allow list.

use std::collections::BTreeSet;
use std::ffi::OsString;

use formats::allow_list::{AllowList, Endpoint};
use formats::bundle::Received;
use formats::certificates::{Fingerprint, Parts};
use formats::file_keys::{ChangeError, DeliveredKeys};
use formats::files::{FileKey, FileKeys};
use formats::items::{
    CERTIFICATES, ENDPOINT, FILE_KEYS, FILE_KEYS_ADD, FILE_KEYS_REMOVE, GRANT_KEYS, GRANT_KEYS_ADD, GRANT_KEYS_REMOVE,
};
use formats::jwks::GrantKeys;
use formats::refusal::{Refusal, refuse};
use formats::service::ServiceUrl;
use formats::state::{Item, Items};
use formats::time::Utc;
use serde_json::{Map, Value};

use crate::mtls::Identity;

/// Checked items. An item that the sender left out is `None` and keeps its value.
#[derive(Default)]
pub struct Bundle {
    /// The client certificate, its key, and the service's CAs.
    pub identity: Option<Identity>,
    /// The watermark service.
    pub service: Option<Service>,
    /// Keys of encrypted files.
    pub file_keys: Change<FileKeys>,
    /// Keys that sign grants.
    pub grant_keys: Change<GrantKeys>,
    /// All of these, described.
    pub items: Items,
    /// As in [`Received`].
    pub ignored: Vec<String>,
}

/// What becomes of a set of keys: first it is replaced, then keys go, and then keys come.
pub struct Change<K> {
    /// All keys, in place of those in force.
    pub whole: Option<K>,
    /// The ids of those that go.
    pub removed: Option<BTreeSet<String>>,
    /// Those that come.
    pub added: Option<K>,
}

impl<K> Default for Change<K> {
    fn default() -> Change<K> {
        Change { whole: None, removed: None, added: None }
    }
}

impl<K: Default> Change<K> {
    /// The keys that come after those in force; `None` if nothing changes. `names` are those of the items that remove and
    /// add keys, and `changed` does that.
    ///
    /// # Errors
    /// A key cannot go or come.
    pub fn apply(
        self,
        in_force: Option<&K>,
        [remove, add]: [&str; 2],
        changed: impl Fn(&K, &BTreeSet<String>, K) -> Result<K, ChangeError>,
    ) -> Result<Option<K>, Refusal> {
        let Change { whole, removed, added } = self;
        if removed.is_none() && added.is_none() {
            return Ok(whole);
        }
        let nothing = K::default();
        let before = whole.as_ref().or(in_force).unwrap_or(&nothing);
        let adds = added.is_some();
        changed(before, &removed.unwrap_or_default(), added.unwrap_or_default()).map(Some).or_else(|e| {
            let name = if adds && !matches!(e, ChangeError::Missing(_)) { add } else { remove };
            refuse(name, e.to_string())
        })
    }
}

/// The watermark service, which is on the allow list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `https://host:port` and possibly a path, without a trailing slash.
    pub url: String,
    /// Its host and port, which may be dialled.
    pub endpoint: Endpoint,
}

impl Bundle {
    /// Checks what was received as of `now`. If CAs are `pinned`, it may bring no others.
    ///
    /// # Errors
    /// The first error.
    pub fn check(received: Received, allowed: &AllowList, pinned: &[Fingerprint], now: Utc) -> Result<Bundle, Refusal> {
        let removed_ids = |ids: &BTreeSet<String>| Item::removed(ids.iter().map(String::as_str));
        let mut items = Items::new();
        let mut describe = |name: &str, item: Option<Item>| items.extend(item.map(|item| (name.to_owned(), item)));

        let identity = received.certificates.map(|parts| identity(&parts, pinned, now)).transpose()?;
        describe(CERTIFICATES, identity.as_ref().map(Identity::describe));
        describe(ENDPOINT, received.service.as_ref().map(Item::service));
        let service = received.service.map(|url| listed(&url, allowed)).transpose()?;
        let file_keys = Change {
            whole: received.file_keys.map(expand),
            removed: received.removed_file_keys,
            added: received.added_file_keys.map(expand),
        };
        describe(FILE_KEYS, file_keys.whole.as_ref().map(FileKeys::describe));
        describe(FILE_KEYS_REMOVE, file_keys.removed.as_ref().map(removed_ids));
        describe(FILE_KEYS_ADD, file_keys.added.as_ref().map(FileKeys::describe));
        let grant_keys = Change {
            whole: received.grant_keys,
            removed: received.removed_grant_keys,
            added: received.added_grant_keys,
        };
        describe(GRANT_KEYS, grant_keys.whole.as_ref().map(Item::grant_keys));
        describe(GRANT_KEYS_REMOVE, grant_keys.removed.as_ref().map(removed_ids));
        describe(GRANT_KEYS_ADD, grant_keys.added.as_ref().map(Item::grant_keys));
        Ok(Bundle { identity, service, file_keys, grant_keys, items, ignored: received.ignored })
    }
}

/// The items in the environment, as a bundle like any other; `None` if there are none.
pub fn bundle_of_environment(names: &[&str], variable: impl Fn(&str) -> Option<OsString>) -> Option<Vec<u8>> {
    let mut items = Map::new();
    for &name in names {
        if let Some(value) = variable(name).filter(|v| !v.is_empty()) {
            items.insert(name.to_owned(), Value::String(value.to_string_lossy().into_owned()));
        }
    }
    (!items.is_empty()).then(|| Value::Object(items).to_string().into_bytes())
}

fn identity(parts: &Parts<String>, pinned: &[Fingerprint], now: Utc) -> Result<Identity, Refusal> {
    Identity::check(&Parts(parts.0.each_ref().map(String::as_bytes)), now)
        .and_then(|identity| identity.within(pinned))
        .or_else(|e| refuse(format!("{CERTIFICATES}.{}", e.part.name()), e.reason))
}

fn listed(url: &ServiceUrl, allowed: &AllowList) -> Result<Service, Refusal> {
    match allowed.find(url.host(), url.port()) {
        Some(endpoint) => Ok(Service { url: url.base().to_owned(), endpoint: endpoint.clone() }),
        None => refuse(ENDPOINT, "is not on the allow list (allowed_endpoints.yaml, host and port)"),
    }
}

fn expand(DeliveredKeys(keys): DeliveredKeys) -> FileKeys {
    keys.into_iter().map(|(id, key)| (id, FileKey::from(&key))).collect()
}
