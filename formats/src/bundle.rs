//! A bundle: what an operator delivers to an enclave, whole or in part. An item that is left out keeps its value.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::certificates::{self, Parts};
use crate::file_keys::{DeliveredKeys, MAX_KEY_ID};
use crate::items::{
    CERTIFICATES, CHANGES, ENDPOINT, FILE_KEYS, FILE_KEYS_ADD, FILE_KEYS_REMOVE, GRANT_KEYS, GRANT_KEYS_ADD,
    GRANT_KEYS_REMOVE, ITEMS, MAX_BUNDLE, MAX_BUNDLE_V2,
};
use crate::json::{Text, string};
use crate::jwks::{self, GrantKeys};
use crate::object::{Keep, Object};
use crate::refusal::{Refusal, WHOLE, refuse};
use crate::sealed_bundle::SEALED;
use crate::service::ServiceUrl;

/// The items as received. Each has its form; none has been checked against anything outside the bundle.
#[derive(Default)]
pub struct Received {
    /// MTLS_CLIENT_CERT_JSON: the text of each part.
    pub certificates: Option<Parts<String>>,
    /// ECS_WATERMARK_ENDPOINT.
    pub service: Option<ServiceUrl>,
    /// FILE_KEYS.
    pub file_keys: Option<DeliveredKeys>,
    /// GRANT_KEYS.
    pub grant_keys: Option<GrantKeys>,
    /// FILE_KEYS_ADD.
    pub added_file_keys: Option<DeliveredKeys>,
    /// FILE_KEYS_REMOVE: ids.
    pub removed_file_keys: Option<BTreeSet<String>>,
    /// GRANT_KEYS_ADD.
    pub added_grant_keys: Option<GrantKeys>,
    /// GRANT_KEYS_REMOVE: kids.
    pub removed_grant_keys: Option<BTreeSet<String>>,
    /// Names that this version does not know; and, with the reason in parentheses, members that are null and grant keys
    /// that do not sign with a known algorithm.
    pub ignored: Vec<String>,
}

/// The items to be sent. Items that were checked elsewhere are passed on as they are.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub struct Outgoing {
    /// The text that [`certificates::write`] returns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls_client_cert_json: Option<String>,
    /// The watermark service's URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecs_watermark_endpoint: Option<String>,
    /// Keys of encrypted files, by id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_keys: Option<DeliveredKeys>,
    /// A JWK set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant_keys: Option<Box<RawValue>>,
    /// Keys that come to those of encrypted files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_keys_add: Option<DeliveredKeys>,
    /// The ids of keys that go.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub file_keys_remove: BTreeSet<String>,
    /// A JWK set of keys that come to those that sign grants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant_keys_add: Option<Box<RawValue>>,
    /// The kids of keys that go.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub grant_keys_remove: BTreeSet<String>,
}

impl Received {
    /// Parses a bundle that comes plain, or sealed in version 1.
    ///
    /// # Errors
    /// The first error. A bundle without any known item is one, and so is one that changes keys one by one.
    pub fn parse(bytes: &[u8]) -> Result<Received, Refusal> {
        if bytes.len() > MAX_BUNDLE {
            return refuse(WHOLE, format!("is larger than {MAX_BUNDLE} bytes"));
        }
        let received = Received::parse_any(bytes)?;
        let changes = [
            received.added_file_keys.is_some(),
            received.removed_file_keys.is_some(),
            received.added_grant_keys.is_some(),
            received.removed_grant_keys.is_some(),
        ];
        match CHANGES.iter().zip(changes).find(|(_, there)| *there) {
            Some((name, _)) => refuse(*name, "means something in one state only: seal it in version 2, which names it"),
            None => Ok(received),
        }
    }

    /// Parses a bundle that comes sealed in version 2.
    ///
    /// # Errors
    /// The first error. A bundle without any known item is one.
    pub fn parse_v2(bytes: &[u8]) -> Result<Received, Refusal> {
        if bytes.len() > MAX_BUNDLE_V2 {
            return refuse(WHOLE, format!("is larger than {MAX_BUNDLE_V2} bytes"));
        }
        Received::parse_any(bytes)
    }

    /// The names of the known items in a bundle, whatever is wrong with them; none if it is not an object.
    pub fn names(bytes: &[u8]) -> Vec<&'static str> {
        let known = [ITEMS, CHANGES].concat();
        let Ok(items) = Object::parse(WHOLE, bytes, Keep::Named(&known)) else { return Vec::new() };
        known.into_iter().filter(|name| items.get(name).is_some()).collect()
    }

    fn parse_any(bytes: &[u8]) -> Result<Received, Refusal> {
        if bytes.trim_ascii().is_empty() {
            return refuse(WHOLE, "is empty");
        }
        let names = [ITEMS, CHANGES].concat();
        let items = Object::parse(WHOLE, bytes, Keep::Named(&names))?;
        let mut ignored = items.ignored.clone();
        if names.iter().all(|name| items.get(name).is_none()) {
            if ignored.iter().any(|name| name == SEALED) {
                return refuse(WHOLE, "is sealed, but this daemon takes plain bundles (TEEMARK_HANDSHAKE)");
            }
            return refuse(WHOLE, format!("has none of {}", ITEMS.join(", ")));
        }
        let certificates = items.get(CERTIFICATES).map(|v| certificates::parse(v, &mut ignored)).transpose()?;
        let service = items.get(ENDPOINT).map(service).transpose()?;
        let mut file_keys = |name| items.get(name).map(|v| DeliveredKeys::parse(name, v, &mut ignored)).transpose();
        let (file_keys, added_file_keys) = (file_keys(FILE_KEYS)?, file_keys(FILE_KEYS_ADD)?);
        let mut grant_keys = |name| items.get(name).map(|v| jwks::parse(name, v, &mut ignored)).transpose();
        let (grant_keys, added_grant_keys) = (grant_keys(GRANT_KEYS)?, grant_keys(GRANT_KEYS_ADD)?);
        let ids = |name| items.get(name).map(|value| ids(name, value)).transpose();
        Ok(Received {
            certificates,
            service,
            file_keys,
            grant_keys,
            added_file_keys,
            removed_file_keys: ids(FILE_KEYS_REMOVE)?,
            added_grant_keys,
            removed_grant_keys: ids(GRANT_KEYS_REMOVE)?,
            ignored,
        })
    }
}

/// A list of ids, at least one, each once.
fn ids(name: &str, value: &RawValue) -> Result<BTreeSet<String>, Refusal> {
    let Ok(list) = serde_json::from_str::<Vec<Text>>(value.get()) else {
        return refuse(name, "is not a list of texts");
    };
    let mut ids = BTreeSet::new();
    for Text(id) in list {
        if id.is_empty() || id.len() > MAX_KEY_ID {
            return refuse(name, format!("holds one that is not a key id of 1 to {MAX_KEY_ID} bytes"));
        }
        if !ids.insert(id.into_owned()) {
            return refuse(name, "names a key twice");
        }
    }
    if ids.is_empty() { refuse(name, "names no key") } else { Ok(ids) }
}

fn service(value: &RawValue) -> Result<ServiceUrl, Refusal> {
    let Some(text) = string(value) else { return refuse(ENDPOINT, "is not a string") };
    ServiceUrl::parse(&text).or_else(|reason| refuse(ENDPOINT, reason))
}

impl Outgoing {
    /// Whether it has no item.
    pub fn is_empty(&self) -> bool {
        let Outgoing { mtls_client_cert_json, ecs_watermark_endpoint, file_keys, grant_keys, .. } = self;
        mtls_client_cert_json.is_none()
            && ecs_watermark_endpoint.is_none()
            && file_keys.is_none()
            && grant_keys.is_none()
            && !self.has_changes()
    }

    /// Whether it changes keys one by one.
    pub fn has_changes(&self) -> bool {
        self.file_keys_add.is_some()
            || self.grant_keys_add.is_some()
            || !self.file_keys_remove.is_empty()
            || !self.grant_keys_remove.is_empty()
    }

    /// The bundle as JSON, one item per line.
    pub fn to_json(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("texts are JSON");
        bytes.push(b'\n');
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file_keys::DeliveredKey;

    #[test]
    fn a_bundle_is_read_as_it_was_written() {
        let keys =
            r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
        let key = DeliveredKey::new(Box::new([7; 32]), true);
        let file_keys: DeliveredKeys = [("k".to_owned(), key)].into_iter().collect();
        let files = Parts([b"certificate".to_vec(), b"key".to_vec(), b"authority".to_vec()]);
        let outgoing = Outgoing {
            mtls_client_cert_json: Some(certificates::write(&files)),
            ecs_watermark_endpoint: Some("https://h:8".into()),
            file_keys: Some(file_keys.clone()),
            grant_keys: Some(RawValue::from_string(keys.into()).unwrap()),
            ..Outgoing::default()
        };
        assert!(!outgoing.is_empty() && Outgoing::default().is_empty());
        let received = Received::parse(&outgoing.to_json()).unwrap();
        let texts = files.0.map(crate::base64::encode);
        assert_eq!((received.certificates, received.file_keys), (Some(Parts(texts)), Some(file_keys)));
        assert_eq!(received.service.unwrap().base(), "https://h:8");
        assert!(received.grant_keys.unwrap().find("a").is_some() && received.ignored.is_empty());
    }

    #[test]
    fn keys_that_come_or_go_one_by_one_are_read_in_version_2_only() {
        let key = |byte| DeliveredKey::new(Box::new([byte; 32]), false);
        let outgoing = Outgoing {
            file_keys_add: Some([("new".to_owned(), key(1))].into_iter().collect()),
            file_keys_remove: ["old".to_owned(), "older".to_owned()].into(),
            grant_keys_remove: ["kid".to_owned()].into(),
            ..Outgoing::default()
        };
        assert!(!outgoing.is_empty() && outgoing.has_changes());
        let received = Received::parse_v2(&outgoing.to_json()).unwrap();
        assert_eq!(received.added_file_keys, outgoing.file_keys_add);
        assert_eq!(received.removed_file_keys, Some(outgoing.file_keys_remove.clone()));
        assert_eq!(received.removed_grant_keys, Some(outgoing.grant_keys_remove.clone()));
        let refusal = Received::parse(&outgoing.to_json()).err().unwrap();
        assert!(refusal.field == "FILE_KEYS_ADD" && refusal.reason.contains("version 2"), "{refusal}");
        for (list, reason) in [
            ("[]", "no key"),
            ("[\"a\",\"a\"]", "twice"),
            ("[7]", "not a list"),
            ("{}", "not a list"),
            ("[\"\"]", "1 to 128"),
        ] {
            let bundle = format!(r#"{{"FILE_KEYS_REMOVE":{list}}}"#);
            let refusal = Received::parse_v2(bundle.as_bytes()).err().unwrap();
            assert!(refusal.field == "FILE_KEYS_REMOVE" && refusal.reason.contains(reason), "{refusal}");
        }
    }

    #[test]
    fn a_bundle_with_nothing_in_it_is_refused_and_a_sealed_one_is_called_so() {
        for (bytes, reason) in [
            (&b" \n"[..], "is empty"),
            (b"{}", "has none of MTLS_CLIENT_CERT_JSON"),
            (br#"{"FILE_KEYS":null}"#, "has none of"),
            (br#"{"sealed_bundle":{}}"#, "is sealed"),
        ] {
            let refusal = Received::parse(bytes).err().unwrap();
            assert!(refusal.field == WHOLE && refusal.reason.starts_with(reason), "{refusal}");
        }
        assert!(Received::parse(&vec![b' '; MAX_BUNDLE + 1]).err().unwrap().reason.contains("larger"));
    }
}
