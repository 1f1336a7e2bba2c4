//! The operator's side of the sealed handshake: seals bundles that only one enclave can open, and that it accepts from its
//! operators only.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use formats::attestation::BundleId;
use formats::bundle::Received;
use formats::digest::Sha256;
use formats::items::{MAX_BUNDLE, MAX_BUNDLE_V2};
use formats::sealed_bundle::v2::{self, MAX_LINE};
use formats::sealed_bundle::{self, Destination};
use formats::signature::VerifyingKey;
use formats::state::{Manifest, State};
use formats::time::now_ms;
use ring::signature::Ed25519KeyPair;

use crate::attest::Attested;
use crate::failure::Failure;
use crate::keys::NO_RANDOM;
use crate::manifest;
use crate::output::without_mark;
use crate::private_key::{PrivateKey, Use};

/// How far a counter may be ahead, in milliseconds: counters are times, and clocks differ.
const AHEAD_MS: u64 = 300_000;

/// Whether a counter is so far above the time and the counter in force that it cannot have been chosen as
/// [`Sealer::next_counter`] does: it leaves less room above it, or none.
pub(crate) fn is_far_ahead(counter: u64, in_force: u64, now_ms: u64) -> bool {
    counter > in_force.max(now_ms).saturating_add(AHEAD_MS)
}

/// Seals bundles for one enclave in one operator's name.
pub(crate) struct Sealer {
    to: Destination,
    operator: Ed25519KeyPair,
    /// The counter of every bundle; if not given, the milliseconds since 1970 or, if that is higher, one above the last.
    counter: Option<u64>,
    /// The counter of the last bundle that was in force there.
    in_force: u64,
    version: Version,
    /// The bundles sealed so far: the same one, once for each attempt to send it.
    sealed: RefCell<Vec<BundleId>>,
    /// The state that they lead to, if that is known.
    expected: Cell<Option<Sha256>>,
}

/// The version of the bundles that the enclave takes.
enum Version {
    /// Of an enclave that does not attest its state.
    One,
    /// With a manifest, which names the state that the bundle changes.
    Two { from: Sha256, before: Option<State>, complete_at: Option<Sha256> },
}

/// Why the enclave does not confirm that the bundle is in force. If the answer did, somebody on the way made it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unconfirmed {
    /// It was restarted, and has forgotten what it was given before.
    Boot,
    /// The bundle in force has another counter than the one that was sealed.
    Counter { told: u64, sealed: u64 },
    /// The bundle in force is another one with the same counter.
    Other { counter: u64 },
    /// The bundle is in force, and leads to another state than it should.
    State { told: Option<Sha256>, expected: Sha256 },
}

impl fmt::Display for Unconfirmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the answer was not the enclave's: its attestation document ")?;
        match self {
            Unconfirmed::Boot => f.write_str(
                "is from another boot: the enclave was restarted, or the address leads to several enclaves; name one \
                 that leads to this enclave alone, send the bundle again, and find out who restarted it",
            ),
            Unconfirmed::Counter { told, sealed } => {
                write!(f, "says counter {told}, not {sealed}; somebody on the way withholds the bundle")?;
                if told > sealed { f.write_str(", or a later one has replaced it") } else { Ok(()) }
            }
            Unconfirmed::Other { counter } => write!(
                f,
                "says counter {counter}, but for another bundle; somebody sent that one in its place. \
                 Without --counter each bundle gets its own"
            ),
            Unconfirmed::State { told, expected } => {
                let told = told.map_or("no state".to_owned(), |told| format!("state {told}"));
                write!(f, "says {told}, and the bundle should have led to state {expected}")
            }
        }
    }
}

impl std::error::Error for Unconfirmed {}

impl From<Unconfirmed> for Failure {
    fn from(why: Unconfirmed) -> Failure {
        Failure::refused("not_confirmed", why)
    }
}

/// Reads an operator's private key.
///
/// # Errors
/// It cannot be read, or is another kind of key.
pub(crate) fn operator_key(path: &Path) -> Result<Ed25519KeyPair> {
    let key = PrivateKey::read(path, Use::Operator).and_then(PrivateKey::operators);
    key.with_context(|| format!("--operator-key {}", path.display()))
}

/// The operators whose signatures verify. Which of them the image accepts is in its settings.
pub(crate) fn signers(line: &v2::Line) -> Vec<VerifyingKey> {
    let keys = line.signatures.iter().map(|signed| signed.key);
    line.signers(&keys.collect::<Vec<_>>())
}

impl Sealer {
    /// A sealer for the attested enclave.
    ///
    /// # Errors
    /// The counter is not above that of the bundle in force, so the enclave would refuse every bundle with it.
    pub(crate) fn new(to: &Attested, operator: Ed25519KeyPair, counter: Option<u64>) -> Result<Sealer> {
        let in_force = to.in_force.counter;
        if counter.is_some_and(|counter| counter <= in_force) {
            bail!("--counter has to be above {in_force}, that of the bundle in force; without --counter one is chosen");
        }
        let version = match to.state_sha256 {
            None => Version::One,
            Some(from) => Version::Two { from, before: None, complete_at: None },
        };
        let to = Destination { sealing_key: to.sealing_key, boot_nonce: to.boot_nonce };
        let (sealed, expected) = Default::default();
        Ok(Sealer { to, operator, counter, in_force, version, sealed, expected })
    }

    /// Whether bundles are sealed in version 2, with a manifest.
    pub(crate) fn has_manifests(&self) -> bool {
        matches!(self.version, Version::Two { .. })
    }

    /// Most bytes of a sealed bundle.
    pub(crate) fn most(&self) -> usize {
        match self.version {
            Version::One => MAX_BUNDLE,
            Version::Two { .. } => MAX_BUNDLE_V2 + MAX_LINE,
        }
    }

    /// Tells the state that the enclave attested, so that the one after the bundle is known.
    pub(crate) fn knowing(mut self, state: State) -> Sealer {
        if let Version::Two { before, .. } = &mut self.version {
            *before = Some(state);
        }
        self
    }

    /// The enclave is to call itself ready in that state only.
    pub(crate) fn complete_at(mut self, state: Option<Sha256>) -> Sealer {
        if let Version::Two { complete_at, .. } = &mut self.version {
            *complete_at = state;
        }
        self
    }

    /// The counter of the next bundle: the time, so that the later of two operators' bundles is accepted, but always above
    /// those that the enclave has seen, even if this machine's clock is behind.
    fn next_counter(&self) -> Result<u64> {
        if let Some(counter) = self.counter {
            return Ok(counter);
        }
        let before = self.in_force.max(self.last().unwrap_or_default().counter);
        let least = before.checked_add(1).context("the enclave has the highest possible counter; restart it")?;
        Ok(now_ms().max(least))
    }

    /// Seals a bundle. The enclave accepts it after any that was sealed before it.
    ///
    /// # Errors
    /// The enclave has the highest possible counter; the system has no random numbers to give; in version 2, what is in the
    /// bundle cannot be described.
    pub(crate) fn seal(&self, bundle: &[u8]) -> Result<Vec<u8>> {
        let counter = self.next_counter()?;
        let (id, bytes) = match &self.version {
            Version::One => {
                let sealed = sealed_bundle::seal(bundle, &self.to, counter, &self.operator);
                let sealed = sealed.map_err(|_| anyhow!(NO_RANDOM))?;
                (sealed.id(), sealed.to_json().into_bytes())
            }
            Version::Two { from, before, complete_at } => {
                let bundle = without_mark(bundle);
                let received = Received::parse_v2(bundle).context("the bundle cannot be read")?;
                let items = manifest::describe(&received)?;
                self.expected
                    .set(before.as_ref().and_then(|before| manifest::after(before, &items)).map(|s| s.sha256()));
                let manifest = Manifest { complete_at: *complete_at, from: *from, items };
                let sealed = v2::seal(bundle, &manifest, &self.to, counter);
                let mut sealed = sealed.map_err(|_| anyhow!(NO_RANDOM))?;
                sealed.line.sign(&self.operator);
                (sealed.line.id(), sealed.to_bytes())
            }
        };
        self.sealed.borrow_mut().push(id);
        Ok(bytes)
    }

    /// The last bundle that was sealed.
    pub(crate) fn last(&self) -> Option<BundleId> {
        self.sealed.borrow().last().copied()
    }

    /// Checks that the bundle, as sealed for any of the attempts, is in force in the enclave, which was attested again after
    /// it was sent. Returns its counter.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn confirm(&self, now: &Attested) -> Result<u64, Unconfirmed> {
        let (told, last) = (now.in_force, self.last().unwrap_or_default().counter);
        match told.counter {
            _ if now.boot_nonce != self.to.boot_nonce => Err(Unconfirmed::Boot),
            counter if self.sealed.borrow().contains(&told) => match self.expected.get() {
                Some(expected) if now.state_sha256 != Some(expected) => {
                    Err(Unconfirmed::State { told: now.state_sha256, expected })
                }
                _ => Ok(counter),
            },
            counter if counter == last => Err(Unconfirmed::Other { counter }),
            counter => Err(Unconfirmed::Counter { told: counter, sealed: last }),
        }
    }
}

#[cfg(test)]
mod tests {
    use formats::attestation::BootNonce;
    use formats::hpke;

    use super::*;

    fn attested(boot: u8, in_force: BundleId) -> Attested {
        let sealing_key = hpke::PrivateKey::new(Box::new([1; 32])).public();
        let (pcrs, compared, module_id) = Default::default();
        let (identity, boot_nonce) = (VerifyingKey::from_bytes([0; 32]), BootNonce::from_bytes([boot; 32]));
        let (allow_list_sha256, timestamp_ms) = (Sha256::default(), 0);
        Attested {
            identity,
            sealing_key,
            allow_list_sha256,
            boot_nonce,
            in_force,
            state_sha256: None,
            pcrs,
            compared,
            module_id,
            timestamp_ms,
        }
    }

    #[test]
    fn the_bundle_is_confirmed_by_its_counter_and_hash_in_the_same_boot_and_by_nothing_else() {
        let operator = Ed25519KeyPair::from_seed_unchecked(&[2; 32]).unwrap();
        let sealer = Sealer::new(&attested(3, BundleId::default()), operator, Some(7)).unwrap();
        sealer.seal(b"{}").unwrap();
        sealer.seal(b"{}").unwrap();
        let [first, last] = sealer.sealed.borrow().clone().try_into().unwrap();
        assert!(first != last, "each is sealed anew");
        for sealed in [first, last] {
            assert_eq!(sealer.confirm(&attested(3, sealed)), Ok(7));
            assert_eq!(sealer.confirm(&attested(4, sealed)), Err(Unconfirmed::Boot));
        }
        let other = BundleId { sha256: Sha256::from_bytes([1; 32]), ..last };
        assert_eq!(sealer.confirm(&attested(3, other)), Err(Unconfirmed::Other { counter: 7 }));
        for told in [0, 6, 8] {
            let why = sealer.confirm(&attested(3, BundleId { counter: told, ..last })).unwrap_err();
            assert_eq!(why, Unconfirmed::Counter { told, sealed: 7 });
            assert_eq!(why.to_string().contains("a later one has replaced it"), told > 7, "{why}");
        }
    }

    #[test]
    fn the_counter_is_above_that_in_force_and_the_one_before_whatever_the_clock_says() {
        let operator = || Ed25519KeyPair::from_seed_unchecked(&[2; 32]).unwrap();
        let new =
            |counter, given| Sealer::new(&attested(3, BundleId { counter, ..BundleId::default() }), operator(), given);
        let ahead = now_ms() + 86_400_000;
        let sealed = new(ahead, None).unwrap();
        for counter in [ahead + 1, ahead + 2] {
            sealed.seal(b"{}").unwrap();
            assert_eq!(sealed.last().unwrap().counter, counter);
        }
        let before = now_ms();
        let sealed = new(7, None).unwrap();
        sealed.seal(b"{}").unwrap();
        assert!((before..=now_ms()).contains(&sealed.last().unwrap().counter));
        assert!(new(u64::MAX, None).unwrap().seal(b"{}").is_err());
        assert!(new(7, Some(7)).is_err() && new(7, Some(8)).is_ok());
    }

    #[test]
    fn a_counter_may_be_minutes_ahead_of_the_time_or_of_the_one_in_force_and_no_more() {
        for (counter, in_force, far) in [
            (1, 0, false),
            (1_000_000, 0, false),
            (1_300_000, 0, false),
            (1_300_001, 0, true),
            (u64::MAX, 7, true),
            (5_000_001, 5_000_000, false),
            (5_300_001, 5_000_000, true),
            (u64::MAX, u64::MAX - 1, false),
        ] {
            assert_eq!(is_far_ahead(counter, in_force, 1_000_000), far, "{counter} after {in_force}");
        }
    }

    #[test]
    fn where_the_state_is_attested_the_bundle_names_it_and_has_to_lead_to_another() {
        let operator = Ed25519KeyPair::from_seed_unchecked(&[2; 32]).unwrap();
        let before = State::default();
        let to = Attested { state_sha256: Some(before.sha256()), ..attested(3, BundleId::default()) };
        let sealer = Sealer::new(&to, operator, None).unwrap().knowing(before.clone());
        assert!(sealer.has_manifests());
        let bytes = sealer.seal(br#"{"ECS_WATERMARK_ENDPOINT":"https://h:8"}"#).unwrap();
        let sealed = v2::SealedBundle::parse(&bytes).unwrap();
        let manifest = Manifest::parse(&sealed.manifest).unwrap();
        assert_eq!(manifest.from, before.sha256());
        assert_eq!(manifest.items["ECS_WATERMARK_ENDPOINT"].url.as_deref(), Some("https://h:8"));
        assert!(!manifest.items.contains_key("MTLS_CLIENT_CERT_JSON"));
        let (told, expected) = (sealed.line.id(), State { items: manifest.items }.sha256());
        let now = |state| sealer.confirm(&Attested { state_sha256: state, ..attested(3, told) });
        assert_eq!(now(Some(expected)), Ok(told.counter));
        for other in [None, Some(before.sha256())] {
            assert_eq!(now(other), Err(Unconfirmed::State { told: other, expected }));
        }
        assert!(sealer.seal(b"{ not even JSON").unwrap_err().to_string().contains("cannot be read"));
    }
}
