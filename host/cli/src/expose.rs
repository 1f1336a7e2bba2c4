//! `teemark expose`: makes the enclave's HTTP ports available over TCP on the parent.
//!
//! One thread forwards all connections, on the event loop that the daemon uses inside the enclave. It copies bytes and
//! knows nothing about them.

use std::str::FromStr;

use anyhow::{Context, Result};
use event_loop::socket::Listener;
use event_loop::target::Target;
use event_loop::{EventLoop, tunnel};
use formats::address::Address;
use log::{LevelFilter, Metadata, Record};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::{Done, Failure};
use crate::terminal::say;

/// Most connections of each port. More wait in the backlog. It is above what the enclave accepts, so that the enclave
/// chooses whom to turn away.
const CONNECTIONS: usize = 1024;
/// Descriptors of a connection: the client's and the enclave's.
const DESCRIPTORS: u64 = 2;
/// Descriptors for everything else: listeners, the loop's own, standard streams.
const OTHER_DESCRIPTORS: u64 = 64;

/// Make the enclave's public and admin ports available over TCP, until a signal ends it.
///
/// A client that has ended its sending side still gets its answer. A connection on which nothing moves for 300 s is closed.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  teemark expose --enclave 16
  teemark expose --enclave 16 --public 10.0.0.7:3000 --admin ''
  teemark expose --public 127.0.0.1:3000 --public-target unix:/tmp/public --admin ''

host/deploy/expose.sh finds the running enclave, calls this command, and ends it with the enclave.
SIGTERM or Ctrl-C ends it with status 0, and cuts the connections.")]
pub(crate) struct Arguments {
    /// The enclave's CID, as nitro-cli describe-enclaves shows it
    #[arg(long, value_name = "CID", value_parser = clap::value_parser!(u32).range(3..i64::from(u32::MAX)))]
    enclave: Option<u32>,
    /// Where clients reach the public port, vsock 3000; empty: not exposed
    #[arg(long, value_name = "HOST:PORT", env = "EXPOSE_PUBLIC", default_value = "0.0.0.0:3000")]
    public: Exposed,
    /// Where the admin port, vsock 3001, is reached; whoever can reach it can send secrets and read the enclave's state;
    /// empty: not exposed
    #[arg(long, value_name = "HOST:PORT", env = "EXPOSE_ADMIN", default_value = "127.0.0.1:3001")]
    admin: Exposed,
    /// Where public connections lead instead: vsock:CID:PORT, tcp:HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS")]
    public_target: Option<Address>,
    /// Where admin connections lead instead
    #[arg(long, value_name = "ADDRESS")]
    admin_target: Option<Address>,
}

/// Where a port is exposed, if it is.
#[derive(Clone, Debug)]
struct Exposed(Option<Address>);

impl FromStr for Exposed {
    type Err = String;

    fn from_str(text: &str) -> Result<Exposed, String> {
        if text.is_empty() {
            return Ok(Exposed(None));
        }
        let address = format!("tcp:{text}").parse();
        address.map(|address| Exposed(Some(address))).map_err(|_| "not HOST:PORT, such as 127.0.0.1:3001".to_owned())
    }
}

/// Exposes the ports until SIGTERM or SIGINT.
///
/// # Errors
/// Nothing is to be exposed, a target is missing or its name has no address, or an address cannot be listened on.
pub(crate) fn run(arguments: &Arguments) -> Result<Done> {
    // Before anything listens, so that who stops it at once is heard too.
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    static LOG: Log = Log;
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(LevelFilter::Debug);
    }

    let ports = [
        Port { name: "public", exposed: &arguments.public, target: &arguments.public_target, vsock: 3000 },
        Port { name: "admin", exposed: &arguments.admin, target: &arguments.admin_target, vsock: 3001 },
    ];
    let opened = ports.iter().filter_map(|port| port.open(arguments.enclave).transpose());
    let opened = opened.collect::<Result<Vec<_>>>()?;
    if opened.is_empty() {
        return Err(Failure::usage("nothing to expose: --public and --admin are both empty").into());
    }
    let connections = within_limits(opened.len());
    let mut event_loop = EventLoop::new(|_| {})?;
    let mut exposed = Vec::new();
    for (name, listener, target) in opened {
        let address = listener.address()?.to_string();
        let address = address.trim_start_matches("tcp:");
        say(format_args!("{name}: http://{address} leads to {}", target.name()));
        exposed.push(json!({"name": name, "address": address, "target": target.name()}));
        event_loop.add(tunnel::acceptor(listener, connections, target))?;
    }
    let running = event_loop.start()?;
    signals.forever().next();
    running.stop();
    Ok(Done::new("", json!({"exposed": exposed})))
}

/// One of the enclave's two HTTP ports.
struct Port<'a> {
    name: &'static str,
    exposed: &'a Exposed,
    target: &'a Option<Address>,
    vsock: u32,
}

impl Port<'_> {
    /// Listens, if it is to be exposed.
    fn open(&self, enclave: Option<u32>) -> Result<Option<(&'static str, Listener, Target)>> {
        let Port { name, exposed: Exposed(Some(address)), target, vsock: port } = self else { return Ok(None) };
        let enclave = enclave.map(|cid| Address::Vsock { cid: Some(cid), port: *port });
        let target = (*target).clone().or(enclave).ok_or_else(|| {
            let message = format!(
                "where does {name} lead? Give --enclave CID (nitro-cli describe-enclaves shows it) or --{name}-target, or \
                 --{name} '' not to expose it"
            );
            Failure::usage(message)
        })?;
        let target = Target::find(&target).with_context(|| format!("{name}: {target} cannot be a target"))?;
        let listener = Listener::open(address).with_context(|| format!("{name}: cannot listen on {address}"))?;
        Ok(Some((name, listener, target)))
    }
}

/// Raises the limit of open files to what the system allows. Returns how many connections each of this many ports may
/// have within it.
fn within_limits(ports: usize) -> usize {
    let wanted = CONNECTIONS as u64 * DESCRIPTORS * ports as u64 + OTHER_DESCRIPTORS;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let current = current.unwrap_or(u64::MAX);
    if current >= wanted {
        return CONNECTIONS;
    }
    let raised = wanted.min(maximum.unwrap_or(u64::MAX));
    let limit = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }).map_or(current, |()| raised);
    let most = limit.saturating_sub(OTHER_DESCRIPTORS) / DESCRIPTORS / ports as u64;
    let most = usize::try_from(most).unwrap_or(CONNECTIONS).clamp(1, CONNECTIONS);
    if most < CONNECTIONS {
        say(format_args!(
            "warning: {limit} open files allow {most} connections a port, not {CONNECTIONS}; raise the limit (ulimit -n, \
             LimitNOFILE=)"
        ));
    }
    most
}

/// Prints what the event loop has to say: which connections could not be made, and why.
struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        say(record.args());
    }

    fn flush(&self) {}
}
