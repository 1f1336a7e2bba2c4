//! Asks each enclave by a thread of its own, so that one that hangs holds up nobody. Whatever answers is untrusted: it is
//! bounded here in time and length.

use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use formats::time::Utc;
use serde_json::Value;
use ureq::Agent;

use super::enclaves::{Asked, Page};
use super::figures::Look;
use crate::daemon::{Cacert, Daemon};
use crate::failure::Failure;
use crate::metrics::Metrics;

/// Time limit of a request; an enclave is asked by three of them.
const LIMIT: Duration = Duration::from_secs(5);
/// Largest answer, in bytes. Those of the daemon are 20 KiB, and 1 MiB of log.
const LARGEST: u64 = 2 << 20;
/// How many records of the log are asked for.
const LOG: &str = "/admin/log?lines=200";

/// Asks one enclave.
pub(super) struct Asker {
    daemon: Daemon,
    /// It keeps its connection.
    agent: Agent,
    /// What times are counted from.
    began: Instant,
}

impl Asker {
    /// # Errors
    /// As [`Cacert::daemon`].
    pub(super) fn new(address: &str, cacert: &Cacert) -> Result<Asker> {
        // Its addresses may differ in scheme, and CA certificates are for those with https only.
        let plain = Cacert { cacert: None };
        let cacert = if address.starts_with("http://") { &plain } else { cacert };
        let daemon = cacert.daemon(address)?.asked_once();
        let agent = daemon.agent(LIMIT);
        Ok(Asker { daemon, agent, began: Instant::now() })
    }

    fn get(&self, path: &str) -> Result<Vec<u8>> {
        self.daemon.get_by(&self.agent, path, LARGEST)
    }

    /// Asks once.
    pub(super) fn ask(&self) -> Asked {
        let found = self.page();
        Asked { time: Utc::now(), found }
    }

    fn page(&self) -> Result<Page, String> {
        let text = self.get("/metrics").map_err(|error| why_no_metrics(&error))?;
        let metrics = Metrics::parse(&String::from_utf8_lossy(&text));
        if metrics.value("teemark_start_time_seconds").is_none() {
            return Err("what answers there is not teemarkd's admin port".to_owned());
        }
        let (at, time) = (self.began.elapsed(), Utc::now());
        let status = self.get("/admin/status").map_err(|error| format!("{error:#}"));
        let status = status.and_then(|body| {
            let value = serde_json::from_slice(&body).ok().filter(Value::is_object);
            value.ok_or_else(|| "/admin/status is not an object".to_owned())
        });
        let log = self.get(LOG).map_err(|error| format!("{error:#}"));
        Ok(Page { look: Look { at, time, metrics, status }, log })
    }

    /// Starts a thread that asks every `interval`, or as soon after as the answer is here, for as long as somebody receives
    /// what it sends: `number` with what was found.
    ///
    /// # Errors
    /// There is no room for a thread.
    pub(super) fn start(self, number: usize, interval: Duration, to: Sender<(usize, Asked)>) -> Result<JoinHandle<()>> {
        let asks = move || {
            loop {
                let begin = Instant::now();
                if to.send((number, self.ask())).is_err() {
                    return;
                }
                thread::sleep(interval.saturating_sub(begin.elapsed()));
            }
        };
        Ok(thread::Builder::new().name(format!("ask {number}")).spawn(asks)?)
    }
}

/// The address stands beside it already, so the cause is enough; another listener of the daemon is told.
fn why_no_metrics(error: &anyhow::Error) -> String {
    let object = Failure::object_of(error);
    match object["code"].as_str() {
        Some("not_found") => "it is teemarkd, but has no /metrics: name its admin port".to_owned(),
        Some("not_teemarkd") => format!("what answers there, with status {}, is not teemarkd", object["status"]),
        Some("no_answer") => error.root_cause().to_string().trim_start_matches("io: ").to_owned(),
        _ => format!("{error:#}"),
    }
}
