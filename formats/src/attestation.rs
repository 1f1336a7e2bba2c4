//! What teemark adds to an attestation document of the Nitro Secure Module.
//!
//! The document's `public_key` is the identity key, 32 bytes, Ed25519; its `user_data` is [`UserData`] as JSON.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::base64;
use crate::bytes::hex32;
use crate::digest::Sha256;
use crate::hpke::PublicKey;

/// Longest nonce that a client may ask for, in bytes. The module itself accepts 512.
pub const MAX_NONCE: usize = 64;

/// The subject of the root under which a machine without a module signs its documents, which prove nothing.
pub const TEST_ROOT: &str = "teemark test root, proves nothing";

/// The version of the user data: the only one that is written and accepted.
pub const VERSION: u64 = 1;

hex32! {
    /// 32 random bytes that identify one boot of one enclave.
    BootNonce
}

/// Identifies a sealed bundle. The default stands for no bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BundleId {
    /// The operator's counter, which grows with each bundle; 0 stands for none.
    pub counter: u64,
    /// SHA-256 of the ciphertext, which differs each time that something is sealed.
    pub sha256: Sha256,
}

/// What a document says about its enclave besides the identity key. By the bundle's id an operator knows whether a
/// bundle has arrived: the handshake's answer comes through the parent, which can forge it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserData {
    /// SHA-256 of the allow list's file.
    pub allow_list_sha256: Sha256,
    /// Which boot of the enclave this is.
    pub boot_nonce: BootNonce,
    /// SHA-256 of the ciphertext of the last sealed bundle in force; zeros before the first.
    bundle_sha256: Sha256,
    /// The counter of that bundle; 0 before the first.
    counter: u64,
    /// The public key that secrets are sealed to, in base64.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub sealing_key: PublicKey,
    /// SHA-256 of what is in force ([`crate::state::State`]); `None` from a teemark that takes bundles of version 1 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_sha256: Option<Sha256>,
    version: u64,
}

/// Why user data cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserDataError {
    /// It has this version, which only another teemark can read.
    Version(u64),
    /// It is not what teemark writes there.
    Malformed,
}

#[derive(Deserialize)]
struct Version {
    version: u64,
}

impl UserData {
    /// The user data of an enclave with this sealing key and boot nonce, whose last sealed bundle is `in_force`, and whose
    /// state has this hash.
    pub fn new(
        sealing_key: PublicKey,
        allow_list_sha256: Sha256,
        boot_nonce: BootNonce,
        in_force: BundleId,
        state: Sha256,
    ) -> UserData {
        let BundleId { counter, sha256: bundle_sha256 } = in_force;
        let state_sha256 = Some(state);
        UserData { allow_list_sha256, boot_nonce, bundle_sha256, counter, sealing_key, state_sha256, version: VERSION }
    }

    /// The last sealed bundle in force.
    pub fn in_force(&self) -> BundleId {
        BundleId { counter: self.counter, sha256: self.bundle_sha256 }
    }

    /// The user data as a document holds it.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are JSON")
    }

    /// Parses the user data of a document.
    ///
    /// # Errors
    /// See [`UserDataError`].
    pub fn parse(json: &[u8]) -> Result<UserData, UserDataError> {
        let Version { version } = serde_json::from_slice(json).map_err(|_| UserDataError::Malformed)?;
        if version != VERSION {
            return Err(UserDataError::Version(version));
        }
        serde_json::from_slice(json).map_err(|_| UserDataError::Malformed)
    }
}

fn to_base64<S: Serializer>(key: &PublicKey, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&base64::encode(key))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PublicKey, D::Error> {
    let text = String::deserialize(deserializer)?;
    PublicKey::from_base64(&text).ok_or_else(|| de::Error::custom("not base64 of an X25519 key"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::digest::sha256;
    use crate::hpke::PrivateKey;

    fn user_data() -> UserData {
        let key = PrivateKey::new(Box::new([1; 32])).public();
        let in_force = BundleId { counter: 7, sha256: sha256(b"a bundle") };
        UserData::new(key, sha256(b"a list"), BootNonce::from_bytes([3; 32]), in_force, sha256(b"a state"))
    }

    #[test]
    fn user_data_is_read_as_it_was_written() {
        assert_eq!(UserData::parse(user_data().to_json().as_bytes()), Ok(user_data()));
        assert_eq!(user_data().in_force().counter, 7);
    }

    #[test]
    fn user_data_fits_into_a_document_whatever_the_counter() {
        let in_force = BundleId { counter: u64::MAX, sha256: sha256(b"a bundle") };
        let UserData { sealing_key, allow_list_sha256, boot_nonce, .. } = user_data();
        let longest = UserData::new(sealing_key, allow_list_sha256, boot_nonce, in_force, sha256(b"a state"));
        // The module takes 512 bytes (aws-nitro-enclaves-nsm-api, "user_data").
        assert!(longest.to_json().len() < 512, "{}", longest.to_json().len());
    }

    #[test]
    fn user_data_of_an_earlier_teemark_has_no_state() {
        let mut json: Value = serde_json::from_str(&user_data().to_json()).unwrap();
        json.as_object_mut().unwrap().remove("state_sha256");
        let earlier = UserData::parse(json.to_string().as_bytes()).unwrap();
        assert_eq!((earlier.state_sha256, earlier.in_force()), (None, user_data().in_force()));
    }

    #[test]
    fn user_data_of_another_version_is_told_from_malformed_user_data() {
        let with = |name: &str, value: Value| {
            let mut json: Value = serde_json::from_str(&user_data().to_json()).unwrap();
            json[name] = value;
            UserData::parse(json.to_string().as_bytes())
        };
        assert_eq!(with("more", json!(1)), Ok(user_data()));
        assert_eq!(with("version", json!(2)), Err(UserDataError::Version(2)));
        for (name, value) in [
            ("version", json!("1")),
            ("sealing_key", json!("AAAA")),
            ("sealing_key", json!(base64::encode([0; 32]))),
            ("allow_list_sha256", json!("00")),
            ("boot_nonce", json!("zz".repeat(32))),
            ("counter", json!(-1)),
            ("bundle_sha256", json!(null)),
        ] {
            assert_eq!(with(name, value), Err(UserDataError::Malformed), "{name}");
        }
        assert_eq!(UserData::parse(b"{}"), Err(UserDataError::Malformed));
    }
}
