//! Which grants are valid and have not been used, by a time that never runs backwards.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use formats::grants::{Grant, GrantError, Id, Now};
use formats::jwks::GrantKeys;
use formats::time::Utc;

use crate::memory::Owner;

/// Most grants that are remembered at once: 8 MiB. One user may have half of them.
pub const MOST: usize = 1 << 16;
const MOST_OF_ONE: usize = MOST / 2;
/// How often a grant may be tried in vain through its user's own fault.
const TRIES: u8 = 3;
/// How long after a grant had an attestation document made it can have another.
const DOCUMENT_INTERVAL: Duration = Duration::from_secs(10);

/// The grants that are in use, are used up, or were tried in vain, and the time by which all are judged.
pub struct UsedGrants {
    clock: fn() -> Utc,
    remembered: Mutex<Remembered>,
}

#[derive(Default)]
struct Remembered {
    /// The latest time that the clock ever showed.
    latest: Utc,
    grants: HashMap<Id, State>,
    /// How many of them each user has.
    owners: HashMap<Owner, usize>,
}

struct State {
    owner: Owner,
    /// When it may be forgotten, in seconds since 1970.
    ends: u64,
    /// Whether it is in use or used up.
    taken: bool,
    /// How often it was tried in vain.
    strikes: u8,
    /// When the last attestation document was made for it.
    attested: Option<Instant>,
}

/// A grant in use. A request that returned nothing drops it, and its user may use the same grant again.
pub struct Use<'a> {
    grants: &'a UsedGrants,
    id: Option<Id>,
}

impl UsedGrants {
    /// None yet; judged by this clock.
    pub fn new(clock: fn() -> Utc) -> UsedGrants {
        UsedGrants { clock, remembered: Mutex::default() }
    }

    /// Checks a token, which may have been used already.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn check(&self, keys: &GrantKeys, token: &str, audiences: &[String]) -> Result<Grant, GrantError> {
        keys.check(token, audiences, self.now())
    }

    /// Checks that a grant is valid now.
    ///
    /// # Errors
    /// It has expired, or is not valid yet.
    pub fn still_valid(&self, grant: &Grant) -> Result<(), GrantError> {
        grant.still_valid(self.now())
    }

    /// Takes a grant into use.
    ///
    /// # Errors
    /// It has expired meanwhile, is already used, or there is no room to remember it.
    pub fn take(&self, grant: &Grant) -> Result<Use<'_>, GrantError> {
        let (owner, mut remembered) = (grant.owner(), self.remembered());
        let now = remembered.now(self.clock).latest;
        // Expired grants are no longer remembered, so they must not be taken again.
        if grant.ends <= now.0 {
            return Err(GrantError::Expired);
        }
        match remembered.grants.get_mut(&grant.id) {
            Some(state) => {
                // Another token of the same id may be valid for longer.
                state.ends = state.ends.max(grant.ends);
                if std::mem::replace(&mut state.taken, true) {
                    return Err(GrantError::Used);
                }
            }
            None => {
                if !remembered.has_room(owner) {
                    remembered.forget_expired(now);
                }
                if !remembered.has_room(owner) {
                    return Err(GrantError::Full);
                }
                *remembered.owners.entry(owner).or_default() += 1;
                remembered
                    .grants
                    .insert(grant.id, State { owner, ends: grant.ends, taken: true, strikes: 0, attested: None });
            }
        }
        Ok(Use { grants: self, id: Some(grant.id) })
    }

    /// How many are remembered that have not expired.
    pub fn count(&self) -> usize {
        let mut remembered = self.remembered();
        let now = remembered.now(self.clock).latest;
        remembered.forget_expired(now);
        remembered.grants.len()
    }

    fn now(&self) -> Now {
        self.remembered().now(self.clock)
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    /// The time by which grants are judged now.
    fn now(&mut self, clock: fn() -> Utc) -> Now {
        let clock = clock();
        self.latest = self.latest.max(clock);
        Now { clock, latest: self.latest }
    }

    fn has_room(&self, owner: Owner) -> bool {
        self.grants.len() < MOST && self.owners.get(&owner).is_none_or(|n| *n < MOST_OF_ONE)
    }

    fn forget_expired(&mut self, now: Utc) {
        let owners = &mut self.owners;
        self.grants.retain(|_, state| {
            let kept = state.ends > now.0;
            if !kept && let Some(n) = owners.get_mut(&state.owner) {
                *n -= 1;
            }
            kept
        });
        owners.retain(|_, n| *n > 0);
    }
}

impl Use<'_> {
    /// The grant has given its file and is used up.
    pub fn use_up(mut self) {
        self.id = None;
    }

    /// The grant was tried in vain through its user's own fault; the third time it is used up.
    pub fn strike(mut self) {
        let mut remembered = self.grants.remembered();
        if let Some(id) = self.id.take()
            && let Some(state) = remembered.grants.get_mut(&id)
        {
            state.strikes += 1;
            state.taken = state.strikes >= TRIES;
        }
    }

    /// Whether an attestation document may be made for the grant now, and if not, how long that takes.
    ///
    /// # Errors
    /// One was made for it less than ten seconds ago.
    pub fn may_attest(&self, now: Instant) -> Result<(), Duration> {
        let last = self.id.and_then(|id| self.grants.remembered().grants.get(&id)?.attested);
        let left = last.map_or(Duration::ZERO, |last| (last + DOCUMENT_INTERVAL).saturating_duration_since(now));
        if left.is_zero() { Ok(()) } else { Err(left) }
    }

    /// An attestation document has been made for the grant.
    pub fn attested(&self, now: Instant) {
        let mut remembered = self.grants.remembered();
        if let Some(state) = self.id.and_then(|id| remembered.grants.get_mut(&id)) {
            state.attested = Some(now);
        }
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut remembered = self.grants.remembered();
        let Remembered { grants, owners, .. } = &mut *remembered;
        match grants.get_mut(&id) {
            // It has been tried in vain before, or has had a document, which must not be forgotten.
            Some(state) if state.strikes > 0 || state.attested.is_some() => state.taken = false,
            Some(State { owner, .. }) => {
                match owners.get_mut(owner) {
                    Some(1) => drop(owners.remove(owner)),
                    Some(n) => *n -= 1,
                    None => {}
                }
                grants.remove(&id);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use formats::grants::{Issuer, NewGrant};
    use formats::items::GRANT_KEYS;
    use formats::jwks;
    use ring::signature::Ed25519KeyPair;
    use serde_json::value::RawValue;

    use super::*;

    thread_local! {
        static CLOCK: Cell<u64> = const { Cell::new(0) };
    }

    /// Grants that are judged by a clock which this thread sets.
    fn grants_at(seconds: u64) -> UsedGrants {
        set(seconds);
        UsedGrants::new(|| Utc(CLOCK.get()))
    }

    fn set(seconds: u64) {
        CLOCK.set(seconds);
    }

    fn grant(n: usize, ends: u64) -> Grant {
        grant_of(if n.is_multiple_of(2) { "even" } else { "odd" }, n, ends)
    }

    fn grant_of(user: &str, n: usize, ends: u64) -> Grant {
        let (user_id, file_id) = (user.into(), "f".into());
        Grant {
            user_id,
            file_id,
            content_sha256: None,
            reply_key: None,
            id: Id::of("k", &n.to_string()),
            jti: n.to_string(),
            key: 0,
            audience: 0,
            begins: 0,
            ends,
        }
    }

    #[test]
    fn a_grant_is_good_once_and_again_only_after_a_request_that_gave_nothing() {
        let used = grants_at(0);
        let first = used.take(&grant(1, 9)).unwrap();
        assert_eq!(used.take(&grant(1, 9)).err(), Some(GrantError::Used));
        drop(first);
        used.take(&grant(1, 9)).unwrap().use_up();
        assert_eq!(used.take(&grant(1, 9)).err(), Some(GrantError::Used));
        assert!(used.take(&grant(2, 9)).is_ok());
    }

    #[test]
    fn memory_is_bounded_and_expired_grants_make_room() {
        let used = grants_at(0);
        (0..MOST).for_each(|n| used.take(&grant(n, 5)).unwrap().use_up());
        set(4);
        assert_eq!(used.take(&grant(MOST, 5)).err(), Some(GrantError::Full));
        assert_eq!(used.take(&grant(0, 5)).err(), Some(GrantError::Used));
        assert_eq!(used.count(), MOST);
        set(5);
        assert_eq!(used.count(), 0, "expired grants do not count");
        assert!(used.take(&grant(MOST, 9)).is_ok());
        assert_eq!(used.count(), 0, "it was dropped unused");
        assert_eq!(used.take(&grant(0, 5)).err(), Some(GrantError::Expired), "though it is forgotten");
    }

    #[test]
    fn a_grant_that_was_used_has_expired_and_is_forgotten_is_refused_though_the_clock_is_set_back() {
        let used = grants_at(1_000_000);
        let issuer = Issuer::from(Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap());
        let set_of_keys = RawValue::from_string(issuer.public().to_jwk_set()).unwrap();
        let keys = jwks::parse(GRANT_KEYS, &set_of_keys, &mut Vec::new()).unwrap();
        let issue = |from, valid| {
            let (user_id, file_id, audience) = ("alice", "f", "fleet");
            let (from, jti, reply_key, content_sha256) = (Utc(from), [5; 16], None, None);
            let new = NewGrant { user_id, file_id, audience, from, valid, jti, reply_key, content_sha256 };
            issuer.sign(&new.claims()).unwrap()
        };
        let check = |token: &str| used.check(&keys, token, &["fleet".into()]);

        let token = issue(1_000_000, 100);
        let first = check(&token).unwrap();
        used.take(&first).unwrap().use_up();
        assert!(matches!(used.take(&first), Err(GrantError::Used)));
        set(first.ends);
        assert_eq!(used.count(), 0, "it is forgotten");
        for clock in [first.ends - 200, 1_000_000, first.ends - 1, first.ends] {
            set(clock);
            assert_eq!(check(&token).err(), Some(GrantError::Expired), "at {clock}");
            assert_eq!(used.still_valid(&first), Err(GrantError::Expired), "at {clock}");
            assert!(matches!(used.take(&first), Err(GrantError::Expired)), "at {clock}");
        }
        let later = issue(first.ends - 100, 300);
        set(first.ends - 200);
        assert_eq!(check(&later).err(), Some(GrantError::NotYetValid), "by the clock that was set back");
        set(first.ends - 100);
        assert!(check(&later).is_ok());
    }

    #[test]
    fn two_tokens_of_one_id_are_one_grant_until_both_have_expired() {
        let used = grants_at(0);
        used.take(&grant(1, 5)).unwrap().use_up();
        assert_eq!(used.take(&grant(1, 9)).err(), Some(GrantError::Used));
        set(8);
        assert_eq!(used.count(), 1);
        assert_eq!(used.take(&grant(1, 9)).err(), Some(GrantError::Used));
    }

    #[test]
    fn one_user_has_half_of_what_is_remembered_at_most() {
        let used = grants_at(0);
        (0..MOST_OF_ONE).for_each(|n| used.take(&grant_of("greedy", n, 9)).unwrap().use_up());
        set(8);
        assert_eq!(used.take(&grant_of("greedy", MOST, 9)).err(), Some(GrantError::Full));
        assert!(used.take(&grant_of("other", 0, 9)).is_err(), "the same id: used");
        assert!(used.take(&grant_of("other", MOST, 9)).is_ok());
        set(9);
        assert!(used.take(&grant_of("greedy", MOST, 19)).is_ok(), "expired grants make room");
        let remembered = used.remembered();
        assert_eq!(remembered.owners.values().sum::<usize>(), remembered.grants.len());
    }

    #[test]
    fn a_grant_has_one_document_in_ten_seconds_however_often_it_is_tried() {
        let (used, start) = (grants_at(0), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let first = used.take(&grant(1, 9)).unwrap();
        assert_eq!(first.may_attest(at(0)), Ok(()));
        first.attested(at(0));
        drop(first);
        let again = used.take(&grant(1, 9)).unwrap();
        assert_eq!(again.may_attest(at(9_999)), Err(Duration::from_millis(1)));
        assert_eq!(used.take(&grant(2, 9)).unwrap().may_attest(at(0)), Ok(()), "another grant");
        assert_eq!(again.may_attest(at(10_000)), Ok(()));
        again.attested(at(10_000));
        assert_eq!(again.may_attest(at(19_999)), Err(Duration::from_millis(1)));
        again.use_up();
        assert_eq!(used.take(&grant(1, 9)).err(), Some(GrantError::Used));
    }

    #[test]
    fn a_grant_is_used_up_at_the_third_try_in_vain_that_is_its_users_doing() {
        let used = grants_at(0);
        for _ in 0..2 {
            used.take(&grant(1, 9)).unwrap().strike();
            drop(used.take(&grant(1, 9)).unwrap());
        }
        used.take(&grant(1, 9)).unwrap().strike();
        assert_eq!(used.take(&grant(1, 9)).err(), Some(GrantError::Used));
    }
}
