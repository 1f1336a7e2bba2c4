//! Checks that an answer is signed by the attested enclave, and opens one that is sealed to the user's key.

use std::fmt;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::digest::Sha256;
use formats::hpke::PrivateKey;
use formats::reply::{self, ATTESTATION_LENGTH, About, IDENTITY, SEALED, SIGNATURE, Statement, TIMESTAMP, WATERMARKED};
use formats::signature::VerifyingKey;
use ureq::http::HeaderMap;

/// How old a signature may be by this machine's clock or, if clocks differ, how far in the future.
const WINDOW: Duration = Duration::from_secs(300);
/// How long before the document that was made for its request an answer may have been signed. Both times are the enclave's.
/// It signs after the document is made; its clock is kept within a second or two of the module's.
const BEFORE_DOCUMENT: Duration = Duration::from_secs(10);
/// Largest attestation document in front of a file, in bytes.
const LARGEST_DOCUMENT: usize = 64 << 10;

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

/// What the time of an answer's signature is held against.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Clock {
    /// This machine's.
    Here(SystemTime),
    /// The enclave's: when the document for the answer's request was made, in milliseconds since 1970.
    Document(u64),
}

/// Why an answer is not accepted as the enclave's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotSigned {
    /// This header field is missing, occurs twice, or cannot be read.
    Field(&'static str),
    /// The signature is by another key, or of something else.
    Signature,
    /// It says that the enclave with this identity key signed it, and another was attested.
    Another(String),
    /// It was signed this many seconds before the document for its request was made.
    BeforeDocument(u64),
    /// There is no attestation document with it.
    NoDocument,
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
            NotSigned::Another(signer) => write!(
                f,
                "its signature is by another key, and it names the enclave with identity key {signer} as its signer: the \
                 address leads to several enclaves. Without --attested and --max-age each answer brings the document of \
                 the enclave that signed it"
            ),
            NotSigned::BeforeDocument(seconds) => write!(
                f,
                "it was signed {seconds} s before the attestation document for this request was made; somebody replays an \
                 old answer beside a fresh document"
            ),
            NotSigned::NoDocument => f.write_str(
                "it came without the attestation document that was asked for: somebody on the way took that out, or the \
                 daemon is too old to know it",
            ),
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

/// How many bytes in front of the file are the attestation document; 0 if there is none.
///
/// # Errors
/// The field occurs twice, or is not a length that a document can have.
pub(crate) fn document_length(headers: &HeaderMap) -> Result<usize, NotSigned> {
    if !headers.contains_key(ATTESTATION_LENGTH) {
        return Ok(0);
    }
    let length = field(headers, ATTESTATION_LENGTH)?.parse().ok();
    length.filter(|length| (1..=LARGEST_DOCUMENT).contains(length)).ok_or(NotSigned::Field(ATTESTATION_LENGTH))
}

/// The identity key that the answer says it is signed with. Anybody on the way can put another there.
pub(crate) fn signer(headers: &HeaderMap) -> Option<VerifyingKey> {
    hex::decode(field(headers, IDENTITY).ok()?).ok().and_then(|key| VerifyingKey::from_slice(&key))
}

/// Takes the attestation document, of a known length, from the beginning of a body; the rest goes to a sink.
pub(crate) struct BehindDocument<W> {
    document: Vec<u8>,
    length: usize,
    sink: W,
}

impl<W: Write> BehindDocument<W> {
    pub(crate) fn new(length: usize, sink: W) -> BehindDocument<W> {
        BehindDocument { document: Vec::with_capacity(length), length, sink }
    }

    /// The document, once the body has ended.
    ///
    /// # Errors
    /// The body has fewer bytes than the document.
    pub(crate) fn document(self) -> Result<Vec<u8>, NotSigned> {
        if self.document.len() == self.length { Ok(self.document) } else { Err(NotSigned::Field(ATTESTATION_LENGTH)) }
    }
}

impl<W: Write> Write for BehindDocument<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let missing = self.length - self.document.len();
        if missing == 0 {
            return self.sink.write(bytes);
        }
        let taken = missing.min(bytes.len());
        self.document.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// Opens a sealed answer.
///
/// # Errors
/// It was sealed to another key, about another file or user, or has been altered.
pub(crate) fn open(mut sealed: Vec<u8>, about: About<'_>, key: &PrivateKey) -> Result<Vec<u8>> {
    reply::open(&mut sealed, about, key).context("the sealed answer cannot be opened")
}

impl IdentityKey {
    /// Checks that the enclave signed exactly these bytes as the answer to this request, and when: at most [`WINDOW`] from
    /// this machine's time, or at most [`BEFORE_DOCUMENT`] before the document for this request.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(crate) fn check(
        self,
        headers: &HeaderMap,
        given: &[u8],
        asked: Asked<'_>,
        clock: Clock,
    ) -> Result<(), NotSigned> {
        let Asked { about, content_sha256, sealed } = asked;
        let timestamp_ms = field(headers, TIMESTAMP)?.parse().map_err(|_| NotSigned::Field(TIMESTAMP))?;
        let watermarked = field(headers, WATERMARKED)?.parse().map_err(|_| NotSigned::Field(WATERMARKED))?;
        let signature = STANDARD.decode(field(headers, SIGNATURE)?).map_err(|_| NotSigned::Field(SIGNATURE))?;
        let statement = Statement { about, content_sha256, watermarked, sealed, timestamp_ms };
        if !self.0.verifies(&statement.to_bcs(given), &signature) {
            return Err(match signer(headers) {
                Some(signer) if signer != self.0 => NotSigned::Another(hex::encode(signer)),
                _ => NotSigned::Signature,
            });
        }
        clock.check(Duration::from_millis(timestamp_ms))
    }
}

impl Clock {
    /// Checks the time of a signature, since 1970.
    fn check(self, signed: Duration) -> Result<(), NotSigned> {
        match self {
            Clock::Document(made) => match Duration::from_millis(made).saturating_sub(signed) {
                before if before > BEFORE_DOCUMENT => Err(NotSigned::BeforeDocument(before.as_secs())),
                _ => Ok(()),
            },
            Clock::Here(now) => {
                let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
                match (now.saturating_sub(signed), signed.saturating_sub(now)) {
                    (age, _) if age > WINDOW => Err(NotSigned::Old(age.as_secs())),
                    (_, ahead) if ahead > WINDOW => Err(NotSigned::Early(ahead.as_secs())),
                    _ => Ok(()),
                }
            }
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
        identity.check(headers, given, asked, Clock::Here(UNIX_EPOCH + Duration::from_millis(now_ms)))
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
    fn an_answer_may_be_signed_ten_seconds_before_its_document_and_any_time_after_it() {
        let identity = IdentityKey(VerifyingKey::from_slice(key(1).public_key().as_ref()).unwrap());
        let check = |made| identity.check(&signed(), b"bytes", ASKED, Clock::Document(made));
        assert_eq!(check(SIGNED_MS + 10_000), Ok(()));
        assert_eq!(check(SIGNED_MS + 10_001), Err(NotSigned::BeforeDocument(10)));
        assert_eq!(check(SIGNED_MS - 3_600_000), Ok(()));
    }

    #[test]
    fn an_answer_that_names_another_signer_is_told_from_a_forged_one() {
        let other = hex::encode(key(2).public_key().as_ref());
        let with = |signature: u8, names: &str| {
            let mut headers = signed();
            headers.insert(SIGNATURE, signature_by(signature).parse().unwrap());
            headers.insert(IDENTITY, names.parse().unwrap());
            check_at(&headers, b"bytes", ASKED, SIGNED_MS)
        };
        assert_eq!(with(2, &other), Err(NotSigned::Another(other.clone())));
        assert_eq!(with(2, "zz"), Err(NotSigned::Signature));
        assert_eq!(with(1, &other), Ok(()), "what it says about itself counts for nothing");
    }

    #[test]
    fn a_documents_length_is_bounded_and_occurs_once() {
        let length = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(ATTESTATION_LENGTH, value.parse().unwrap());
            }
            document_length(&headers)
        };
        assert_eq!((length(&[]), length(&["1"]), length(&["65536"])), (Ok(0), Ok(1), Ok(65536)));
        for bad in [&["0"][..], &["65537"], &["-1"], &["five"], &["5", "5"]] {
            assert_eq!(length(bad), Err(NotSigned::Field(ATTESTATION_LENGTH)), "{bad:?}");
        }
    }

    #[test]
    fn a_document_is_taken_from_the_front_however_the_bytes_come() {
        for piece in 1..8 {
            let mut file = Vec::new();
            let mut sink = BehindDocument::new(3, &mut file);
            for bytes in b"docfile".chunks(piece) {
                sink.write_all(bytes).unwrap();
            }
            assert_eq!((sink.document(), &file[..]), (Ok(b"doc".to_vec()), &b"file"[..]));
        }
        let mut sink = BehindDocument::new(3, Vec::new());
        sink.write_all(b"do").unwrap();
        assert_eq!(
            sink.document(),
            Err(NotSigned::Field(ATTESTATION_LENGTH)),
            "the body ends before the document does"
        );
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
