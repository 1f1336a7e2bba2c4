//! Private keys of key pairs, as openssl writes them: PKCS#8 (RFC 5958) in PEM. A line before it says what the key is for;
//! readers of PEM ignore such text (RFC 7468, 2).

use std::fmt;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use formats::grants::Issuer;
use formats::hpke;
use pem::{EncodeConfig, LineEnding, Pem};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};

use crate::keys::fill_random;
use crate::output;

/// Largest file, in bytes: a key has some hundred, and a comment may come before it.
const LARGEST: u64 = 64 << 10;
/// The tag of PKCS#8 in PEM, without a passphrase (RFC 7468, 10).
const TAG: &str = "PRIVATE KEY";
/// The beginning of the line that says what the key is for.
const USE_LINE: &str = "teemark private key for: ";
/// The bytes before the 32 bytes of a key of these two kinds: version 1, the kind's OID, two OCTET STRINGs
/// (RFC 8410, 7). The OIDs, 1.3.101.112 and 1.3.101.110, differ in their last byte.
const ED25519: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
const X25519: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x6e\x04\x22\x04\x20";

/// A private key, by its kind.
pub(crate) enum PrivateKey {
    /// Signs (RFC 8032): an operator's, or a grants issuer's.
    Ed25519(Ed25519KeyPair),
    /// Signs (ES256): a grants issuer's.
    P256(EcdsaKeyPair),
    /// Opens what is sealed to it: a user's.
    X25519(hpke::PrivateKey),
}

/// What a key pair is for, which its file says by [`Use::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// To sign bundles.
    Operator,
    /// To sign grants.
    Grants,
    /// To have answers sealed to.
    Reply,
    /// To have the log sealed to.
    Log,
    /// To sign acknowledgements of the log with.
    Collector,
}

impl Use {
    const ALL: [Use; 5] = [Use::Operator, Use::Grants, Use::Reply, Use::Log, Use::Collector];

    /// The value of `keygen --for`, and of the line in the file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Use::Operator => "operator",
            Use::Grants => "grants",
            Use::Reply => "reply",
            Use::Log => "log",
            Use::Collector => "collector",
        }
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Use::Operator => "an operator's key",
            Use::Grants => "a key to sign grants with",
            Use::Reply => "a key for replies",
            Use::Log => "a key for sealed logs",
            Use::Collector => "a collector's key",
        };
        write!(f, "{what} (keygen --for {})", self.name())
    }
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

/// Checks that the key is for this use, if the file says what it is for.
fn check_use(text: &[u8], wanted: Use) -> Result<()> {
    let Some(name) = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(USE_LINE.as_bytes())) else {
        return Ok(());
    };
    let name = name.trim_ascii();
    match Use::ALL.into_iter().find(|known| known.name().as_bytes() == name) {
        Some(found) if found == wanted => Ok(()),
        Some(found) => bail!("it is {found}, but {wanted} is needed here"),
        None => bail!("it is a key for a use that this teemark does not know, but {wanted} is needed here"),
    }
}

impl PrivateKey {
    /// Makes a new key; also returns the text of its file: the line that says what it is for, and PEM.
    ///
    /// # Errors
    /// The system has no random numbers to give.
    pub(crate) fn generate(purpose: Use) -> Result<(PrivateKey, String)> {
        let mut der = match purpose {
            Use::Operator | Use::Grants | Use::Collector => ED25519.to_vec(),
            Use::Reply | Use::Log => X25519.to_vec(),
        };
        der.resize(der.len() + 32, 0);
        fill_random(&mut der[16..])?;
        let key = PrivateKey::from_der(&der).context("a new key cannot be read back")?;
        let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
        Ok((key, format!("{USE_LINE}{}\n{}", purpose.name(), pem::encode_config(&Pem::new(TAG, der), lines))))
    }

    /// Reads a key file, and warns on stderr if others can read it too. One that does not say what it is for, as openssl
    /// makes it, is accepted for any use.
    ///
    /// # Errors
    /// It cannot be read, holds no such key, or one for another use; no message repeats any of the key.
    pub(crate) fn read(path: &Path, wanted: Use) -> Result<PrivateKey> {
        let in_file = || format!("the key file {}", path.display());
        let mut text = Vec::new();
        output::open_key(path)?.take(LARGEST).read_to_end(&mut text).with_context(in_file)?;
        PrivateKey::parse(&text, wanted).with_context(in_file)
    }

    fn parse(text: &[u8], wanted: Use) -> Result<PrivateKey> {
        check_use(text, wanted)?;
        // The parser's own errors may repeat bytes of the file.
        let blocks = pem::parse_many(text).unwrap_or_default();
        let mut keys = blocks.iter().filter(|block| block.tag() == TAG);
        let (Some(block), None) = (keys.next(), keys.next()) else {
            bail!("it does not hold one {TAG} in PEM, without a passphrase; `openssl pkey -in FILE` writes one");
        };
        PrivateKey::from_der(block.contents()).context("its key is not an Ed25519, X25519 or P-256 key")
    }

    fn from_der(der: &[u8]) -> Option<PrivateKey> {
        if let Some(key) = der.strip_prefix(&X25519) {
            return key.try_into().ok().map(|key| PrivateKey::X25519(hpke::PrivateKey::new(Box::new(key))));
        }
        let ed25519 = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map(PrivateKey::Ed25519);
        let p256 = || EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &SystemRandom::new());
        ed25519.or_else(|_| p256().map(PrivateKey::P256)).ok()
    }

    /// The key, if it can be an operator's.
    ///
    /// # Errors
    /// It is of another kind.
    pub(crate) fn operators(self) -> Result<Ed25519KeyPair> {
        match self {
            PrivateKey::Ed25519(key) => Ok(key),
            other => bail!("it is {other}, and an operator's is an Ed25519 key: teemark keygen --for operator"),
        }
    }

    /// The key, if it can be a collector's.
    ///
    /// # Errors
    /// It is of another kind.
    pub(crate) fn collectors(self) -> Result<Ed25519KeyPair> {
        match self {
            PrivateKey::Ed25519(key) => Ok(key),
            other => bail!("it is {other}, and a collector's is an Ed25519 key: teemark keygen --for collector"),
        }
    }

    /// The key, if logs can be sealed to it.
    ///
    /// # Errors
    /// It is of another kind.
    pub(crate) fn log(self) -> Result<hpke::PrivateKey> {
        match self {
            PrivateKey::X25519(key) => Ok(key),
            other => bail!("it is {other}, and a log key is an X25519 key: teemark keygen --for log"),
        }
    }

    /// The key, if it can sign grants.
    ///
    /// # Errors
    /// It is of another kind.
    pub(crate) fn issuer(self) -> Result<Issuer> {
        match self {
            PrivateKey::Ed25519(key) => Ok(Issuer::from(key)),
            PrivateKey::P256(key) => Ok(Issuer::from(key)),
            other => {
                bail!("it is {other}, and grants are signed with an Ed25519 or P-256 key: teemark keygen --for grants")
            }
        }
    }

    /// The key, if answers can be sealed to it.
    ///
    /// # Errors
    /// It is of another kind.
    pub(crate) fn reply(self) -> Result<hpke::PrivateKey> {
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
        let text = format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n");
        PrivateKey::parse(text.as_bytes(), Use::Operator)
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
            let error = format!("{:#}", PrivateKey::parse(text.as_bytes(), Use::Operator).err().unwrap());
            assert!(error.contains("openssl pkey") && !error.contains(secret), "{error}");
        }
        for base64 in [&RFC[..60], "MAA="] {
            let error = format!("{:#}", parse(base64).err().unwrap());
            assert!(error.contains("not an Ed25519") && !error.contains(secret), "{error}");
        }
    }

    #[test]
    fn a_key_of_one_kind_is_not_taken_for_another() {
        let make = |purpose| PrivateKey::generate(purpose).unwrap().0;
        assert!(make(Use::Operator).operators().is_ok() && make(Use::Reply).reply().is_ok());
        assert!(make(Use::Reply).operators().err().unwrap().to_string().contains("is an X25519 key"));
        assert!(make(Use::Grants).reply().err().unwrap().to_string().contains("is an Ed25519 key"));
    }

    #[test]
    fn a_key_says_what_it_is_for_and_is_taken_for_nothing_else() {
        for made in Use::ALL {
            let text = PrivateKey::generate(made).unwrap().1;
            for wanted in Use::ALL {
                match PrivateKey::parse(text.as_bytes(), wanted) {
                    Ok(_) => assert_eq!(made, wanted),
                    Err(error) => assert_eq!(error.to_string(), format!("it is {made}, but {wanted} is needed here")),
                }
            }
            let later = text.replacen(made.name(), "audits", 1);
            let error = PrivateKey::parse(later.as_bytes(), made).err().unwrap().to_string();
            assert!(error.contains("does not know"), "{error}");
        }
    }
}
