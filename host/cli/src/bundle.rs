//! Builds the bundle for an enclave from files, or reads a finished one.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use formats::base64;
use formats::bundle::Outgoing;
use formats::certificates::{self, Part, Parts};
use formats::file_keys::DeliveredKeys;
use formats::items::{CERTIFICATES, GRANT_KEYS, MAX_BUNDLE_V2};
use formats::jwks;
use formats::sealed_bundle::SEALED;
use formats::sealed_bundle::v2::{Line, MAX_LINE};
use formats::service::ServiceUrl;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::certificate::{self, Authority, Content};
use crate::keys::KeyFile;
use crate::output::{self, without_mark};

/// Largest bundle, in bytes as they are sent: that of version 2, with its line.
pub(crate) const LARGEST: u64 = (MAX_BUNDLE_V2 + MAX_LINE) as u64;

/// The options that name the parts of a bundle.
#[derive(clap::Args)]
pub(crate) struct Items {
    /// The client certificate, with its chain if it has one (PEM or DER)
    #[arg(long, value_name = "FILE", requires_all = ["client_key", "ca"])]
    client_cert: Option<PathBuf>,
    /// The client certificate's private key (PEM or DER: PKCS#8, PKCS#1 or SEC1)
    #[arg(long, value_name = "FILE", requires_all = ["client_cert", "ca"])]
    client_key: Option<PathBuf>,
    /// The CA of the watermark service (PEM or DER)
    #[arg(long, value_name = "FILE", requires_all = ["client_cert", "client_key"])]
    ca: Option<PathBuf>,
    /// The watermark service, https://HOST:PORT
    #[arg(long, value_name = "URL", value_parser = endpoint)]
    endpoint: Option<ServiceUrl>,
    /// The key file, as teemark keygen makes it
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// The public keys that may sign grants: a JWK set, as teemark keygen --for grants prints it
    #[arg(long, value_name = "FILE")]
    grant_keys: Option<PathBuf>,
    /// File keys that come to those in the enclave, in a key file
    #[arg(long, value_name = "FILE", requires = "seal", conflicts_with = "keys")]
    add_keys: Option<PathBuf>,
    /// The id of a file key that goes; can be given several times
    #[arg(long, value_name = "ID", requires = "seal", conflicts_with = "keys")]
    remove_key: Vec<String>,
    /// Public keys that come to those that may sign grants: a JWK set
    #[arg(long, value_name = "FILE", requires = "seal", conflicts_with = "grant_keys")]
    add_grant_keys: Option<PathBuf>,
    /// The kid of a key that may no longer sign grants; can be given several times
    #[arg(long, value_name = "KID", requires = "seal", conflicts_with = "grant_keys")]
    remove_grant_key: Vec<String>,
}

impl Items {
    /// Whether a private key is among them.
    pub(crate) fn are_secret(&self) -> bool {
        self.client_key.is_some() || self.keys.is_some() || self.add_keys.is_some()
    }

    /// Whether they change keys one by one.
    pub(crate) fn are_changes(&self) -> bool {
        let ids = [&self.remove_key, &self.remove_grant_key];
        self.add_keys.is_some() || self.add_grant_keys.is_some() || ids.iter().any(|ids| !ids.is_empty())
    }
}

fn endpoint(text: &str) -> Result<ServiceUrl, String> {
    ServiceUrl::parse(text).map_err(|reason| format!("it {reason}; write https://HOST:PORT"))
}

/// Reads a finished bundle.
///
/// # Errors
/// It cannot be read.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let (source, _) = output::open_input(path)?;
    let mut bytes = Vec::new();
    source.take(LARGEST + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

/// Warns of certificates in a finished bundle that expire soon. It is sent unchanged; the daemon says if it is wrong.
pub(crate) fn warn_of_certificates(bundle: &[u8]) {
    // One that is sealed cannot be looked into.
    let bundle: Value = serde_json::from_slice(without_mark(bundle)).unwrap_or_default();
    // An object, or a text that holds one.
    let item = match &bundle[CERTIFICATES] {
        Value::String(text) => &serde_json::from_str(text).unwrap_or_default(),
        other => other,
    };
    for (part, authority) in [(Part::Certificate, Authority::No), (Part::Authority, Authority::Yes)] {
        if let Some(bytes) = item[part.name()].as_str().and_then(base64::decode) {
            certificate::warn(&bytes, authority, &format!("{CERTIFICATES}.{}", part.name()));
        }
    }
}

/// Whether a finished bundle is sealed, and holds nothing else.
pub(crate) fn is_sealed(bundle: &[u8]) -> bool {
    let members: Result<BTreeMap<String, IgnoredAny>, _> = serde_json::from_slice(without_mark(bundle));
    Line::is_one(bundle) || members.is_ok_and(|members| members.keys().eq([SEALED]))
}

/// Reads a JWK set and checks it as the daemon does. It is sent as it is in the file.
fn grant_keys(path: &Path, option: &str) -> Result<Box<RawValue>> {
    let in_file = || format!("{option} {}", path.display());
    let (source, _) = output::open_input(path).with_context(in_file)?;
    let mut text = Vec::new();
    source.take(LARGEST).read_to_end(&mut text).with_context(in_file)?;
    parse_grant_keys(&text).with_context(in_file)
}

/// Checks a JWK set as the daemon does.
///
/// # Errors
/// It is not one.
pub(crate) fn parse_grant_keys(text: &[u8]) -> Result<Box<RawValue>> {
    let set: Box<RawValue> = serde_json::from_slice(without_mark(text))
        .map_err(|e| anyhow!("line {}, column {}: it is not JSON", e.line(), e.column()))?;
    jwks::parse(GRANT_KEYS, &set, &mut Vec::new()).map_err(|refusal| anyhow!("{refusal}"))?;
    Ok(set)
}

fn file_keys(path: Option<&Path>) -> Result<Option<DeliveredKeys>> {
    Ok(path.map(KeyFile::read).transpose()?.map(KeyFile::into_keys))
}

/// Builds the bundle, with the same bytes as the `cat > mtls_certs.json <<EOF` of certs/README.md makes of these files.
pub(crate) fn build(items: &Items) -> Result<Vec<u8>> {
    let certificates = match (&items.client_cert, &items.client_key, &items.ca) {
        (Some(cert), Some(key), Some(ca)) => Some(Parts([
            certificate::read_valid(cert, "--client-cert", Authority::No)?,
            certificate::read(key, "--client-key", Content::PrivateKey)?,
            certificate::read_valid(ca, "--ca", Authority::Yes)?,
        ])),
        _ => None,
    };
    let bundle = Outgoing {
        mtls_client_cert_json: certificates.as_ref().map(certificates::write),
        ecs_watermark_endpoint: items.endpoint.as_ref().map(|url| url.as_str().to_owned()),
        file_keys: file_keys(items.keys.as_deref())?,
        grant_keys: items.grant_keys.as_deref().map(|path| grant_keys(path, "--grant-keys")).transpose()?,
        file_keys_add: file_keys(items.add_keys.as_deref())?,
        file_keys_remove: items.remove_key.iter().cloned().collect(),
        grant_keys_add: items.add_grant_keys.as_deref().map(|path| grant_keys(path, "--add-grant-keys")).transpose()?,
        grant_keys_remove: items.remove_grant_key.iter().cloned().collect(),
    };
    if bundle.is_empty() {
        bail!(
            "there is nothing to put in the bundle; give --client-cert, --client-key and --ca, or --endpoint, \
             or --keys, or --grant-keys, or what comes to the keys or goes, or a finished one with --bundle"
        );
    }
    Ok(bundle.to_json())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_https_url_with_a_host_and_nothing_secret() {
        for good in ["https://watermark.internal.staging.zing.you:8080", "https://localhost", "https://[::1]:8/x/"] {
            assert_eq!(endpoint(good).as_ref().map(ServiceUrl::as_str), Ok(good));
        }
        for bad in ["", "watermark:8080", "http://h:1", "https://", "https://u@h:1", "https://h:1/?q", "https://h#f"] {
            assert!(endpoint(bad).unwrap_err().contains("https://HOST:PORT"), "{bad}");
        }
    }

    #[test]
    fn a_bundle_is_sealed_where_it_holds_nothing_in_the_clear() {
        assert!(is_sealed(br#"{"sealed_bundle":{"counter":7}}"#));
        for bundle in ["", "[]", "sealed_bundle", "{}", r#"{"FILE_KEYS":{"sealed_bundle":"x"}}"#] {
            assert!(!is_sealed(bundle.as_bytes()), "{bundle}");
        }
        assert!(!is_sealed(br#"{"sealed_bundle":{},"FILE_KEYS":{}}"#));
    }

    #[test]
    fn a_finished_bundle_of_any_form_is_looked_into_without_harm() {
        for bundle in ["[]", "7", "null", "\"x\"", "\u{feff}{}", r#"{"MTLS_CLIENT_CERT_JSON":[1]}"#, "no JSON"] {
            warn_of_certificates(bundle.as_bytes());
        }
        assert!(is_sealed("\u{feff}{\"sealed_bundle\":{}}".as_bytes()));
    }
}
