//! The handshake's listener: receives one JSON object until end of file, and answers with one line of JSON.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_loop::socket::Stream;
use event_loop::threads;
use formats::items::MAX_BUNDLE;
use formats::refusal::{Refusal, WHOLE};
use log::{debug, warn};

use super::store::Store;
use crate::metrics::METRICS;
use crate::net::wait::Timed;

/// Time limit to send a bundle, and to take the answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Time for what a refused sender still sends: closing with unread bytes would reset the connection and destroy the
/// answer (RFC 9293, 3.6.1).
const LINGER: Duration = Duration::from_secs(2);
/// Most senders at once. A sender that stalls blocks nobody while there are other places. Beyond them, up to
/// REFUSED new senders are told to try again, and any more are closed.
const SENDERS: usize = 8;
const REFUSED: usize = 32;

/// Receives bundles.
pub struct Handshakes {
    store: Arc<Store>,
    // Each sender's thread holds a reference to one of these.
    senders: Arc<()>,
    refused: Arc<()>,
}

impl Handshakes {
    /// Passes bundles to this store.
    pub fn new(store: Arc<Store>) -> Handshakes {
        Handshakes { store, senders: Arc::default(), refused: Arc::default() }
    }

    /// Serves a sender, in a thread of its own.
    ///
    /// # Errors
    /// The system has no threads left.
    pub fn serve(&self, stream: Stream) -> io::Result<()> {
        let (serve, place): (fn(Stream, &Store) -> _, _) = if Arc::strong_count(&self.senders) <= SENDERS {
            (handshake, self.senders.clone())
        } else if Arc::strong_count(&self.refused) <= REFUSED {
            (|stream, _| refuse_busy(stream), self.refused.clone())
        } else {
            return Ok(());
        };
        let store = self.store.clone();
        threads::start("handshake", move || {
            let _place = place;
            serve(stream, &store).unwrap_or_else(|e| debug!("secrets: the connection to a sender failed: {e}"));
        })
        .map(drop)
    }
}

fn handshake(stream: Stream, store: &Store) -> io::Result<()> {
    let mut timed = Timed::new(stream, Some(Instant::now() + LIMIT))?;
    let mut bytes = Vec::new();
    let answer = match (&mut timed).take(MAX_BUNDLE as u64 + 1).read_to_end(&mut bytes) {
        Ok(_) => store.accept(&bytes).map_or_else(|refusal| refusal.to_json(), |done| done.to_json()),
        Err(e) if e.kind() == io::ErrorKind::TimedOut => {
            METRICS.handshakes_refused.add(1);
            let reason =
                format!("did not end within {} s: close the writing side after the last byte", LIMIT.as_secs());
            warn!("handshake refused, nothing changed: the bundle {reason}");
            Refusal { field: WHOLE.into(), reason }.to_json()
        }
        Err(e) => return Err(e),
    };
    drop(bytes);
    reply(timed, &format!("{answer}\n"))
}

/// Tells a sender to try again.
fn refuse_busy(stream: Stream) -> io::Result<()> {
    METRICS.handshakes_refused.add(1);
    let refusal =
        Refusal { field: WHOLE.into(), reason: format!("{SENDERS} bundles are already being received: try again") };
    reply(Timed::new(stream, None)?, &format!("{}\n", refusal.to_json()))
}

fn reply(mut timed: Timed, line: &str) -> io::Result<()> {
    timed.deadline = Some(Instant::now() + LINGER);
    timed.write_all(line.as_bytes())?;
    timed.stream().shutdown(Shutdown::Write)?;
    io::copy(&mut timed, &mut io::sink()).map(drop)
}
