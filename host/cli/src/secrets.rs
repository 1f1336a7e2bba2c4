//! `teemark secrets`: the bundle that tells the enclave its certificate, its service and its file keys.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use formats::address::Address;
use formats::attestation::BundleId;
use serde_json::{Value, json};

use crate::attest::{Attested, Purpose, Trust};
use crate::bundle::{self, Items, LARGEST};
use crate::daemon;
use crate::failure::{Class, Done, Failure};
use crate::handshake::{self, Accepted};
use crate::output::{self, Existing, Readers};
use crate::seal::{Seal, operator_key};
use crate::terminal::say;

/// Between two attempts to attest an enclave that does not listen yet.
const PAUSE: Duration = Duration::from_millis(500);

/// Build the bundle of certificates, endpoint and keys; write it, or send it to the enclave (the handshake).
#[derive(clap::Args)]
#[command(
    mut_arg("pcrs", |pcrs| pcrs.requires("seal")),
    mut_arg("development", |development| development.requires("seal")),
    after_help = "Examples:
  teemark secrets --client-cert client.crt --client-key client.key --ca ecs-ca.crt \\
    --endpoint https://watermark.internal.staging.zing.you:8080 --keys keys.json \\
    --grant-keys grant-keys.json --send vsock:16:7777 \\
    --seal --attested http://127.0.0.1:3000 --pcrs out/teemark.pcrs --operator-key operator.key
  teemark secrets --bundle sealed.json --send vsock:16:7777
  teemark secrets --bundle mtls_certs.json --plain --send vsock:16:7777"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    items: Items,
    /// A bundle that is made already, taken as it is; - for standard input
    #[arg(long, value_name = "FILE",
          conflicts_with_all = ["client_cert", "client_key", "ca", "endpoint", "keys", "grant_keys"])]
    bundle: Option<PathBuf>,
    /// Seal the bundle to the enclave at --attested, so that nobody on the way can read or change it
    #[arg(long, requires_all = ["attested", "pcrs", "operator_key"])]
    seal: bool,
    /// The daemon's public address, http://HOST:PORT: the enclave there is attested, and sealed to
    #[arg(long, value_name = "URL", value_parser = daemon::endpoint, requires = "seal")]
    attested: Option<String>,
    #[command(flatten)]
    trust: Option<Trust>,
    /// The operator's private key, as teemark keygen --for operator makes it
    #[arg(long, value_name = "FILE", requires = "seal")]
    operator_key: Option<PathBuf>,
    /// The sealed bundle's counter, above that of any before it [default: the milliseconds since 1970, or one above the last]
    #[arg(long, value_name = "N", requires = "seal", value_parser = clap::value_parser!(u64).range(1..))]
    counter: Option<u64>,
    /// Write the bundle to a new file (mode 600) [default: standard output]
    #[arg(long, value_name = "FILE", conflicts_with = "send")]
    output: Option<PathBuf>,
    /// Send the bundle, with --seal or --plain unless it is sealed already: vsock:CID:PORT, tcp:HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS", value_parser = destination)]
    send: Option<Address>,
    /// Send it in the clear: whoever relays it reads the keys; for TEEMARK_HANDSHAKE=plain
    #[arg(long, requires = "send", conflicts_with = "seal")]
    plain: bool,
    /// How many seconds to go on trying while the enclave does not listen yet
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

fn destination(text: &str) -> Result<Address, String> {
    match text.parse::<Address>() {
        Ok(Address::Vsock { cid: None, port }) => Err(format!("which enclave? write vsock:CID:{port}")),
        Ok(address) => Ok(address),
        Err(e) => Err(e.to_string()),
    }
}

/// A bundle, and how it goes out.
struct Outgoing {
    bundle: Vec<u8>,
    seal: Option<Seal>,
}

impl Outgoing {
    /// The bytes to send now.
    ///
    /// # Errors
    /// The daemon would not take so many; as [`Seal::seal`].
    fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        let (bytes, what) = match &self.seal {
            Some(seal) => (Cow::Owned(seal.seal(&self.bundle)?), "the sealed bundle"),
            None => (Cow::Borrowed(&self.bundle[..]), "the bundle"),
        };
        if bytes.len() as u64 > LARGEST {
            bail!(
                "{what} has {} bytes, and the daemon takes at most 1 MiB; are all of these keys needed?",
                bytes.len()
            );
        }
        Ok(bytes)
    }
}

/// Builds or reads the bundle, seals it where that is asked for, and prints, writes or sends it.
///
/// # Errors
/// A file is missing or is not what it should be; the enclave is not attested, refuses the bundle, or does not confirm that
/// it took it ([`crate::seal::Unconfirmed`]); the output is there already; the enclave cannot be reached in time.
pub(crate) fn run(arguments: &Arguments) -> Result<Done> {
    let bundle = match &arguments.bundle {
        Some(path) => {
            let bundle = bundle::read(path)?;
            bundle::warn_of_certificates(&bundle);
            bundle
        }
        None => bundle::build(&arguments.items)?,
    };
    if arguments.send.is_some() && !arguments.seal && !arguments.plain && !bundle::is_sealed(&bundle) {
        bail!(Failure::usage(
            "the bundle is not sealed, so whoever relays it would read its keys; --seal seals it to the enclave at \
             --attested, --plain sends it in the clear, which a daemon with TEEMARK_HANDSHAKE=plain takes"
        ));
    }
    let outgoing = Outgoing { bundle, seal: arguments.sealing()? };
    match &arguments.send {
        Some(address) => arguments.send(address, &outgoing),
        None => arguments.write(&outgoing),
    }
}

impl Arguments {
    fn is_secret(&self) -> bool {
        !self.seal && (self.bundle.is_some() || self.items.are_secret())
    }

    /// Sends the bundle; a sealed one is in force when the enclave says so.
    fn send(&self, address: &Address, outgoing: &Outgoing) -> Result<Done> {
        let answered = handshake::send(address, || outgoing.bytes(), self.wait);
        if let Some(seal) = &outgoing.seal {
            return self.confirm(address, seal, answered);
        }
        if answered.as_ref().is_err_and(was_refused) && bundle::is_sealed(&outgoing.bundle) {
            say("if an earlier answer was lost, it may be in force all the same: teemark attest tells what is");
        }
        let accepted = answered?;
        let told = json!({"accepted_by": address.to_string(), "confirmed": false});
        Ok(Done::new(accepted.line(address), with_answer(told, &accepted)))
    }

    /// Writes the bundle to its file, or has it printed.
    fn write(&self, outgoing: &Outgoing) -> Result<Done> {
        let bytes = outgoing.bytes()?;
        let sealed = outgoing.seal.as_ref().and_then(Seal::last);
        let path = match &self.output {
            Some(path) if path != Path::new("-") => path,
            _ if std::io::stdout().is_terminal() && self.is_secret() => {
                bail!("the bundle holds a key, which a terminal should not show; use --send, --output FILE or a pipe")
            }
            // What is no JSON stands in the object as the text that it is.
            _ => {
                let bundle = serde_json::from_slice(&bytes);
                let bundle = bundle.unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes)));
                return Ok(Done::new(&bytes[..], with_id(json!({"bundle": bundle}), sealed)));
            }
        };
        let remedy = "remove it first, or choose another --output";
        output::write(path, &bytes, Existing::Keep, Readers::Owner, remedy)?;
        let advice = match sealed {
            Some(_) => "it serves until the enclave starts again, or takes a later one",
            None => "delete it once it is sent",
        };
        say(format_args!("the bundle is in {}; {advice}", path.display()));
        if let Some(BundleId { counter, sha256 }) = sealed {
            let hash = hex::encode(sha256);
            say(format_args!("teemark attest shows counter {counter} and bundle {hash} while it is in force"));
        }
        Ok(Done::new("", with_id(json!({"output": path.to_string_lossy()}), sealed)))
    }

    /// Attests the enclave that the bundle is to be sealed to, if it is to be sealed.
    fn sealing(&self) -> Result<Option<Seal>> {
        if !self.seal {
            return Ok(None);
        }
        let operator = operator_key(self.operator_key.as_deref().context("--seal needs --operator-key")?)?;
        Seal::new(&self.attest(Purpose::Secrets, self.wait)?, operator, self.counter).map(Some)
    }

    /// Has the enclave itself say whether it took the bundle: the answer to that came through the parent, which can make
    /// one up or keep it back.
    fn confirm(&self, address: &Address, seal: &Seal, answered: Result<Accepted>) -> Result<Done> {
        let wait = if answered.is_ok() { self.wait } else { 0 };
        let now = match (self.attest(Purpose::Confirmation, wait), &answered) {
            (Ok(now), _) => now,
            (Err(error), Ok(_)) => return Err(error.context("sent, but not confirmed by the enclave")),
            (Err(_), Err(_)) => return answered.map(|_| Done::new("", Value::Null)),
        };
        match (seal.confirm(&now), answered) {
            (Ok(counter), answered) => {
                let mut text = String::new();
                let mut told = with_id(json!({"confirmed": true}), Some(now.in_force));
                match answered {
                    Ok(accepted) => {
                        text = accepted.line(address);
                        told["accepted_by"] = address.to_string().into();
                        told = with_answer(told, &accepted);
                    }
                    Err(error) if was_refused(&error) => say(format_args!(
                        "warning: it was refused ({error:#}), but is in force: so the refusal was of a second attempt, or \
                         somebody on the way made it up"
                    )),
                    Err(error) => {
                        say(format_args!("warning: its answer was lost, or somebody on the way keeps it: {error:#}"));
                    }
                }
                text += &format!("confirmed by the enclave: the bundle of counter {counter} is in force\n");
                Ok(Done::new(text, told))
            }
            (Err(unconfirmed), Ok(_)) => Err(Failure::from(unconfirmed).into()),
            (Err(_), Err(error)) => {
                if was_refused(&error) {
                    say("it is not in force by the enclave's attestation document");
                }
                Err(error)
            }
        }
    }

    /// Attests the enclave, once it listens, within so many seconds: it may be starting, as for the handshake.
    fn attest(&self, purpose: Purpose, wait: u64) -> Result<Attested> {
        let endpoint = self.attested.as_deref().context("--seal needs --attested")?;
        let trust = self.trust.as_ref().context("--seal needs --pcrs")?;
        let start = Instant::now();
        let mut told = false;
        loop {
            match trust.attest(endpoint, purpose) {
                Err(error) if daemon::is_not_there(&error) && start.elapsed() < Duration::from_secs(wait) => {
                    if !told {
                        say(format_args!("waiting for {endpoint}, {wait} s at most"));
                        told = true;
                    }
                    sleep(PAUSE);
                }
                attested => return attested,
            }
        }
    }
}

fn was_refused(error: &anyhow::Error) -> bool {
    Failure::class_of(error) == Class::Refused
}

/// Adds what the daemon answered.
fn with_answer(mut told: Value, accepted: &Accepted) -> Value {
    let Accepted { updated, ignored, warnings, missing } = accepted;
    told["updated"] = json!(updated);
    told["ignored"] = json!(ignored);
    told["warnings"] = json!(warnings);
    told["missing"] = json!(missing);
    told
}

/// Adds by what a sealed bundle is known.
fn with_id(mut told: Value, sealed: Option<BundleId>) -> Value {
    if let Some(BundleId { counter, sha256 }) = sealed {
        told["counter"] = counter.into();
        told["bundle_sha256"] = hex::encode(sha256).into();
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vsock_destination_needs_the_enclaves_cid() {
        assert!(destination("vsock:7777").unwrap_err().contains("vsock:CID:7777"));
        assert!(destination("vsock:16:7777").is_ok());
        assert!(destination("7777").unwrap_err().contains("unix:PATH"));
    }
}
