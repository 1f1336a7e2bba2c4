//! `teemark attest`: makes a running enclave prove which image it runs, before it is given any secrets.
//!
//! ```text
//! trust      the options, a fresh nonce, the request to the daemon
//! verify     the checks in order: structure, root, chain, signature, nonce, PCRs, teemarkd's own fields
//! document   COSE_Sign1 and the fields in it
//! chain      certificates, from the trusted root to the key that signed
//! pcrs       the image's measurements
//! ```

mod chain;
mod document;
mod pcrs;
mod trust;
mod verify;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::time::Utc;
use serde_json::{Value, json};

pub(crate) use chain::Root;
pub(crate) use document::{Signature, told_time_ms};
pub(crate) use pcrs::Pcrs;
pub(crate) use trust::{Expected, Nonce, Purpose, Trust, document, nonce};
pub(crate) use verify::{Attested, Policy, Reused};

use crate::daemon::{self, Cacert};
use crate::failure::Done;
use crate::output::{self, Existing, Readers};
use crate::terminal::printable;

/// Make a running enclave prove that it runs the image of a .pcrs file, and print its keys.
#[derive(clap::Args)]
#[command(
    mut_arg("pcrs", |pcrs| pcrs.required_unless_present("development")),
    after_help = "Examples:
  teemark attest --endpoint http://127.0.0.1:3000 --pcrs out/teemark.pcrs
  teemark attest --endpoint http://127.0.0.1:3000 --pcrs out/teemark.pcrs --json | jq -r .sealing_key
  teemark attest --endpoint https://files.example.com --pcrs out/teemark.pcrs --output enclave.document"
)]
pub(crate) struct Arguments {
    /// The daemon's public address, http://HOST:PORT or https://HOST
    #[arg(long, value_name = "URL", value_parser = daemon::endpoint)]
    endpoint: String,
    #[command(flatten)]
    cacert: Cacert,
    #[command(flatten)]
    trust: Trust,
    /// Write the document to a file too, for teemark decrypt --attested; one that is there is replaced
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Attests the enclave and prints what it proved.
///
/// # Errors
/// As [`Trust::attest`]; the document cannot be written.
pub(crate) fn run(arguments: &Arguments) -> Result<Done> {
    let daemon = arguments.cacert.daemon(&arguments.endpoint)?;
    let (attested, document) = arguments.trust.expected()?.attest(&daemon, Purpose::Look)?;
    if let Some(path) = &arguments.output {
        output::write(path, &document, Existing::Replace, Readers::Umask, "choose another --output")?;
    }
    Ok(Done::new(arguments.as_text(&attested), arguments.as_json(&attested)))
}

impl Arguments {
    fn as_text(&self, attested: &Attested) -> String {
        let (module, made) = (printable(&attested.module_id), Utc(attested.timestamp_ms / 1000));
        let verdict = match (self.trust.unsigned, self.trust.development) {
            (true, _) => "NOT attested (--unsigned), told by",
            (_, true) => "attested by itself (--development):",
            _ => "attested by",
        };
        let mut text = format!("{verdict} {}: module {module}, made at {made}\n", self.endpoint);
        let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<19} {value}\n"));
        for index in &attested.compared {
            line(&format!("PCR{index}"), &hex::encode(&attested.pcrs[index]));
        }
        if attested.in_debug_mode() {
            line("PCRs", "zero: debug mode, nothing is proven about the code");
        }
        line("identity key", &hex::encode(attested.identity));
        line("sealing key", &STANDARD.encode(attested.sealing_key));
        line("allow list, SHA-256", &hex::encode(attested.allow_list_sha256));
        line("boot nonce", &hex::encode(attested.boot_nonce));
        line("counter", &attested.in_force.counter.to_string());
        line("bundle, SHA-256", &hex::encode(attested.in_force.sha256));
        if let Some(state) = attested.state_sha256 {
            line("state, SHA-256", &hex::encode(state));
        }
        text
    }

    fn as_json(&self, attested: &Attested) -> Value {
        let registers = attested.pcrs.iter().map(|(index, value)| (index.to_string(), hex::encode(value)));
        json!({
            "module_id": attested.module_id,
            "timestamp_ms": attested.timestamp_ms,
            "pcrs": registers.collect::<BTreeMap<_, _>>(),
            "pcrs_compared": attested.compared,
            "identity": hex::encode(attested.identity),
            "sealing_key": STANDARD.encode(attested.sealing_key),
            "allow_list_sha256": hex::encode(attested.allow_list_sha256),
            "boot_nonce": hex::encode(attested.boot_nonce),
            "counter": attested.in_force.counter,
            "bundle_sha256": hex::encode(attested.in_force.sha256),
            "state_sha256": attested.state_sha256.map(hex::encode),
            "debug_mode": attested.in_debug_mode(),
            "signature_checked": !self.trust.unsigned,
        })
    }
}
