//! Gathers what the enclave answers. Whatever answers is untrusted: it is bounded here, and printed escaped.

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use formats::time::now_ms;
use serde_json::Value;

use super::facts::{Enclave, Found};
use crate::attest::{self, Purpose, Trust};
use crate::daemon::{Cacert, Daemon};

/// Time limit of a request: a health check answers within 3 s.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a record may take to a collector and back, if the daemon first has to connect again, which it tries at least
/// every 5 s; and how often it is asked meanwhile.
const ACKNOWLEDGED: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(200);
/// Largest answer, in bytes.
const LARGEST: u64 = 4 << 20;

/// Asks the enclave at its public address, and at its admin address if there is one.
pub(super) fn look(endpoint: &str, admin: Option<&str>, cacert: &Cacert, trust: &Trust) -> Enclave {
    // The admin port is reached on the parent, without TLS.
    let ask_admin = |path: &str| -> Option<Found<Vec<u8>>> {
        let daemon = Cacert { cacert: None }.daemon(admin?).map_err(|e| format!("{e:#}"));
        Some(daemon.and_then(|daemon| ask(&daemon, path)).map(|(_, body)| body))
    };
    let (status, logged) = status(|| ask_admin("/admin/status").map(|body| parsed(body?)));
    let metrics = ask_admin("/metrics").map(|body| body.map(|body| String::from_utf8_lossy(&body).into_owned()));
    let public = cacert.daemon(endpoint).map_err(|e| format!("{e:#}"));
    let public = match public {
        Ok(daemon) => daemon,
        Err(why) => {
            let (ready, health, ahead_ms) = (Err(why.clone()), Err(why.clone()), Err(why.clone()));
            let attested = trust.is_given().then_some(Err(why));
            let (endpoint, unproven) = (endpoint.to_owned(), trust.unproven());
            return Enclave { endpoint, ready, health, status, logged, metrics, attested, unproven, ahead_ms };
        }
    };
    let ready = ask(&public, "/ready").and_then(|(code, body)| Ok((code == 200, parsed(body)?)));
    let health = ask(&public, "/health_check").and_then(|(_, body)| parsed(body));
    let (attested, ahead_ms) = document(&public, trust);
    let (endpoint, unproven) = (endpoint.to_owned(), trust.unproven());
    Enclave { endpoint, ready, health, status, logged, metrics, attested, unproven, ahead_ms }
}

/// The status, and the last record of the log when it was first asked for: again until a collector has acknowledged that
/// one, if it is going to within the time.
fn status(ask: impl Fn() -> Option<Found<Value>>) -> (Option<Found<Value>>, u64) {
    let (start, first) = (Instant::now(), ask());
    let log = |status: &Option<Found<Value>>| Some(status.as_ref()?.as_ref().ok()?["log"].clone());
    let Some(logged) = log(&first).as_ref().and_then(|log| log["last"].as_u64()) else { return (first, 0) };
    let mut status = first;
    // Where it goes nowhere, nothing is acknowledged.
    let waits = |log: Option<Value>| {
        log.is_some_and(|log| log["to"] != "off" && log["acknowledged"].as_u64().unwrap_or(0) < logged)
    };
    while waits(log(&status)) && start.elapsed() < ACKNOWLEDGED {
        thread::sleep(PAUSE);
        status = ask();
    }
    (status, logged)
}

/// A page of another program, such as a keeper's metrics.
pub(super) fn page(url: &str, path: &str) -> Found<String> {
    let daemon = Cacert { cacert: None }.daemon(url).map_err(|e| format!("{e:#}"))?;
    ask(&daemon, path).map(|(_, body)| String::from_utf8_lossy(&body).into_owned())
}

/// What the enclave's document proves, if it is known what it has to, and by how much its time is ahead of ours.
fn document(public: &Daemon, trust: &Trust) -> (Option<Found<attest::Attested>>, Found<i64>) {
    let before = now_ms();
    let made = attest::nonce().and_then(|nonce| Ok((nonce, attest::document(public, &nonce)?)));
    let after = now_ms();
    let (nonce, document) = match made {
        Ok(made) => made,
        Err(why) => {
            let why = format!("{why:#}");
            return (trust.is_given().then_some(Err(why.clone())), Err(why));
        }
    };
    let ahead = attest::told_time_ms(&document).ok_or_else(|| "what it answers is not a document".to_owned());
    // However long the answer took, the document was made in between.
    let ahead = ahead.map(|made| {
        let beyond = i64::try_from(made.saturating_sub(after)).unwrap_or(i64::MAX);
        let short = i64::try_from(before.saturating_sub(made)).unwrap_or(i64::MAX);
        beyond.saturating_sub(short)
    });
    let check = || trust.expected()?.made_for(&nonce, &document, &public.endpoint, Purpose::Confirmation);
    let attested = trust.is_given().then(|| check().map_err(|why| format!("{why:#}")));
    (attested, ahead)
}

/// The status and body of an answer.
fn ask(daemon: &Daemon, path: &str) -> Found<(u16, Vec<u8>)> {
    let url = format!("{}{path}", daemon.endpoint);
    let answer = daemon.agent(LIMIT).get(&url).call().map_err(|e| format!("{url} gives no answer: {e}"))?;
    let (code, mut body) = (answer.status().as_u16(), Vec::new());
    let read = answer.into_body().into_reader().take(LARGEST).read_to_end(&mut body);
    read.map_err(|e| format!("the answer of {url} is cut off: {e}"))?;
    match code {
        200 | 503 => Ok((code, body)),
        _ => Err(format!("{url} answers with status {code}: is this teemarkd?")),
    }
}

fn parsed(body: Vec<u8>) -> Found<Value> {
    let value: Option<Value> = serde_json::from_slice(&body).ok();
    value.filter(Value::is_object).ok_or_else(|| "what answers there is not teemarkd".to_owned())
}
