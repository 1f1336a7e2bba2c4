//! Sends requests to a running daemon: plain HTTP to the given address and nowhere else, with the daemon's own message
//! if it refuses.

use std::io::Read;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use serde::Deserialize;
use ureq::http::{Response, Uri, header};
use ureq::{Agent, Body};

use crate::failure::{Class, Failure};
use crate::terminal::say;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for 100 Continue; after it the body is sent anyway (RFC 9110, 10.1.1).
const CONTINUE_LIMIT: Duration = Duration::from_secs(10);
/// Longest pause before another attempt, whatever Retry-After asks for.
const LONGEST_PAUSE: u64 = 60;
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
        Some("http") => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err("write http://HOST:PORT, the address that leads to the enclave's public port".to_owned()),
    }
}

/// Plain HTTP: no proxy, no redirect. Every status is an answer; one attempt takes at most `limit`.
pub(crate) fn agent(limit: Duration) -> Agent {
    Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_LIMIT))
        .timeout_await_100(Some(CONTINUE_LIMIT))
        .timeout_global(Some(limit))
        .user_agent(concat!("teemark/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent()
}

/// Repeats `attempt` until the daemon at `endpoint` answers 200, and waits in between if the daemon asks to
/// (429 and 503 with Retry-After), `retries` times at most.
///
/// # Errors
/// The daemon gave no answer or is not the daemon; or what it said, with its code.
pub(crate) fn ask(
    endpoint: &str,
    retries: u32,
    mut attempt: impl FnMut() -> Result<Response<Body>, ureq::Error>,
) -> Result<Response<Body>> {
    let mut tried = 0;
    loop {
        let mut answer = attempt().map_err(|e| no_answer(endpoint, e))?;
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
            _ => return Err(refusal(endpoint, &mut answer).into()),
        }
    }
}

/// Whether the daemon could not be connected to, as while it starts.
pub(crate) fn is_not_there(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(ureq::Error::Io(_) | ureq::Error::ConnectionFailed | ureq::Error::Timeout(ureq::Timeout::Connect))
    )
}

/// How long a daemon without room asks to wait. A date, which it never sends, counts as a second.
fn pause(answer: &Response<Body>) -> Option<Duration> {
    let busy = matches!(answer.status().as_u16(), 429 | 503);
    let after = answer.headers().get(header::RETRY_AFTER).filter(|_| busy)?;
    let seconds = after.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    Some(Duration::from_secs(seconds.min(LONGEST_PAUSE)))
}

/// Why there is no answer: the network's faults and time limits may pass, others do not.
fn no_answer(endpoint: &str, error: ureq::Error) -> anyhow::Error {
    use ureq::Error::*;
    let class = match error {
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

fn refusal(endpoint: &str, answer: &mut Response<Body>) -> Failure {
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
    fn the_endpoint_is_plain_http_without_a_query() {
        assert_eq!(endpoint("http://127.0.0.1:3000/").as_deref(), Ok("http://127.0.0.1:3000"));
        assert_eq!(endpoint("http://[::1]:3000/base").as_deref(), Ok("http://[::1]:3000/base"));
        for bad in ["", "127.0.0.1:3000", "https://h:1", "http://h/?q", "tcp:h:1", "http://"] {
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
