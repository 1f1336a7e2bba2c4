//! The daemon's start, told once from top to bottom.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use event_loop::socket::Listener;
use event_loop::{Acceptor, Event, EventLoop, Handle, threads};
use formats::address::Address;
use formats::allow_list::AllowList;
use formats::items::{ITEMS, MAX_BUNDLE, MAX_BUNDLE_V2};
use formats::sealed_bundle::v2::MAX_LINE;
use formats::time::Utc;
use log::{error, info, warn};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

use crate::allocator::Allocator;
use crate::api::limits::Limits;
use crate::api::{Api, Served, Side};
use crate::attest::{self, Attestation};
use crate::audit;
use crate::logging::{self, Author};
use crate::memory::Budget;
use crate::metrics::METRICS;
use crate::net::{forward, ingress, link};
use crate::secrets::bundle::bundle_of_environment;
use crate::secrets::sealed::Unsealer;
use crate::secrets::store::Store;
use crate::settings::{self, Handshake, Settings};

/// Why the daemon did not start: what failed, and the system's error.
#[derive(Debug)]
pub struct BootError(String);

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BootError {}

fn cannot<E: fmt::Display>(what: impl fmt::Display) -> impl FnOnce(E) -> BootError {
    move |e| BootError(format!("{what}: {e}"))
}

/// Runs the daemon until SIGTERM or SIGINT, and ends it cleanly. `allocator` is the program's own.
///
/// # Errors
/// What kept it from starting.
pub fn run(settings: &Settings, signals: &SigSet, allocator: &'static Allocator) -> Result<(), BootError> {
    keep_memory_private()?;
    warn_of_unknown_settings();

    let allowed = Arc::new(allow_list(&settings.endpoints)?);
    info!("allow list: {} endpoints from {}", allowed.iter().count(), settings.endpoints.display());
    prepare_network(settings, &allowed)?;

    let limits = limits(settings, &allowed);
    let attestation = Arc::new(make_keys(&allowed)?);
    if let Some(log) = logging::log() {
        let signer = attestation.clone();
        log.begin(Author {
            boot_nonce: attestation.boot_nonce(),
            identity: attestation.identity(),
            document: attestation.of_boot(),
            sign: Box::new(move |bytes| signer.sign(bytes)),
        });
    }
    let unsealer = unsealer(&settings.handshake, &attestation);
    let memory = Budget::new(limits.memory, limits.connections);
    let store = Store::new(settings, allowed.clone(), unsealer, Some(attestation.clone()), memory.clone());
    let store = Arc::new(store);
    load_initial_secrets(&store);

    let public = listen("public", &settings.public)?;
    let admin = listen("admin", &settings.admin)?;
    let secrets = listen("secrets", &settings.secrets)?;
    let handshake = secrets.address().map_err(cannot("secrets"))?;
    let api = Arc::new(Api::new(store.clone(), allowed.clone(), attestation, settings, limits, memory));
    let stopping = Arc::new(AtomicBool::new(false));
    let listeners = Listeners { public, admin, secrets };
    let event_loop = serve(settings, &allowed, &api, listeners, &stopping, allocator)?;

    match store.now().missing()[..] {
        [] => info!("ready"),
        ref missing => {
            info!("not ready: waiting for the handshake on {handshake}; missing: {}", missing.join(", "))
        }
    }
    let signal = signals.wait().map_err(cannot("waiting for a signal"))?;
    info!("{signal}: stopping; requests in flight have 10 s to finish");
    stopping.store(true, Ordering::Release);
    event_loop.stop();
    // Held until the process ends: no bundle is being written now, and none begins.
    std::mem::forget(store.exclusive());
    info!("stopped");
    audit::checkpoint();
    Ok(())
}

/// Reads the allow list.
fn allow_list(file: &Path) -> Result<AllowList, BootError> {
    let name = file.display().to_string();
    let text = fs::read(file).map_err(cannot(format_args!("allow list: {name} cannot be read")))?;
    AllowList::parse(&name, &text).map_err(cannot("allow list"))
}

/// Blocks SIGTERM and SIGINT in this thread and in those that it starts, so that [`run`] can wait for them.
///
/// # Errors
/// The system's.
pub fn block_signals() -> Result<SigSet, BootError> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().map_err(cannot("blocking signals"))?;
    Ok(signals)
}

/// Forbids core dumps, and keeps other processes of the same user from reading this one's memory (prctl(2),
/// PR_SET_DUMPABLE).
fn keep_memory_private() -> Result<(), BootError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(cannot("forbidding core dumps"))?;
    prctl::set_dumpable(false).map_err(cannot("forbidding core dumps"))
}

/// Warns of misspelled settings, which have no effect and would go unnoticed. Values are not shown: they may be meant
/// for another program.
fn warn_of_unknown_settings() {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in names.filter(|name| settings::is_unknown(name)) {
        warn!("{name:?} is not a setting of teemarkd and has no effect; docs/REFERENCE.md lists the settings");
    }
}

/// Descriptors for each connection that a listener may have: one that waits for its head, one that waits for a thread,
/// and one in flight with the one to the watermark service.
const DESCRIPTORS: u64 = 4;
/// Descriptors for everything else: pooled connections, handshakes, clients that are being refused.
const OTHER_DESCRIPTORS: u64 = 320;

/// Raises the limit of open files to what the system allows. Returns how many connections each of this many listeners
/// may have within it: as many as are set, if possible.
fn connections_within_limits(wanted: usize, listeners: usize) -> usize {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        let limit = hard.min(1 << 20);
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).map(|()| limit)
    });
    let limit = raised.unwrap_or(1024);
    let most = limit.saturating_sub(OTHER_DESCRIPTORS) / DESCRIPTORS / listeners as u64;
    let most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
    if wanted > most {
        warn!("TEEMARK_MAX_CONNECTIONS is {wanted}, but {limit} open files allow {most}");
    }
    wanted.min(most)
}

/// The limits in force. Warns if files that TEEMARK_MAX_FILE allows do not fit into TEEMARK_MEMORY.
fn limits(settings: &Settings, allowed: &AllowList) -> Limits {
    // The public and the admin listener, and a forwarder for each endpoint.
    let listeners = 2 + if settings.forward { allowed.iter().count() } else { 0 };
    let limits = Limits::new(settings, connections_within_limits(settings.max_connections, listeners));
    let [raw, json] = limits.largest_files();
    if json < limits.max_file {
        let Limits { max_file, memory, .. } = limits;
        warn!(
            "TEEMARK_MAX_FILE is {max_file} bytes, but TEEMARK_MEMORY, {memory} bytes, has room for a file of {raw} bytes \
             by the raw route and of {json} bytes as JSON: give the enclave more memory, or set TEEMARK_MAX_FILE lower"
        );
    }
    limits
}

fn prepare_network(settings: &Settings, allowed: &AllowList) -> Result<(), BootError> {
    match &settings.hosts {
        Some(_) if !link::in_enclave() => info!("loopback and hosts file left alone: not in an enclave"),
        None => info!("loopback and hosts file left alone: TEEMARK_HOSTS is empty"),
        Some(file) => {
            link::bring_loopback_up().map_err(cannot("loopback interface"))?;
            link::write_hosts(file, allowed).map_err(cannot(file.display()))?;
            info!("loopback is up, hosts written to {}", file.display());
        }
    }
    Ok(())
}

/// Makes the enclave's keys, and sets the clock by the module's, since it decides whether grants and certificates are in
/// date.
fn make_keys(allowed: &AllowList) -> Result<Attestation, BootError> {
    let nsm = attest::module().map_err(cannot("attestation"))?;
    let attestation = Attestation::new(nsm, allowed.sha256()).map_err(cannot("attestation"))?;
    if let Some(module) = attestation.check_clock().map_err(cannot("attestation"))? {
        info!("attested by {module}");
    }
    info!("identity key {}", hex::encode(attestation.identity()));
    Ok(attestation)
}

/// Opens the handshake's bundles, if they come sealed.
fn unsealer(handshake: &Handshake, attestation: &Arc<Attestation>) -> Option<Unsealer> {
    match handshake {
        Handshake::Plain => {
            warn!(
                "TEEMARK_HANDSHAKE is plain: the parent, which relays the handshake, can read the private key and the \
                 file keys in it, replace them, and replay an old bundle"
            );
            None
        }
        Handshake::Sealed(operators) => {
            match (operators.keys.len(), operators.threshold) {
                (0, _) => warn!("the handshake is closed: TEEMARK_OPERATOR_KEYS is empty, so nobody may send secrets"),
                (n, 1) => info!("the handshake takes what {n} operators seal to this enclave"),
                (n, k) => info!("the handshake takes what {k} of {n} operators sign and seal to this enclave"),
            }
            Some(Unsealer::new(attestation.clone(), operators.clone()))
        }
    }
}

/// Loads certificates that are baked into the image, then the items in the environment. What cannot be used is only
/// reported, since the handshake can still deliver it; a daemon that ended here could tell nobody why.
fn load_initial_secrets(store: &Store) {
    match store.accept_files() {
        Ok(true) => info!("certificates found in the image or from an earlier handshake"),
        Ok(false) => {}
        Err(refusal) => error!("certificates not used: {refusal}"),
    }
    let items = bundle_of_environment(&ITEMS, |name| std::env::var_os(name));
    if let Some(Err(refusal)) = items.map(|items| store.put_in_force(&items)) {
        error!("environment not used: {refusal}");
    }
}

fn listen(name: &str, address: &Address) -> Result<Listener, BootError> {
    let listener = Listener::open(address).map_err(cannot(format_args!("{name} listener, {address}")))?;
    info!("{name}: listening on {}", listener.address().map_err(cannot(name))?);
    Ok(listener)
}

/// How often the client certificate's dates are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// How often memory is returned that was not needed since the last time, all of it by twice this time after a load, and
/// pooled connections are closed that no call may use any more.
const TRIM_INTERVAL: Duration = Duration::from_secs(5);

/// The daemon's listeners.
struct Listeners {
    public: Listener,
    admin: Listener,
    secrets: Listener,
}

/// Counts what the event loop does.
fn count(event: Event) {
    match event {
        Event::Open(connections) => METRICS.connections_open.set(connections as u64),
        Event::GaveWay => METRICS.connections_refused.add(1),
    }
}

/// Starts the event loop with everything that waits in it: clients, senders of bundles, forwarded connections, the check
/// of the client certificate, the attestation document without a nonce, by which the clock is set, and the return of memory.
fn serve(
    settings: &Settings,
    allowed: &AllowList,
    api: &Arc<Api>,
    Listeners { public, admin, secrets }: Listeners,
    stopping: &Arc<AtomicBool>,
    allocator: &'static Allocator,
) -> Result<Handle, BootError> {
    let cannot = || cannot("event loop");
    let limit = api.limits.connections;
    let mut event_loop = EventLoop::new(count).map_err(cannot())?;
    for (listener, side) in [(public, Side::Public), (admin, Side::Admin)] {
        let queued = if side == Side::Public { api.memory.queued() } else { Arc::default() };
        let bundle = if side == Side::Public { MAX_LINE + MAX_BUNDLE_V2 } else { MAX_BUNDLE };
        let max_body = api.limits.any_body().bytes.max(bundle) as u64;
        let by_state = if side == Side::Public { &METRICS.public } else { &METRICS.admin };
        let (idle, stopping) = (settings.idle, stopping.clone());
        let options = ingress::Options { limit, max_body, idle, queued, stopping, by_state };
        let service = Arc::new(Served { api: api.clone(), side });
        ingress::add(&mut event_loop, listener, service, options).map_err(cannot()).map(drop)?;
    }
    let handshakes = api.handshakes.clone();
    let open = move |stream| handshakes.serve(stream).map(|()| None);
    event_loop.add(Acceptor { listener: secrets, limit: usize::MAX, open: Box::new(open) }).map_err(cannot())?;
    if settings.forward {
        forward::add(&mut event_loop, allowed, settings.egress, limit).map_err(self::cannot("TEEMARK_FORWARD"))?;
    }
    let store = api.store.clone();
    event_loop.every(CHECK_INTERVAL, move || store.check_certificate(Utc::now()));
    let attestation = api.attestation.clone();
    // The module may take two minutes to fail (the kernel's drivers/misc/nsm.c).
    let renew = move || {
        if let Err(e) = attestation.renew() {
            warn!("cannot renew the attestation document without a nonce, so the clock was not checked: {e}");
        }
    };
    event_loop.every(settings.clock_interval, threads::aside("attestation", renew));
    event_loop.every(logging::CHECKPOINTS, audit::checkpoint);
    let store = api.store.clone();
    event_loop.every(TRIM_INTERVAL, move || {
        if let Ok(ready) = store.now().ready() {
            ready.mtls.close_idle(Instant::now());
        }
        store.trim();
        allocator.trim();
    });
    event_loop.start().map_err(cannot())
}
