//! Checks a document and returns what it proves.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use formats::attestation::{BootNonce, BundleId, UserData, UserDataError, VERSION};
use formats::digest::Sha256;
use formats::hpke::PublicKey;
use formats::signature::VerifyingKey;

use super::chain::{ChainError, Root, TrustedLeaf};
use super::document::{Document, DocumentError, Signature};
use super::pcrs::{self, Pcrs, PcrsError};
use crate::failure::Failure;

/// What a document is checked against.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) pcrs: Pcrs,
    pub(crate) root: Root,
    /// Whether an enclave in debug mode passes, with its registers of zeros.
    pub(crate) debug_mode: bool,
    /// With [`Signature::Dummy`] neither chain nor signature is checked.
    pub(crate) signature: Signature,
}

/// What an enclave proved about itself. It exists only for a document that passed all checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attested {
    /// The Ed25519 key that identifies this run of the enclave.
    pub(crate) identity: VerifyingKey,
    /// The X25519 key to seal bundles to.
    pub(crate) sealing_key: PublicKey,
    /// SHA-256 of the allow list that is in force there.
    pub(crate) allow_list_sha256: Sha256,
    /// Random at each boot.
    pub(crate) boot_nonce: BootNonce,
    /// The last sealed bundle in force since then; zeros before the first.
    pub(crate) in_force: BundleId,
    /// SHA-256 of what is in force ([`formats::state::State`]); `None` from a teemark that takes bundles of version 1 only.
    pub(crate) state_sha256: Option<Sha256>,
    /// Every register of the document by number.
    pub(crate) pcrs: BTreeMap<u8, Vec<u8>>,
    /// The numbers of those that were compared with the image's and are equal; empty in debug mode.
    pub(crate) compared: Vec<u8>,
    /// The Nitro module: the parent's instance id and the enclave's. It is text of the document; print it escaped.
    pub(crate) module_id: String,
    /// When the document was made, in milliseconds since 1970.
    pub(crate) timestamp_ms: u64,
}

impl Attested {
    /// Whether the enclave runs in debug mode, where nothing is proven about its code.
    pub(crate) fn in_debug_mode(&self) -> bool {
        pcrs::in_debug_mode(&self.pcrs)
    }
}

/// What an enclave proved in a document that was made before, for no nonce or for another one. Whoever relayed it may have
/// kept it, so it only says who signs: what is to receive secrets is an [`Attested`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reused(pub(super) Attested);

impl Reused {
    /// The key that identifies that run of the enclave.
    pub(crate) fn identity(&self) -> VerifyingKey {
        self.0.identity
    }

    /// The boot that it was.
    pub(crate) fn boot_nonce(&self) -> BootNonce {
        self.0.boot_nonce
    }

    /// Checks that the document is at most this old.
    ///
    /// # Errors
    /// It is older, or from the future.
    pub(crate) fn check_age(&self, most: Duration, now: SystemTime) -> Result<(), AttestationError> {
        check_age(self.0.timestamp_ms, most, now)
    }
}

/// The check that a document did not pass.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum AttestationError {
    /// It is not an attestation document.
    Document(DocumentError),
    /// Its certificates are not to be trusted.
    Chain(ChainError),
    /// Its root is one that a daemon without an NSM made for itself.
    TestRoot,
    /// It was not signed with its certificate's key, or was changed.
    Signature,
    /// It does not have the nonce that was asked with.
    Nonce,
    /// It is this many seconds old, and at most so many are allowed.
    Old { age: u64, most: u64 },
    /// It is from this many seconds in the future.
    Early(u64),
    /// Another image runs there, or it is not known which.
    Pcrs(PcrsError),
    /// public_key is not the 32 bytes of an Ed25519 key.
    Identity,
    /// user_data has this version, which only another teemark reads.
    Version(u64),
    /// user_data is not what teemarkd puts there.
    UserData,
}

impl fmt::Display for AttestationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttestationError::Document(why) => write!(f, "structure: it is not an attestation document: {why}"),
            AttestationError::Chain(why) => why.fmt(f),
            AttestationError::TestRoot => f.write_str(
                "root: it is signed by a test root; a development machine has no NSM. --development trusts that one \
                 (or --root FILE: test_root in the answer of /get_attestation is its DER in base64)",
            ),
            AttestationError::Signature => {
                f.write_str("signature: the document was changed, or its certificate belongs to another one")
            }
            AttestationError::Nonce => {
                f.write_str("nonce: the document was not made for this request; somebody replays an old one")
            }
            AttestationError::Old { age, most } => write!(
                f,
                "age: the document is {age} s old by this machine's clock, and --max-age allows {most} s; get another one"
            ),
            AttestationError::Early(ahead) => write!(
                f,
                "age: the document is from {ahead} s in the future; this machine's clock or the enclave's is wrong"
            ),
            AttestationError::Pcrs(why) => why.fmt(f),
            AttestationError::Identity => {
                f.write_str("public_key: it is not an Ed25519 key of 32 bytes; is this teemarkd?")
            }
            AttestationError::Version(version) => write!(
                f,
                "user_data: it has version {version}, and this teemark knows {VERSION}; use the one of the image's release"
            ),
            AttestationError::UserData => {
                f.write_str("user_data: it is not what teemarkd puts there; is this teemarkd?")
            }
        }
    }
}

impl std::error::Error for AttestationError {}

impl From<AttestationError> for Failure {
    fn from(why: AttestationError) -> Failure {
        Failure::refused("attestation_refused", why)
    }
}

impl From<UserDataError> for AttestationError {
    fn from(why: UserDataError) -> AttestationError {
        match why {
            UserDataError::Version(version) => AttestationError::Version(version),
            UserDataError::Malformed => AttestationError::UserData,
        }
    }
}

/// Checks a document of teemarkd, asked for with `nonce`, as of `now`.
///
/// # Errors
/// The first check that it does not pass.
pub(crate) fn verify(
    document: &[u8],
    nonce: &[u8],
    policy: &Policy,
    now: SystemTime,
) -> Result<Attested, AttestationError> {
    attested(genuine(document, Some(nonce), policy, now)?, policy)
}

/// Checks a document of teemarkd that was made for any nonce, or for none, at most `most` before `now`.
///
/// # Errors
/// The first check that it does not pass.
pub(crate) fn verify_reused(
    document: &[u8],
    most: Duration,
    policy: &Policy,
    now: SystemTime,
) -> Result<Reused, AttestationError> {
    let document = signed(document, policy, now)?;
    check_age(document.timestamp_ms, most, now)?;
    attested(document, policy).map(Reused)
}

/// Checks a document of teemarkd that was recorded when it was made, however long ago: as of its own time, which the module
/// signed.
///
/// # Errors
/// The first check that it does not pass.
pub(crate) fn verify_recorded(document: &[u8], policy: &Policy) -> Result<Reused, AttestationError> {
    let made = Document::parse(document, policy.signature).map_err(AttestationError::Document)?.timestamp_ms;
    let document = signed(document, policy, UNIX_EPOCH + Duration::from_millis(made))?;
    attested(document, policy).map(Reused)
}

/// A document may be this far in the future, since clocks differ.
const AHEAD: Duration = Duration::from_secs(60);

fn check_age(timestamp_ms: u64, most: Duration, now: SystemTime) -> Result<(), AttestationError> {
    let (now, made) = (now.duration_since(UNIX_EPOCH).unwrap_or_default(), Duration::from_millis(timestamp_ms));
    match (now.saturating_sub(made), made.saturating_sub(now)) {
        (age, _) if age > most => Err(AttestationError::Old { age: age.as_secs(), most: most.as_secs() }),
        (_, ahead) if ahead > AHEAD => Err(AttestationError::Early(ahead.as_secs())),
        _ => Ok(()),
    }
}

/// What a genuine document of teemarkd proves.
fn attested(document: Document, policy: &Policy) -> Result<Attested, AttestationError> {
    let compared = policy.pcrs.check(&document.pcrs, policy.debug_mode).map_err(AttestationError::Pcrs)?;
    let identity =
        document.public_key.as_deref().and_then(VerifyingKey::from_slice).ok_or(AttestationError::Identity)?;
    let told = UserData::parse(document.user_data.as_deref().ok_or(AttestationError::UserData)?)?;
    Ok(Attested {
        identity,
        sealing_key: told.sealing_key,
        allow_list_sha256: told.allow_list_sha256,
        boot_nonce: told.boot_nonce,
        in_force: told.in_force(),
        state_sha256: told.state_sha256,
        pcrs: document.pcrs,
        compared,
        module_id: document.module_id,
        timestamp_ms: document.timestamp_ms,
    })
}

/// The checks that the document of any enclave, with any program in it, must pass.
pub(super) fn genuine(
    bytes: &[u8],
    nonce: Option<&[u8]>,
    policy: &Policy,
    now: SystemTime,
) -> Result<Document, AttestationError> {
    let document = signed(bytes, policy, now)?;
    if document.nonce.as_deref() != nonce {
        return Err(AttestationError::Nonce);
    }
    Ok(document)
}

/// The same for a document of any nonce.
fn signed(bytes: &[u8], policy: &Policy, now: SystemTime) -> Result<Document, AttestationError> {
    let document = Document::parse(bytes, policy.signature).map_err(AttestationError::Document)?;
    if policy.signature == Signature::Real {
        let leaf = TrustedLeaf::trust(&document.cabundle, &document.certificate, policy.root, now);
        let leaf = leaf.map_err(AttestationError::Chain)?;
        if !document.is_signed_by(|message, signature| leaf.signed(message, signature)) {
            return Err(AttestationError::Signature);
        }
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_may_be_as_old_as_allowed_and_a_minute_in_the_future() {
        let (most, now_ms) = (Duration::from_secs(30), 1_800_000_000_000);
        let checked = |made_ms| check_age(made_ms, most, UNIX_EPOCH + Duration::from_millis(now_ms));
        assert!([now_ms - 30_000, now_ms, now_ms + 60_000].into_iter().all(|made_ms| checked(made_ms).is_ok()));
        assert!(matches!(checked(now_ms - 30_001), Err(AttestationError::Old { .. })));
        assert!(matches!(checked(now_ms + 60_001), Err(AttestationError::Early(_))));
    }
}
