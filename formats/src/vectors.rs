//! vectors/*.json: an example of each format with every intermediate value, to test clients in other languages with.
//! All keys in it are fixed, so each run writes the same bytes.
//!
//! `make vectors` writes the files. The tests below compare them, and use them as another implementation would.

use std::path::PathBuf;
use std::{env, fs};

use base64_simd::URL_SAFE_NO_PAD;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::attestation::{BootNonce, BundleId, UserData};
use crate::base64::{decode, encode};
use crate::bundle::{Outgoing, Received};
use crate::certificates::{self, Parts};
use crate::digest::{Sha256, sha256};
use crate::file_keys::{DeliveredKey, DeliveredKeys};
use crate::files::{FileKey, FileKeys, head, tink_prefix};
use crate::grants::{Issuer, NewGrant, Now};
use crate::hpke::{self, PrivateKey, PublicKey};
use crate::items::{ENDPOINT, FILE_KEYS, FILE_KEYS_ADD, FILE_KEYS_REMOVE, GRANT_KEYS};
use crate::jwks;
use crate::log::{self, Ack, Boot, Checkpoint, Dropped, Head, Kind, Record, Segment};
use crate::reply::{self, About, CHUNK, Statement};
use crate::sealed_bundle::{self, Destination, SealedBundle, v2};
use crate::service::ServiceUrl;
use crate::signature::VerifyingKey;
use crate::state::{Item, Manifest, State, Told};
use crate::time::Utc;

const ABOUT: About<'static> = About { file_id: "report-7", user_id: "alice" };
const FLEET: &str = "staging";
const PLAIN: &[u8] = b"The quick brown fox jumps over the lazy dog.";
const MARKED: &[u8] = b"The quick brown fox jumps over the lazy dog. [marked for alice]";
const COUNTER: u64 = 1_764_000_000_000;
const NOW: u64 = 1_764_000_000;
const IV: [u8; 12] = [0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x2b];
/// The file key's id, which fits into Tink's prefix.
const KEY_ID: &str = "7";

/// 32 bytes that count up from this one.
fn bytes(first: u8) -> [u8; 32] {
    std::array::from_fn(|i| first + u8::try_from(i).unwrap())
}

fn ed25519(first: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&bytes(first)).unwrap()
}

fn x25519(first: u8) -> PrivateKey {
    PrivateKey::new(Box::new(bytes(first)))
}

// The byte that each key begins with.
const OPERATOR: u8 = 0x10;
const IDENTITY: u8 = 0x30;
const ISSUER: u8 = 0x50;
const SEALING: u8 = 0x70;
const REPLY: u8 = 0x90;
const FILE_KEY: u8 = 0xb0;
const BUNDLE_EPHEMERAL: u8 = 0xc0;
const ANSWER_EPHEMERAL: u8 = 0xd0;
const BOOT_NONCE: u8 = 0xe0;
const LOG: u8 = 0x40;
const COLLECTOR: u8 = 0x60;
const SEGMENT_EPHEMERAL: u8 = 0x80;
const SEGMENT: u8 = 0xa0;
/// The client's nonce.
const NONCE: &[u8] = b"sixteen bytes: a";

fn file_key(binds_file_id: bool) -> DeliveredKey {
    DeliveredKey::new(Box::new(bytes(FILE_KEY)), binds_file_id)
}

fn public(pair: &Ed25519KeyPair) -> VerifyingKey {
    VerifyingKey::from_slice(pair.public_key().as_ref()).unwrap()
}

fn keys() -> Value {
    let pair = |first| {
        let key = public(&ed25519(first));
        json!({"private": hex::encode(bytes(first)), "public": key.to_string(), "public_base64": encode(key)})
    };
    let kem = |first| {
        let key = x25519(first).public();
        json!({"private": hex::encode(bytes(first)), "public": hex::encode(key), "public_base64": encode(key)})
    };
    let issuer = Issuer::from(ed25519(ISSUER));
    let mut grants = pair(ISSUER);
    grants["kid"] = json!(issuer.public().kid);
    grants["jwk_set"] = json!(issuer.public().to_jwk_set());
    json!({
        "operator (Ed25519)": pair(OPERATOR),
        "identity (Ed25519)": pair(IDENTITY),
        "grants (Ed25519)": grants,
        "sealing (X25519)": kem(SEALING),
        "reply (X25519)": kem(REPLY),
        "log (X25519)": kem(LOG),
        "collector (Ed25519)": pair(COLLECTOR),
        "file (AES-256)": {"id": KEY_ID, "key": hex::encode(bytes(FILE_KEY))},
    })
}

fn attestation() -> Value {
    let in_force = BundleId { counter: COUNTER, sha256: sha256(b"the last bundle's ciphertext") };
    let list = b"endpoints:\n  - watermark.internal.staging.zing.you:8080\n";
    let boot_nonce = BootNonce::from_bytes(bytes(BOOT_NONCE));
    let user_data = UserData::new(x25519(SEALING).public(), sha256(list), boot_nonce, in_force, state().sha256());
    json!({
        "allow_list": String::from_utf8_lossy(list),
        "bundle_ciphertext": hex::encode("the last bundle's ciphertext"),
        "counter": COUNTER,
        "nonce": hex::encode(NONCE),
        "public_key": public(&ed25519(IDENTITY)).to_string(),
        "state": state().to_json(),
        "user_data": user_data.to_json(),
    })
}

fn bundle() -> Vec<u8> {
    let files = Parts([&b"-- a certificate --"[..], b"-- its key --", b"-- an authority --"].map(<[u8]>::to_vec));
    let grant_keys = RawValue::from_string(Issuer::from(ed25519(ISSUER)).public().to_jwk_set()).unwrap();
    let outgoing = Outgoing {
        mtls_client_cert_json: Some(certificates::write(&files)),
        ecs_watermark_endpoint: Some("https://watermark.internal.staging.zing.you:8080".into()),
        file_keys: Some(DeliveredKeys(vec![(KEY_ID.into(), file_key(false)), ("bound".into(), file_key(true))])),
        grant_keys: Some(grant_keys),
        ..Outgoing::default()
    };
    outgoing.to_json()
}

/// HPKE's intermediate values (RFC 9180, 5.1).
fn kem(recipient: &PublicKey, info: &[u8], ephemeral: u8) -> Value {
    let key = x25519(ephemeral);
    let agreed = key.agree(recipient);
    let shared_secret = hpke::shared_secret(&agreed, &key.public(), recipient);
    let (aead_key, base_nonce) = hpke::key_schedule(&*shared_secret, info);
    json!({
        "ephemeral_private": hex::encode(bytes(ephemeral)),
        "enc": hex::encode(key.public()),
        "info": String::from_utf8_lossy(info),
        "dh": hex::encode(*agreed),
        "shared_secret": hex::encode(*shared_secret),
        "key": hex::encode(*aead_key),
        "base_nonce": hex::encode(base_nonce),
    })
}

fn sealed_bundle() -> Value {
    let boot_nonce = BootNonce::from_bytes(bytes(BOOT_NONCE));
    let to = Destination { sealing_key: x25519(SEALING).public(), boot_nonce };
    let sender = hpke::sender_with(&to.sealing_key, sealed_bundle::PURPOSE, &x25519(BUNDLE_EPHEMERAL));
    let sealed = sealed_bundle::seal_by(sender, &bundle(), &to, COUNTER, &ed25519(OPERATOR)).unwrap();
    json!({
        "bundle": String::from_utf8(bundle()).unwrap(),
        "boot_nonce": boot_nonce,
        "counter": COUNTER,
        "hpke": kem(&to.sealing_key, sealed_bundle::PURPOSE, BUNDLE_EPHEMERAL),
        "associated_data": hex::encode(sealed_bundle::associated(&boot_nonce, COUNTER)),
        "ciphertext": hex::encode(&sealed.ciphertext),
        "bundle_sha256": sealed.id().sha256,
        "signed": hex::encode(sealed.to_be_signed()),
        "signature": hex::encode(&sealed.signature),
        "sealed_bundle": sealed.to_json(),
    })
}

/// The keys of the bundle below, as an enclave has them.
fn expanded(DeliveredKeys(keys): &DeliveredKeys) -> FileKeys {
    keys.iter().map(|(id, key)| (id.clone(), FileKey::from(key))).collect()
}

/// The items of the bundle above, described. Its certificates are none that could be, so they are left out.
fn state() -> State {
    let received = Received::parse(&bundle()).unwrap();
    let items = [
        (ENDPOINT, Item::service(&received.service.unwrap())),
        (FILE_KEYS, expanded(&received.file_keys.unwrap()).describe()),
        (GRANT_KEYS, Item::grant_keys(&received.grant_keys.unwrap())),
    ];
    State { items: items.into_iter().map(|(name, item)| (name.to_owned(), item)).collect() }
}

fn sealed_bundle_v2() -> Value {
    let boot_nonce = BootNonce::from_bytes(bytes(BOOT_NONCE));
    let to = Destination { sealing_key: x25519(SEALING).public(), boot_nonce };
    let outgoing = Outgoing {
        file_keys_add: Some(DeliveredKeys(vec![("new".into(), file_key(true))])),
        file_keys_remove: [KEY_ID.to_owned()].into(),
        ..Outgoing::default()
    };
    let items = [
        (FILE_KEYS_ADD, expanded(outgoing.file_keys_add.as_ref().unwrap()).describe()),
        (FILE_KEYS_REMOVE, Item::removed(outgoing.file_keys_remove.iter().map(String::as_str))),
    ];
    let items = items.into_iter().map(|(name, item)| (name.to_owned(), item)).collect();
    let manifest = Manifest { complete_at: Some(sha256(b"a state")), from: state().sha256(), items };
    let sender = hpke::sender_with(&to.sealing_key, v2::PURPOSE, &x25519(BUNDLE_EPHEMERAL));
    let mut sealed = v2::seal_by(sender, &outgoing.to_json(), &manifest, &to, COUNTER).unwrap();
    sealed.line.sign(&ed25519(OPERATOR));
    sealed.line.sign(&ed25519(ISSUER));
    let signature = |first| hex::encode(ed25519(first).sign(&sealed.line.to_be_signed()));
    json!({
        "bundle": String::from_utf8(outgoing.to_json()).unwrap(),
        "boot_nonce": boot_nonce,
        "counter": COUNTER,
        "hpke": kem(&to.sealing_key, v2::PURPOSE, BUNDLE_EPHEMERAL),
        "associated_data": hex::encode(sealed_bundle::associated(&boot_nonce, COUNTER)),
        "manifest": String::from_utf8(sealed.manifest.clone()).unwrap(),
        "ciphertext": hex::encode(&sealed.ciphertext),
        "signed": hex::encode(sealed.line.to_be_signed()),
        "signatures": {"operator (Ed25519)": signature(OPERATOR), "grants (Ed25519)": signature(ISSUER)},
        "line": sealed.line.to_json(),
        "sealed_bundle": hex::encode(sealed.to_bytes()),
    })
}

fn files() -> Value {
    let make = |binds_file_id: bool, key_id: Option<&str>| {
        let mut body = PLAIN.to_vec();
        FileKey::from(&file_key(binds_file_id)).seal(&mut body, ABOUT.file_id, IV).unwrap();
        let file = [head(key_id.map(|id| tink_prefix(id).unwrap()), IV), body].concat();
        json!({
            "iv": hex::encode(IV),
            "associated_data": hex::encode(if binds_file_id { ABOUT.file_id } else { "" }),
            "plaintext": hex::encode(PLAIN),
            "file": hex::encode(&file),
            "sha256": sha256(&file),
        })
    };
    json!({
        "key": hex::encode(bytes(FILE_KEY)),
        "key_id": KEY_ID,
        "file_id": ABOUT.file_id,
        "raw": make(false, None),
        "tink": make(false, Some(KEY_ID)),
        "raw, bound to the file id": make(true, None),
    })
}

fn raw_file() -> Vec<u8> {
    hex::decode(files()["raw"]["file"].as_str().unwrap()).unwrap()
}

fn grant() -> Value {
    let grant = NewGrant {
        user_id: ABOUT.user_id,
        file_id: ABOUT.file_id,
        audience: FLEET,
        from: Utc(NOW),
        valid: 300,
        jti: [0x40; 16],
        reply_key: Some(x25519(REPLY).public()),
        content_sha256: Some(sha256(&raw_file())),
    };
    let token = Issuer::from(ed25519(ISSUER)).sign(&grant.claims()).unwrap();
    let [header, claims, signature] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
    let text = |part| String::from_utf8(URL_SAFE_NO_PAD.decode_to_vec(part).unwrap()).unwrap();
    json!({
        "now": NOW,
        "audience": FLEET,
        "header": text(header),
        "claims": text(claims),
        "signed": format!("{header}.{claims}"),
        "signature": hex::encode(URL_SAFE_NO_PAD.decode_to_vec(signature).unwrap()),
        "token": token,
    })
}

fn request() -> Value {
    let (About { file_id, user_id }, file) = (ABOUT, raw_file());
    let token = &grant()["token"];
    let reply_key = encode(x25519(REPLY).public());
    let authorization = format!("Bearer {}", token.as_str().unwrap());
    json!({
        "raw": {
            "method": "POST",
            "target": format!("/files/{file_id}/decrypt?user_id={user_id}&key_id={KEY_ID}"),
            "headers": {
                "Authorization": authorization,
                (reply::REPLY_KEY): reply_key,
                (reply::ATTEST): hex::encode(NONCE),
            },
            "body": hex::encode(&file),
        },
        "json": {
            "method": "POST",
            "target": "/files/decrypt",
            "headers": {"Authorization": authorization, "Content-Type": "application/json"},
            "body": json!({
                "file_id": file_id,
                "user_id": user_id,
                "key_id": KEY_ID,
                "encrypted_content": encode(&file),
                "reply_key": reply_key,
                "attest_nonce": hex::encode(NONCE),
            }).to_string(),
        },
    })
}

/// A marked file of more than one chunk: the bytes 0 to 250, again and again.
fn large() -> Vec<u8> {
    (0..=250).cycle().take(CHUNK + 1000).collect()
}

fn sealed_answer() -> Value {
    let key = x25519(REPLY).public();
    let sender = || hpke::sender_with(&key, reply::PURPOSE, &x25519(ANSWER_EPHEMERAL));
    let seal = |file: &[u8]| reply::seal_by(sender(), file.to_vec(), ABOUT).unwrap();
    let (small, large, sealed) = (MARKED, large(), seal(&large()));
    json!({
        "file_id": ABOUT.file_id,
        "user_id": ABOUT.user_id,
        "hpke": kem(&key, reply::PURPOSE, ANSWER_EPHEMERAL),
        "associated_data": {"last": hex::encode(ABOUT.associated(true)), "before": hex::encode(ABOUT.associated(false))},
        "small": {"file": hex::encode(small), "sealed": hex::encode(seal(small))},
        "empty": {"file": "", "sealed": hex::encode(seal(b""))},
        "large": {
            "file": "the bytes 0 to 250 again and again",
            "length": large.len(),
            "file_sha256": sha256(&large),
            "sealed_length": sealed.len(),
            "sealed_sha256": sha256(&sealed),
            "first_tag": hex::encode(&sealed[32 + CHUNK..32 + CHUNK + 16]),
            "last_tag": hex::encode(&sealed[sealed.len() - 16..]),
        },
    })
}

fn statement() -> Value {
    let content_sha256 = sha256(&raw_file());
    let sealed_bytes = hex::decode(sealed_answer()["small"]["sealed"].as_str().unwrap()).unwrap();
    let make = |given: &[u8], sealed, watermarked| {
        let timestamp_ms = COUNTER + 123;
        let statement = Statement { about: ABOUT, content_sha256, watermarked, sealed, timestamp_ms };
        let bcs = statement.to_bcs(given);
        let signature = ed25519(IDENTITY).sign(&bcs);
        json!({
            "given": hex::encode(given),
            "sha256": sha256(given),
            "content_sha256": content_sha256,
            "file_id": ABOUT.file_id,
            "user_id": ABOUT.user_id,
            "watermarked": watermarked,
            "sealed": sealed,
            "timestamp_ms": timestamp_ms,
            "bcs": hex::encode(bcs),
            "signature": hex::encode(signature),
            "signature_base64": encode(signature),
        })
    };
    json!({
        "identity": public(&ed25519(IDENTITY)).to_string(),
        "sealed": make(&sealed_bytes, true, true),
        "in the clear": make(MARKED, false, true),
        "in the clear, not marked": make(PLAIN, false, false),
    })
}

/// The sealed answer of statement.json, with an attestation document, as both routes give it. Only a module can sign a
/// document, so a few bytes stand for one.
fn attested_answer() -> Value {
    let document = b"these bytes stand for an attestation document";
    let signed = &statement()["sealed"];
    let (given, identity) = (unhex(&signed["given"]), text(&statement()["identity"]));
    let signature = &signed["signature_base64"];
    json!({
        "document": hex::encode(document),
        "given": signed["given"],
        "raw": {
            "headers": {
                (reply::WATERMARKED): "true",
                (reply::SEALED): "true",
                (reply::TIMESTAMP): signed["timestamp_ms"].to_string(),
                (reply::SIGNATURE): signature,
                (reply::IDENTITY): identity,
                (reply::ATTESTATION_LENGTH): document.len().to_string(),
            },
            "body": hex::encode([document, &given[..]].concat()),
        },
        "json": {
            "body": json!({
                "file_id": ABOUT.file_id,
                "user_id": ABOUT.user_id,
                "sealed_data": encode(&given),
                "watermarked": true,
                "timestamp_ms": signed["timestamp_ms"],
                "signature": signature,
                "identity": identity,
                "attestation": hex::encode(document),
            }).to_string(),
        },
    })
}

/// A log of five records, of which one is sealed and the last is a checkpoint; and its acknowledgement.
fn log_of_a_boot() -> Value {
    let boot_nonce = BootNonce::from_bytes(bytes(BOOT_NONCE));
    let boot = Boot {
        audit: "required".into(),
        boot_nonce,
        identity: public(&ed25519(IDENTITY)),
        log: "sealed".into(),
        version: "0.1.0".into(),
    };
    let sender = hpke::sender_with(&x25519(LOG).public(), log::SEGMENT, &x25519(SEGMENT_EPHEMERAL));
    let (segment, key) = Segment::new_by(&bytes(SEGMENT), vec![sender], 1).unwrap();
    let record = "2026-11-30T02:00:00Z INFO  teemarkd: teemarkd 0.1.0 starts";
    let mut head = Head::default();
    let mut stream = log::hello(boot_nonce).into_bytes();
    head.write(Kind::Key, key.as_bytes(), &mut stream);
    head.write(Kind::Sealed, segment.seal(2, Kind::Log, record.as_bytes()).as_bytes(), &mut stream);
    head.write(Kind::Boot, &serde_json::to_vec(&boot).unwrap(), &mut stream);
    let dropped = serde_json::to_vec(&Dropped::Lines { lines: 3 }).unwrap();
    head.write(Kind::Dropped, &dropped, &mut stream);
    let sign = |by: u8| move |bytes: &[u8]| ed25519(by).sign(bytes).as_ref().try_into().unwrap();
    let checkpoint = Checkpoint::new(boot_nonce, head, COUNTER, sign(IDENTITY));
    head.write(Kind::Checkpoint, &serde_json::to_vec(&checkpoint).unwrap(), &mut stream);
    let signed = Ack::to_be_signed(head, boot_nonce);
    let signature: [u8; 64] = sign(COLLECTOR)(&signed);
    json!({
        "boot_nonce": boot_nonce,
        "hpke": kem(&x25519(LOG).public(), log::SEGMENT, SEGMENT_EPHEMERAL),
        "segment_key": hex::encode(bytes(SEGMENT)),
        "record": format!("log {record}"),
        "stream": String::from_utf8(stream).unwrap(),
        "checkpoint_signed": hex::encode(checkpoint.to_be_signed()),
        "acknowledgement_signed": hex::encode(signed),
        "acknowledgement": Ack { head, signature: Some(signature.to_vec()) }.to_string(),
    })
}

/// Each file's name and content.
fn all() -> [(&'static str, Value); 11] {
    [
        ("keys", keys()),
        ("attestation", attestation()),
        ("sealed_bundle", sealed_bundle()),
        ("sealed_bundle_v2", sealed_bundle_v2()),
        ("files", files()),
        ("grant", grant()),
        ("request", request()),
        ("sealed_answer", sealed_answer()),
        ("statement", statement()),
        ("attested_answer", attested_answer()),
        ("log", log_of_a_boot()),
    ]
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name).with_extension("json")
}

/// Reads a file of vectors as another implementation would.
fn read(name: &str) -> Value {
    serde_json::from_slice(&fs::read(path(name)).unwrap()).unwrap()
}

fn unhex(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

#[test]
fn the_vectors_are_what_the_formats_write() {
    for (name, value) in all() {
        let text = serde_json::to_string_pretty(&value).unwrap() + "\n";
        if env::var_os("TEEMARK_WRITE_VECTORS").is_some() {
            fs::write(path(name), &text).unwrap();
        }
        assert!(
            fs::read_to_string(path(name)).unwrap_or_default() == text,
            "vectors/{name}.json is of another version"
        );
    }
}

#[test]
fn the_vectors_keys_belong_together() {
    for (name, pair) in read("keys").as_object().unwrap() {
        let Some(private) = pair.get("private").map(|key| <[u8; 32]>::try_from(unhex(key)).unwrap()) else { continue };
        let computed = match name.ends_with("(X25519)") {
            true => PrivateKey::new(Box::new(private)).public().as_ref().to_vec(),
            false => Ed25519KeyPair::from_seed_unchecked(&private).unwrap().public_key().as_ref().to_vec(),
        };
        assert_eq!(computed, unhex(&pair["public"]), "{name}");
        assert_eq!(decode(pair["public_base64"].as_str().unwrap()), Some(computed), "{name}");
    }
}

#[test]
fn the_vectors_user_data_says_what_stands_beside_it() {
    let v = read("attestation");
    let told = UserData::parse(v["user_data"].as_str().unwrap().as_bytes()).unwrap();
    assert_eq!(told.allow_list_sha256, sha256(v["allow_list"].as_str().unwrap().as_bytes()));
    assert_eq!(told.state_sha256, Some(sha256(v["state"].as_str().unwrap().as_bytes())));
    let sha256 = sha256(&unhex(&v["bundle_ciphertext"]));
    assert_eq!(told.in_force(), BundleId { counter: v["counter"].as_u64().unwrap(), sha256 });
    assert_eq!(hex::encode(told.sealing_key), read("keys")["sealing (X25519)"]["public"].as_str().unwrap());
}

#[test]
fn the_vectors_sealed_bundle_opens_and_holds_the_items() {
    let v = read("sealed_bundle");
    let sealed = SealedBundle::parse(v["sealed_bundle"].as_str().unwrap().as_bytes()).unwrap();
    let operator = VerifyingKey::from_slice(&unhex(&read("keys")["operator (Ed25519)"]["public"])).unwrap();
    sealed.check_signature(&[operator]).unwrap();
    assert_eq!(
        (hex::encode(sealed.enc), hex::encode(&sealed.ciphertext)),
        (text(&v["hpke"]["enc"]), text(&v["ciphertext"]))
    );
    assert_eq!(json!(sealed.id().sha256), v["bundle_sha256"]);
    let bundle = sealed.open(&x25519(SEALING)).unwrap();
    assert_eq!(bundle, v["bundle"].as_str().unwrap().as_bytes());
    let received = Received::parse(&bundle).unwrap();
    assert_eq!(received.service.as_ref().map(ServiceUrl::port), Some(8080));
    assert_eq!(received.file_keys.unwrap().0[1].1, file_key(true));
    assert!(received.grant_keys.is_some() && received.certificates.is_some() && received.ignored.is_empty());
}

#[test]
fn the_vectors_sealed_bundle_of_version_2_opens_and_is_what_its_manifest_says() {
    let v = read("sealed_bundle_v2");
    let sealed = v2::SealedBundle::parse(&unhex(&v["sealed_bundle"])).unwrap();
    let keys = read("keys");
    let signers = ["operator (Ed25519)", "grants (Ed25519)"]
        .map(|name| VerifyingKey::from_slice(&unhex(&keys[name]["public"])).unwrap());
    assert_eq!(sealed.line.check_signatures(&signers, 2).unwrap(), signers);
    let manifest = Manifest::parse(&sealed.manifest).unwrap();
    let user_data = UserData::parse(text(&read("attestation")["user_data"]).as_bytes()).unwrap();
    assert_eq!(Some(manifest.from), user_data.state_sha256);
    let sealed_manifest = sealed.manifest.clone();
    let received = Received::parse_v2(&sealed.open(&x25519(SEALING)).unwrap()).unwrap();
    let found = [
        (FILE_KEYS_ADD, expanded(&received.added_file_keys.unwrap()).describe()),
        (FILE_KEYS_REMOVE, Item::removed(received.removed_file_keys.unwrap().iter().map(String::as_str))),
    ];
    let found = found.into_iter().map(|(name, item)| (name.to_owned(), item)).collect();
    Told::parse(&sealed_manifest).unwrap().describes(&found).unwrap();
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

#[test]
fn the_vectors_files_open() {
    let v = read("files");
    for (name, bound) in [("raw", false), ("tink", false), ("raw, bound to the file id", true)] {
        let keys: FileKeys = [(text(&v["key_id"]), FileKey::from(&file_key(bound)))].into_iter().collect();
        let (file, file_id) = (unhex(&v[name]["file"]), text(&v["file_id"]));
        assert_eq!(json!(sha256(&file)), v[name]["sha256"], "{name}");
        assert_eq!(keys.open(file, &file_id, None).unwrap(), unhex(&v[name]["plaintext"]), "{name}");
    }
}

#[test]
fn the_vectors_grant_is_good_for_the_vectors_request() {
    let (v, request) = (read("grant"), read("request"));
    let set = RawValue::from_string(text(&read("keys")["grants (Ed25519)"]["jwk_set"])).unwrap();
    let keys = jwks::parse(GRANT_KEYS, &set, &mut Vec::new()).unwrap();
    let authorization = text(&request["raw"]["headers"]["Authorization"]);
    let token = authorization.strip_prefix("Bearer ").unwrap();
    assert_eq!(token, v["token"]);
    let clock = Utc(v["now"].as_u64().unwrap());
    let grant = keys.check(token, &[text(&v["audience"])], Now { clock, latest: clock }).unwrap();
    assert_eq!(grant.covers(ABOUT.file_id, ABOUT.user_id), Ok(()));
    assert_eq!(grant.covers_content(sha256(&unhex(&request["raw"]["body"]))), Ok(()));
    let asked = PublicKey::from_base64(request["raw"]["headers"]["Teemark-Reply-Key"].as_str().unwrap());
    assert_eq!(grant.seals_to(asked), Ok(Some(x25519(REPLY).public())));
    let body: Value = serde_json::from_str(request["json"]["body"].as_str().unwrap()).unwrap();
    assert_eq!(decode(body["encrypted_content"].as_str().unwrap()), Some(unhex(&request["raw"]["body"])));
}

#[test]
fn the_vectors_log_is_a_chain_that_opens_and_is_signed_and_acknowledged() {
    let (v, keys) = (read("log"), read("keys"));
    let stream = text(&v["stream"]);
    let mut lines = stream.lines();
    let boot_nonce = log::parse_hello(lines.next().unwrap().as_bytes()).unwrap();
    let (mut head, mut segment, mut opened, mut boot) = (Head::default(), None, None, None);
    for line in lines {
        let record = Record::parse(line.as_bytes()).unwrap();
        assert!(record.follows(&head), "{line}");
        match record.kind {
            Kind::Key => segment = Segment::open(record.body, record.head.number, &x25519(LOG)),
            Kind::Sealed => opened = segment.as_ref().unwrap().open_record(record.head.number, record.body),
            Kind::Boot => boot = serde_json::from_str::<Boot>(record.body).ok(),
            Kind::Checkpoint => {
                let checkpoint: Checkpoint = serde_json::from_str(record.body).unwrap();
                assert!(checkpoint.is_by(&boot.as_ref().unwrap().identity) && checkpoint.head == head);
                assert_eq!(hex::encode(checkpoint.to_be_signed()), v["checkpoint_signed"]);
            }
            _ => {}
        }
        head = record.head;
    }
    assert_eq!(opened.map(|(kind, body)| format!("{} {body}", kind.name())), Some(text(&v["record"])));
    let ack = Ack::parse(text(&v["acknowledgement"]).trim_end().as_bytes()).unwrap();
    let collector = VerifyingKey::from_slice(&unhex(&keys["collector (Ed25519)"]["public"])).unwrap();
    assert!(ack.head == head && collector.verifies(&Ack::to_be_signed(head, boot_nonce), &ack.signature.unwrap()));
}

#[test]
fn the_vectors_attested_answers_come_apart_and_are_signed() {
    let (v, signed) = (read("attested_answer"), &read("statement")["sealed"]);
    let headers = &v["raw"]["headers"];
    let length = text(&headers["Teemark-Attestation-Length"]).parse().unwrap();
    let body = unhex(&v["raw"]["body"]);
    let (document, given) = body.split_at(length);
    let json: Value = serde_json::from_str(&text(&v["json"]["body"])).unwrap();
    assert_eq!((document, given), (&unhex(&v["document"])[..], &unhex(&v["given"])[..]));
    assert_eq!(unhex(&json["attestation"]), document);
    assert_eq!(decode(json["sealed_data"].as_str().unwrap()).unwrap(), given);
    assert_eq!((&headers["Teemark-Identity"], &headers["Teemark-Signature"]), (&json["identity"], &json["signature"]));
    let identity = VerifyingKey::from_slice(&unhex(&json["identity"])).unwrap();
    let signature = decode(json["signature"].as_str().unwrap()).unwrap();
    assert!(identity.verifies(&unhex(&signed["bcs"]), &signature));
    assert_eq!(signed["sha256"], json!(sha256(given)), "the document is not part of what is signed");
}

#[test]
fn the_vectors_answers_open_and_their_signatures_verify() {
    let v = read("sealed_answer");
    for name in ["small", "empty"] {
        let file = reply::open(&mut unhex(&v[name]["sealed"]), ABOUT, &x25519(REPLY)).unwrap();
        assert_eq!(file, unhex(&v[name]["file"]), "{name}");
    }
    let statements = read("statement");
    let identity = VerifyingKey::from_slice(&unhex(&statements["identity"])).unwrap();
    for name in ["sealed", "in the clear", "in the clear, not marked"] {
        let s = &statements[name];
        let (file_id, user_id) = (text(&s["file_id"]), text(&s["user_id"]));
        let statement = Statement {
            about: About { file_id: &file_id, user_id: &user_id },
            content_sha256: Sha256::from_hex(&text(&s["content_sha256"])).unwrap(),
            watermarked: s["watermarked"].as_bool().unwrap(),
            sealed: s["sealed"].as_bool().unwrap(),
            timestamp_ms: s["timestamp_ms"].as_u64().unwrap(),
        };
        let bcs = statement.to_bcs(&unhex(&s["given"]));
        assert_eq!(hex::encode(&bcs), text(&s["bcs"]), "{name}");
        assert!(identity.verifies(&bcs, &unhex(&s["signature"])), "{name}");
    }
}
