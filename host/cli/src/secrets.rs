//! `teemark secrets`: builds the bundle with the enclave's certificate, service and keys, seals it and sends it.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use formats::address::Address;
use formats::attestation::BundleId;
use formats::base64;
use formats::digest::Sha256;
use formats::items::{MAX_BUNDLE, MAX_BUNDLE_V2};
use formats::sealed_bundle::v2::{Line, MAX_LINE};
use serde_json::{Value, json};

use crate::attest::{Attested, Purpose, Trust};
use crate::bundle::{self, Items};
use crate::daemon::{self, Cacert};
use crate::failure::{Class, Done, Failure};
use crate::handshake::{self, Accepted, Target};
use crate::output::{self, Existing, Readers};
use crate::seal::{Sealer, operator_key};
use crate::state;
use crate::terminal::say;

/// Between two attempts to attest an enclave that does not listen yet.
const PAUSE: Duration = Duration::from_millis(500);
/// How often an address is looked at once more, to find out whether it leads to several enclaves: a balancer that chooses
/// one of two at random stays unnoticed once in sixteen times.
const LOOKS: u32 = 4;

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
  teemark secrets --bundle sealed.bundle --send https://enclave-7.example.com
  teemark secrets --add-keys new-keys.json --seal --attested https://enclave-7.example.com --pcrs out/teemark.pcrs \\
    --operator-key operator.key --send https://enclave-7.example.com
  teemark secrets --bundle mtls_certs.json --plain --send vsock:16:7777"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    items: Items,
    /// A finished bundle, used as it is; - for standard input
    #[arg(long, value_name = "FILE",
          conflicts_with_all = ["client_cert", "client_key", "ca", "endpoint", "keys", "grant_keys", "add_keys",
                                "remove_key", "add_grant_keys", "remove_grant_key"])]
    bundle: Option<PathBuf>,
    /// Seal the bundle to the enclave at --attested, so that nobody on the way can read or change it
    #[arg(long, requires_all = ["attested", "pcrs", "operator_key"])]
    seal: bool,
    /// The daemon's public address, http://HOST:PORT or https://HOST, of the one enclave to attest and to seal to
    #[arg(long, value_name = "URL", value_parser = daemon::endpoint, requires = "seal")]
    attested: Option<String>,
    #[command(flatten)]
    cacert: Cacert,
    #[command(flatten)]
    trust: Option<Trust>,
    /// The operator's private key, as teemark keygen --for operator makes it
    #[arg(long, value_name = "FILE", requires = "seal")]
    operator_key: Option<PathBuf>,
    /// The sealed bundle's counter, above all earlier ones [default: the milliseconds since 1970, or one above the last]
    #[arg(long, value_name = "N", requires = "seal", value_parser = clap::value_parser!(u64).range(1..))]
    counter: Option<u64>,
    /// The SHA-256 of the state from which on the enclave may call itself ready, if more bundles are to follow this one
    #[arg(long, value_name = "HASH", requires = "seal", value_parser = state_hash)]
    complete_at: Option<Sha256>,
    /// Write the bundle to a new file (mode 600) [default: standard output]
    #[arg(long, value_name = "FILE", conflicts_with = "send")]
    output: Option<PathBuf>,
    /// Send the bundle, with --seal or --plain unless it is sealed already: vsock:CID:PORT, tcp:HOST:PORT or unix:PATH, or
    /// http://HOST:PORT or https://HOST, the daemon's public address
    #[arg(long, value_name = "ADDRESS", value_parser = destination)]
    send: Option<Destination>,
    /// Send it in the clear, so that whoever relays it can read the keys; for TEEMARK_HANDSHAKE=plain
    #[arg(long, requires = "send", conflicts_with = "seal")]
    plain: bool,
    /// How many seconds to keep trying while the enclave does not listen yet
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

/// Where a bundle is to be sent, as it is given.
#[derive(Clone, Debug)]
enum Destination {
    Handshake(Address),
    Public(String),
}

fn destination(text: &str) -> Result<Destination, String> {
    if text.starts_with("http:") || text.starts_with("https:") {
        return daemon::endpoint(text).map(Destination::Public);
    }
    match text.parse::<Address>() {
        Ok(Address::Vsock { cid: None, port }) => Err(format!("which enclave? write vsock:CID:{port}")),
        Ok(address) => Ok(Destination::Handshake(address)),
        Err(e) => Err(format!("{e}, or http://HOST:PORT or https://HOST")),
    }
}

fn state_hash(text: &str) -> Result<Sha256, String> {
    Sha256::from_hex(text).ok_or_else(|| "write the 64 hexadecimal digits of a SHA-256".to_owned())
}

/// A bundle, and what seals it if it is to be sealed.
struct PreparedBundle {
    bundle: Vec<u8>,
    sealer: Option<Sealer>,
}

impl PreparedBundle {
    /// The bytes to send now.
    ///
    /// # Errors
    /// There are more than the daemon accepts; as [`Sealer::seal`].
    fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        let (bytes, what) = match &self.sealer {
            Some(sealer) => (Cow::Owned(sealer.seal(&self.bundle)?), "the sealed bundle"),
            None => (Cow::Borrowed(&self.bundle[..]), "the bundle"),
        };
        let most = match &self.sealer {
            Some(sealer) => sealer.most(),
            None if Line::is_one(&bytes) => MAX_BUNDLE_V2 + MAX_LINE,
            None => MAX_BUNDLE,
        };
        if bytes.len() > most {
            let (length, most) = (bytes.len(), most >> 20);
            bail!("{what} has {length} bytes, and the daemon takes at most {most} MiB; are all of these keys needed?");
        }
        Ok(bytes)
    }
}

/// Builds or reads the bundle, seals it if that is asked for, and prints, writes or sends it.
///
/// # Errors
/// A file is missing or is not what it should be; the enclave is not attested, refuses the bundle, or does not confirm that
/// it accepted it ([`crate::seal::Unconfirmed`]); the output exists; the enclave cannot be reached in time.
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
    if arguments.cacert.is_given() && !arguments.seal && !matches!(arguments.send, Some(Destination::Public(_))) {
        bail!(Failure::usage("--cacert is for https, with --attested or --send"));
    }
    let target = arguments.target()?;
    let prepared = PreparedBundle { bundle, sealer: arguments.sealer()? };
    match &target {
        Some(target) => {
            arguments.check_version(target, &prepared)?;
            arguments.send(target, &prepared)
        }
        None => arguments.write(&prepared),
    }
}

impl Arguments {
    fn is_secret(&self) -> bool {
        !self.seal && (self.bundle.is_some() || self.items.are_secret())
    }

    /// Where the bundle is to be sent.
    fn target(&self) -> Result<Option<Target>> {
        match &self.send {
            Some(Destination::Handshake(address)) => Ok(Some(Target::Handshake(address.clone()))),
            Some(Destination::Public(url)) => Ok(Some(Target::Public(self.cacert.daemon(url)?))),
            None => Ok(None),
        }
    }

    /// The daemon's public address takes bundles of version 2 only.
    fn check_version(&self, target: &Target, prepared: &PreparedBundle) -> Result<()> {
        let fits = match &prepared.sealer {
            Some(sealer) => sealer.has_manifests(),
            None => Line::is_one(&prepared.bundle),
        };
        if matches!(target, Target::Public(_)) && !fits {
            bail!(Failure::usage(
                "only a bundle that is sealed in version 2, as for enclaves that attest their state, can be sent to \
                 an http address; the handshake's port takes this one: --send vsock:CID:7777 on the parent"
            ));
        }
        Ok(())
    }

    /// Sends the bundle; a sealed one is in force when the enclave says so.
    fn send(&self, target: &Target, prepared: &PreparedBundle) -> Result<Done> {
        let answered = handshake::send(target, || prepared.bytes(), self.wait);
        if let Some(sealer) = &prepared.sealer {
            return self.confirm(target, sealer, answered);
        }
        if answered.as_ref().is_err_and(was_refused) && bundle::is_sealed(&prepared.bundle) {
            say("if an earlier answer was lost, it may be in force all the same: teemark attest tells what is");
        }
        let accepted = answered?;
        let told = json!({"accepted_by": target.to_string(), "confirmed": false});
        Ok(Done::new(accepted.line(target), with_answer(told, &accepted)))
    }

    /// Writes the bundle to its file, or has it printed.
    fn write(&self, prepared: &PreparedBundle) -> Result<Done> {
        let bytes = prepared.bytes()?;
        let sealed = prepared.sealer.as_ref().and_then(Sealer::last);
        let path = match &self.output {
            Some(path) if path != Path::new("-") => path,
            _ if std::io::stdout().is_terminal() && self.is_secret() => {
                bail!("the bundle holds a key, which a terminal should not show; use --send, --output FILE or a pipe")
            }
            // In the object a finished bundle that is not JSON becomes a text, and one of version 2 base64.
            _ => {
                let bundle = match Line::is_one(&bytes) {
                    true => Value::from(base64::encode(&bytes)),
                    false => {
                        serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes)))
                    }
                };
                return Ok(Done::new(&bytes[..], with_id(json!({"bundle": bundle}), sealed)));
            }
        };
        let remedy = "remove it first, or choose another --output";
        output::write(path, &bytes, Existing::Keep, Readers::Owner, remedy)?;
        let advice = match sealed {
            Some(_) => "it is valid until the enclave restarts or accepts a later one",
            None => "delete it once it is sent",
        };
        say(format_args!("the bundle is in {}; {advice}", path.display()));
        if let Some(BundleId { counter, sha256 }) = sealed {
            let hash = hex::encode(sha256);
            say(format_args!("teemark attest shows counter {counter} and bundle {hash} while it is in force"));
        }
        Ok(Done::new("", with_id(json!({"output": path.to_string_lossy()}), sealed)))
    }

    /// Attests the enclave and makes a sealer for it, if the bundle is to be sealed.
    fn sealer(&self) -> Result<Option<Sealer>> {
        if !self.seal {
            return Ok(None);
        }
        let operator = operator_key(self.operator_key.as_deref().context("--seal needs --operator-key")?)?;
        let to = self.attest(Purpose::Secrets, self.wait)?;
        self.is_one_enclave(&to)?;
        let sealer = Sealer::new(&to, operator, self.counter)?.complete_at(self.complete_at);
        let Some(state) = to.state_sha256 else {
            if self.complete_at.is_some() || self.items.are_changes() {
                bail!(
                    "the enclave does not attest its state, as those of an earlier release; it takes whole items only, \
                     without --complete-at"
                );
            }
            return Ok(Some(sealer));
        };
        let daemon = self.cacert.daemon(self.attested.as_deref().unwrap_or_default())?;
        state::fetch(&daemon, &state).map(|state| Some(sealer.knowing(state)))
    }

    /// Attests some more times, each by a connection of its own: behind a balancer one of them would be another enclave,
    /// which could not open what is sealed to this one.
    fn is_one_enclave(&self, to: &Attested) -> Result<()> {
        let is_another = |again: &Attested| (again.identity, again.boot_nonce) != (to.identity, to.boot_nonce);
        let mut looks = (0..LOOKS).map(|_| self.attest(Purpose::Confirmation, 0));
        let Some(again) = looks.find_map(|again| again.map(|again| is_another(&again).then_some(again)).transpose())
        else {
            return Ok(());
        };
        let again = again?;
        let endpoint = self.attested.as_deref().unwrap_or_default();
        let message = format!(
            "{endpoint} leads to several enclaves, or the enclave was restarted just now: two documents have the identity \
             keys {} and {}. A bundle is sealed to one enclave; nothing was sent. Seal and send it to each: on each parent \
             instance with --attested http://127.0.0.1:3000 (teemark expose) and --send vsock:CID:7777, or from elsewhere \
             with the address of each parent instance, not the balancer's",
            hex::encode(to.identity),
            hex::encode(again.identity)
        );
        Err(Failure::refused("several_enclaves", message).into())
    }

    /// Attests the enclave to learn whether it accepted the bundle: the answer came through the parent, which can make one
    /// up or withhold it.
    fn confirm(&self, target: &Target, sealer: &Sealer, answered: Result<Accepted>) -> Result<Done> {
        let wait = if answered.is_ok() { self.wait } else { 0 };
        let now = match (self.attest(Purpose::Confirmation, wait), &answered) {
            (Ok(now), _) => now,
            (Err(error), Ok(_)) => return Err(error.context("sent, but not confirmed by the enclave")),
            (Err(_), Err(_)) => return answered.map(|_| Done::new("", Value::Null)),
        };
        match (sealer.confirm(&now), answered) {
            (Ok(counter), answered) => {
                let mut text = String::new();
                let mut told = with_id(json!({"confirmed": true}), Some(now.in_force));
                match answered {
                    Ok(accepted) => {
                        text = accepted.line(target);
                        told["accepted_by"] = target.to_string().into();
                        told = with_answer(told, &accepted);
                    }
                    Err(error) if was_refused(&error) => say(format_args!(
                        "warning: the bundle was refused ({error:#}), but it is in force: the refusal answered a second \
                         attempt, or somebody on the way made it up"
                    )),
                    Err(error) => {
                        say(format_args!(
                            "warning: the answer was lost, or somebody on the way withholds it: {error:#}"
                        ));
                    }
                }
                text += &format!("confirmed by the enclave: the bundle of counter {counter} is in force\n");
                Ok(Done::new(text, told))
            }
            (Err(unconfirmed), Ok(_)) => Err(Failure::from(unconfirmed).into()),
            (Err(_), Err(error)) => {
                if was_refused(&error) {
                    say("the enclave's attestation document confirms that the bundle is not in force");
                }
                Err(error)
            }
        }
    }

    /// Attests the enclave, and waits for it for up to `wait` seconds, since it may be starting.
    fn attest(&self, purpose: Purpose, wait: u64) -> Result<Attested> {
        let endpoint = self.attested.as_deref().context("--seal needs --attested")?;
        let trust = self.trust.as_ref().context("--seal needs --pcrs")?;
        let daemon = self.cacert.daemon(endpoint)?;
        let start = Instant::now();
        let mut told = false;
        loop {
            match trust.attest(&daemon, purpose) {
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

/// Adds what identifies a sealed bundle.
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
        assert!(matches!(destination("vsock:16:7777"), Ok(Destination::Handshake(_))));
        assert!(matches!(destination("https://h"), Ok(Destination::Public(url)) if url == "https://h"));
        assert!(destination("7777").unwrap_err().contains("unix:PATH"));
    }
}
