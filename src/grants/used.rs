//! Which grants have been used.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::{Grant, GrantError};
use crate::digest::sha256;
use crate::time::Utc;

/// How many used grants are remembered at once: 3.3 MiB at most.
const MOST: usize = 1 << 16;

/// Tells grants apart: half of the SHA-256 of the key's id and the jti, which is its issuer's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id([u8; 16]);

impl Id {
    pub fn of(kid: &str, jti: &str) -> Id {
        let hash = sha256(&[&(kid.len() as u64).to_be_bytes(), kid.as_bytes(), jti.as_bytes()].concat());
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        Id(id)
    }
}

/// The grants that are in use or used, and when each ends, in seconds since 1970.
#[derive(Default)]
pub struct UsedGrants(Mutex<HashMap<Id, u64>>);

/// A grant in use. A request that gave nothing out drops it, and its user may try again with the same.
pub struct Use<'a> {
    grants: &'a UsedGrants,
    id: Option<Id>,
}

impl UsedGrants {
    /// Takes a grant into use.
    ///
    /// # Errors
    /// It has expired meanwhile, is used already, or there is no room to remember it.
    pub fn take(&self, grant: &Grant, now: Utc) -> Result<Use<'_>, GrantError> {
        // What has ended is not remembered any more.
        if grant.ends <= now.0 {
            return Err(GrantError::Expired);
        }
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if used.contains_key(&grant.id) {
            return Err(GrantError::Used);
        }
        if used.len() >= MOST {
            used.retain(|_, ends| *ends > now.0);
        }
        if used.len() >= MOST {
            return Err(GrantError::Full);
        }
        used.insert(grant.id, grant.ends);
        Ok(Use { grants: self, id: Some(grant.id) })
    }
}

impl Use<'_> {
    /// The grant has served.
    pub fn up(mut self) {
        self.id = None;
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.grants.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(n: usize, ends: u64) -> Grant {
        let (user_id, file_id) = ("u".into(), "f".into());
        Grant { user_id, file_id, content_sha256: None, reply_key: None, id: Id::of("k", &n.to_string()), ends }
    }

    #[test]
    fn a_grant_is_good_once_and_again_only_after_a_request_that_gave_nothing() {
        let used = UsedGrants::default();
        let first = used.take(&grant(1, 9), Utc(0)).unwrap();
        assert_eq!(used.take(&grant(1, 9), Utc(0)).err(), Some(GrantError::Used));
        drop(first);
        used.take(&grant(1, 9), Utc(0)).unwrap().up();
        assert_eq!(used.take(&grant(1, 9), Utc(0)).err(), Some(GrantError::Used));
        assert!(used.take(&grant(2, 9), Utc(0)).is_ok());
    }

    #[test]
    fn memory_is_bounded_and_the_dead_make_room() {
        let used = UsedGrants::default();
        (0..MOST).for_each(|n| used.take(&grant(n, 5), Utc(0)).unwrap().up());
        assert_eq!(used.take(&grant(MOST, 5), Utc(4)).err(), Some(GrantError::Full));
        assert_eq!(used.take(&grant(0, 5), Utc(4)).err(), Some(GrantError::Used));
        assert!(used.take(&grant(MOST, 9), Utc(5)).is_ok());
        assert_eq!(used.take(&grant(0, 5), Utc(5)).err(), Some(GrantError::Expired), "though it is forgotten");
    }

    #[test]
    fn the_same_jti_of_two_issuers_is_two_grants() {
        assert_ne!(Id::of("a", "bc"), Id::of("ab", "c"));
    }
}
