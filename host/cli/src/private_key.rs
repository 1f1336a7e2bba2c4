//! Private keys of key pairs, as openssl keeps them: PKCS#8 (RFC 5958) in PEM.

use std::fmt;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use pem::{EncodeConfig, LineEnding, Pem};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use teemarkd::hpke;

use crate::keys::fill_random;
use crate::output;

/// Largest file taken, in bytes: a key has some hundred, and a comment may stand before it.
const LARGEST: u64 = 64 << 10;
/// The tag of PKCS#8 in PEM, without a passphrase (RFC 7468, 10).
const TAG: &str = "PRIVATE KEY";
/// What stands before the 32 bytes of a key of these two kinds: version 1, the kind's OID, two OCTET STRINGs
/// (RFC 8410, 7). The OIDs, 1.3.101.112 and 1.3.101.110, differ in their last byte.
const ED25519: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
const X25519: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x6e\x04\x22\x04\x20";

/// A private key by what it can do.
pub enum PrivateKey {
    /// Signs (RFC 8032): an operator's, or a grants issuer's.
    Ed25519(Ed25519KeyPair),
    /// Signs (ES256): a grants issuer's.
    P256(EcdsaKeyPair),
    /// Opens what is sealed to it: a user's.
    X25519(hpke::PrivateKey),
}

/// The kinds of key that are made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ed25519,
    X25519,
}

/// Shows the kind only.
impl fmt::Display for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PrivateKey::Ed25519(_) => "an Ed25519 key",
            PrivateKey::P256(_) => "a P-256 key",
            PrivateKey::X25519(_) => "an X25519 key",
        })
    }
}

impl PrivateKey {
    /// Makes a new key; also gives it in PEM.
    ///
    /// # Errors
    /// The system has no random numbers to give.
    pub fn generate(kind: Kind) -> Result<(PrivateKey, String)> {
        let mut der = match kind {
            Kind::Ed25519 => ED25519.to_vec(),
            Kind::X25519 => X25519.to_vec(),
        };
        der.resize(der.len() + 32, 0);
        fill_random(&mut der[16..])?;
        let key = PrivateKey::from_der(&der).context("a new key cannot be read back")?;
        let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
        Ok((key, pem::encode_config(&Pem::new(TAG, der), lines)))
    }

    /// Reads a key file, and warns on stderr where others can read it too.
    ///
    /// # Errors
    /// It cannot be read, or holds no such key; no message repeats any of it.
    pub fn read(path: &Path) -> Result<PrivateKey> {
        let in_file = || format!("the key file {}", path.display());
        let mut text = Vec::new();
        output::open_key(path)?.take(LARGEST).read_to_end(&mut text).with_context(in_file)?;
        PrivateKey::parse(&text).with_context(in_file)
    }

    fn parse(text: &[u8]) -> Result<PrivateKey> {
        // The parser's own errors may repeat bytes of the file.
        let blocks = pem::parse_many(text).unwrap_or_default();
        let mut keys = blocks.iter().filter(|block| block.tag() == TAG);
        let (Some(block), None) = (keys.next(), keys.next()) else {
            bail!("it does not hold one {TAG} in PEM, without a passphrase; `openssl pkey -in FILE` writes one");
        };
        PrivateKey::from_der(block.contents()).context("its key is none of Ed25519, X25519 and P-256")
    }

    fn from_der(der: &[u8]) -> Option<PrivateKey> {
        if let Some(key) = der.strip_prefix(&X25519) {
            return key.try_into().ok().map(|key| PrivateKey::X25519(hpke::PrivateKey::new(Box::new(key))));
        }
        let ed25519 = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map(PrivateKey::Ed25519);
        let p256 = || EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &SystemRandom::new());
        ed25519.or_else(|_| p256().map(PrivateKey::P256)).ok()
    }

    /// The key where it is an operator's.
    ///
    /// # Errors
    /// It is of another kind.
    pub fn operators(self) -> Result<Ed25519KeyPair> {
        match self {
            PrivateKey::Ed25519(key) => Ok(key),
            other => bail!("it is {other}, and an operator's is an Ed25519 key: teemark keygen --for operator"),
        }
    }

    /// The key where it is one that answers are sealed to.
    ///
    /// # Errors
    /// It is of another kind.
    pub fn reply(self) -> Result<hpke::PrivateKey> {
        match self {
            PrivateKey::X25519(key) => Ok(key),
            other => bail!("it is {other}, and a reply key is an X25519 key: teemark keygen --for reply"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use ring::signature::KeyPair;

    /// RFC 8410, 10.3.
    const RFC: &str = "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC";
    const RFC_PUBLIC: &str = "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";

    fn parse(base64: &str) -> Result<PrivateKey> {
        PrivateKey::parse(format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n").as_bytes())
    }

    #[test]
    fn the_key_of_rfc_8410_is_read_and_one_with_its_public_half_in_it_as_well() {
        let key = parse(RFC).unwrap().operators().unwrap();
        assert_eq!(STANDARD.encode(key.public_key()), RFC_PUBLIC);
        let version_2 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        parse(&STANDARD.encode(version_2)).unwrap().operators().unwrap();
    }

    #[test]
    fn what_is_no_such_key_is_refused_without_a_word_of_it() {
        let secret = &RFC[30..40];
        let block = |tag: &str| format!("-----BEGIN {tag}-----\n{RFC}\n-----END {tag}-----\n");
        let (key, encrypted) = (block("PRIVATE KEY"), block("ENCRYPTED PRIVATE KEY"));
        for text in ["", RFC, &key[..60], &encrypted, &block("EC PRIVATE KEY"), &key.repeat(2)] {
            let error = format!("{:#}", PrivateKey::parse(text.as_bytes()).err().unwrap());
            assert!(error.contains("openssl pkey") && !error.contains(secret), "{error}");
        }
        for base64 in [&RFC[..60], "MAA="] {
            let error = format!("{:#}", parse(base64).err().unwrap());
            assert!(error.contains("none of Ed25519") && !error.contains(secret), "{error}");
        }
    }

    #[test]
    fn a_key_for_one_use_is_not_taken_for_another() {
        let make = |kind| PrivateKey::generate(kind).unwrap().0;
        assert!(make(Kind::Ed25519).operators().is_ok() && make(Kind::X25519).reply().is_ok());
        assert!(make(Kind::X25519).operators().err().unwrap().to_string().contains("is an X25519 key"));
        assert!(make(Kind::Ed25519).reply().err().unwrap().to_string().contains("is an Ed25519 key"));
    }
}
