//! Checks that an answer is signed by the attested enclave, and opens one that is sealed to the user's key.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::digest::Sha256;
use formats::hpke::PrivateKey;
use formats::reply::{self, About, SEALED, SIGNATURE, Statement, TIMESTAMP, WATERMARKED};
use formats::signature::VerifyingKey;
use ureq::http::HeaderMap;

/// How old a signature may be or, if clocks differ, how far in the future.
pub(crate) const WINDOW: Duration = Duration::from_secs(300);

/// The identity key of the attested enclave, which has to sign the answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdentityKey(pub(crate) VerifyingKey);

/// The request that an answer has to belong to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) about: About<'a>,
    /// SHA-256 of the encrypted file that was sent.
    pub(crate) content_sha256: Sha256,
    pub(crate) sealed: bool,
}

/// Why an answer is not accepted as the enclave's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotSigned {
    /// This header field is missing, occurs twice, or cannot be read.
    Field(&'static str),
    /// The signature is by another key, or of something else.
    Signature,
    /// The signature is this many seconds old.
    Old(u64),
    /// The signature's time is this many seconds in the future.
    Early(u64),
}

impl fmt::Display for NotSigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the answer is not signed by the attested enclave: ")?;
        let limit = WINDOW.as_secs();
        match self {
            NotSigned::Field(name) => write!(f, "{name} is missing, or is not what teemarkd sends"),
            NotSigned::Signature => {
                f.write_str("its signature is by another key, or of other bytes, another request or another time")
            }
            NotSigned::Old(seconds) => write!(
                f,
                "its signature is {seconds} s old, and at most {limit} s are allowed; \
                 either somebody replays an old answer or this machine's clock is wrong"
            ),
            NotSigned::Early(seconds) => write!(
                f,
                "its signature is {seconds} s in the future, and at most {limit} s are allowed; \
                 this machine's clock or the enclave's is wrong"
            ),
        }
    }
}

impl std::error::Error for NotSigned {}

/// Whether the answer says that it is sealed.
pub(crate) fn is_sealed(headers: &HeaderMap) -> bool {
    field(headers, SEALED).is_ok_and(|value| value == "true")
}

/// Whether the answer says that the file in it was not marked.
pub(crate) fn is_unmarked(headers: &HeaderMap) -> bool {
    field(headers, WATERMARKED).is_ok_and(|value| value == "false")
}

/// Opens a sealed answer.
///
/// # Errors
/// It was sealed to another key, about another file or user, or has been altered.
pub(crate) fn open(mut sealed: Vec<u8>, about: About<'_>, key: &PrivateKey) -> Result<Vec<u8>> {
    reply::open(&mut sealed, about, key).context("the sealed answer cannot be opened")
}

impl IdentityKey {
    /// Checks that the enclave signed exactly these bytes as the answer to this request, at most [`WINDOW`] from `now`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(crate) fn check(
        self,
        headers: &HeaderMap,
        given: &[u8],
        asked: Asked<'_>,
        now: SystemTime,
    ) -> Result<(), NotSigned> {
        let Asked { about, content_sha256, sealed } = asked;
        let timestamp_ms = field(headers, TIMESTAMP)?.parse().map_err(|_| NotSigned::Field(TIMESTAMP))?;
        let watermarked = field(headers, WATERMARKED)?.parse().map_err(|_| NotSigned::Field(WATERMARKED))?;
        let signature = STANDARD.decode(field(headers, SIGNATURE)?).map_err(|_| NotSigned::Field(SIGNATURE))?;
        let statement = Statement { about, content_sha256, watermarked, sealed, timestamp_ms };
        if !self.0.verifies(&statement.to_bcs(given), &signature) {
            return Err(NotSigned::Signature);
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let signed = Duration::from_millis(timestamp_ms);
        match (now.saturating_sub(signed), signed.saturating_sub(now)) {
            (age, _) if age > WINDOW => Err(NotSigned::Old(age.as_secs())),
            (_, ahead) if ahead > WINDOW => Err(NotSigned::Early(ahead.as_secs())),
            _ => Ok(()),
        }
    }
}

/// The value of a header field that occurs once.
fn field<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, NotSigned> {
    let mut values = headers.get_all(name).iter();
    match (values.next().map(|value| value.to_str()), values.next()) {
        (Some(Ok(value)), None) => Ok(value),
        _ => Err(NotSigned::Field(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    const ASKED: Asked<'static> = Asked {
        about: About { file_id: "f", user_id: "u" },
        content_sha256: Sha256::from_bytes([9; 32]),
        sealed: true,
    };
    const SIGNED_MS: u64 = 1_764_000_000_123;

    fn key(byte: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[byte; 32]).unwrap()
    }

    fn check_at(headers: &HeaderMap, given: &[u8], asked: Asked<'_>, now_ms: u64) -> Result<(), NotSigned> {
        let identity = IdentityKey(VerifyingKey::from_slice(key(1).public_key().as_ref()).unwrap());
        identity.check(headers, given, asked, UNIX_EPOCH + Duration::from_millis(now_ms))
    }

    fn signature_by(byte: u8) -> String {
        let Asked { about, content_sha256, sealed } = ASKED;
        let statement = Statement { about, content_sha256, watermarked: true, sealed, timestamp_ms: SIGNED_MS };
        STANDARD.encode(key(byte).sign(&statement.to_bcs(b"bytes")))
    }

    fn signed() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(TIMESTAMP, SIGNED_MS.to_string().parse().unwrap());
        headers.insert(WATERMARKED, "true".parse().unwrap());
        headers.insert(SIGNATURE, signature_by(1).parse().unwrap());
        headers
    }

    #[test]
    fn what_was_signed_passes_and_anything_else_does_not() {
        let check = |headers: &HeaderMap, given, asked| check_at(headers, given, asked, SIGNED_MS);
        assert_eq!(check(&signed(), b"bytes", ASKED), Ok(()));
        assert_eq!(check(&signed(), b"other", ASKED), Err(NotSigned::Signature));
        for asked in [
            Asked { about: About { file_id: "g", ..ASKED.about }, ..ASKED },
            Asked { about: About { user_id: "v", ..ASKED.about }, ..ASKED },
            Asked { content_sha256: Sha256::from_bytes([8; 32]), ..ASKED },
            Asked { sealed: false, ..ASKED },
        ] {
            assert_eq!(check(&signed(), b"bytes", asked), Err(NotSigned::Signature), "{asked:?}");
        }
        let with = |name, value: String| {
            let mut headers = signed();
            headers.insert(name, value.parse().unwrap());
            check(&headers, b"bytes", ASKED)
        };
        assert_eq!(with(TIMESTAMP, (SIGNED_MS + 1).to_string()), Err(NotSigned::Signature));
        assert_eq!(with(TIMESTAMP, "now".into()), Err(NotSigned::Field(TIMESTAMP)));
        assert_eq!(with(WATERMARKED, "false".into()), Err(NotSigned::Signature));
        assert_eq!(with(WATERMARKED, "perhaps".into()), Err(NotSigned::Field(WATERMARKED)));
        assert_eq!(with(SIGNATURE, "?".into()), Err(NotSigned::Field(SIGNATURE)));
        assert_eq!(with(SIGNATURE, signature_by(2)), Err(NotSigned::Signature));
    }

    #[test]
    fn a_field_that_is_missing_or_stands_twice_counts_for_nothing() {
        for name in [TIMESTAMP, WATERMARKED, SIGNATURE] {
            let (mut without, mut twice) = (signed(), signed());
            let value = without.remove(name).unwrap();
            twice.append(name, value);
            for headers in [without, twice] {
                assert_eq!(check_at(&headers, b"bytes", ASKED, SIGNED_MS), Err(NotSigned::Field(name)));
            }
        }
    }

    #[test]
    fn five_minutes_are_allowed_either_way() {
        let check = |now_ms| check_at(&signed(), b"bytes", ASKED, now_ms);
        assert_eq!(check(SIGNED_MS + 300_000), Ok(()));
        assert_eq!(check(SIGNED_MS + 300_001), Err(NotSigned::Old(300)));
        assert_eq!(check(SIGNED_MS - 300_000), Ok(()));
        assert_eq!(check(SIGNED_MS - 300_001), Err(NotSigned::Early(300)));
    }
}
