//! Receives bundles: by the handshake's listener, one a connection until end of file, answered with one line of JSON; and
//! by the public listener, which takes sealed bundles of version 2 only.
//!
//! Whoever reaches either may send anything, so little is read before a signature verifies: a bundle of version 2 begins
//! with a line that is signed. What follows a signed line may be large. It has places of its own, which nobody can take
//! who has no signed line, and each line only once at a time.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use event_loop::socket::Stream;
use event_loop::threads;
use formats::items::MAX_BUNDLE;
use formats::refusal::{Refusal, WHOLE};
use formats::sealed_bundle::v2::{Line, MAX_LINE};
use log::debug;

use super::sealed::{Known, Signed};
use super::store::{Accepted, Store, tell_refusal};
use crate::audit;
use crate::memory::{Budget, NoMemory};
use crate::net::pace::Pace;
use crate::net::request_id::RequestId;
use crate::net::wait::Timed;

/// Time limit to send a bundle's line, or a bundle without one, and to take the answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Time for what a refused sender still sends: closing with unread bytes would reset the connection and destroy the
/// answer (RFC 9293, 3.6.1).
const LINGER: Duration = Duration::from_secs(2);
/// Most senders at once. A sender that stalls blocks nobody while there are other places. Beyond them, up to
/// REFUSED new senders are told to try again, and any more are closed.
const SENDERS: usize = 8;
const REFUSED: usize = 32;
/// Most bundles at once that follow a signed line.
const TRANSFERS: usize = 2;
/// Memory to open and check a bundle of version 2, as a multiple of its bytes: the ciphertext, which is opened in place;
/// where its items are in it; and the file keys that are read from it.
const COST: usize = 5;

/// Receives bundles.
pub struct Handshakes {
    store: Arc<Store>,
    memory: Budget,
    // Each sender of the handshake's listener holds a reference to one of these.
    senders: Arc<()>,
    refused: Arc<()>,
    /// And each line of the public listener while it is checked.
    checked: Arc<()>,
    /// The counters of the bundles that follow a signed line now.
    transfers: Mutex<Vec<u64>>,
}

/// A place among the senders, until it is dropped.
struct Place(#[expect(dead_code, reason = "counts by being there")] Arc<()>);

/// A bundle that follows its signed line, until this is dropped.
struct Transfer<'h> {
    transfers: &'h Mutex<Vec<u64>>,
    counter: u64,
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner).retain(|counter| *counter != self.counter);
    }
}

/// The bytes of one sender, as they come.
pub trait Sender {
    /// Why no more come.
    type Error;

    /// Adds what comes next to `into`, at most `room` bytes; `false` at the end.
    ///
    /// # Errors
    /// The sender is gone, or too slow.
    fn more(&mut self, into: &mut Vec<u8>, room: usize) -> Result<bool, Self::Error>;

    /// The line is signed, and the sender was kept waiting for this long. What follows has to keep [`Pace`].
    fn goes_on(&mut self, waited: Duration);
}

/// Why a bundle did not take effect.
#[derive(Debug)]
pub enum Failed<E> {
    /// It is refused.
    Refused(Refusal),
    /// The places for what follows a signed line are taken.
    Busy,
    /// There is no memory for it.
    NoMemory(NoMemory),
    /// It did not come.
    Lost(E),
}

impl<E> From<Refusal> for Failed<E> {
    fn from(refusal: Refusal) -> Failed<E> {
        Failed::Refused(refusal)
    }
}

impl Handshakes {
    /// Passes bundles to this store. Large ones count in `memory`.
    pub fn new(store: Arc<Store>, memory: Budget) -> Handshakes {
        Handshakes {
            store,
            memory,
            senders: Arc::default(),
            refused: Arc::default(),
            checked: Arc::default(),
            transfers: Mutex::default(),
        }
    }

    /// A place among these, if one is free.
    fn place(among: &Arc<()>) -> Option<Place> {
        (Arc::strong_count(among) <= SENDERS).then(|| Place(among.clone()))
    }

    /// Serves a sender of the handshake's listener, in a thread of its own.
    ///
    /// # Errors
    /// The system has no threads left.
    pub fn serve(self: &Arc<Self>, stream: Stream) -> io::Result<()> {
        let place = Handshakes::place(&self.senders);
        let refused = (place.is_none() && Arc::strong_count(&self.refused) <= REFUSED).then(|| self.refused.clone());
        if place.is_none() && refused.is_none() {
            return Ok(());
        }
        let handshakes = self.clone();
        threads::start("handshake", move || {
            let _refused = refused;
            handshakes
                .handshake(stream, place)
                .unwrap_or_else(|e| debug!("secrets: the connection to a sender failed: {e}"));
        })
        .map(drop)
    }

    fn handshake(&self, stream: Stream, place: Option<Place>) -> io::Result<()> {
        let Some(place) = place else {
            return reply(Timed::new(stream, None)?, &told(&busy()));
        };
        let timed = Timed::new(stream, Some(Instant::now() + LIMIT))?;
        let mut sender = OfConnection { timed, pace: None };
        let answer = match self.receive_from(&mut sender, Some(place)) {
            Ok(accepted) => format!("{}\n", accepted.to_json()),
            Err(Failed::Refused(refusal)) => format!("{}\n", refusal.to_json()),
            Err(Failed::Busy) => told(&busy()),
            Err(Failed::NoMemory(_)) => told(&no_memory()),
            Err(Failed::Lost(e)) if e.kind() == io::ErrorKind::TimedOut => told(&sender.too_slow()),
            Err(Failed::Lost(e)) => return Err(e),
        };
        reply(sender.timed, &answer)
    }

    /// Receives a bundle from the public listener and puts it in force.
    ///
    /// # Errors
    /// See [`Failed`]; nothing has changed then.
    pub fn receive<S: Sender>(&self, sender: &mut S) -> Result<Accepted, Failed<S::Error>> {
        self.receive_from(sender, None)
    }

    /// The same from either listener. A sender of the handshake's listener has a `place`. One of the public listener gets
    /// one for as long as its line is checked: until then it is a request that sends its body, and gives way as others do.
    fn receive_from<S: Sender>(&self, sender: &mut S, place: Option<Place>) -> Result<Accepted, Failed<S::Error>> {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(at) = bytes.iter().position(|byte| *byte == b'\n') {
                break at + 1;
            }
            let room = MAX_LINE - bytes.len();
            if room == 0 || !sender.more(&mut bytes, room).map_err(Failed::Lost)? {
                break bytes.len();
            }
        };
        if Line::is_one(&bytes) {
            let rest = bytes.split_off(end);
            return self.receive_v2(sender, place, &bytes, rest);
        }
        if place.is_none() {
            let refusal = whole("does not begin with the line of a sealed bundle of version 2");
            audit::refuses_strangers_bundle(&refusal, None);
            return Err(refusal.into());
        }
        while bytes.len() <= MAX_BUNDLE {
            let room = MAX_BUNDLE + 1 - bytes.len();
            if !sender.more(&mut bytes, room).map_err(Failed::Lost)? {
                break;
            }
        }
        Ok(self.accept(bytes)?)
    }

    fn receive_v2<S: Sender>(
        &self,
        sender: &mut S,
        place: Option<Place>,
        line: &[u8],
        mut rest: Vec<u8>,
    ) -> Result<Accepted, Failed<S::Error>> {
        let is_public = place.is_none();
        let Some(place) = place.or_else(|| Handshakes::place(&self.checked)) else { return Err(Failed::Busy) };
        let mut known = Known::default();
        let checked = self.store.check_line(line, &mut known);
        // Strangers must not be able to fill the log by the public listener, not even with a line that an operator signed
        // once.
        let line = checked.inspect_err(|refusal| match is_public {
            true => audit::refuses_strangers_bundle(refusal, known.signed.as_ref().map(Signed::parts)),
            false => tell_refusal(refusal, &known),
        })?;
        let Some(_transfer) = self.transfer(line.counter()) else { return Err(Failed::Busy) };
        drop(place);
        let (following, mut memory) = (line.following(), self.memory.open());
        let waited = memory.cover(following.saturating_mul(COST)).map_err(Failed::NoMemory)?;
        sender.goes_on(waited);
        // One byte more, so that a bundle that is longer than it says is refused.
        rest.reserve_exact((following + 1).saturating_sub(rest.len()));
        while rest.len() <= following {
            let room = following + 1 - rest.len();
            if !sender.more(&mut rest, room).map_err(Failed::Lost)? {
                break;
            }
        }
        Ok(self.apart(move |store| store.accept_v2(line, rest))?)
    }

    /// Puts a bundle in force that has come whole.
    ///
    /// # Errors
    /// Why it is refused; nothing has changed then.
    pub fn accept(&self, bundle: Vec<u8>) -> Result<Accepted, Refusal> {
        self.apart(move |store| store.accept(&bundle))
    }

    /// Does this in a thread of its own: what is left of keys on its stack goes with it, while a thread of requests may
    /// serve others for long.
    fn apart(
        &self,
        act: impl FnOnce(&Store) -> Result<Accepted, Refusal> + Send + 'static,
    ) -> Result<Accepted, Refusal> {
        let (store, outcome) = (self.store.clone(), Arc::new(Mutex::new(None)));
        let (told, request) = (outcome.clone(), RequestId::of_this_thread());
        let started = threads::start("handshake", move || {
            let _in_log = request.as_ref().map(RequestId::enter);
            let result = act(&store);
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        });
        let thread = started.map_err(|_| whole("finds no thread to be checked in: try again"))?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        let result = outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.unwrap_or_else(|| Err(whole("was not checked")))
    }

    /// A place for what follows a signed line.
    fn transfer(&self, counter: u64) -> Option<Transfer<'_>> {
        let mut transfers = self.transfers.lock().unwrap_or_else(PoisonError::into_inner);
        if transfers.len() == TRANSFERS || transfers.contains(&counter) {
            return None;
        }
        transfers.push(counter);
        Some(Transfer { transfers: &self.transfers, counter })
    }
}

/// A sender of the handshake's listener.
struct OfConnection {
    timed: Timed,
    /// Once the line is signed.
    pace: Option<Pace>,
}

impl OfConnection {
    fn too_slow(&self) -> Refusal {
        match self.pace {
            Some(_) => whole("came too slowly, or stopped"),
            None => {
                whole(format!("did not end within {} s: close the writing side after the last byte", LIMIT.as_secs()))
            }
        }
    }
}

impl Sender for OfConnection {
    type Error = io::Error;

    fn more(&mut self, into: &mut Vec<u8>, room: usize) -> io::Result<bool> {
        let start = into.len();
        into.resize(start + room.min(PIECE), 0);
        let read = self.timed.read(&mut into[start..]);
        let came = *read.as_ref().unwrap_or(&0);
        into.truncate(start + came);
        if let Some(pace) = &mut self.pace {
            pace.moved(came, Instant::now());
            self.timed.deadline = Some(pace.deadline());
        }
        read.map(|came| came > 0)
    }

    fn goes_on(&mut self, _: Duration) {
        let pace = Pace::from(Instant::now());
        self.timed.deadline = Some(pace.deadline());
        self.pace = Some(pace);
    }
}

/// Most bytes that are read at once.
const PIECE: usize = 64 << 10;

/// The answer to a bundle that did not come whole; it is logged and counted here.
fn told(refusal: &Refusal) -> String {
    tell_refusal(refusal, &Known::default());
    format!("{}\n", refusal.to_json())
}

fn busy() -> Refusal {
    whole("cannot be received now: as many are as can be, or this one is already: try again")
}

fn no_memory() -> Refusal {
    whole("finds no memory now (TEEMARK_MEMORY): try again, or send fewer keys at once")
}

fn whole(reason: impl Into<String>) -> Refusal {
    Refusal { field: WHOLE.into(), reason: reason.into() }
}

fn reply(mut timed: Timed, line: &str) -> io::Result<()> {
    timed.deadline = Some(Instant::now() + LINGER);
    timed.write_all(line.as_bytes())?;
    timed.stream().shutdown(Shutdown::Write)?;
    io::copy(&mut timed, &mut io::sink()).map(drop)
}
