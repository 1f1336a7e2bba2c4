//! What a request may have, and in which form it gets it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::digest::{Sha256, sha256};
use formats::grants::{Grant, GrantError};
use formats::hpke::{PrivateKey, PublicKey};
use formats::reply::{self, About, Statement};
use formats::signature::VerifyingKey;
use formats::time::{Utc, now_ms};

use super::Api;
use super::decrypt::Marked;
use super::error::ApiError;
use super::limits::TooLarge;
use super::request::header;
use crate::grants::{Use, UsedGrants};
use crate::memory::Owner;
use crate::metrics::METRICS;
use crate::net::http::HttpError;
use crate::net::request::Request;
use crate::secrets::store::Ready;
use crate::settings::Settings;

/// Whether grants are asked for, whom they may be for, and which have been used.
pub struct Grants {
    required: bool,
    audiences: Vec<String>,
    used: UsedGrants,
}

impl Grants {
    /// A grant may be for this enclave, by the hex of its identity key, or for its fleet.
    pub fn new(settings: &Settings, identity: VerifyingKey) -> Grants {
        let audiences = [Some(hex::encode(identity)), settings.fleet.clone()].into_iter().flatten().collect();
        Grants { required: settings.grants, audiences, used: UsedGrants::default() }
    }
}

/// The right to one answer.
pub enum Permit<'a> {
    /// Nobody needs a grant.
    Open,
    /// By a grant, which is in use.
    Granted(Grant, Use<'a>),
}

impl Permit<'_> {
    /// The key that the answer is to be sealed to, if any: what the request asks for and what the grant says together.
    ///
    /// # Errors
    /// The grant is for another file or user, or names another key.
    pub fn covers(&self, about: About<'_>, reply_key: Option<PublicKey>) -> Result<Option<PublicKey>, ApiError> {
        let Permit::Granted(grant, _) = self else { return Ok(reply_key) };
        grant.covers(about.file_id, about.user_id).and_then(|()| grant.seals_to(reply_key)).map_err(refused)
    }

    /// Whose the request is, where that is known.
    pub fn owner(&self) -> Option<Owner> {
        match self {
            Permit::Open => None,
            Permit::Granted(grant, _) => Some(grant.owner()),
        }
    }

    /// What becomes of the grant: one that gave a file is used up. One whose request came too slowly, or whose file the
    /// service does not take, may be tried again twice; any other is as good as it was.
    pub fn settle<T>(self, outcome: &Result<T, ApiError>) {
        let Permit::Granted(_, taken) = self else { return };
        match outcome {
            Ok(_) => taken.up(),
            Err(
                ApiError::Http(HttpError::TooSlow)
                | ApiError::FileTooLarge(TooLarge::Service)
                | ApiError::WatermarkUnsupported(_),
            ) => taken.strike(),
            Err(_) => {}
        }
    }
}

/// A file that may be opened and marked, and by what.
pub struct Permitted {
    /// The secrets in force now that the file is there.
    pub secrets: Ready,
    /// SHA-256 of the encrypted file.
    pub content_sha256: Sha256,
}

/// An answer's content: the file or what it is sealed into, with the enclave's signature over just these bytes.
pub struct Given {
    pub data: Vec<u8>,
    pub sealed: bool,
    pub watermarked: bool,
    pub timestamp_ms: u64,
    /// Base64 of 64 bytes.
    pub signature: String,
}

impl Api {
    /// What the request's grant permits. It is in use from now on: no second request waits beside this one.
    ///
    /// # Errors
    /// It is missing, not valid, or used already; or the secrets are not there yet.
    pub fn permit(&self, request: &Request<'_>) -> Result<Permit<'_>, ApiError> {
        let secrets = self.store.now().ready().map_err(ApiError::NotReady)?;
        if !self.grants.required {
            return Ok(Permit::Open);
        }
        let grant = self.grant(request, &secrets)?;
        let taken = self.grants.used.take(&grant, Utc::now()).map_err(refused)?;
        Ok(Permit::Granted(grant, taken))
    }

    /// The request's grant, which is valid at this moment.
    fn grant(&self, request: &Request<'_>, secrets: &Ready) -> Result<Grant, ApiError> {
        let given = header(request, "Authorization")?.and_then(|value| value.split_once(' '));
        let grant = match given {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("Bearer") => {
                secrets.grants.check(token.trim(), &self.grants.audiences, Utc::now())
            }
            _ => Err(GrantError::Missing),
        };
        grant.map_err(refused)
    }

    /// What the file may be opened and marked with, if the permit is for it and still good. The file may have taken
    /// long to come, so nothing that was in force when it began counts any more.
    ///
    /// # Errors
    /// The grant is for another file, has expired, or is signed by a key that is not in force any more.
    pub fn permit_content(
        &self,
        permit: &Permit<'_>,
        request: &Request<'_>,
        file: &[u8],
    ) -> Result<Permitted, ApiError> {
        let content_sha256 = sha256(file);
        let secrets = self.store.now().ready().map_err(ApiError::NotReady)?;
        if let Permit::Granted(grant, _) = permit {
            self.grant(request, &secrets)?;
            grant.covers_content(content_sha256).map_err(refused)?;
        }
        Ok(Permitted { secrets, content_sha256 })
    }

    /// Seals a marked file, if it is to be sealed, and signs what is given out in answer to the encrypted file of this
    /// SHA-256.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn give(
        &self,
        marked: Marked,
        about: About<'_>,
        content_sha256: Sha256,
        reply_key: Option<PublicKey>,
    ) -> Result<Given, ApiError> {
        let (sealed, watermarked) = (reply_key.is_some(), marked.watermarked);
        let data = match reply_key {
            None => marked.data,
            Some(key) => {
                let ephemeral = PrivateKey::random().map_err(|_| ApiError::Internal)?;
                reply::seal(&marked.data, about, &key, &ephemeral).map_err(|_| ApiError::Internal)?
            }
        };
        let timestamp_ms = now_ms();
        let statement = Statement { about, content_sha256, watermarked, sealed, timestamp_ms };
        let signature = STANDARD.encode(self.attestation.sign(&statement.to_bcs(&data)));
        Ok(Given { data, sealed, watermarked, timestamp_ms, signature })
    }
}

fn refused(e: GrantError) -> ApiError {
    METRICS.grants_refused.add(1);
    ApiError::Grant(e)
}
