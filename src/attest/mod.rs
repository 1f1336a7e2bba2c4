//! Who this enclave is, and the proof of it.
//!
//! Two key pairs are made at boot, and nobody else ever has them: the identity key signs what the enclave returns, and
//! only this enclave opens what is sealed to the sealing key. A Nitro Secure Module signs documents that name the image
//! (its PCRs) and both keys, so that whoever verifies one knows which code holds them.

mod cbor;
mod clock;
mod nsm;
mod raw;
#[cfg(feature = "test-nsm")]
mod test_certificate;
#[cfg(feature = "test-nsm")]
mod test_nsm;

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use formats::attestation::{BootNonce, BundleId, UserData};
use formats::digest::Sha256;
use formats::hpke;
use formats::signature::VerifyingKey;
use formats::state::State;
use log::warn;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};

use self::clock::Clock;
use crate::audit;
use crate::metrics::METRICS;
pub use nsm::DevNsm;
#[cfg(feature = "test-nsm")]
pub use test_nsm::TestNsm;

/// A document keeps the module busy for some milliseconds: how many are made at once for each [`Asker`], and then one in
/// each interval.
const BURST: u32 = 10;
const INTERVAL: Duration = Duration::from_millis(100);
/// The greatest age of the document without a nonce: TEEMARK_CLOCK_INTERVAL is no longer than this.
pub const RENEWAL: Duration = Duration::from_secs(60);

/// A Nitro Secure Module, or what stands in for one.
pub trait Nsm: Send + Sync {
    /// A signed document about the running image that holds these claims: COSE_Sign1 (RFC 9052, 4.2).
    ///
    /// # Errors
    /// See [`NsmError`].
    fn document(&self, claims: &Claims<'_>) -> Result<Vec<u8>, NsmError>;

    /// Fills `bytes` with the module's random numbers.
    ///
    /// # Errors
    /// See [`NsmError`].
    fn random(&self, bytes: &mut [u8]) -> Result<(), NsmError>;

    /// Whether the time in its documents is another than this machine's.
    fn has_clock(&self) -> bool {
        true
    }

    /// The certificate, in DER, that documents are signed under if it is not AWS's.
    ///
    /// # Errors
    /// See [`NsmError`].
    fn test_root(&self) -> Result<Option<&[u8]>, NsmError> {
        Ok(None)
    }
}

/// What a document says besides what the module itself says. `None` leaves a member out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Claims<'a> {
    /// The identity key.
    pub public_key: Option<&'a [u8]>,
    /// What [`UserData::to_json`] writes.
    pub user_data: Option<&'a [u8]>,
    /// The client's nonce.
    pub nonce: Option<&'a [u8]>,
}

/// Why the module gave nothing: what was asked of it, and what it or the system said.
#[derive(Clone, Debug)]
pub struct NsmError(String);

impl fmt::Display for NsmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nitro Secure Module: {}", self.0)
    }
}

impl std::error::Error for NsmError {}

/// The module of this machine. Without /dev/nsm it is `None`, or, with the cargo feature `test-nsm`, one whose
/// documents prove nothing.
///
/// # Errors
/// The device is there and cannot be opened.
pub fn module() -> Result<Option<Box<dyn Nsm>>, NsmError> {
    if let Some(nsm) = DevNsm::open()? {
        return Ok(Some(Box::new(nsm)));
    }
    #[cfg(feature = "test-nsm")]
    {
        warn!("no /dev/nsm: attestation documents are signed by a test root and prove nothing");
        Ok(Some(Box::new(TestNsm::default())))
    }
    #[cfg(not(feature = "test-nsm"))]
    {
        warn!("no /dev/nsm: this daemon cannot attest itself, and /get_attestation answers 503");
        Ok(None)
    }
}

/// Why there is no document.
#[derive(Debug)]
pub enum DocumentError {
    /// Too many were requested; try again after this time.
    TooMany(Duration),
    /// This machine has no module.
    NoModule,
    /// The module failed.
    Nsm(NsmError),
}

impl DocumentError {
    /// Counts and tells that one was refused.
    pub fn too_many(wait: Duration) -> DocumentError {
        METRICS.documents_refused.add(1);
        DocumentError::TooMany(wait)
    }
}

/// Who asks for a document. Each kind has turns of its own, so that anonymous clients cannot use up those of users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// Whoever reaches the public port.
    Anyone,
    /// A request for a file that has a valid grant.
    GrantHolder,
}

/// The turns of one kind of asker: when the next document would be due at an even rate.
struct Turns(Mutex<Instant>);

impl Turns {
    fn new() -> Turns {
        Turns(Mutex::new(Instant::now()))
    }

    fn take(&self, now: Instant) -> Result<(), DocumentError> {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = (*next).max(now);
        match (due - now).checked_sub(INTERVAL * (BURST - 1)) {
            Some(wait) if !wait.is_zero() => Err(DocumentError::too_many(wait)),
            _ => {
                *next = due + INTERVAL;
                Ok(())
            }
        }
    }
}

/// What the documents say of the secrets in force.
#[derive(Clone, Copy, Debug)]
pub struct InForce {
    /// The last sealed bundle that took effect.
    pub bundle: BundleId,
    /// The SHA-256 of the state ([`State`]).
    pub state: Sha256,
}

/// The enclave's keys, and the module that vouches for them.
pub struct Attestation {
    /// `None` on a machine without one: there are keys, and nobody vouches for them.
    nsm: Option<Box<dyn Nsm>>,
    identity: Ed25519KeyPair,
    sealing: hpke::PrivateKey,
    boot_nonce: BootNonce,
    allow_list: Sha256,
    in_force: Mutex<InForce>,
    anyones_turns: Turns,
    grant_holders_turns: Turns,
    /// The document without a nonce, once it has been asked for or renewed.
    standing: Mutex<Option<Vec<u8>>>,
    /// Held while the module is asked: the clock must not be set meanwhile.
    asking: Mutex<()>,
    clock: Clock,
}

impl Attestation {
    /// Makes the keys, from the module's random numbers or, without a module, the kernel's. `allow_list` is the SHA-256
    /// of the allow list's file.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn new(nsm: Option<Box<dyn Nsm>>, allow_list: Sha256) -> Result<Attestation, NsmError> {
        let random = || {
            let mut bytes = Box::new([0; 32]);
            match &nsm {
                Some(nsm) => nsm.random(&mut *bytes)?,
                None => SystemRandom::new().fill(&mut *bytes).map_err(|_| NsmError("no random numbers".into()))?,
            }
            Ok(bytes)
        };
        let identity =
            Ed25519KeyPair::from_seed_unchecked(&*random()?).map_err(|_| NsmError("no identity key".into()))?;
        let sealing = hpke::PrivateKey::new(random()?);
        let boot_nonce = BootNonce::from_bytes(*random()?);
        Ok(Attestation {
            nsm,
            identity,
            sealing,
            boot_nonce,
            allow_list,
            in_force: Mutex::new(InForce { bundle: BundleId::default(), state: State::default().sha256() }),
            anyones_turns: Turns::new(),
            grant_holders_turns: Turns::new(),
            standing: Mutex::default(),
            asking: Mutex::default(),
            clock: Clock::default(),
        })
    }

    /// What a document says about this enclave besides its identity key.
    fn user_data(&self) -> UserData {
        let InForce { bundle, state } = self.in_force();
        UserData::new(self.sealing.public(), self.allow_list, self.boot_nonce, bundle, state)
    }

    /// What is in force.
    pub fn in_force(&self) -> InForce {
        *self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the secrets have changed, to this state, and by this bundle if they came sealed. The store makes one
    /// change at a time.
    pub fn put_in_force(&self, bundle: Option<BundleId>, state: Sha256) {
        let mut in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        *in_force = InForce { bundle: bundle.unwrap_or(in_force.bundle), state };
    }

    /// A document with both keys, and a nonce of at most [`formats::attestation::MAX_NONCE`] bytes, by which the client
    /// knows that it is fresh.
    ///
    /// # Errors
    /// See [`DocumentError`].
    pub fn document(&self, nonce: Option<&[u8]>, asker: Asker) -> Result<Vec<u8>, DocumentError> {
        let nsm = self.nsm.as_ref().ok_or(DocumentError::NoModule)?;
        self.turns(asker).take(Instant::now())?;
        self.make(nsm.as_ref(), nonce).map_err(DocumentError::Nsm)
    }

    fn turns(&self, asker: Asker) -> &Turns {
        match asker {
            Asker::Anyone => &self.anyones_turns,
            Asker::GrantHolder => &self.grant_holders_turns,
        }
    }

    /// Leaves an asker without a turn for an hour.
    #[cfg(test)]
    pub(crate) fn use_up(&self, asker: Asker) {
        *self.turns(asker).0.lock().unwrap() = Instant::now() + Duration::from_secs(3600);
    }

    /// The document without a nonce: the same for everyone until [`Attestation::renew`] makes another, each [`RENEWAL`] at the
    /// latest.
    ///
    /// # Errors
    /// See [`DocumentError`].
    pub fn standing(&self) -> Result<Vec<u8>, DocumentError> {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        match &*standing {
            Some(document) => Ok(document.clone()),
            None => Ok(standing.insert(self.document(None, Asker::Anyone)?).clone()),
        }
    }

    /// Makes the document without a nonce anew, and so compares the clocks.
    ///
    /// # Errors
    /// The module gives none. The old one is forgotten.
    pub fn renew(&self) -> Result<(), NsmError> {
        let Some(nsm) = &self.nsm else { return Ok(()) };
        let made = self.make(nsm.as_ref(), None);
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let (document, result) = made.map_or_else(|e| (None, Err(e)), |document| (Some(document), Ok(())));
        *standing = document;
        result
    }

    /// A document for the log, which shows whose log it is; `None` if there is none to be had.
    pub fn of_boot(&self) -> Option<Vec<u8>> {
        self.make(self.nsm.as_deref()?, None).ok()
    }

    fn make(&self, nsm: &dyn Nsm, nonce: Option<&[u8]>) -> Result<Vec<u8>, NsmError> {
        let user_data = self.user_data().to_json();
        let claims = Claims {
            public_key: Some(self.identity.public_key().as_ref()),
            user_data: Some(user_data.as_bytes()),
            nonce,
        };
        let made = self.ask(nsm, &claims).map(|(document, _)| document);
        if made.is_ok() { &METRICS.documents_made } else { &METRICS.documents_failed }.add(1);
        made.inspect(|document| audit::document(nonce, document))
    }

    /// A document, and the module's name in it. The clock is held against the document's time.
    fn ask(&self, nsm: &dyn Nsm, claims: &Claims<'_>) -> Result<(Vec<u8>, Option<String>), NsmError> {
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = SystemTime::now();
        let document = nsm.document(claims)?;
        if !nsm.has_clock() {
            return Ok((document, None));
        }
        let answered = SystemTime::now();
        let (name, ms) = cbor::module_and_time(&document).map_err(|e| NsmError(format!("its document: {e}")))?;
        self.clock.compare(asked, answered, UNIX_EPOCH + Duration::from_millis(ms));
        Ok((document, Some(name)))
    }

    /// Signs with the identity key: Ed25519 (RFC 8032).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.identity.sign(message);
        signature.as_ref().try_into().expect("an Ed25519 signature has 64 bytes")
    }

    /// The public half of the identity key.
    pub fn identity(&self) -> VerifyingKey {
        VerifyingKey::from_slice(self.identity.public_key().as_ref()).expect("an Ed25519 key has 32 bytes")
    }

    /// The key that opens what is sealed to this enclave.
    pub fn sealing(&self) -> &hpke::PrivateKey {
        &self.sealing
    }

    /// Identifies this boot.
    pub fn boot_nonce(&self) -> BootNonce {
        self.boot_nonce
    }

    /// The root of documents that prove nothing; `None` if the module is real.
    ///
    /// # Errors
    /// See [`NsmError`].
    pub fn test_root(&self) -> Result<Option<&[u8]>, NsmError> {
        self.nsm.as_ref().map_or(Ok(None), |nsm| nsm.test_root())
    }

    /// Asks the module for its time, and sets this machine's clock by it if they differ too much. Gives the module's
    /// name; `None` if there is no module with a clock of its own.
    ///
    /// # Errors
    /// The module gives no document, or one without these.
    pub fn check_clock(&self) -> Result<Option<String>, NsmError> {
        match &self.nsm {
            Some(nsm) if nsm.has_clock() => self.ask(nsm.as_ref(), &Claims::default()).map(|(_, name)| name),
            _ => Ok(None),
        }
    }

    /// What is wrong with this machine's clock, if it was too far off to be set when it was last compared.
    pub fn clock_fault(&self) -> Option<String> {
        self.clock.fault()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attestation() -> Attestation {
        Attestation::new(module().unwrap(), Sha256::default()).unwrap()
    }

    #[test]
    fn without_a_module_there_are_keys_and_no_documents() {
        let attestation = Attestation::new(None, Sha256::default()).unwrap();
        assert!(attestation.identity().verifies(b"message", &attestation.sign(b"message")));
        assert_ne!(attestation.boot_nonce(), Attestation::new(None, Sha256::default()).unwrap().boot_nonce());
        assert!(matches!(attestation.document(None, Asker::Anyone), Err(DocumentError::NoModule)));
        attestation.renew().unwrap();
        assert!(matches!(attestation.standing(), Err(DocumentError::NoModule)));
        assert_eq!(attestation.test_root().unwrap(), None);
        assert_eq!(attestation.check_clock().unwrap(), None);
    }

    #[test]
    fn each_boot_has_keys_and_a_nonce_of_its_own() {
        let (a, b) = (attestation(), attestation());
        assert_ne!(a.identity(), b.identity());
        assert_ne!(a.sealing().public(), b.sealing().public());
        assert_ne!(a.boot_nonce(), b.boot_nonce());
    }

    #[test]
    fn what_the_identity_key_signs_verifies_under_it() {
        let attestation = attestation();
        let key = attestation.identity();
        assert!(key.verifies(b"message", &attestation.sign(b"message")));
        assert!(!key.verifies(b"another", &attestation.sign(b"message")));
    }

    #[test]
    fn ten_documents_are_given_at_once_and_ten_a_second_from_then_on() {
        let (turns, start) = (Turns::new(), Instant::now());
        let taken = |at: Duration| turns.take(start + at).is_ok();
        assert_eq!((0..15).filter(|_| taken(Duration::ZERO)).count(), 10);
        assert_eq!((0..5).filter(|_| taken(INTERVAL)).count(), 1);
        assert_eq!((0..50).filter(|_| taken(Duration::from_secs(60))).count(), 10);
    }

    /// A module whose clock is two hours behind, so that this machine's is not set by it.
    struct Behind;

    impl Nsm for Behind {
        fn document(&self, _: &Claims<'_>) -> Result<Vec<u8>, NsmError> {
            let time = formats::time::now_ms() - 7200 * 1000;
            let payload = cbor::encode(|e| e.map(2)?.str("module_id")?.str("m")?.str("timestamp")?.u64(time).map(drop));
            Ok(cbor::encode(|e| e.array(4)?.bytes(b"")?.map(0)?.bytes(&payload)?.bytes(b"").map(drop)))
        }

        fn random(&self, _: &mut [u8]) -> Result<(), NsmError> {
            Ok(())
        }
    }

    #[test]
    fn each_document_is_held_against_the_clock_and_a_fault_stays_until_the_next() {
        let by_document = Attestation::new(Some(Box::new(Behind)), Sha256::default()).unwrap();
        assert_eq!(by_document.clock_fault(), None);
        by_document.document(None, Asker::Anyone).unwrap();
        let by_timer = Attestation::new(Some(Box::new(Behind)), Sha256::default()).unwrap();
        assert_eq!(by_timer.check_clock().unwrap().as_deref(), Some("m"));
        for attestation in [by_document, by_timer] {
            let fault = attestation.clock_fault().unwrap();
            assert!(fault.starts_with("7200.") && fault.contains("ahead of"), "{fault}");
        }
    }

    #[test]
    fn neither_kind_of_asker_can_use_up_the_documents_of_the_other() {
        for (greedy, other) in [(Asker::Anyone, Asker::GrantHolder), (Asker::GrantHolder, Asker::Anyone)] {
            let attestation = Attestation::new(Some(Box::new(Behind)), Sha256::default()).unwrap();
            attestation.use_up(greedy);
            assert!(matches!(attestation.document(None, greedy), Err(DocumentError::TooMany(_))));
            attestation.document(None, other).unwrap();
        }
    }

    /// A module that gives a number for a document, and none once there are no more.
    struct Counting(Mutex<std::ops::Range<u8>>);

    impl Nsm for Counting {
        fn document(&self, claims: &Claims<'_>) -> Result<Vec<u8>, NsmError> {
            assert!(claims.nonce.is_none() && claims.public_key.is_some());
            self.0.lock().unwrap().next().map(|n| vec![n]).ok_or(NsmError("it is broken".into()))
        }

        fn random(&self, _: &mut [u8]) -> Result<(), NsmError> {
            Ok(())
        }

        fn has_clock(&self) -> bool {
            false
        }
    }

    #[test]
    fn the_document_without_a_nonce_is_the_same_until_it_is_renewed_and_an_old_one_is_never_given() {
        let failed = METRICS.documents_failed.get();
        let module = Counting(Mutex::new(0..3));
        let attestation = Attestation::new(Some(Box::new(module)), Sha256::default()).unwrap();
        for expected in 0..3 {
            (0..50).for_each(|_| assert_eq!(attestation.standing().unwrap(), [expected]));
            assert_eq!(attestation.renew().is_ok(), expected < 2);
        }
        assert!(matches!(attestation.standing(), Err(DocumentError::Nsm(_))));
        assert!(METRICS.documents_failed.get() >= failed + 2, "each is counted");
    }

    #[cfg(feature = "test-nsm")]
    #[test]
    fn where_there_is_only_one_clock_it_is_held_against_nothing() {
        let attestation = attestation();
        assert_eq!(attestation.check_clock().unwrap(), None);
        attestation.document(None, Asker::Anyone).unwrap();
        assert_eq!(attestation.clock_fault(), None);
    }
}
