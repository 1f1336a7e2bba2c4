//! A bundle: what an operator delivers to an enclave, whole or in part. An item that is left out keeps its value.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::certificates::{self, Parts};
use crate::file_keys::DeliveredKeys;
use crate::items::{CERTIFICATES, ENDPOINT, FILE_KEYS, GRANT_KEYS, ITEMS, MAX_BUNDLE};
use crate::json::string;
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
}

impl Received {
    /// Parses a bundle.
    ///
    /// # Errors
    /// The first error. A bundle without any known item is one.
    pub fn parse(bytes: &[u8]) -> Result<Received, Refusal> {
        if bytes.len() > MAX_BUNDLE {
            return refuse(WHOLE, format!("is larger than {MAX_BUNDLE} bytes"));
        }
        if bytes.trim_ascii().is_empty() {
            return refuse(WHOLE, "is empty");
        }
        let items = Object::parse(WHOLE, bytes, Keep::Named(&ITEMS))?;
        let mut ignored = items.ignored.clone();
        let received = Received {
            certificates: items.get(CERTIFICATES).map(|v| certificates::parse(v, &mut ignored)).transpose()?,
            service: items.get(ENDPOINT).map(service).transpose()?,
            file_keys: items.get(FILE_KEYS).map(|v| DeliveredKeys::parse(v, &mut ignored)).transpose()?,
            grant_keys: items.get(GRANT_KEYS).map(|v| jwks::parse(v, &mut ignored)).transpose()?,
            ignored,
        };
        match &received {
            Received { certificates: None, service: None, file_keys: None, grant_keys: None, ignored } => {
                if ignored.iter().any(|name| name == SEALED) {
                    return refuse(WHOLE, "is sealed, but this daemon takes plain bundles (TEEMARK_HANDSHAKE)");
                }
                refuse(WHOLE, format!("has none of {}", ITEMS.join(", ")))
            }
            _ => Ok(received),
        }
    }
}

fn service(value: &RawValue) -> Result<ServiceUrl, Refusal> {
    let Some(text) = string(value) else { return refuse(ENDPOINT, "is not a string") };
    ServiceUrl::parse(&text).or_else(|reason| refuse(ENDPOINT, reason))
}

impl Outgoing {
    /// Whether it has no item.
    pub fn is_empty(&self) -> bool {
        let Outgoing { mtls_client_cert_json, ecs_watermark_endpoint, file_keys, grant_keys } = self;
        mtls_client_cert_json.is_none()
            && ecs_watermark_endpoint.is_none()
            && file_keys.is_none()
            && grant_keys.is_none()
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
        };
        assert!(!outgoing.is_empty() && Outgoing::default().is_empty());
        let received = Received::parse(&outgoing.to_json()).unwrap();
        let texts = files.0.map(crate::base64::encode);
        assert_eq!((received.certificates, received.file_keys), (Some(Parts(texts)), Some(file_keys)));
        assert_eq!(received.service.unwrap().base(), "https://h:8");
        assert!(received.grant_keys.unwrap().find("a").is_some() && received.ignored.is_empty());
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
