//! The operator's side of the handshake: send the bundle until the enclave has answered it.
//!
//! To the handshake's port it sends the bundle and the end of file, and receives one line of JSON; to the daemon's HTTP
//! address it makes one request, whose answer has the same JSON. Sending the same bundle twice does no
//! harm, so a failure before the first byte of an answer is tried again. The daemon accepts a sealed bundle only once:
//! one that is sealed here is sealed again for another attempt. One that was sealed before, or with a given counter, may
//! be refused at the second attempt because the first has put it in force.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use formats::address::Address;
use serde::Deserialize;

use crate::connect::{Stream, connect};
use crate::daemon::{self, Daemon};
use crate::failure;
use crate::terminal::{printable, say};

/// Time to connect and send, and then again time for the whole answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Largest answer, in bytes.
const LARGEST_ANSWER: u64 = 64 << 10;
/// Pause between two attempts: doubled each time, up to the second of these.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often a waiting operator is reminded of what for.
const REMINDER: Duration = Duration::from_secs(10);

/// Time limit of one request with a bundle of 16 MiB.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// Where a bundle is sent.
pub(crate) enum Target {
    /// The handshake's port.
    Handshake(Address),
    /// The daemon's public address, which takes bundles of version 2.
    Public(Daemon),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Handshake(address) => address.fmt(f),
            Target::Public(daemon) => f.write_str(&daemon.endpoint),
        }
    }
}

/// The daemon's answer to a bundle.
#[derive(Debug, Deserialize)]
struct BundleAnswer {
    ok: bool,
    #[serde(default)]
    updated: Vec<String>,
    #[serde(default)]
    ignored: Vec<String>,
    #[serde(default)]
    warnings: Vec<String>,
    #[serde(default)]
    missing: Vec<String>,
    field: Option<String>,
    error: Option<String>,
}

/// How one attempt failed.
#[derive(Debug)]
enum AttemptError {
    /// Nobody listens yet, or nobody answered.
    NotYet(String),
    Final(anyhow::Error),
}

/// The daemon's answer to a bundle that it accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) updated: Vec<String>,
    pub(crate) ignored: Vec<String>,
    pub(crate) warnings: Vec<String>,
    pub(crate) missing: Vec<String>,
}

/// Sends what `bundle` returns, and keeps trying for `wait` seconds while nobody listens.
///
/// # Errors
/// There is no bundle; the daemon refuses it; the address cannot be reached in time or at all; what answers is not the
/// daemon.
pub(crate) fn send<'b>(target: &Target, bundle: impl Fn() -> Result<Cow<'b, [u8]>>, wait: u64) -> Result<Accepted> {
    let start = Instant::now();
    let wait = Duration::from_secs(wait);
    let mut pause = FIRST_PAUSE;
    let mut told: Option<(String, Instant)> = None;
    loop {
        let answer = match target {
            Target::Handshake(address) => attempt(address, &bundle()?),
            Target::Public(daemon) => request(daemon, &bundle()?),
        };
        let why = match answer {
            Ok(answer) => return report(target, &answer),
            Err(AttemptError::Final(error)) => return Err(error),
            Err(AttemptError::NotYet(why)) => why,
        };
        let left = wait.saturating_sub(start.elapsed());
        if left.is_zero() {
            let message = format!(
                "{target}: {why}, for {} s; is the enclave running, is this its address, \
                 or does it need longer (--wait)?",
                wait.as_secs()
            );
            bail!(failure::Failure::try_again("no_answer", message));
        }
        if told.as_ref().is_none_or(|(before, at)| *before != why || at.elapsed() > REMINDER) {
            say(format_args!("waiting for {target} ({why}), {} s left", left.as_secs_f32().ceil()));
            told = Some((why, Instant::now()));
        }
        sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn attempt(address: &Address, bundle: &[u8]) -> Result<Vec<u8>, AttemptError> {
    let mut stream = connect(address, PATIENCE).map_err(|e| sort(address, e))?;
    let sent = send_all(&mut *stream, bundle);
    // A daemon that refuses early may close before it has read everything; then its answer counts, not the failed write.
    let answer = match (receive(&mut *stream), sent) {
        (Ok(answer), Ok(())) => answer,
        (Ok(answer), Err(_)) if !answer.is_empty() => answer,
        (_, Err(e)) | (Err(e), _) => return Err(sort(address, e)),
    };
    if answer.is_empty() {
        return Err(AttemptError::NotYet("the connection ended without an answer".to_owned()));
    }
    Ok(answer)
}

/// The answer of the daemon to `POST /sealed-bundle`.
fn request(daemon: &Daemon, bundle: &[u8]) -> Result<Vec<u8>, AttemptError> {
    let sent = daemon.agent(REQUEST_LIMIT).post(format!("{}/sealed-bundle", daemon.endpoint)).send(bundle);
    let mut answer = match sent {
        Ok(answer) => answer,
        Err(error) => {
            let error = daemon::no_answer(&daemon.endpoint, error);
            return Err(match failure::Failure::class_of(&error) {
                failure::Class::TryAgain => AttemptError::NotYet(format!("{:#}", error.root_cause())),
                _ => AttemptError::Final(error),
            });
        }
    };
    match answer.status().as_u16() {
        200 | 400 => {
            let mut body = Vec::new();
            let read = answer.body_mut().as_reader().take(LARGEST_ANSWER + 1).read_to_end(&mut body);
            read.map_err(|e| AttemptError::NotYet(format!("its answer was cut off: {e}")))?;
            Ok(body)
        }
        404 => Err(AttemptError::Final(anyhow!(failure::Failure::new(
            failure::Class::Other,
            "not_found",
            format!(
                "{} takes no bundles over HTTP: is this teemarkd's public port, and of a release that does? Port 7777 \
                 takes them: --send vsock:CID:7777 on the parent",
                daemon.endpoint
            )
        )))),
        _ => {
            let refusal = daemon::refusal(&daemon.endpoint, &mut answer);
            Err(match refusal.class() {
                failure::Class::TryAgain => AttemptError::NotYet(refusal.to_string()),
                _ => AttemptError::Final(refusal.into()),
            })
        }
    }
}

fn send_all(stream: &mut dyn Stream, bundle: &[u8]) -> io::Result<()> {
    stream.set_write_timeout(PATIENCE)?;
    stream.write_all(bundle)?;
    stream.end_writing()
}

/// Reads until the end of file, for at most [`PATIENCE`]. A connection may break after the answer.
fn receive(stream: &mut dyn Stream) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let read = match left {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => stream.set_read_timeout(left).and_then(|()| stream.read(&mut chunk)),
        };
        match read {
            Ok(0) => return Ok(answer),
            Ok(n) => answer.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if answer.is_empty() => return Err(e),
            Err(_) => return Ok(answer),
        }
        if answer.len() as u64 > LARGEST_ANSWER {
            return Ok(answer);
        }
    }
}

/// Tells failures that may pass while an enclave starts from those that will not.
fn sort(address: &Address, error: io::Error) -> AttemptError {
    use ErrorKind::*;
    match error.kind() {
        ConnectionRefused => AttemptError::NotYet("nobody listens there".to_owned()),
        NotFound => AttemptError::NotYet("there is no such socket".to_owned()),
        ConnectionReset | ConnectionAborted | BrokenPipe | NotConnected => {
            AttemptError::NotYet("the connection was reset".to_owned())
        }
        // A read that ran into its time limit is WouldBlock on Linux.
        TimedOut | WouldBlock => AttemptError::NotYet("it does not answer in time".to_owned()),
        HostUnreachable | NetworkUnreachable => AttemptError::NotYet("it cannot be reached".to_owned()),
        _ => {
            let hint = match address {
                Address::Vsock { .. } => "; vsock works on the parent EC2 instance only, with /dev/vsock",
                _ => "",
            };
            AttemptError::Final(anyhow!("cannot connect to {address}: {error}{hint}"))
        }
    }
}

fn report(target: &Target, bytes: &[u8]) -> Result<Accepted> {
    let answer = parse(bytes).with_context(|| format!("what answered at {target} is not teemarkd"))?;
    if !answer.ok {
        bail!(refused(&answer));
    }
    let list = |items: &[String]| items.join(", ");
    if !answer.ignored.is_empty() {
        say(format_args!("warning: the daemon ignored items that it does not know: {}", list(&answer.ignored)));
    }
    for warning in &answer.warnings {
        say(format_args!("warning: the daemon says: {warning}"));
    }
    if !answer.missing.is_empty() {
        say(format_args!("warning: the daemon is not ready; it still needs {}", list(&answer.missing)));
    }
    let BundleAnswer { updated, ignored, warnings, missing, .. } = answer;
    Ok(Accepted { updated, ignored, warnings, missing })
}

fn refused(answer: &BundleAnswer) -> failure::Failure {
    let reason = answer.error.as_deref().unwrap_or("no reason given");
    let field = answer.field.as_deref().filter(|field| !field.is_empty()).unwrap_or("the bundle");
    let refused = failure::Failure::refused("bundle_refused", format!("{field}: {reason}"));
    refused.with("field", answer.field.clone().into())
}

impl Accepted {
    /// The line that reports it.
    pub(crate) fn line(&self, target: &Target) -> String {
        format!("accepted by {target}: {}\n", printable(&self.updated.join(", ")))
    }
}

/// Sends a bundle to the daemon's public address, once.
///
/// # Errors
/// The daemon refuses it, or does not answer; what answers is not the daemon.
pub(crate) fn send_once(daemon: &Daemon, bundle: &[u8]) -> Result<Accepted> {
    let answer = request(daemon, bundle).map_err(|error| match error {
        AttemptError::NotYet(why) => failure::Failure::try_again("no_answer", why).into(),
        AttemptError::Final(error) => error,
    })?;
    let answer = parse(&answer).context("what answered is not teemarkd")?;
    if answer.ok {
        let BundleAnswer { updated, ignored, warnings, missing, .. } = answer;
        return Ok(Accepted { updated, ignored, warnings, missing });
    }
    Err(refused(&answer).into())
}

fn parse(bytes: &[u8]) -> Result<BundleAnswer> {
    if bytes.len() as u64 > LARGEST_ANSWER {
        bail!("its answer is longer than 64 KiB");
    }
    let Ok(answer) = serde_json::from_slice(bytes) else { bail!("its answer is not the expected line of JSON") };
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_while_an_enclave_starts_is_tried_again_and_nothing_else() {
        let address: Address = "vsock:16:7777".parse().unwrap();
        for kind in [ErrorKind::ConnectionRefused, ErrorKind::NotFound, ErrorKind::ConnectionReset, ErrorKind::TimedOut]
        {
            assert!(matches!(sort(&address, kind.into()), AttemptError::NotYet(_)), "{kind}");
        }
        let AttemptError::Final(error) = sort(&address, ErrorKind::PermissionDenied.into()) else { panic!() };
        assert!(error.to_string().contains("parent EC2 instance"), "{error}");
    }

    #[test]
    fn an_answer_is_json_with_ok() {
        assert!(parse(b"{\"ok\":true,\"updated\":[]}\n").unwrap().ok);
        for bad in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"{}", b"{\"ok\":tr", b"\xff"] {
            parse(bad).unwrap_err();
        }
        parse(&vec![b' '; 70_000]).unwrap_err();
    }
}
