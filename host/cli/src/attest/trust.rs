//! What an operator trusts, as the options of every command that asks an enclave who it is.

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
use super::verify::{Attested, Policy, Refusal, verify};
use crate::daemon;
use crate::failure::Failure;
use crate::keys::fill_random;
use crate::terminal::say;

/// One attempt to get a document.
const LIMIT: Duration = Duration::from_secs(30);
/// A difference of the clocks that is worth a word: that from which the daemon warns too.
const APART: Duration = Duration::from_secs(60);
/// How often to try again while the daemon asks to wait.
const RETRIES: u32 = 3;
/// Largest answer, in bytes: a document of 64 KiB in hexadecimal, and room.
const LARGEST_ANSWER: u64 = 256 << 10;

/// The image that is expected, and who may vouch for it.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Trust {
    /// The measurements of the image that must run there, as the image's build wrote them
    #[arg(long, value_name = "FILE")]
    pub(crate) pcrs: Option<PathBuf>,
    /// The root certificate to trust instead of AWS' (PEM or DER)
    #[arg(long, value_name = "FILE", requires = "pcrs")]
    pub(crate) root: Option<PathBuf>,
    /// Let an enclave in debug mode pass, whose PCRs are zero: nothing is proven about its code
    #[arg(long, requires = "pcrs")]
    pub(crate) debug_mode: bool,
    /// Check neither certificates nor signature: for QEMU's emulated NSM, whose signature is a dummy
    #[arg(long, hide = true, requires = "pcrs")]
    pub(crate) unsigned: bool,
    /// Trust a daemon without a Nitro Secure Module, by the root that it made itself: proves nothing, for development
    #[arg(long, conflicts_with_all = ["pcrs", "root", "debug_mode", "unsigned"])]
    pub(crate) development: bool,
}

/// Why an enclave is attested: what is said where less than all is proven depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To know who it is.
    Look,
    /// To give it secrets.
    Secrets,
    /// To know whether it has taken them; what was said before is not said again.
    Confirmation,
}

/// The daemon's answer.
#[derive(Deserialize)]
struct Answer {
    attestation: String,
    /// There where the daemon has no NSM, and signs with a root of its own: base64 of its DER.
    test_root: Option<String>,
}

impl Trust {
    /// Asks the daemon at `endpoint` for a document made for this moment, and checks all of it. Where less than all is
    /// proven, stderr says so.
    ///
    /// # Errors
    /// A [`Refusal`] of the document, or the daemon's own; a file cannot be read; the daemon cannot be reached, or
    /// what answers is not the daemon.
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
            Err(Refusal::Chain(ChainError::Root(_))) if answer.test_root.is_some() => {
                return Err(Failure::from(Refusal::TestRoot).into());
            }
            verified => verified.map_err(Failure::from)?,
        };
        self.warn(endpoint, &attested, purpose);
        Ok(attested)
    }

    /// Says what is not proven.
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
                "WARNING: --development: the daemon at {endpoint} vouches for itself, and anybody's could. {advice}"
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

/// What a daemon without an NSM is held against: its own root, and the zeros of what nobody measured.
fn development(endpoint: &str, answer: &Answer) -> Result<Policy> {
    let Some(root) = answer.test_root.as_deref().and_then(|root| STANDARD.decode(root).ok()) else {
        bail!("{endpoint} has a Nitro Secure Module: check it with --pcrs instead of --development");
    };
    Ok(Policy { pcrs: Pcrs::zeros(), root: Root::of(&root), debug_mode: true, signature: Signature::Real })
}

fn ask(endpoint: &str, nonce: &[u8]) -> Result<Answer> {
    let agent = daemon::agent(LIMIT);
    let url = format!("{endpoint}/get_attestation?nonce={}", hex::encode(nonce));
    let answer = daemon::ask(endpoint, RETRIES, || agent.get(&url).call())?;
    let mut body = Vec::new();
    let mut reader = answer.into_body().into_reader().take(LARGEST_ANSWER + 1);
    let cut = || Failure::try_again("answer_cut_off", format!("the answer of {endpoint} did not arrive whole"));
    reader.read_to_end(&mut body).with_context(cut)?;
    if body.len() as u64 > LARGEST_ANSWER {
        bail!("{endpoint} answered with more than 256 KiB, as teemarkd does not; is this its public port?");
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
