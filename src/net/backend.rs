//! The tiny_http behind the ingress: how to reach it, one newcomer at a time, and what to do when it has died.
//!
//! tiny_http 0.12 gives a connection to a thread of its pool when one waits, and counts a thread as waiting until it
//! has woken up. Two connections in a row may so be given to one thread, and the second waits for as long as the
//! first lasts. With a single connection on its way at a time the count is right; only one whose client has gone away
//! meanwhile may still be on its way beside it. tiny_http also stops accepting for good after any error, such as a
//! moment without descriptors, and panics where it cannot have a thread: then a new one takes its place.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::error;
use tiny_http::Server;

use super::pump::Entrance;

/// A server that died is replaced at most so often.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);

/// A connection that was not read for so long is not waited for any more.
const NEWCOMER_LIMIT: Duration = Duration::from_secs(2);

/// Starts to serve what comes to a server, in a thread of its own, and tells the intake of each request.
type Serve = Box<dyn Fn(&'static Server, Intake) -> io::Result<()> + Send + Sync>;

/// One tiny_http after the other.
pub struct Backend {
    state: Mutex<State>,
    intake: Intake,
    serve: Serve,
}

struct State {
    address: SocketAddr,
    started: Instant,
    /// Number and time of the last connection.
    last: (u64, Instant),
}

/// Lets one connection in at a time: holds the number of the one that tiny_http has not read yet, or 0.
#[derive(Clone)]
pub struct Intake {
    newcomer: Arc<AtomicU64>,
    pump: Arc<Entrance>,
}

impl Intake {
    /// tiny_http has read a request: the next may come.
    pub fn received(&self) {
        self.newcomer.store(0, Ordering::Release);
        self.pump.wake();
    }
}

/// A connection to tiny_http for one request.
pub struct Connection {
    pub stream: UnixStream,
    number: u64,
}

impl Backend {
    /// Starts the first server. `pump` is woken when the next connection may be made.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(serve: Serve, pump: Entrance) -> io::Result<Backend> {
        let intake = Intake { newcomer: Arc::default(), pump: Arc::new(pump) };
        let address = start(&serve, &intake)?;
        Ok(Backend {
            state: Mutex::new(State { address, started: Instant::now(), last: (0, Instant::now()) }),
            intake,
            serve,
        })
    }

    /// Connects for one request; `None` while another connection is on its way.
    ///
    /// # Errors
    /// There is no server now.
    pub fn connect(&self) -> io::Result<Option<Connection>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.intake.newcomer.load(Ordering::Acquire) != 0 && state.last.1.elapsed() < NEWCOMER_LIMIT {
            return Ok(None);
        }
        let stream = match UnixStream::connect_addr(&state.address) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused && state.started.elapsed() > RENEWAL_PAUSE => {
                error!("the HTTP server has died: starting another");
                state.started = Instant::now();
                state.address = start(&self.serve, &self.intake)?;
                UnixStream::connect_addr(&state.address)?
            }
            other => other?,
        };
        stream.set_nonblocking(true)?;
        let number = state.last.0 + 1;
        state.last = (number, Instant::now());
        self.intake.newcomer.store(number, Ordering::Release);
        Ok(Some(Connection { stream, number }))
    }

    /// A connection has ended, perhaps before it was read.
    pub fn ended(&self, connection: Connection) {
        let newcomer = &self.intake.newcomer;
        if newcomer.compare_exchange(connection.number, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.intake.pump.wake();
        }
    }
}

/// A tiny_http on an abstract Unix socket (unix(7)): it needs no file system and goes with the process. The name is
/// random, since other users of a development machine could find a known one and pass the ingress by.
fn start(serve: &Serve, intake: &Intake) -> io::Result<SocketAddr> {
    let random = ring::rand::generate::<[u8; 16]>(&ring::rand::SystemRandom::new());
    let random = random.map_err(|_| io::Error::other("no random numbers"))?.expose();
    let address = SocketAddr::from_abstract_name(format!("teemarkd-{:032x}", u128::from_ne_bytes(random)))?;
    let listener = UnixListener::bind_addr(&address)?;
    let server = catch_unwind(|| Server::from_listener(listener, None));
    let server = server.map_err(|_| io::Error::other("no thread for the HTTP server"))?.map_err(io::Error::other)?;
    // Kept for the life of the process: tiny_http cannot close a socket without a path.
    serve(Box::leak(Box::new(server)), intake.clone())?;
    Ok(address)
}
