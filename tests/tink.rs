//! Round trips with Google's Tink: what Tink writes opens here, and what `teemark encrypt` writes opens there.
//!
//! Tink is the Python package `tink`. If it is not installed, it is put into target/tmp/tink from the network. If that
//! fails too, each test says so on standard error and returns.

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::file_keys::DeliveredKey;
use formats::files::{FileKey, FileKeys, OpenError};
use serde_json::{Value, json};

use support::*;

/// A Python that has Tink.
static PYTHON: LazyLock<Result<PathBuf, String>> =
    LazyLock::new(|| packages::python("tink", "tink.aead, tink.proto.aes_gcm_pb2"));

/// Tink itself, or `None` after a report that the test is not run.
fn tink(test: &str) -> Option<Tink> {
    match &*PYTHON {
        Ok(python) => Some(Tink(python)),
        Err(reason) => {
            not_run(test, &format!("the Python package tink cannot be had here: {reason}"));
            None
        }
    }
}

struct Tink(&'static Path);

impl Tink {
    fn ask(&self, request: &Value) -> Value {
        let script = repository().join("tests/support/ask_tink.py");
        let mut command = Command::new(self.0);
        command.arg("-B").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "ask_tink.py failed");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// A file made by Tink under a new key: key id, key, file.
    fn seal(&self, template: &str, plain: &[u8], aad: &[u8]) -> (u32, [u8; 32], Vec<u8>) {
        let answer = self.ask(&json!({
            "do": "seal", "template": template, "plain": STANDARD.encode(plain), "aad": STANDARD.encode(aad),
        }));
        let id = answer["id"].as_u64().unwrap().try_into().unwrap();
        (id, bytes(&answer["key"]).try_into().unwrap(), bytes(&answer["file"]))
    }

    /// What Tink finds in a file, if it accepts it.
    fn open(&self, prefix: &str, id: u32, key: &[u8], file: &[u8], aad: &[u8]) -> Option<Vec<u8>> {
        let answer = self.ask(&json!({
            "do": "open", "prefix": prefix, "id": id, "key": STANDARD.encode(key), "file": STANDARD.encode(file),
            "aad": STANDARD.encode(aad),
        }));
        assert!(answer["plain"].is_string() != answer["refused"].is_string(), "{answer}");
        answer["plain"].is_string().then(|| bytes(&answer["plain"]))
    }
}

fn bytes(base64: &Value) -> Vec<u8> {
    STANDARD.decode(base64.as_str().unwrap()).unwrap()
}

/// Nothing, a little, a lot; text and not.
fn plaintexts() -> [Vec<u8>; 3] {
    [vec![], "Grüße\n".into(), (0..1_000_000_u32).flat_map(|n| n.to_le_bytes()).collect()]
}

#[test]
fn what_tink_seals_under_aes256_gcm_opens_by_its_prefix() {
    let Some(tink) = tink("what_tink_seals_under_aes256_gcm_opens_by_its_prefix") else { return };
    for plain in plaintexts() {
        let (id, key, file) = tink.seal("AES256_GCM", &plain, b"");
        assert_eq!(file[..5], [&[1], &id.to_be_bytes()[..]].concat());
        // Beside another key, so that only the prefix tells which one it is.
        let keys = [(id.to_string(), key), ("other".to_owned(), [7; 32])];
        let keys: FileKeys =
            keys.into_iter().map(|(id, key)| (id, FileKey::from(&DeliveredKey::new(Box::new(key), false)))).collect();
        assert!(keys.open(file.clone(), "file", None) == Ok(plain.clone()));
        assert!(keys.open(file.clone(), "file", Some(&id.to_string())) == Ok(plain));
        assert_eq!(keys.open(file, "file", Some("other")), Err(OpenError::Failed));
    }
}

#[test]
fn what_tink_seals_under_aes256_gcm_raw_opens() {
    let Some(tink) = tink("what_tink_seals_under_aes256_gcm_raw_opens") else { return };
    for plain in plaintexts() {
        let (id, key, file) = tink.seal("AES256_GCM_RAW", &plain, b"");
        let keys: FileKeys =
            [(id.to_string(), FileKey::from(&DeliveredKey::new(Box::new(key), false)))].into_iter().collect();
        assert!(keys.open(file.clone(), "file", None) == Ok(plain.clone()));
        assert!(keys.open(file, "file", Some(&id.to_string())) == Ok(plain));
    }
}

#[test]
fn what_tink_binds_to_a_file_id_opens_for_that_id_only() {
    let Some(tink) = tink("what_tink_binds_to_a_file_id_opens_for_that_id_only") else { return };
    for template in ["AES256_GCM", "AES256_GCM_RAW"] {
        let (id, key, file) = tink.seal(template, b"a text", b"file-1");
        let keys: FileKeys =
            [(id.to_string(), FileKey::from(&DeliveredKey::new(Box::new(key), true)))].into_iter().collect();
        assert_eq!(keys.open(file.clone(), "file-1", None), Ok(b"a text".to_vec()));
        assert_eq!(keys.open(file, "file-2", None), Err(OpenError::Failed));
    }
}

/// A new key from `teemark keygen`, and a file from `teemark encrypt` under it: key id, key, file.
fn sealed_by_teemark(plain: &[u8], aad: bool, encrypt: &[&str]) -> (u32, Vec<u8>, Vec<u8>) {
    let folder = tempfile::TempDir::new().unwrap();
    fs::write(folder.path().join("plain"), plain).unwrap();
    let teemark = |arguments: &[&str]| succeeds(teemark(folder.path(), arguments));
    teemark(if aad { &["keygen", "--output", "keys.json", "--aad"] } else { &["keygen", "--output", "keys.json"] });
    teemark(&[&["encrypt", "plain", "--keys", "keys.json", "--output", "sealed"], encrypt].concat());
    let keys: Value = serde_json::from_slice(&fs::read(folder.path().join("keys.json")).unwrap()).unwrap();
    let (id, key) = keys.as_object().unwrap().iter().next().unwrap();
    let key = if aad { &key["key"] } else { key };
    (id.parse().unwrap(), bytes(key), fs::read(folder.path().join("sealed")).unwrap())
}

#[test]
fn what_teemark_encrypt_writes_tink_opens() {
    let Some(tink) = tink("what_teemark_encrypt_writes_tink_opens") else { return };
    for (prefix, options) in [("RAW", &[][..]), ("TINK", &["--tink"])] {
        for plain in plaintexts() {
            let (id, key, file) = sealed_by_teemark(&plain, false, options);
            assert!(tink.open(prefix, id, &key, &file, b"") == Some(plain), "{prefix}");
        }
    }
}

#[test]
fn what_teemark_encrypt_binds_to_a_file_id_tink_opens_with_that_associated_data_only() {
    let Some(tink) = tink("what_teemark_encrypt_binds_to_a_file_id_tink_opens_with_that_associated_data_only") else {
        return;
    };
    for (prefix, options) in [("RAW", &["--file-id", "file-1"][..]), ("TINK", &["--file-id", "file-1", "--tink"])] {
        let (id, key, mut file) = sealed_by_teemark(b"a text", true, options);
        assert_eq!(tink.open(prefix, id, &key, &file, b"file-1"), Some(b"a text".to_vec()));
        assert_eq!(tink.open(prefix, id, &key, &file, b"file-2"), None);
        *file.last_mut().unwrap() ^= 1;
        assert_eq!(tink.open(prefix, id, &key, &file, b"file-1"), None);
    }
}
