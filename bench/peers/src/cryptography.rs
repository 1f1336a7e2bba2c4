//! Opening a file, and signing what goes out.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest::{Digest, SHA256, digest};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

/// The file key.
pub(crate) struct Opener(LessSafeKey);

impl Opener {
    pub(crate) fn new(key: &[u8]) -> Result<Opener> {
        Ok(Opener(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key)?)))
    }

    /// Opens `IV || ciphertext || tag`.
    pub(crate) fn open(&self, mut file: Vec<u8>) -> Result<Vec<u8>> {
        let iv = file.first_chunk::<NONCE_LEN>().ok_or_else(|| anyhow!("too short for an encrypted file"))?;
        let nonce = Nonce::assume_unique_for_key(*iv);
        let plain = self.0.open_within(nonce, Aad::empty(), &mut file, NONCE_LEN..)?.len();
        file.truncate(plain);
        Ok(file)
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    digest(&SHA256, bytes)
}

/// The key that answers are signed with.
pub(crate) struct Identity(Ed25519KeyPair);

/// What is signed, as Nautilus signs it: BCS.
#[derive(Serialize)]
struct IntentMessage<'a> {
    intent: u8,
    timestamp_ms: u64,
    data: Given<'a>,
}

#[derive(Serialize)]
struct Given<'a> {
    sha256: &'a [u8],
    content_sha256: &'a [u8],
    file_id: &'a str,
    user_id: &'a str,
    watermarked: bool,
}

impl Identity {
    pub(crate) fn generate() -> Result<Identity> {
        Ok(Identity(Ed25519KeyPair::generate()?))
    }

    pub(crate) fn public_hex(&self) -> String {
        self.0.public_key().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The time, and the signature in base64.
    pub(crate) fn sign(
        &self,
        given: &[u8],
        content: &Digest,
        (file_id, user_id): (&str, &str),
    ) -> Result<(u64, String)> {
        let timestamp_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        let sha256 = sha256(given);
        let data =
            Given { sha256: sha256.as_ref(), content_sha256: content.as_ref(), file_id, user_id, watermarked: true };
        let message = bcs::to_bytes(&IntentMessage { intent: 0, timestamp_ms, data })?;
        Ok((timestamp_ms, STANDARD.encode(self.0.sign(&message))))
    }
}
