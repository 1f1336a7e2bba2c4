//! `teemark sign`: shows what a sealed bundle changes in the enclave that it is for, and adds an operator's signature.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use formats::base64;
use formats::sealed_bundle::v2::{Line, SealedBundle};
use formats::signature::VerifyingKey;
use formats::state::{Manifest, State};
use formats::time::now_ms;
use ring::signature::KeyPair;
use serde_json::json;

use crate::attest::{Attested, Purpose, Trust};
use crate::bundle;
use crate::changes;
use crate::daemon::{self, Cacert};
use crate::failure::{Done, Failure};
use crate::output::{self, Existing, Readers};
use crate::seal::{is_far_ahead, operator_key, signers};
use crate::state;
use crate::terminal::{printable, say};

/// Show what a sealed bundle changes in its enclave, and add an operator's signature to it.
#[derive(clap::Args)]
#[command(
    mut_arg("pcrs", |pcrs| pcrs.required_unless_present("development")),
    after_help = "Examples:
  teemark sign --bundle sealed.bundle --attested https://enclave-7.example.com --pcrs out/teemark.pcrs
  teemark sign --bundle sealed.bundle --attested https://enclave-7.example.com --pcrs out/teemark.pcrs \\
    --operator-key second.key"
)]
pub(crate) struct Arguments {
    /// The sealed bundle, as teemark secrets --seal --output writes it in version 2
    #[arg(long, value_name = "FILE")]
    bundle: PathBuf,
    /// The public address of the enclave that the bundle is for
    #[arg(long, value_name = "URL", value_parser = daemon::endpoint)]
    attested: String,
    #[command(flatten)]
    cacert: Cacert,
    #[command(flatten)]
    trust: Trust,
    /// The operator's private key to sign with [default: only show what changes]
    #[arg(long, value_name = "FILE")]
    operator_key: Option<PathBuf>,
    /// Where to write the signed bundle [default: in place of the one that was read, with its mode]
    #[arg(long, value_name = "FILE", requires = "operator_key")]
    output: Option<PathBuf>,
}

/// Shows what the bundle changes, and signs it if a key is given.
///
/// # Errors
/// The enclave is not attested, or the bundle is not for it in the state that it has; the bundle has an item that this
/// teemark does not know; a file cannot be read or written.
pub(crate) fn run(arguments: &Arguments) -> Result<Done> {
    let in_file = || format!("--bundle {}", arguments.bundle.display());
    let bytes = bundle::read(&arguments.bundle)?;
    if !Line::is_one(&bytes) {
        bail!("{} is not a bundle sealed in version 2; only those can have several signatures", in_file());
    }
    let mut sealed = SealedBundle::parse(&bytes).with_context(in_file)?;
    let manifest = Manifest::parse(&sealed.manifest).with_context(in_file)?;
    let daemon = arguments.cacert.daemon(&arguments.attested)?;
    let attested = arguments.trust.attest(&daemon, Purpose::Secrets)?;
    check_destination(&sealed.line, &manifest, &attested)?;
    let before = state::fetch(&daemon, &manifest.from)?;
    let changes = changes::explain(&before, &manifest)?;
    let warnings: Vec<String> =
        counter_warning(sealed.line.counter, attested.in_force.counter, now_ms()).into_iter().collect();

    let mut told = json!({
        "counter": sealed.line.counter,
        "bundle_sha256": sealed.line.id().sha256,
        "boot_nonce": sealed.line.boot_nonce,
        "state": before,
        "manifest": manifest,
        "changes": changes,
        "warnings": warnings,
    });
    if let Some(path) = &arguments.operator_key {
        let operator = operator_key(path)?;
        sealed.line.sign(&operator);
        told["signed_by"] = base64::encode(operator.public_key()).into();
        told["output"] = arguments.write(&sealed)?.to_string_lossy().into();
    }
    let signers = signers(&sealed.line);
    told["signers"] = json!(signers.iter().map(base64::encode).collect::<Vec<_>>());
    Ok(Done::new(as_text(&before, &sealed.line, (&changes, &warnings), &signers), told))
}

/// Checks that the enclave would take the bundle now, but for its signatures.
fn check_destination(line: &Line, manifest: &Manifest, attested: &Attested) -> Result<()> {
    let refused = |code: &str, message: String| Err(Failure::refused(code, message).into());
    if line.boot_nonce != attested.boot_nonce {
        let (told, found) = (line.boot_nonce, attested.boot_nonce);
        return refused(
            "another_boot",
            format!(
                "the bundle is for boot {told}, and this is boot {found}: the enclave was restarted, or is another"
            ),
        );
    }
    let in_force = attested.in_force.counter;
    if line.counter <= in_force {
        let counter = line.counter;
        return refused("old_counter", format!("the bundle has counter {counter}, and {in_force} is in force already"));
    }
    match attested.state_sha256 {
        Some(state) if state == manifest.from => Ok(()),
        Some(state) => {
            let from = manifest.from;
            refused("another_state", format!("the bundle changes state {from}, and the enclave has state {state}"))
        }
        None => refused("no_state", "the enclave does not attest its state, so it takes no such bundle".to_owned()),
    }
}

/// Whether the counter uses up others.
fn counter_warning(counter: u64, in_force: u64, now_ms: u64) -> Option<String> {
    let far = is_far_ahead(counter, in_force, now_ms);
    far.then(|| {
        format!(
            "the counter is {} s ahead of the time (in milliseconds since 1970, which it usually is). Until its restart \
             the enclave then takes no bundle with one below it, and after the highest one no other at all: ask who \
             chose it, or whether this machine's clock is behind, before you sign",
            (counter - now_ms) / 1000
        )
    })
}

fn as_text(
    before: &State,
    line: &Line,
    (changes, warnings): (&[String], &[String]),
    signers: &[VerifyingKey],
) -> String {
    let items = before.items.keys().cloned().collect::<Vec<_>>().join(", ");
    let items = if items.is_empty() { "nothing".to_owned() } else { items };
    let mut text = format!("in force: {}\n", printable(&items));
    let mut line_of = |name: &str, value: &str| text.push_str(&format!("{name:<10} {}\n", printable(value)));
    line_of("counter", &line.counter.to_string());
    warnings.iter().for_each(|warning| line_of("warning", warning));
    changes.iter().for_each(|change| line_of("change", change));
    signers.iter().for_each(|key| line_of("signed by", &base64::encode(key)));
    if signers.is_empty() {
        line_of("signed by", "nobody");
    }
    text
}

impl Arguments {
    /// Writes the signed bundle; returns where.
    fn write(&self, sealed: &SealedBundle) -> Result<&Path> {
        let (path, readers) = match &self.output {
            Some(output) => (output.as_path(), Readers::Owner),
            None => {
                let found = std::fs::metadata(&self.bundle);
                let found = found.with_context(|| format!("cannot read {}", self.bundle.display()))?;
                (self.bundle.as_path(), Readers::Mode(found.permissions().mode() & 0o777))
            }
        };
        let existing = if self.output.is_some() { Existing::Keep } else { Existing::Replace };
        output::write(path, &sealed.to_bytes(), existing, readers, "remove it first, or choose another --output")?;
        say(format_args!("the signed bundle is in {}", path.display()));
        Ok(path)
    }
}
