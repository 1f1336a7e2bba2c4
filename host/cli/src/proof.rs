//! How `teemark decrypt --verify` knows which key signs the answers: by a document of the enclave that came with the answer,
//! or by one that was made before.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use formats::signature::VerifyingKey;
use ureq::http::HeaderMap;

use crate::answer::{self, Asked, Clock, IdentityKey, NotSigned};
use crate::attest::{self, Expected, Nonce, Purpose, Reused};
use crate::daemon::Daemon;
use crate::failure::Failure;

/// Largest document that is read from a file, in bytes.
const LARGEST: u64 = 64 << 10;
/// How often the daemon is asked for its document without a nonce, until the document is that of the enclave that answered:
/// enough for a balancer with some enclaves behind it.
const TRIES: usize = 16;

/// How the signer of the answers is known.
pub(crate) enum Proof {
    /// Each answer brings a document for a nonce of its request.
    Fresh(Expected),
    /// By documents that are at most so old.
    Reused { expected: Expected, most: Duration, known: RefCell<Vec<Reused>>, saved: bool },
}

impl Proof {
    /// By the document in this file.
    ///
    /// # Errors
    /// It cannot be read, or does not pass.
    pub(crate) fn saved(expected: Expected, path: &Path, most: Duration) -> Result<Proof> {
        let name = format!("--attested {}", path.display());
        let mut document = Vec::new();
        let read = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut document));
        read.with_context(|| format!("{name} cannot be read; teemark attest --output writes it"))?;
        let reused = expected.reused(&document, &name, most)?;
        Ok(Proof::Reused { expected, most, known: RefCell::new(vec![reused]), saved: true })
    }

    /// By the documents without a nonce that the daemon gives.
    pub(crate) fn standing(expected: Expected, most: Duration) -> Proof {
        Proof::Reused { expected, most, known: RefCell::default(), saved: false }
    }

    /// What has to be there before a request is sent: a nonce for the request, or a document that is not too old.
    ///
    /// # Errors
    /// The system has no random numbers; or the saved document has become too old; or the daemon gives none that passes.
    pub(crate) fn prepare(&self, daemon: &Daemon) -> Result<Option<Nonce>> {
        let Proof::Reused { expected, most, known, saved } = self else { return attest::nonce().map(Some) };
        let mut known = known.borrow_mut();
        if *saved {
            let checked = known.iter().try_for_each(|document| document.check_age(*most, SystemTime::now()));
            checked.map_err(Failure::from)?;
        } else {
            known.retain(|document| document.check_age(*most, SystemTime::now()).is_ok());
            if known.is_empty() {
                known.push(expected.standing(daemon, *most)?);
            }
        }
        Ok(None)
    }

    /// Checks that an attested enclave signed this answer, and returns its key. `document` came with the answer, made for
    /// `nonce`.
    ///
    /// # Errors
    /// The document does not pass, or the answer is not signed by its enclave ([`NotSigned`]).
    pub(crate) fn check(
        &self,
        daemon: &Daemon,
        (nonce, document): (Option<Nonce>, &[u8]),
        (headers, given): (&HeaderMap, &[u8]),
        asked: Asked<'_>,
    ) -> Result<VerifyingKey> {
        let (key, clock) = match (self, nonce) {
            (Proof::Fresh(_), _) if document.is_empty() => bail!(NotSigned::NoDocument),
            (Proof::Fresh(expected), Some(nonce)) => {
                let attested = expected.made_for(&nonce, document, &daemon.endpoint, Purpose::Look)?;
                (attested.identity, Clock::Document(attested.timestamp_ms))
            }
            (Proof::Reused { expected, most, known, saved }, None) => {
                let mut known = known.borrow_mut();
                let signer = answer::signer(headers);
                let is_known = |known: &[Reused]| known.iter().any(|document| Some(document.identity()) == signer);
                for _ in 0..TRIES {
                    if *saved || signer.is_none() || is_known(&known) {
                        break;
                    }
                    known.push(expected.standing(daemon, *most)?);
                }
                let document = known.iter().find(|document| Some(document.identity()) == signer).or(known.first());
                (document.context("there is no document")?.identity(), Clock::Here(SystemTime::now()))
            }
            _ => bail!("there is no document for this request"),
        };
        IdentityKey(key).check(headers, given, asked, clock)?;
        Ok(key)
    }
}
