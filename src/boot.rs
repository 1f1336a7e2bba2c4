//! The start, told once from top to bottom.

use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Arc;
use std::thread;

use log::{error, info, warn};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use tiny_http::Server;

use crate::api::{self, Api, Side};
use crate::files;
use crate::net::addr::{Address, Listener};
use crate::net::endpoints::AllowList;
use crate::net::pump::{Handle, Pump};
use crate::net::{forward, ingress, link};
use crate::secrets::listener;
use crate::secrets::store::Store;
use crate::settings::{Settings, bundle_of_environment};

/// Why the daemon did not start: what failed, and what the system said.
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

/// Runs the daemon until SIGTERM or SIGINT, and ends it cleanly.
///
/// # Errors
/// What kept it from starting.
pub fn run(settings: &Settings) -> Result<(), BootError> {
    let signals = hold_signals()?;
    keep_memory_private()?;
    raise_descriptor_limit();

    let allowed = Arc::new(AllowList::load(&settings.endpoints).map_err(cannot("allow list"))?);
    info!("allow list: {} endpoints from {}", allowed.iter().count(), settings.endpoints.display());
    prepare_network(settings, &allowed)?;

    let store = Store::new(settings.certs.clone(), allowed.clone(), settings.egress, settings.timeout);
    let store = Arc::new(store);
    take_what_is_there(&store);

    let public = listen("public", &settings.public)?;
    let admin = listen("admin", &settings.admin)?;
    let secrets = listen("secrets", &settings.secrets)?;
    let api = Arc::new(Api::new(store.clone(), allowed.clone(), settings.egress, settings));
    let pump = serve_http(settings, &allowed, &api, [(public, Side::Public), (admin, Side::Admin)])?;
    spawn("secrets", {
        let store = store.clone();
        move || listener::serve(secrets, store)
    })?;

    match store.now().missing()[..] {
        [] => info!("ready"),
        ref missing => {
            info!("not ready: waiting for the handshake on {}; missing: {}", settings.secrets, missing.join(", "))
        }
    }
    let signal = signals.wait().map_err(cannot("waiting for a signal"))?;
    info!("{signal}: stopping; requests under way may finish");
    pump.stop();
    let _no_bundle_half_written = store.close();
    info!("stopped");
    Ok(())
}

/// Takes SIGTERM and SIGINT out of the normal course, in every thread, so that [`run`] can wait for them.
fn hold_signals() -> Result<SigSet, BootError> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().map_err(cannot("blocking signals"))?;
    Ok(signals)
}

/// No core dump, and no other process of the same user may look into this one (prctl(2), PR_SET_DUMPABLE).
fn keep_memory_private() -> Result<(), BootError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(cannot("forbidding core dumps"))?;
    prctl::set_dumpable(false).map_err(cannot("forbidding core dumps"))
}

/// Each connection needs two descriptors, three while its request is under way; the hard limit allows more than the
/// soft one does.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard.min(1 << 20), hard));
    raised.unwrap_or_else(|e| warn!("the limit of open files stays as it is: {e}"));
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

/// Certificates baked into the image, then what the environment holds. What is unusable is reported, and the handshake
/// can still deliver it: a daemon that ended here could tell nobody why.
fn take_what_is_there(store: &Store) {
    match store.accept_files() {
        Ok(true) => info!("certificates found in the image or from an earlier handshake"),
        Ok(false) => {}
        Err(refusal) => error!("certificates not used: {refusal}"),
    }
    let items = bundle_of_environment(|name| std::env::var_os(name));
    if !items.is_empty()
        && let Err(refusal) = store.accept_environment(&items)
    {
        error!("environment not used: {refusal}");
    }
}

fn listen(name: &str, address: &Address) -> Result<Listener, BootError> {
    let listener = address.listen().map_err(cannot(format_args!("{name} listener, {address}")))?;
    info!("{name}: listening on {}", listener.address().map_err(cannot(name))?);
    Ok(listener)
}

/// Starts tiny_http for each listener behind a door of the pump, and the forwarders.
fn serve_http(
    settings: &Settings,
    allowed: &AllowList,
    api: &Arc<Api>,
    listeners: [(Listener, Side); 2],
) -> Result<Handle, BootError> {
    let max_body = (settings.max_file + files::OVERHEAD).div_ceil(3) * 4 + (2 << 20);
    let mut pump = Pump::new().map_err(cannot("pump"))?;
    let doors = listeners.len();
    for (listener, side) in listeners {
        let (server, address) = private_server().map_err(cannot("HTTP server"))?;
        let api = api.clone();
        spawn("http", move || api::serve(server, api, side))?;
        let door = ingress::door(listener, settings.max_connections, max_body as u64, address);
        pump.add(door).map_err(cannot("pump"))?;
    }
    if settings.forward {
        forward::add_doors(&mut pump, doors, allowed, settings.egress, settings.max_connections)
            .map_err(cannot("TEEMARK_FORWARD"))?;
    }
    pump.start().map_err(cannot("pump"))
}

/// A tiny_http on an abstract Unix socket (unix(7)): it needs no file system and goes with the process. The name is
/// random, since other users of a development machine could find a known one and pass the ingress by.
fn private_server() -> io::Result<(&'static Server, SocketAddr)> {
    let random = ring::rand::generate::<[u8; 16]>(&ring::rand::SystemRandom::new());
    let random = random.map_err(|_| io::Error::other("no random numbers"))?.expose();
    let name = format!("teemarkd-{:032x}", u128::from_ne_bytes(random));
    let address = SocketAddr::from_abstract_name(name)?;
    let listener = UnixListener::bind_addr(&address)?;
    let server = Server::from_listener(listener, None).map_err(io::Error::other)?;
    // Kept for the life of the process: tiny_http cannot close a socket without a path.
    Ok((Box::leak(Box::new(server)), address))
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), BootError> {
    thread::Builder::new().name(name.into()).spawn(body).map(drop).map_err(cannot(name))
}
