//! A bundle that has been checked against the image: its certificates are valid, and its service is on the allow list.

use std::ffi::OsString;

use formats::allow_list::{AllowList, Endpoint};
use formats::bundle::Received;
use formats::certificates::{Fingerprint, Parts};
use formats::file_keys::DeliveredKeys;
use formats::files::{FileKey, FileKeys};
use formats::items::{CERTIFICATES, ENDPOINT};
use formats::jwks::GrantKeys;
use formats::refusal::{Refusal, refuse};
use formats::service::ServiceUrl;
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
    pub keys: Option<FileKeys>,
    /// Keys that sign grants.
    pub grants: Option<GrantKeys>,
    /// As in [`Received`].
    pub ignored: Vec<String>,
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
    /// Parses and checks a bundle as of `now`. If CAs are `pinned`, it may bring no others.
    ///
    /// # Errors
    /// The first error. A bundle without any known item is one.
    pub fn parse(bytes: &[u8], allowed: &AllowList, pinned: &[Fingerprint], now: Utc) -> Result<Bundle, Refusal> {
        let Received { certificates, service, file_keys, grant_keys, ignored } = Received::parse(bytes)?;
        Ok(Bundle {
            identity: certificates.map(|parts| identity(&parts, pinned, now)).transpose()?,
            service: service.map(|url| listed(&url, allowed)).transpose()?,
            keys: file_keys.map(expand),
            grants: grant_keys,
            ignored,
        })
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
