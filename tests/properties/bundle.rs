//! The bundle: no input makes its parser panic, and no refusal reveals a secret value.

use std::sync::LazyLock;

use formats::allow_list::AllowList;
use formats::bundle::Received;
use formats::certificates::Parts;
use formats::refusal::Refusal;
use formats::time::Utc;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde_json::{Map, Value, json};
use teemarkd::mtls::Identity;
use teemarkd::secrets::bundle::Bundle;

use super::*;

static CERTS: LazyLock<Certs> = LazyLock::new(|| {
    let certs = Certs::with_root();
    certs.client("client");
    certs
});

/// client_cert, client_key and ca_cert in DER, without any armour that would hide a changed byte.
static DER: LazyLock<[Vec<u8>; 3]> = LazyLock::new(|| {
    let lines = [
        "openssl x509 -in client.crt -outform DER",
        "openssl pkey -in client.key -outform DER",
        "openssl x509 -in ca.crt -outform DER",
    ];
    lines.map(|line| STANDARD.decode(CERTS.shell(&format!("{line} | base64 -w 0"))).unwrap())
});

/// IV, ciphertext, tag, made with ring alone.
fn seal(key: &[u8; 32], iv: [u8; 12], aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut sealed = plain.to_vec();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::from(aad), &mut sealed).unwrap();
    [&iv[..], &sealed].concat()
}

/// A part of every secret value in these tests, by which a leaked one is found.
const SECRET: &str = "S3cretS3cret";

/// What a refusal of this bundle says, in all its forms.
fn refusal(bytes: &[u8]) -> Option<String> {
    static ALLOWED: LazyLock<AllowList> =
        LazyLock::new(|| AllowList::parse("list", b"endpoints:\n- localhost:8080\n").unwrap());
    let received = |parse: fn(&[u8]) -> Result<Received, Refusal>| {
        parse(bytes).and_then(|received| Bundle::check(received, &ALLOWED, &[], Utc::now()))
    };
    // What is good in version 2 may be refused in version 1.
    let refusal = received(Received::parse_v2).and_then(|_| received(Received::parse)).err()?;
    Some(format!("{refusal} {refusal:?} {}", refusal.to_json()))
}

/// Names that the parser knows, and some that it does not.
fn name() -> impl Strategy<Value = String> {
    const KNOWN: [&str; 17] = [
        "FILE_KEYS_ADD",
        "FILE_KEYS_REMOVE",
        "GRANT_KEYS_ADD",
        "GRANT_KEYS_REMOVE",
        "MTLS_CLIENT_CERT_JSON",
        "ECS_WATERMARK_ENDPOINT",
        "FILE_KEYS",
        "GRANT_KEYS",
        "keys",
        "kty",
        "kid",
        "key_ops",
        "client_cert",
        "client_key",
        "ca_cert",
        "key",
        "aad",
    ];
    prop_oneof![4 => select(&KNOWN[..]).prop_map(str::to_owned), 1 => any::<String>()]
}

/// Texts that hold [`SECRET`], in the disguises that a parser might see through and quote from.
fn secret_text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(SECRET.to_owned()),
        any::<String>().prop_map(|s| format!("{s}{SECRET}")),
        any::<String>().prop_map(|s| format!("{SECRET}{s}")),
        Just(format!("https://{SECRET}@localhost:8080")),
        Just(format!("https://{SECRET}.localhost:8080/{SECRET}?{SECRET}")),
        Just(format!("-----BEGIN {SECRET}-----\n{SECRET}\n-----END {SECRET}-----\n")),
        Just(format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n")),
        Just(format!("-----BEGIN CERTIFICATE-----\n{SECRET}\n-----END CERTIFICATE-----\n")),
        Just(STANDARD.encode(SECRET)),
        Just(format!("{{\"client_key\":\"{SECRET}\"}}")),
        Just(format!("{{\"client_key\":\"{SECRET}\" {SECRET}")),
        Just(format!("[\"{SECRET}\"]")),
    ]
}

/// Any JSON, in which every string value is a secret and members like the parser's own are common.
fn secret_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        4 => secret_text().prop_map(Value::String),
        1 => any::<bool>().prop_map(Value::Bool),
        1 => any::<i64>().prop_map(|n| json!(n)),
        1 => any::<f64>().prop_map(|n| json!(n)),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            1 => vec(inner.clone(), 0..4).prop_map(Value::Array),
            4 => btree_map(name(), inner.clone(), 0..5).prop_map(|members| json!(members)),
            1 => btree_map(name(), inner, 0..5).prop_map(|members| json!(json!(members).to_string())),
        ]
    })
}

/// A good bundle with the FILE_KEYS and certificates of [`CERTS`]; no value in it may be revealed.
fn good_bundle() -> Value {
    json!({
        "MTLS_CLIENT_CERT_JSON": json!({
            "client_cert": CERTS.read("client.crt"),
            "client_key": CERTS.read("client.key"),
            "ca_cert": CERTS.read("ca.crt"),
        }).to_string(),
        "ECS_WATERMARK_ENDPOINT": "https://localhost:8080",
        "FILE_KEYS": {"k": STANDARD.encode(KEY), "bound": {"key": STANDARD.encode([7; 32]), "aad": "file_id"}},
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_bytes_make_the_bundle_parser_panic_and_none_are_told(bytes in vec(any::<u8>(), 0..200), at in any::<Index>()) {
        let mut bytes = bytes;
        let at = at.index(bytes.len() + 1);
        bytes.splice(at..at, SECRET.bytes());
        if let Some(told) = refusal(&bytes) {
            prop_assert!(!told.contains(SECRET), "{told}");
        }
    }

    #[test]
    fn no_json_makes_the_bundle_parser_panic_and_no_value_of_it_is_told(value in secret_json()) {
        if let Some(told) = refusal(value.to_string().as_bytes()) {
            let told = told.to_ascii_lowercase();
            prop_assert!(!told.contains(&SECRET.to_ascii_lowercase()), "{told}");
            prop_assert!(!told.contains(&STANDARD.encode(SECRET).to_ascii_lowercase()), "{told}");
        }
    }

    #[test]
    fn a_damaged_bundle_is_refused_or_taken_but_never_quoted(
        changes in vec((any::<Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<Index>()),
    ) {
        let good = good_bundle().to_string();
        let mut bytes = good.clone().into_bytes();
        for (at, byte) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let told = refusal(&bytes);
        prop_assert!(told.is_none() == (changes.is_empty() && cut.is_none()) || !changes.is_empty());
        if let Some(told) = told {
            // Any eight characters of a key are too many.
            let key = CERTS.read("client.key");
            let secrets = [key.lines().nth(1).unwrap().to_owned(), STANDARD.encode(KEY), STANDARD.encode([7; 32])];
            for secret in &secrets {
                for piece in secret.as_bytes().windows(8) {
                    let piece = std::str::from_utf8(piece).unwrap();
                    prop_assert!(!told.contains(piece), "{piece} in {told}");
                }
            }
        }
    }

    #[test]
    fn every_good_set_of_keys_is_taken_and_opens_what_was_sealed_under_it(
        keys in btree_map("[ -~]{1,128}", any::<([u8; 32], bool)>(), 1..8),
        plain in vec(any::<u8>(), 0..64),
        file_id in "[a-z]{1,9}",
    ) {
        let value = |(id, (key, bound)): (&String, &([u8; 32], bool))| {
            let text = STANDARD.encode(key);
            (id.clone(), if *bound { json!({"key": text, "aad": "file_id"}) } else { json!(text) })
        };
        let bundle = json!({"FILE_KEYS": keys.iter().map(value).collect::<Map<_, _>>()}).to_string();
        let received = Received::parse(bundle.as_bytes()).map_err(|e| e.to_string()).unwrap();
        let bundle = Bundle::check(received, &AllowList::default(), &[], Utc::now());
        let opened = bundle.map_err(|e| e.to_string()).unwrap().file_keys.whole.unwrap();
        for (id, (key, bound)) in &keys {
            let aad: &[u8] = if *bound { file_id.as_bytes() } else { b"" };
            let file = seal(key, [9; 12], aad, &plain);
            prop_assert_eq!(opened.open(file, &file_id, Some(id)), Ok(plain.clone()));
        }
    }

    #[test]
    fn no_change_to_a_certificate_or_key_makes_the_check_panic(
        part in 0_usize..3,
        changes in vec((any::<Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<Index>()),
    ) {
        let mut parts = DER.clone();
        for (at, byte) in changes {
            let at = at.index(parts[part].len());
            parts[part][at] = byte;
        }
        if let Some(cut) = cut {
            let length = cut.index(parts[part].len());
            parts[part].truncate(length);
        }
        let base64 = parts.each_ref().map(|der| STANDARD.encode(der));
        let check = |parts: [&[u8]; 3]| Identity::check(&Parts(parts), Utc::now()).map(|identity| identity.ends);
        let (plain, coded) = (check(parts.each_ref().map(Vec::as_slice)), check(base64.each_ref().map(|t| t.as_bytes())));
        // DER that happens to be text, or nothing, is taken for base64: only then may the two differ.
        if parts[part].first() == Some(&0x30) && std::str::from_utf8(&parts[part]).is_err() {
            prop_assert_eq!(plain, coded);
        }
    }
}
