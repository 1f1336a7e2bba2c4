//! The options that say what an operator trusts, for every command that attests an enclave.

use std::cell::Cell;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow, bail};
use formats::attestation::TEST_ROOT;
use formats::time::{Utc, now_ms};
use serde::Deserialize;

use super::chain::{ChainError, Root};
use super::document::{Document, Signature};
use super::pcrs::Pcrs;
use super::verify::{AttestationError, Attested, Policy, Reused, verify, verify_recorded, verify_reused};
use crate::daemon::Daemon;
use crate::failure::Failure;
use crate::keys::fill_random;
use crate::terminal::say;

/// The clocks may differ by this much without a warning; the daemon warns beyond the same difference.
const APART: Duration = Duration::from_secs(60);
/// Largest answer, in bytes: a document of 64 KiB in hexadecimal, and room.
const LARGEST_ANSWER: u64 = 256 << 10;

/// A nonce for which a document is to be made.
pub(crate) type Nonce = [u8; 32];

/// The expected image, and the root that may vouch for it.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Trust {
    /// The measurements of the image that must run there, as the image's build wrote them
    #[arg(long, value_name = "FILE")]
    pub(crate) pcrs: Option<PathBuf>,
    /// The root certificate to trust instead of AWS' (PEM or DER)
    #[arg(long, value_name = "FILE", requires = "pcrs")]
    pub(crate) root: Option<PathBuf>,
    /// Accept an enclave in debug mode, whose PCRs are zero: nothing is proven about its code
    #[arg(long, requires = "pcrs")]
    pub(crate) debug_mode: bool,
    /// Check neither certificates nor signature: for QEMU's emulated NSM, whose signature is a dummy
    #[arg(long, hide = true, requires = "pcrs")]
    pub(crate) unsigned: bool,
    /// Trust a daemon without a Nitro Secure Module, by the root that it made itself: proves nothing, for development
    #[arg(long, conflicts_with_all = ["pcrs", "root", "debug_mode", "unsigned"])]
    pub(crate) development: bool,
}

/// Why an enclave is attested, which decides what the warnings advise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To know its identity.
    Look,
    /// To give it secrets.
    Secrets,
    /// To know whether it has accepted them. Warnings are not repeated.
    Confirmation,
    /// To know its identity, from a document that may be old.
    Reuse,
}

/// The daemon's answer to a request for its document.
#[derive(Deserialize)]
struct AttestationAnswer {
    attestation: String,
}

/// What documents are checked against: read before anything is sent.
pub(crate) struct Expected {
    basis: Basis,
    /// Whether the warnings of what is not proven have been printed.
    warned: Cell<bool>,
}

/// Who may vouch for which image.
enum Basis {
    /// One root.
    Root(Policy),
    /// With `--development`, each document's own root; and for these registers, or for none.
    OwnRoot(Option<Pcrs>),
}

impl Trust {
    /// Whether it says what has to run there.
    pub(crate) fn is_given(&self) -> bool {
        self.pcrs.is_some() || self.development
    }

    /// The option because of which a document proves nothing, if there is one.
    pub(crate) fn unproven(&self) -> Option<&'static str> {
        let options = [(self.development, "--development"), (self.unsigned, "--unsigned")];
        options.into_iter().find_map(|(given, option)| given.then_some(option))
    }

    /// Reads what documents are checked against.
    ///
    /// # Errors
    /// A file cannot be read, or no image is named.
    pub(crate) fn expected(&self) -> Result<Expected> {
        let basis = if self.development { Basis::OwnRoot(None) } else { Basis::Root(self.policy()?) };
        Ok(Expected { basis, warned: Cell::new(false) })
    }

    /// Asks the daemon for a new document, and checks all of it. Warns on stderr of what it does not prove.
    ///
    /// # Errors
    /// The document does not pass ([`AttestationError`]), or the daemon refuses; a file cannot be read; the daemon cannot be
    /// reached, or what answers is not the daemon.
    pub(crate) fn attest(&self, daemon: &Daemon, purpose: Purpose) -> Result<Attested> {
        self.expected()?.attest(daemon, purpose).map(|(attested, _)| attested)
    }

    fn policy(&self) -> Result<Policy> {
        let Some(pcrs) = &self.pcrs else {
            bail!("which image is expected? give its --pcrs FILE (or --development, for a daemon without an NSM)");
        };
        Ok(Policy {
            pcrs: Pcrs::read(pcrs)?,
            root: self.root.as_deref().map_or(Ok(Root::AWS), Root::read)?,
            debug_mode: self.debug_mode,
            signature: if self.unsigned { Signature::Dummy } else { Signature::Real },
        })
    }
}

impl Expected {
    /// What AWS, or another root, vouches for.
    pub(crate) fn by_root(policy: Policy) -> Expected {
        Expected { basis: Basis::Root(policy), warned: Cell::new(false) }
    }

    /// What a daemon without a Nitro Secure Module says of itself.
    pub(crate) fn by_own_root(pcrs: Option<Pcrs>) -> Expected {
        Expected { basis: Basis::OwnRoot(pcrs), warned: Cell::new(false) }
    }

    /// Asks the daemon for a document for a new nonce, and checks it. Returns its bytes too.
    ///
    /// # Errors
    /// As [`Trust::attest`].
    pub(crate) fn attest(&self, daemon: &Daemon, purpose: Purpose) -> Result<(Attested, Vec<u8>)> {
        let nonce = nonce()?;
        let document = document(daemon, &nonce)?;
        let attested = self.made_for(&nonce, &document, &daemon.endpoint, purpose)?;
        Ok((attested, document))
    }

    /// Checks a document that was made for this nonce. `from` is who gave it, for messages.
    ///
    /// # Errors
    /// It does not pass ([`AttestationError`]).
    pub(crate) fn made_for(&self, nonce: &Nonce, document: &[u8], from: &str, purpose: Purpose) -> Result<Attested> {
        let attested = verify(document, nonce, &self.policy(document, from)?, SystemTime::now());
        let attested = attested.map_err(|why| refused(why, document))?;
        self.warn(from, &attested, purpose);
        Ok(attested)
    }

    /// The daemon's document without a nonce, at most `most` old.
    ///
    /// # Errors
    /// As [`Trust::attest`].
    pub(crate) fn standing(&self, daemon: &Daemon, most: Duration) -> Result<Reused> {
        let document = daemon.get("/attestation", LARGEST_ANSWER)?;
        self.reused(&document, &daemon.endpoint, most)
    }

    /// Checks a document that was made before, at most `most` ago. `from` is where it is from, for messages.
    ///
    /// # Errors
    /// It does not pass ([`AttestationError`]).
    pub(crate) fn reused(&self, document: &[u8], from: &str, most: Duration) -> Result<Reused> {
        let reused = verify_reused(document, most, &self.policy(document, from)?, SystemTime::now());
        let reused = reused.map_err(|why| refused(why, document))?;
        self.warn(from, &reused.0, Purpose::Reuse);
        Ok(reused)
    }

    /// Checks a document that was recorded when it was made, however long ago. `from` is where it is from, for messages.
    ///
    /// # Errors
    /// It does not pass ([`AttestationError`]).
    pub(crate) fn recorded(&self, document: &[u8], from: &str) -> Result<Reused> {
        let recorded = verify_recorded(document, &self.policy(document, from)?);
        let recorded = recorded.map_err(|why| refused(why, document))?;
        self.warn(from, &recorded.0, Purpose::Reuse);
        Ok(recorded)
    }

    /// What this document is checked against. A daemon without an NSM is checked against its own root, and registers of
    /// zeros.
    fn policy(&self, document: &[u8], from: &str) -> Result<Policy> {
        let pcrs = match &self.basis {
            Basis::Root(policy) => return Ok(policy.clone()),
            Basis::OwnRoot(pcrs) => pcrs,
        };
        let document = Document::parse(document, Signature::Real);
        let document = document.map_err(|why| Failure::from(AttestationError::Document(why)))?;
        let root = document.cabundle.first().map_or(Root::AWS, |der| Root::of(der));
        if root == Root::AWS {
            bail!("{from} has a Nitro Secure Module: check it with --pcrs instead of --development");
        }
        let (pcrs, debug_mode) = (pcrs.clone().unwrap_or_else(Pcrs::zeros), pcrs.is_none());
        Ok(Policy { pcrs, root, debug_mode, signature: Signature::Real })
    }

    /// Warns once of what is not proven.
    fn warn(&self, from: &str, attested: &Attested, purpose: Purpose) {
        let advice = match purpose {
            Purpose::Look | Purpose::Reuse => "Give it no secrets.",
            Purpose::Secrets => "Only secrets for tests belong there.",
            Purpose::Confirmation => return,
        };
        if self.warned.replace(true) {
            return;
        }
        let now = now_ms();
        if purpose != Purpose::Reuse && Duration::from_millis(now.abs_diff(attested.timestamp_ms)) > APART {
            say(format_args!(
                "warning: the clocks differ: it is {} on this machine, and {} in the enclave's document",
                Utc(now / 1000),
                Utc(attested.timestamp_ms / 1000)
            ));
        }
        let signature = match &self.basis {
            Basis::Root(policy) => Some(policy.signature),
            Basis::OwnRoot(_) => None,
        };
        if signature == Some(Signature::Dummy) {
            say(format_args!(
                "WARNING: --unsigned: neither certificates nor signature are checked, so anybody may have made this \
                 document. It proves nothing; it is for QEMU's emulated NSM only. {advice}"
            ));
        }
        if signature.is_none() {
            say(format_args!(
                "WARNING: --development: the daemon at {from} vouches for itself, as anybody's could. {advice}"
            ));
        } else if attested.in_debug_mode() {
            say(format_args!(
                "WARNING: this enclave runs in debug mode: its PCRs are zero, so nothing is proven about the code that \
                 runs there, and the parent reads its console. {advice}"
            ));
        }
    }
}

/// A nonce that nobody has used before.
///
/// # Errors
/// The system has no random numbers to give.
pub(crate) fn nonce() -> Result<Nonce> {
    let mut nonce = [0; 32];
    fill_random(&mut nonce)?;
    Ok(nonce)
}

/// Why a document is refused. A root that a development machine made itself has another remedy than a forged one.
fn refused(why: AttestationError, document: &[u8]) -> Failure {
    let is_test_root = || document.windows(TEST_ROOT.len()).any(|bytes| bytes == TEST_ROOT.as_bytes());
    match why {
        AttestationError::Chain(ChainError::Root(_)) if is_test_root() => AttestationError::TestRoot.into(),
        why => why.into(),
    }
}

/// The daemon's document for this nonce, not checked.
///
/// # Errors
/// As [`Daemon::get`]; what answers is not the daemon.
pub(crate) fn document(daemon: &Daemon, nonce: &Nonce) -> Result<Vec<u8>> {
    let answer = daemon.get(&format!("/get_attestation?nonce={}", hex::encode(nonce)), LARGEST_ANSWER)?;
    let answer: AttestationAnswer = serde_json::from_slice(&answer).map_err(|_| not_the_daemon(&daemon.endpoint))?;
    hex::decode(answer.attestation.trim()).map_err(|_| not_the_daemon(&daemon.endpoint))
}

fn not_the_daemon(endpoint: &str) -> anyhow::Error {
    anyhow!("{endpoint} answered, but not with an attestation as teemarkd does; is this its public port?")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// A command that attests only where it is asked to.
    #[derive(Parser)]
    struct Optional {
        #[command(flatten)]
        trust: Option<Trust>,
    }

    #[test]
    fn a_command_may_leave_the_choice_and_no_option_counts_without_the_image() {
        let parse = |arguments: &str| Optional::try_parse_from(format!("teemark {arguments}").split_whitespace());
        assert!(parse("").unwrap().trust.is_none());
        let trust = parse("--pcrs a.pcrs --root b.pem").unwrap().trust.unwrap();
        assert_eq!((trust.pcrs, trust.root), (Some("a.pcrs".into()), Some("b.pem".into())));
        assert!(parse("--development").unwrap().trust.unwrap().development);
        assert!(parse("--development --pcrs a.pcrs").is_err());
        for alone in ["--root b.pem", "--debug-mode", "--unsigned"] {
            let error = parse(alone).err().unwrap().to_string();
            assert!(error.contains("--pcrs <FILE>"), "{error}");
        }
    }
}
