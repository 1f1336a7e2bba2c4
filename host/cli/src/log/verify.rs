//! `teemark log verify`: whether the records of a boot are as the enclave wrote them, and complete.
//!
//! ```text
//! boot       the lines of one boot, of one or more starts
//! branches   the records of one start, followed as branches where two have the same number
//! chain      one branch: whether its records fit each other, and its checkpoints are the enclave's
//! known      the records that are known again
//! gaps       what is missing of a chain, and why
//! days       where the collector may have removed days
//! verdict    what was found
//! ```

mod boot;
mod branches;
mod chain;
mod days;
mod gaps;
mod known;
#[cfg(test)]
mod tests;
mod verdict;

use std::fs::File;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use formats::log::{Checkpoint, MAX_LINE};
use formats::signature::VerifyingKey;
use formats::time::now_ms;
use serde_json::json;

use self::boot::Checker;
use self::chain::{Anchors, Live};
use self::days::Days;
use self::verdict::Verdict;
use super::files::{self, Lines};
use crate::attest::{Expected, Purpose, Trust};
use crate::daemon::{self, Cacert};
use crate::failure::{Done, Failure};
use crate::terminal::{counted, say};

/// How long records that the enclave has signed may take to arrive in the files.
const ARRIVAL: Duration = Duration::from_secs(10);

/// Check that records are as the enclave wrote them, in order and complete, and name what is not.
///
/// A boot's checkpoints count if its identity key signed them. That key is proven by the attestation document in the log
/// itself (--pcrs, or --development), by a running enclave (--attested), or given (--identity). Each boot is proven up to
/// the record that its line names, which the last checkpoint before the first finding signs.
///
/// The records after the last checkpoint are not proven. While an enclave runs there are always some, since it signs them
/// within a minute: they are named as "not proven", and after three minutes as a finding. With --attested, the running
/// enclave proves those that it had written when it was asked. Nobody can tell what the parent withheld after the last
/// checkpoint, or that it withheld a whole boot, unless that enclave still runs and is asked (--attested).
///
/// Exit status 0: nothing is wrong or missing; what no checkpoint has signed yet is named, and not proven. 1: something is
/// not as the enclave wrote it, or is missing. Files that the collector removed (--keep-days) are reported, and do not count
/// as an error: the hash that the rest follows is in its file `days`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  teemark log verify /var/lib/teemark-log --pcrs teemark.pcrs
  teemark log verify /var/lib/teemark-log --pcrs teemark.pcrs --attested http://127.0.0.1:3000
  teemark log verify 2026-11-29.log 2026-11-30.log --identity HEX")]
pub(crate) struct Arguments {
    /// A collector's folder, the folder of one boot, or the files of one boot in their order
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    trust: Option<Trust>,
    /// An identity key in hex that a boot may have, known from elsewhere
    #[arg(long, value_name = "HEX", value_parser = identity)]
    identity: Vec<VerifyingKey>,
    /// The public address of an enclave that runs: nothing of its log may be missing at the end
    #[arg(long, value_name = "URL", value_parser = daemon::endpoint)]
    attested: Option<String>,
    #[command(flatten)]
    cacert: Cacert,
}

fn identity(text: &str) -> Result<VerifyingKey, String> {
    VerifyingKey::from_hex(text).ok_or_else(|| "not an Ed25519 key: 64 hex digits".to_owned())
}

/// Verifies the records.
///
/// # Errors
/// Something is missing, changed, or not signed by who it has to be; a file cannot be read.
pub(crate) fn run(arguments: &Arguments) -> Result<Done> {
    if arguments.trust.is_none() && arguments.identity.is_empty() {
        bail!(Failure::usage(
            "verify needs --pcrs FILE, --development or --identity HEX: without one of them nothing proves that an \
             enclave wrote this log"
        ));
    }
    let expected = arguments.trust.as_ref().map(Trust::expected).transpose()?;
    let live = arguments.attested.as_deref().map(|url| arguments.live(url, expected.as_ref())).transpose()?;
    let anchors = Anchors { expected, identities: &arguments.identity, live: live.as_ref() };
    let start = Instant::now();
    let boots = loop {
        let boots = verdicts(&arguments.paths, &anchors, now_ms())?;
        // The enclave's last records may still be on their way.
        let arrived = live.as_ref().is_none_or(|live| boots.iter().any(|boot| boot.has(&live.checkpoint)));
        if arrived || start.elapsed() > ARRIVAL {
            break boots;
        }
        thread::sleep(Duration::from_millis(200));
    };
    report(boots, live.as_ref())
}

/// Checks the boots in these paths.
fn verdicts(paths: &[PathBuf], anchors: &Anchors<'_>, now_ms: u64) -> Result<Vec<Verdict>> {
    let (boots, empty) = files::boots_and_empty(paths)?;
    let mut verdicts = Vec::new();
    for files in &boots {
        verdicts.push(check(files, anchors, now_ms)?);
    }
    let name = |folder: &PathBuf| folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    verdicts.extend(empty.iter().map(|folder| Verdict::without_files(name(folder))));
    Ok(verdicts)
}

/// Checks the files of one boot.
fn check(files: &[PathBuf], anchors: &Anchors<'_>, now_ms: u64) -> Result<Verdict> {
    let folder = files[0].parent();
    let name = folder.and_then(|folder| folder.file_name()).map(|name| name.to_string_lossy().into_owned());
    let (name, ends) = (name.unwrap_or_default(), folder.map(files::days).unwrap_or_default());
    let (mut checker, mut days) = (Checker::new(anchors, &name), Days::new(&ends));
    for path in files {
        days.next_file(files::day_of(path));
        let mut lines = Lines::new(File::open(path).with_context(|| path.display().to_string())?);
        let mut number = 0;
        while let Some(line) = lines.next().with_context(|| path.display().to_string())? {
            number += 1;
            days.take(line);
            checker.take(line, format_args!("line {number} of {}", path.display()));
        }
    }
    Ok(checker.end(&days.removed(), now_ms))
}

fn report(mut boots: Vec<Verdict>, live: Option<&Live>) -> Result<Done> {
    if boots.is_empty() {
        bail!(Failure::refused("log_refused", "these paths hold no boot, so there is nothing to verify"));
    }
    if let Some(live) = live {
        match boots.iter_mut().find(|boot| boot.nonce == Some(live.checkpoint.boot_nonce)) {
            Some(boot) => boot.compare(&live.checkpoint),
            None => bail!(Failure::refused(
                "log_refused",
                format!(
                    "boot {}: this enclave is running, but none of its records are here",
                    live.checkpoint.boot_nonce
                )
            )),
        }
    }
    for (i, boot) in boots.iter().enumerate() {
        if boot.nonce.is_some() && boots[..i].iter().any(|other| other.nonce == boot.nonce) {
            boots[i].find_since(None, "appears twice: it was copied, perhaps in place of another boot".into());
            break;
        }
    }
    let object = json!({"boots": boots.iter().map(Verdict::to_json).collect::<Vec<_>>()});
    let text: String = boots.iter().map(Verdict::to_text).collect();
    let wrong = boots.iter().map(Verdict::count).sum();
    if wrong == 0 {
        return Ok(Done::new(text, object));
    }
    for line in text.lines() {
        say(line);
    }
    let failure = Failure::refused(
        "log_refused",
        format!("the log is not as the enclave wrote it: {}", counted(wrong, "finding")),
    );
    Err(failure.with("boots", object["boots"].clone()).into())
}

impl Arguments {
    fn live(&self, url: &str, expected: Option<&Expected>) -> Result<Live> {
        let Some(expected) = expected else {
            bail!(Failure::usage("--attested needs --pcrs FILE (or --development): which image is expected there?"));
        };
        let daemon = self.cacert.daemon(url)?;
        let (attested, _) = expected.attest(&daemon, Purpose::Look)?;
        let answer = daemon.get("/log/checkpoint", MAX_LINE as u64)?;
        let checkpoint: Checkpoint = serde_json::from_slice(&answer)
            .with_context(|| format!("{url} answers with something other than a checkpoint"))?;
        if checkpoint.boot_nonce != attested.boot_nonce || !checkpoint.is_by(&attested.identity) {
            bail!(Failure::refused(
                "log_refused",
                format!("{url}: the checkpoint is not signed by the attested enclave")
            ));
        }
        Ok(Live { checkpoint, identity: attested.identity })
    }
}
