//! Sends requests to a running daemon: HTTP, with TLS where the address says https, to the given address and nowhere else,
//! with the daemon's own message if it refuses.

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use formats::certificates::Part;
use formats::pem;
use serde::Deserialize;
use ureq::config::Config;
use ureq::http::{Response, Uri, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body};

use crate::certificate::{self, Content};
use crate::failure::{Class, Failure};
use crate::terminal::say;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for 100 Continue; after it the body is sent anyway (RFC 9110, 10.1.1).
const CONTINUE_LIMIT: Duration = Duration::from_secs(10);
/// Longest pause before another attempt, whatever Retry-After asks for.
const LONGEST_PAUSE: u64 = 60;
/// Time limit of one attempt of [`Daemon::get`], and how often it is made again unless the caller says otherwise.
const GET_LIMIT: Duration = Duration::from_secs(30);
const GET_RETRIES: u32 = 3;
/// Largest error answer, in bytes.
const LARGEST_ERROR: u64 = 64 << 10;

/// The daemon's JSON for an error.
#[derive(Deserialize)]
struct ErrorAnswer {
    error: String,
    code: String,
}

/// The base of the daemon's addresses, without a slash at its end: what `--endpoint` takes.
pub(crate) fn endpoint(text: &str) -> Result<String, String> {
    let parsed = text.parse::<Uri>().ok().filter(|url| url.query().is_none() && url.host().is_some());
    match parsed.as_ref().and_then(Uri::scheme_str) {
        Some("http" | "https") => Ok(text.trim_end_matches('/').to_owned()),
        _ => {
            Err("write http://HOST:PORT or https://HOST, the address that leads to the enclave's public port"
                .to_owned())
        }
    }
}

/// The option that says whose certificates count where the address says https.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Cacert {
    /// For https: the CA certificates to trust instead of the system's (PEM or DER). TLS ends on the parent or before it, and
    /// proves nothing about the enclave
    #[arg(long, value_name = "FILE")]
    pub(crate) cacert: Option<PathBuf>,
}

/// A daemon: its address, and how it is reached.
pub(crate) struct Daemon {
    /// The base of its addresses, as [`endpoint`] gives it.
    pub(crate) endpoint: String,
    tls: TlsConfig,
    /// How often [`Daemon::get`] waits and asks again if the daemon asks to wait.
    retries: u32,
    /// Where to connect, whatever its name resolves to.
    address: Option<SocketAddr>,
}

impl Cacert {
    /// Whether it is given.
    pub(crate) fn is_given(&self) -> bool {
        self.cacert.is_some()
    }

    /// The daemon at an address.
    ///
    /// # Errors
    /// The address says https, and the CA certificates cannot be read, or there are none; or it says http, and some are
    /// named.
    pub(crate) fn daemon(&self, endpoint: &str) -> Result<Daemon> {
        let endpoint = endpoint.to_owned();
        let roots = match &self.cacert {
            Some(_) if !is_https(&endpoint) => {
                bail!(Failure::usage(format!("--cacert is for https, and {endpoint} is plain http")))
            }
            Some(path) => read_roots(path)?,
            None if is_https(&endpoint) => system_roots()?,
            None => Vec::new(),
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = RootCerts::from(roots.iter().map(|der| Certificate::from_der(der).to_owned()));
        let tls = TlsConfig::builder().root_certs(roots).unversioned_rustls_crypto_provider(provider).build();
        Ok(Daemon { endpoint, tls, retries: GET_RETRIES, address: None })
    }
}

/// Schemes have no case (RFC 3986, 3.1).
fn is_https(endpoint: &str) -> bool {
    endpoint.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
}

fn read_roots(path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = certificate::read(path, "--cacert", Content::Certificates)?;
    let text = certificate::as_sent(&bytes);
    let roots = pem::certificates(Part::Authority, text.as_bytes());
    let roots = roots.map_err(|e| anyhow::anyhow!("it {}", e.reason));
    Ok(roots.with_context(|| format!("--cacert {}", path.display()))?.into_iter().map(|der| der.to_vec()).collect())
}

/// The system's CA certificates: where OpenSSL has them, or where SSL_CERT_FILE and SSL_CERT_DIR say.
fn system_roots() -> Result<Vec<Vec<u8>>> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = found.errors.first().map_or_else(String::new, |e| format!(" ({e})"));
        bail!("the system has no CA certificates{why}; install ca-certificates, or name some with --cacert FILE");
    }
    Ok(found.certs.into_iter().map(|certificate| certificate.to_vec()).collect())
}

/// Resolves every name to one address.
#[derive(Debug)]
struct Fixed(SocketAddr);

impl Resolver for Fixed {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        addresses.push(self.0);
        Ok(addresses)
    }
}

impl Daemon {
    /// The daemon at one of the addresses that its name resolves to.
    pub(crate) fn at(self, address: SocketAddr) -> Daemon {
        Daemon { address: Some(address), ..self }
    }

    /// The same for a caller with a pace of its own: [`Daemon::get`] asks once, whatever is answered.
    pub(crate) fn asked_once(self) -> Daemon {
        Daemon { retries: 0, ..self }
    }

    /// No proxy, no redirect. Every status is an answer; one attempt takes at most `limit`.
    pub(crate) fn agent(&self, limit: Duration) -> Agent {
        let config = Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_await_100(Some(CONTINUE_LIMIT))
            .timeout_global(Some(limit))
            .tls_config(self.tls.clone())
            .user_agent(concat!("teemark/", env!("CARGO_PKG_VERSION")))
            .build();
        match self.address {
            None => config.new_agent(),
            Some(address) => Agent::with_parts(config, DefaultConnector::default(), Fixed(address)),
        }
    }

    /// Gets one of the daemon's own paths, at most `most` bytes of it.
    ///
    /// # Errors
    /// As [`Daemon::ask`]; the answer is longer, or ends early.
    pub(crate) fn get(&self, path: &str, most: u64) -> Result<Vec<u8>> {
        self.get_by(&self.agent(GET_LIMIT), path, most)
    }

    /// The same by an agent that was made before, over a connection that it has kept.
    ///
    /// # Errors
    /// As [`Daemon::get`].
    pub(crate) fn get_by(&self, agent: &Agent, path: &str, most: u64) -> Result<Vec<u8>> {
        let endpoint = &self.endpoint;
        let url = format!("{endpoint}{path}");
        let answer = self.ask(self.retries, || agent.get(&url).call())?;
        let mut body = Vec::new();
        let cut = || Failure::try_again("answer_cut_off", format!("the answer of {endpoint} did not arrive whole"));
        answer.into_body().into_reader().take(most + 1).read_to_end(&mut body).with_context(cut)?;
        if body.len() as u64 > most {
            let most = most >> 10;
            bail!("{endpoint} answered with more than {most} KiB, which teemarkd never does; is this its public port?");
        }
        Ok(body)
    }

    /// Repeats `attempt` until the daemon answers 200, and waits in between if the daemon asks to (429 and 503 with
    /// Retry-After), `retries` times at most.
    ///
    /// # Errors
    /// The daemon gave no answer or is not the daemon; or what it said, with its code.
    pub(crate) fn ask(
        &self,
        retries: u32,
        mut attempt: impl FnMut() -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>> {
        let mut tried = 0;
        loop {
            let mut answer = attempt().map_err(|e| no_answer(&self.endpoint, e))?;
            match pause(&answer) {
                Some(pause) if tried < retries => {
                    tried += 1;
                    say(format_args!(
                        "the daemon asks to wait; trying again in {} s ({tried} of {retries})",
                        pause.as_secs()
                    ));
                    sleep(pause);
                }
                _ if answer.status() == 200 => return Ok(answer),
                _ => return Err(refusal(&self.endpoint, &mut answer).into()),
            }
        }
    }
}

/// Whether the daemon could not be connected to, as while it starts.
pub(crate) fn is_not_there(error: &anyhow::Error) -> bool {
    let Some(error) = error.downcast_ref() else { return false };
    let is_there = tls_fault(error).is_some();
    !is_there
        && matches!(
            error,
            ureq::Error::Io(_) | ureq::Error::ConnectionFailed | ureq::Error::Timeout(ureq::Timeout::Connect)
        )
}

/// Why TLS failed, if it is TLS that failed.
fn tls_fault(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(why) => Some(why),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

/// How long a daemon without room asks to wait. A date, which it never sends, counts as a second.
fn pause(answer: &Response<Body>) -> Option<Duration> {
    let busy = matches!(answer.status().as_u16(), 429 | 503);
    let after = answer.headers().get(header::RETRY_AFTER).filter(|_| busy)?;
    let seconds = after.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    Some(Duration::from_secs(seconds.min(LONGEST_PAUSE)))
}

/// Why there is no answer: the network's faults and time limits may pass, others do not.
pub(crate) fn no_answer(endpoint: &str, error: ureq::Error) -> anyhow::Error {
    use ureq::Error::*;
    if let Some(rustls::Error::InvalidCertificate(_)) = tls_fault(&error) {
        let message = format!(
            "the certificate of {endpoint} is not trusted; --cacert FILE names the CA that issued it, if it is not one of \
             the system's"
        );
        return anyhow::Error::new(error).context(Failure::new(Class::Other, "tls_not_trusted", message));
    }
    let class = match error {
        _ if tls_fault(&error).is_some() => Class::Other,
        Io(_) | Timeout(_) | ConnectionFailed | HostNotFound => Class::TryAgain,
        _ => Class::Other,
    };
    let failure = Failure::new(class, "no_answer", format!("the daemon at {endpoint} gave no answer"));
    anyhow::Error::new(error).context(failure)
}

/// What an error answer means to the user. The daemon's own failures, 500 and 502, are not refusals, and may persist.
fn class(status: u16, code: &str) -> Class {
    match status {
        // A machine without a Nitro Secure Module will not get one.
        _ if code == "attestation_unavailable" => Class::Refused,
        408 | 429 | 503 | 504 => Class::TryAgain,
        400..=499 => Class::Refused,
        _ => Class::Other,
    }
}

/// What the daemon said instead of 200.
pub(crate) fn refusal(endpoint: &str, answer: &mut Response<Body>) -> Failure {
    let status = answer.status().as_u16();
    let mut body = Vec::new();
    // If the error answer is cut off, its status has to be enough.
    let _ = answer.body_mut().as_reader().take(LARGEST_ERROR).read_to_end(&mut body);
    let failure = match serde_json::from_slice(&body) {
        Ok(ErrorAnswer { error, code }) => {
            Failure::new(class(status, &code), &code, format!("{error} ({code}, HTTP {status})"))
        }
        Err(_) => {
            // A proxy in front of the daemon may be busy for a while as well.
            let class = if class(status, "") == Class::TryAgain { Class::TryAgain } else { Class::Other };
            let message = format!(
                "{endpoint} answered with HTTP status {status}, but not as teemarkd does; is this its public port?"
            );
            Failure::new(class, "not_teemarkd", message)
        }
    };
    failure.with("status", status.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_is_http_or_https_without_a_query() {
        assert_eq!(endpoint("http://127.0.0.1:3000/").as_deref(), Ok("http://127.0.0.1:3000"));
        assert_eq!(endpoint("http://[::1]:3000/base").as_deref(), Ok("http://[::1]:3000/base"));
        assert_eq!(endpoint("https://h/").as_deref(), Ok("https://h"));
        for bad in ["", "127.0.0.1:3000", "ftp://h:1", "http://h/?q", "tcp:h:1", "http://"] {
            assert!(endpoint(bad).unwrap_err().contains("http://HOST:PORT"), "{bad}");
        }
    }

    #[test]
    fn a_status_tells_whether_to_try_again() {
        for (statuses, expected) in [
            (&[400, 401, 403, 404, 405, 411, 413, 417, 422, 431][..], Class::Refused),
            (&[408, 429, 503, 504], Class::TryAgain),
            (&[302, 500, 502], Class::Other),
        ] {
            assert!(statuses.iter().all(|&status| class(status, "") == expected), "{statuses:?}");
        }
        assert!(class(503, "attestation_unavailable") == Class::Refused);
    }
}
