//! What a request may have, and by which grant.

use std::sync::Arc;
use std::time::Instant;

use formats::digest::Sha256;
use formats::grants::{Grant, GrantError};
use formats::hpke::PublicKey;
use formats::jwks::GrantKeys;
use formats::signature::VerifyingKey;
use formats::time::Utc;

use super::error::ApiError;
use super::limits::TooLarge;
use super::request::header;
use crate::attest::{Asker, Attestation, DocumentError};
use crate::audit::Trail;
use crate::grants::{MOST, Use, UsedGrants};
use crate::memory::Owner;
use crate::metrics::METRICS;
use crate::net::http::HttpError;
use crate::net::request::Request;
use crate::secrets::store::{Ready, Store};
use crate::settings::Settings;

/// Whether grants are required, which audiences they may name, and which have been used.
pub struct Grants {
    required: bool,
    audiences: Vec<String>,
    used: UsedGrants,
}

impl Grants {
    /// A grant's audience is this enclave, by its identity key in hex, or its fleet.
    pub fn new(settings: &Settings, identity: VerifyingKey) -> Grants {
        let audiences = [Some(hex::encode(identity)), settings.fleet.clone()].into_iter().flatten().collect();
        Grants { required: settings.grants, audiences, used: UsedGrants::new(Utc::now) }
    }

    /// How many grants are remembered, and how many may be.
    pub(crate) fn remembered(&self) -> [usize; 2] {
        [self.used.count(), MOST]
    }

    /// The request's grant, if it is valid now.
    fn check(&self, request: &Request<'_>, secrets: &Ready) -> Result<Grant, ApiError> {
        let given = header(request, "Authorization")?.and_then(|value| value.split_once(' '));
        let grant = match given {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("Bearer") => {
                self.used.check(&secrets.grants, token.trim(), &self.audiences)
            }
            _ => Err(GrantError::Missing),
        };
        grant.map_err(refused)
    }
}

/// A grant that is valid and may have been used already, and the keys that it was checked with; none where grants are not
/// required.
pub(crate) struct Valid(Option<(Grant, Arc<GrantKeys>)>);

impl Valid {
    /// Checks the request's grant.
    ///
    /// # Errors
    /// The grant is missing or invalid; or not all secrets have been delivered.
    pub(crate) fn check(grants: &Grants, store: &Store, request: &Request<'_>) -> Result<Valid, ApiError> {
        let secrets = store.now().ready().map_err(ApiError::NotReady)?;
        if !grants.required {
            return Ok(Valid(None));
        }
        Ok(Valid(Some((grants.check(request, &secrets)?, secrets.grants))))
    }

    /// Tells the trail which grant it is.
    pub(crate) fn tell(&self, grants: &Grants, trail: &mut Trail) {
        let Some((grant, keys)) = &self.0 else { return };
        trail.text("jti", &grant.jti);
        trail.text("kid", keys.0.get(grant.key).map_or("", |key| &key.kid));
        trail.text("aud", grants.audiences.get(grant.audience).map_or("", String::as_str));
    }

    /// Takes the grant: a second request with it gets `grant_used` until this one ends.
    ///
    /// # Errors
    /// The grant is already used.
    pub(crate) fn take(self, grants: &Grants) -> Result<Permit<'_>, ApiError> {
        let Some((grant, keys)) = self.0 else { return Ok(Permit::Open) };
        let taken = grants.used.take(&grant).map_err(refused)?;
        Ok(Permit::Granted(grant, taken, keys))
    }
}

/// The right to one answer.
#[expect(clippy::large_enum_variant, reason = "there is one in a request, on its thread's stack")]
pub(crate) enum Permit<'a> {
    /// Grants are not required.
    Open,
    /// A grant, which is in use, and the keys that it was checked with.
    Granted(Grant, Use<'a>, Arc<GrantKeys>),
}

/// What a request asks for, apart from the file that it sends.
#[derive(Debug)]
pub(crate) struct Asked {
    pub file_id: String,
    pub user_id: String,
    pub key_id: Option<String>,
    /// The key to seal the answer to, if the request names one.
    pub reply_key: Option<PublicKey>,
    /// The nonce of the attestation document that is to come with the answer, if the request asks for one.
    pub nonce: Option<Vec<u8>>,
}

/// What a request asks for and may have: one file for one user, in an answer that is sealed to this key, or plain.
pub(crate) struct Covered {
    asked: Asked,
    reply_key: Option<PublicKey>,
}

impl Covered {
    /// What the request asks for.
    pub(crate) fn asked(&self) -> &Asked {
        &self.asked
    }

    /// The key to seal the answer to, if any: the request and the grant together decide.
    pub(crate) fn reply_key(&self) -> Option<PublicKey> {
        self.reply_key
    }
}

impl Permit<'_> {
    /// Checks that the request may have what it asks for.
    ///
    /// # Errors
    /// The grant is for another file or user, or names another key.
    pub(crate) fn covers(&self, asked: Asked) -> Result<Covered, ApiError> {
        let reply_key = match self {
            Permit::Open => asked.reply_key,
            Permit::Granted(grant, ..) => grant
                .covers(&asked.file_id, &asked.user_id)
                .and_then(|()| grant.seals_to(asked.reply_key))
                .map_err(refused)?,
        };
        Ok(Covered { asked, reply_key })
    }

    /// Checks that the permit still holds, and is for the encrypted file with this SHA-256. Returns the secrets that
    /// this was checked with: those in force now.
    ///
    /// # Errors
    /// The grant is for another file, has expired, or was signed by a key that is no longer in force.
    pub(crate) fn recheck(
        &self,
        grants: &Grants,
        store: &Store,
        request: &Request<'_>,
        content: Sha256,
    ) -> Result<Ready, ApiError> {
        let secrets = store.now().ready().map_err(ApiError::NotReady)?;
        if let Permit::Granted(taken, _, keys) = self {
            // What the same keys have verified is not verified again: that is most of what a grant costs.
            if Arc::ptr_eq(keys, &secrets.grants) {
                grants.used.still_valid(taken).map_err(refused)?;
            } else {
                grants.check(request, &secrets)?;
            }
            taken.covers_content(content).map_err(refused)?;
        }
        Ok(secrets)
    }

    /// An attestation document for the request's nonce. A grant has turns of the module that anonymous requests cannot use
    /// up, and one of them in ten seconds.
    ///
    /// # Errors
    /// See [`DocumentError`]. The grant stays good; if the module was asked, it waits for its next turn.
    pub(crate) fn document(&self, attestation: &Attestation, nonce: &[u8]) -> Result<Vec<u8>, DocumentError> {
        let Permit::Granted(_, taken, _) = self else { return attestation.document(Some(nonce), Asker::Anyone) };
        let now = Instant::now();
        taken.may_attest(now).map_err(DocumentError::too_many)?;
        let made = attestation.document(Some(nonce), Asker::GrantHolder);
        if matches!(made, Ok(_) | Err(DocumentError::Nsm(_))) {
            taken.attested(now);
        }
        made
    }

    /// The owner of the request, if that is known.
    pub(crate) fn owner(&self) -> Option<Owner> {
        match self {
            Permit::Open => None,
            Permit::Granted(grant, ..) => Some(grant.owner()),
        }
    }

    /// Decides what becomes of the grant. If it gave a file, it is used up. If the request came too slowly, or the
    /// service does not accept the file, it may be tried again twice. Otherwise it stays as it was.
    pub(crate) fn settle<T>(self, outcome: &Result<T, ApiError>) {
        let Permit::Granted(_, taken, _) = self else { return };
        match outcome {
            Ok(_) => taken.use_up(),
            Err(
                ApiError::Http(HttpError::TooSlow)
                | ApiError::FileTooLarge(TooLarge::Service)
                | ApiError::WatermarkUnsupported(_),
            ) => taken.strike(),
            Err(_) => {}
        }
    }
}

fn refused(e: GrantError) -> ApiError {
    METRICS.grants_refused.add(1);
    ApiError::Grant(e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest;

    #[cfg(feature = "test-nsm")]
    #[test]
    fn without_grants_a_document_comes_from_the_turns_of_get_attestation() {
        let attestation = Attestation::new(attest::module().unwrap(), Sha256::default()).unwrap();
        attestation.use_up(Asker::GrantHolder);
        Permit::Open.document(&attestation, b"nonce").unwrap();
        attestation.use_up(Asker::Anyone);
        assert!(matches!(Permit::Open.document(&attestation, b"nonce"), Err(DocumentError::TooMany(_))));
    }
}
