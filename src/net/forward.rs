//! Forwards other processes' connections to allowed hosts: from 127.0.0.(64 + i) inside, through the parent's proxy.

use std::io;

use event_loop::EventLoop;
use event_loop::socket::Listener;
use event_loop::target::Target;
use event_loop::tunnel;
use formats::address::Address;
use formats::allow_list::AllowList;
use log::{info, warn};

use super::egress::Route;

/// Makes the event loop listen for each endpoint. On a direct route, the names are looked up here, once.
///
/// # Errors
/// An address is in use: names which.
pub fn add(event_loop: &mut EventLoop, allowed: &AllowList, route: Route, limit: usize) -> io::Result<()> {
    for endpoint in allowed.iter() {
        let address = Address::Tcp { host: endpoint.loopback().to_string(), port: endpoint.port() };
        let target = match route.address(endpoint).and_then(|address| Target::find(&address)) {
            Ok(target) => target,
            Err(e) => {
                warn!("forward: nothing listens on {address}, since {endpoint} cannot be looked up: {e}");
                continue;
            }
        };
        let listener = Listener::open(&address).map_err(|e| io::Error::new(e.kind(), format!("{address}: {e}")))?;
        info!("forward: {address} leads to {endpoint}");
        event_loop.add(tunnel::acceptor(listener, limit, target))?;
    }
    Ok(())
}
