//! Which grants have been used, and the time by which that is judged.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use formats::grants::{Grant, GrantError, Id, Now};
use formats::time::Utc;

use crate::memory::Owner;

/// The clock, and the latest time that it was ever seen to show.
#[derive(Default)]
pub struct GrantTime(AtomicU64);

impl GrantTime {
    /// The time by which grants are judged now.
    pub fn now(&self) -> Now {
        self.at(Utc::now())
    }

    fn at(&self, clock: Utc) -> Now {
        let seen = self.0.fetch_max(clock.0, Ordering::AcqRel);
        Now { clock, latest: Utc(seen.max(clock.0)) }
    }
}

/// Most grants that are remembered at once: 8 MiB. One user may have half of them.
pub const MOST: usize = 1 << 16;
const MOST_OF_ONE: usize = MOST / 2;
/// How often a grant may be tried in vain through its user's own fault.
const TRIES: u8 = 3;
/// How long after a grant had an attestation document made it can have another.
const DOCUMENT_INTERVAL: Duration = Duration::from_secs(10);

/// The grants that are in use, are used up, or were tried in vain.
#[derive(Default)]
pub struct UsedGrants(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
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
    /// Takes a grant into use. `now` is the latest time that the clock ever showed.
    ///
    /// # Errors
    /// It has expired meanwhile, is already used, or there is no room to remember it.
    pub fn take(&self, grant: &Grant, now: Utc) -> Result<Use<'_>, GrantError> {
        // Expired grants are no longer remembered, so they must not be taken again.
        if grant.ends <= now.0 {
            return Err(GrantError::Expired);
        }
        let (owner, mut remembered) = (grant.owner(), self.remembered());
        match remembered.grants.get_mut(&grant.id) {
            Some(state) if state.taken => return Err(GrantError::Used),
            Some(state) => state.taken = true,
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

    /// How many are remembered that have not expired. `now` is the latest time that the clock ever showed.
    pub fn count(&self, now: Utc) -> usize {
        let mut remembered = self.remembered();
        remembered.forget_expired(now);
        remembered.grants.len()
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
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
        let Remembered { grants, owners } = &mut *remembered;
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
    use super::*;

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
        let used = UsedGrants::default();
        let first = used.take(&grant(1, 9), Utc(0)).unwrap();
        assert_eq!(used.take(&grant(1, 9), Utc(0)).err(), Some(GrantError::Used));
        drop(first);
        used.take(&grant(1, 9), Utc(0)).unwrap().use_up();
        assert_eq!(used.take(&grant(1, 9), Utc(0)).err(), Some(GrantError::Used));
        assert!(used.take(&grant(2, 9), Utc(0)).is_ok());
    }

    #[test]
    fn memory_is_bounded_and_expired_grants_make_room() {
        let used = UsedGrants::default();
        (0..MOST).for_each(|n| used.take(&grant(n, 5), Utc(0)).unwrap().use_up());
        assert_eq!(used.take(&grant(MOST, 5), Utc(4)).err(), Some(GrantError::Full));
        assert_eq!(used.take(&grant(0, 5), Utc(4)).err(), Some(GrantError::Used));
        assert_eq!(used.count(Utc(4)), MOST);
        assert_eq!(used.count(Utc(5)), 0, "expired grants do not count");
        assert!(used.take(&grant(MOST, 9), Utc(5)).is_ok());
        assert_eq!(used.count(Utc(5)), 0, "it was dropped unused");
        assert_eq!(used.take(&grant(0, 5), Utc(5)).err(), Some(GrantError::Expired), "though it is forgotten");
    }

    #[test]
    fn a_grant_that_was_used_has_expired_and_is_forgotten_is_refused_though_the_clock_is_set_back() {
        let (time, used) = (GrantTime::default(), UsedGrants::default());
        let first = Grant { begins: 900, ..grant(1, 1100) };
        let take = |grant: &Grant, clock: u64| {
            let now = time.at(Utc(clock));
            grant.still_valid(now).and_then(|()| used.take(grant, now.latest)).map(Use::use_up)
        };
        assert_eq!(take(&first, 1000), Ok(()));
        (2..=MOST).for_each(|n| take(&grant(n, 1200), 1000).unwrap());
        assert_eq!(take(&grant(MOST + 1, 1300), 1150), Ok(()), "expired grants make room");
        assert!(!used.remembered().grants.contains_key(&first.id), "it is forgotten");
        for clock in [950, 1000, 1099, 1100, 1150] {
            assert_eq!(take(&first, clock), Err(GrantError::Expired), "at {clock}");
        }
        let later = Grant { begins: 960, ..grant(0, 1300) };
        assert_eq!(
            later.still_valid(time.at(Utc(950))),
            Err(GrantError::NotYetValid),
            "by the clock that was set back"
        );
        assert_eq!(later.still_valid(time.at(Utc(960))), Ok(()));
    }

    #[test]
    fn one_user_has_half_of_what_is_remembered_at_most() {
        let used = UsedGrants::default();
        (0..MOST_OF_ONE).for_each(|n| used.take(&grant_of("greedy", n, 9), Utc(0)).unwrap().use_up());
        assert_eq!(used.take(&grant_of("greedy", MOST, 9), Utc(8)).err(), Some(GrantError::Full));
        assert!(used.take(&grant_of("other", 0, 9), Utc(8)).is_err(), "the same id: used");
        assert!(used.take(&grant_of("other", MOST, 9), Utc(8)).is_ok());
        assert!(used.take(&grant_of("greedy", MOST, 19), Utc(9)).is_ok(), "expired grants make room");
        let remembered = used.remembered();
        assert_eq!(remembered.owners.values().sum::<usize>(), remembered.grants.len());
    }

    #[test]
    fn a_grant_has_one_document_in_ten_seconds_however_often_it_is_tried() {
        let (used, start) = (UsedGrants::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let first = used.take(&grant(1, 9), Utc(0)).unwrap();
        assert_eq!(first.may_attest(at(0)), Ok(()));
        first.attested(at(0));
        drop(first);
        let again = used.take(&grant(1, 9), Utc(0)).unwrap();
        assert_eq!(again.may_attest(at(9_999)), Err(Duration::from_millis(1)));
        assert_eq!(used.take(&grant(2, 9), Utc(0)).unwrap().may_attest(at(0)), Ok(()), "another grant");
        assert_eq!(again.may_attest(at(10_000)), Ok(()));
        again.attested(at(10_000));
        assert_eq!(again.may_attest(at(19_999)), Err(Duration::from_millis(1)));
        again.use_up();
        assert_eq!(used.take(&grant(1, 9), Utc(0)).err(), Some(GrantError::Used));
    }

    #[test]
    fn a_grant_is_used_up_at_the_third_try_in_vain_that_is_its_users_doing() {
        let used = UsedGrants::default();
        for _ in 0..2 {
            used.take(&grant(1, 9), Utc(0)).unwrap().strike();
            drop(used.take(&grant(1, 9), Utc(0)).unwrap());
        }
        used.take(&grant(1, 9), Utc(0)).unwrap().strike();
        assert_eq!(used.take(&grant(1, 9), Utc(0)).err(), Some(GrantError::Used));
    }
}
