//! What everybody has to have before anything can be measured: certificates, keys, files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

use crate::cell::Content;

pub(crate) const FILE_ID: &str = "report-7";
pub(crate) const USER_ID: &str = "alice";

/// What the watermark service puts in the place of the first four characters, of a text or of base64.
pub(crate) const MARK: &[u8; 4] = b"MARK";

/// One text, over and over: JSON has to escape some of it, and some takes more than a byte a character.
const TEXT: &str = "The report says \"no\" twice.\nTrading in Zürich ended at 5 o'clock; nobody had asked why.\n";

/// Certificates and keys of one run, in a folder of its own.
pub(crate) struct Material {
    pub(crate) certs: PathBuf,
    file_key: Vec<u8>,
}

/// An encrypted file, and what has to come back for it.
pub(crate) struct Sample {
    pub(crate) encrypted: Vec<u8>,
    pub(crate) content_sha256: Vec<u8>,
    pub(crate) marked: Vec<u8>,
}

impl Material {
    /// Makes a CA, the watermark service's certificate and the client's by the project's own script.
    pub(crate) fn make(folder: &Path) -> Result<Material> {
        let certs = folder.join("certs");
        let made = Command::new("certs/make-certs.sh").arg(&certs).output().context("certs/make-certs.sh")?;
        if !made.status.success() {
            bail!("certs/make-certs.sh: {}", String::from_utf8_lossy(&made.stderr));
        }
        Ok(Material { certs, file_key: random(32)? })
    }

    pub(crate) fn file_key(&self) -> String {
        STANDARD.encode(&self.file_key)
    }

    /// MTLS_CLIENT_CERT_JSON.
    pub(crate) fn client_certificate(&self) -> Result<String> {
        let read = |name: &str| fs::read_to_string(self.certs.join(name)).with_context(|| name.to_owned());
        let parts = serde_json::json!({
            "client_cert": read("client.crt")?,
            "client_key": read("client.key")?,
            "ca_cert": read("ecs-ca.crt")?,
        });
        Ok(parts.to_string())
    }

    pub(crate) fn sample(&self, size: usize, content: Content) -> Result<Sample> {
        let plain = match content {
            Content::Binary => random(size)?,
            Content::Text => text(size),
        };
        let marked = match content {
            Content::Binary => [&STANDARD.decode(MARK)?, &plain[3..]].concat(),
            Content::Text => [&MARK[..], &plain[4..]].concat(),
        };
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &self.file_key)?);
        let iv: [u8; NONCE_LEN] = random(NONCE_LEN)?.try_into().expect("as many as were asked for");
        let mut sealed = plain;
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut sealed)?;
        let encrypted = [&iv[..], &sealed].concat();
        let content_sha256 = digest(&SHA256, &encrypted).as_ref().to_vec();
        Ok(Sample { encrypted, content_sha256, marked })
    }
}

pub(crate) fn random(n: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; n];
    SystemRandom::new().fill(&mut bytes)?;
    Ok(bytes)
}

/// A text of exactly this many bytes of UTF-8.
fn text(size: usize) -> Vec<u8> {
    let mut text = TEXT.repeat(size / TEXT.len()).into_bytes();
    text.resize(size, b'.');
    text
}
