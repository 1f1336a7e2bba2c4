//! What a hostile parent may send to the sealed handshake, and a stranger as a grant or a reply key: nothing altered is
//! accepted, and no parser panics.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use formats::attestation::BootNonce;
use formats::grants;
use formats::hpke::PrivateKey;
use formats::jwks::{GrantKey, GrantKeys, Kind};
use formats::refusal::Refusal;
use formats::reply::{self, About};
use formats::sealed_bundle::{Destination, SealedBundle, seal};
use formats::signature::VerifyingKey;
use formats::time::Utc;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Map, Value, json};

use super::config;

static OPERATOR: LazyLock<Ed25519KeyPair> = LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap());

/// A bundle that an enclave would accept.
static SEALED: LazyLock<String> = LazyLock::new(|| {
    let to = Destination { sealing_key: sealing_key().public(), boot_nonce: BootNonce::from_bytes([5; 32]) };
    seal(b"{\"a\": \"bundle\"}", &to, 1, &OPERATOR).unwrap().to_json()
});

fn sealing_key() -> PrivateKey {
    PrivateKey::new(Box::new([4; 32]))
}

/// What the enclave finds in it.
fn open(bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
    let operator = VerifyingKey::from_slice(OPERATOR.public_key().as_ref()).unwrap();
    let sealed = SealedBundle::parse(bytes)?;
    sealed.check_signature(&[operator])?;
    sealed.open(&sealing_key())
}

const NOW: u64 = 1_764_000_000;
/// A clock that was never set back.
const NOT_SET_BACK: grants::Now = grants::Now { clock: Utc(NOW), latest: Utc(NOW) };

fn keys() -> GrantKeys {
    let public = OPERATOR.public_key().as_ref().to_vec();
    GrantKeys(vec![GrantKey { kid: "k".into(), kind: Kind::Ed25519, public }])
}

/// A token with these parts, whatever they are, and a good signature.
fn token(header: &[u8], claims: &[u8]) -> String {
    let encode = |part| URL_SAFE_NO_PAD.encode(part);
    let signed = format!("{}.{}", encode(header), encode(claims));
    let signature = OPERATOR.sign(signed.as_bytes());
    format!("{signed}.{}", encode(signature.as_ref()))
}

fn good_claims() -> String {
    json!({"sub": "u", "file_id": "f", "aud": "a", "jti": "1", "nbf": NOW, "exp": NOW + 60}).to_string()
}

const HEADER: &[u8] = br#"{"alg":"EdDSA","kid":"k"}"#;

const SEALED_MEMBERS: [&str; 5] = ["boot_nonce", "counter", "enc", "ciphertext", "signature"];
const CLAIMS: [&str; 8] = ["sub", "file_id", "aud", "jti", "nbf", "exp", "reply_key", "content_sha256"];

/// Some of these members, each with a value of any kind.
fn altered(names: &'static [&str]) -> impl Strategy<Value = Map<String, Value>> {
    let value = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ -~]{0,100}".prop_map(Value::from),
        "[0-9a-f]{64}".prop_map(Value::from),
        any::<[u8; 32]>().prop_map(|bytes| STANDARD.encode(bytes).into()),
        vec(any::<String>(), 0..3).prop_map(Value::from),
        any::<u8>().prop_map(|n| json!({"n": n})),
    ];
    let member = (proptest::sample::select(names), value).prop_map(|(name, value)| (name.to_owned(), value));
    vec(member, 1..4).prop_map(Map::from_iter)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_sealed_bundle_with_any_byte_changed_is_refused_or_means_the_same(at in any::<Index>(), byte in any::<u8>()) {
        let mut bytes = SEALED.clone().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        // A blank for another, or hex in the other case, changes nothing that is signed.
        if let Ok(bundle) = open(&bytes) {
            prop_assert_eq!(bundle, b"{\"a\": \"bundle\"}");
        }
    }

    #[test]
    fn whatever_comes_to_the_sealed_handshake_is_refused(
        bytes in vec(any::<u8>(), 0..2000),
        members in altered(&SEALED_MEMBERS),
    ) {
        prop_assert!(open(&bytes).is_err());
        let mut bundle: Value = serde_json::from_str(&SEALED).unwrap();
        let object = bundle["sealed_bundle"].as_object_mut().unwrap();
        object.extend(members);
        prop_assert!(open(bundle.to_string().as_bytes()).is_err());
    }

    #[test]
    fn no_header_and_no_claims_make_the_parser_panic(
        header in prop_oneof![Just(HEADER.to_vec()), vec(any::<u8>(), 0..200)],
        claims in prop_oneof![any::<String>().prop_map(String::into_bytes), vec(any::<u8>(), 0..200)],
        members in altered(&CLAIMS),
    ) {
        let check = |claims: &[u8]| keys().check(&token(&header, claims), &["a".into()], NOT_SET_BACK);
        prop_assert!(check(&claims).is_err());
        // These may happen to be valid; what counts is that the parser returns.
        let mut good: Map<String, Value> = serde_json::from_str(&good_claims()).unwrap();
        good.extend(members);
        let _ = check(Value::Object(good).to_string().as_bytes());
    }

    #[test]
    fn a_good_token_with_any_character_changed_is_refused(at in any::<Index>(), other in any::<char>()) {
        let token = token(HEADER, good_claims().as_bytes());
        keys().check(&token, &["a".into()], NOT_SET_BACK).unwrap();
        let at = at.index(token.len());
        let changed = format!("{}{other}{}", &token[..at], &token[at + 1..]);
        prop_assume!(changed != token);
        prop_assert!(keys().check(&changed, &["a".into()], NOT_SET_BACK).is_err());
    }

    #[test]
    fn whatever_is_said_to_be_a_sealed_answer_is_refused(mut bytes in vec(any::<u8>(), 0..2000), text in any::<String>()) {
        let about = About { file_id: "f", user_id: "u" };
        prop_assert!(reply::open(&mut bytes, about, &PrivateKey::new(Box::new([3; 32]))).is_err());
        let _ = grants::reply_key(&text);
    }
}
