//! The options that say what an operator trusts, for every command that attests an enclave.

use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::time::{Utc, now_ms};
use serde::Deserialize;

use super::chain::{ChainError, Root};
use super::document::Signature;
use super::pcrs::Pcrs;
use super::verify::{AttestationError, Attested, Policy, verify};
use crate::daemon;
use crate::failure::Failure;
use crate::keys::fill_random;
use crate::terminal::say;

/// Time limit of one attempt to get a document.
const LIMIT: Duration = Duration::from_secs(30);
/// The clocks may differ by this much without a warning; the daemon warns beyond the same difference.
const APART: Duration = Duration::from_secs(60);
/// How often to try again while the daemon asks to wait.
const RETRIES: u32 = 3;
/// Largest answer, in bytes: a document of 64 KiB in hexadecimal, and room.
const LARGEST_ANSWER: u64 = 256 << 10;

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
}

/// The daemon's answer to a request for its document.
#[derive(Deserialize)]
struct AttestationAnswer {
    attestation: String,
    /// Present if the daemon has no NSM and signs with a root of its own: base64 of its DER.
    test_root: Option<String>,
}

impl Trust {
    /// Asks the daemon at `endpoint` for a new document, and checks all of it. Warns on stderr of what it does not prove.
    ///
    /// # Errors
    /// The document does not pass ([`AttestationError`]), or the daemon refuses; a file cannot be read; the daemon cannot be
    /// reached, or what answers is not the daemon.
    pub(crate) fn attest(&self, endpoint: &str, purpose: Purpose) -> Result<Attested> {
        let policy = if self.development { None } else { Some(self.policy()?) };
        let mut nonce = [0; 32];
        fill_random(&mut nonce)?;
        let answer = ask(endpoint, &nonce)?;
        let policy = match policy {
            Some(policy) => policy,
            None => development(endpoint, &answer)?,
        };
        let document = hex::decode(answer.attestation.trim()).map_err(|_| not_the_daemon(endpoint))?;
        let attested = match verify(&document, &nonce, &policy, SystemTime::now()) {
            Err(AttestationError::Chain(ChainError::Root(_))) if answer.test_root.is_some() => {
                return Err(Failure::from(AttestationError::TestRoot).into());
            }
            verified => verified.map_err(Failure::from)?,
        };
        self.warn(endpoint, &attested, purpose);
        Ok(attested)
    }

    /// Warns of what is not proven.
    fn warn(&self, endpoint: &str, attested: &Attested, purpose: Purpose) {
        let advice = match purpose {
            Purpose::Look => "Give it no secrets.",
            Purpose::Secrets => "Only secrets for tests belong there.",
            Purpose::Confirmation => return,
        };
        let now = now_ms();
        if Duration::from_millis(now.abs_diff(attested.timestamp_ms)) > APART {
            say(format_args!(
                "warning: the clocks differ: it is {} on this machine, and {} in the enclave's document",
                Utc(now / 1000),
                Utc(attested.timestamp_ms / 1000)
            ));
        }
        if self.unsigned {
            say(format_args!(
                "WARNING: --unsigned: neither certificates nor signature are checked, so anybody may have made this \
                 document. It proves nothing; it is for QEMU's emulated NSM only. {advice}"
            ));
        }
        if self.development {
            say(format_args!(
                "WARNING: --development: the daemon at {endpoint} vouches for itself, as anybody's could. {advice}"
            ));
        } else if attested.in_debug_mode() {
            say(format_args!(
                "WARNING: this enclave runs in debug mode: its PCRs are zero, so nothing is proven about the code that \
                 runs there, and the parent reads its console. {advice}"
            ));
        }
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

/// What a daemon without an NSM is checked against: its own root, and registers of zeros.
fn development(endpoint: &str, answer: &AttestationAnswer) -> Result<Policy> {
    let Some(root) = answer.test_root.as_deref().and_then(|root| STANDARD.decode(root).ok()) else {
        bail!("{endpoint} has a Nitro Secure Module: check it with --pcrs instead of --development");
    };
    Ok(Policy { pcrs: Pcrs::zeros(), root: Root::of(&root), debug_mode: true, signature: Signature::Real })
}

fn ask(endpoint: &str, nonce: &[u8]) -> Result<AttestationAnswer> {
    let agent = daemon::agent(LIMIT);
    let url = format!("{endpoint}/get_attestation?nonce={}", hex::encode(nonce));
    let answer = daemon::ask(endpoint, RETRIES, || agent.get(&url).call())?;
    let mut body = Vec::new();
    let mut reader = answer.into_body().into_reader().take(LARGEST_ANSWER + 1);
    let cut = || Failure::try_again("answer_cut_off", format!("the answer of {endpoint} did not arrive whole"));
    reader.read_to_end(&mut body).with_context(cut)?;
    if body.len() as u64 > LARGEST_ANSWER {
        bail!("{endpoint} answered with more than 256 KiB, which teemarkd never does; is this its public port?");
    }
    serde_json::from_slice(&body).map_err(|_| not_the_daemon(endpoint))
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
