//! `teemark log relay`: on the parent, carries the enclave's log on to a collector.

use anyhow::{Context, Result};
use event_loop::socket::Listener;
use event_loop::target::Target;
use event_loop::{EventLoop, tunnel};
use formats::address::Address;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::Done;
use crate::terminal::say;

/// Most streams: one of each enclave of the parent, and those that are about to end.
const STREAMS: usize = 64;

/// On the parent, carry the log of its enclaves on to a collector, until a signal ends it.
///
/// It copies bytes and keeps nothing. Records that the collector has not acknowledged are sent again by the enclave.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  teemark log relay --to tcp:collector.internal:9002
  teemark log relay --listen unix:/run/teemark.log --to tcp:127.0.0.1:9002

SIGTERM or Ctrl-C ends it with status 0.")]
pub(crate) struct Arguments {
    /// Where enclaves send their log: TEEMARK_LOG_TO leads here
    #[arg(long, value_name = "ADDRESS", env = "LOG_RELAY_LISTEN", default_value = "vsock:9001")]
    listen: Address,
    /// The collector
    #[arg(long, value_name = "ADDRESS", env = "LOG_RELAY_TO")]
    to: Address,
}

/// Carries streams until SIGTERM or SIGINT.
///
/// # Errors
/// The address cannot be listened on, or the collector's name has no address.
pub(crate) fn run(arguments: &Arguments) -> Result<Done> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let Arguments { listen, to } = arguments;
    let target = Target::find(to).with_context(|| format!("--to {to}"))?;
    let listener = Listener::open(listen).with_context(|| format!("--listen {listen}"))?;
    let address = listener.address()?.to_string();
    let mut event_loop = EventLoop::new(|_| {})?;
    event_loop.add(tunnel::acceptor(listener, STREAMS, target))?;
    let running = event_loop.start()?;
    say(format_args!("log: {address} leads to {to}"));
    signals.forever().next();
    running.stop();
    Ok(Done::new("", json!({"listen": address, "to": to.to_string()})))
}
