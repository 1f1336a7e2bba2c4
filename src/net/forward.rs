//! Forwards other processes' connections to allowed hosts: from 127.0.0.(64 + i) inside, through the parent's proxy.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use event_loop::socket::Listener;
use event_loop::tunnel::Tunnel;
use event_loop::{Acceptor, EventLoop, Opened, threads};
use formats::address::Address;
use formats::allow_list::AllowList;
use log::{debug, info};

use super::egress::Route;

/// Time limit to reach the endpoint.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Makes the event loop listen for each endpoint.
///
/// # Errors
/// An address is in use: names which.
pub fn add(event_loop: &mut EventLoop, allowed: &AllowList, route: Route, limit: usize) -> io::Result<()> {
    for endpoint in allowed.iter() {
        let address = Address::Tcp { host: endpoint.loopback().to_string(), port: endpoint.port() };
        let listener = Listener::open(&address).map_err(|e| io::Error::new(e.kind(), format!("{address}: {e}")))?;
        info!("forward: {address} leads to {endpoint}");
        let (waker, acceptor, endpoint) = (event_loop.waker(), event_loop.next_acceptor(), endpoint.clone());
        // Each tunnel holds a reference, also while it is being dialled, and so does this closure.
        let places = Arc::new(());
        let open = move |stream| -> Opened {
            if Arc::strong_count(&places) > limit {
                return Ok(None);
            }
            let (waker, endpoint, place) = (waker.clone(), endpoint.clone(), places.clone());
            // In a thread of its own, since it may take seconds.
            let dial =
                move || match route.dial(&endpoint, CONNECT_LIMIT).and_then(|s| s.set_nonblocking(true).map(|()| s)) {
                    Ok(far) => waker.add(acceptor, Box::new(Tunnel::new(stream, far, place))),
                    Err(e) => debug!("forward: {endpoint} cannot be reached: {e}"),
                };
            threads::start("dial", dial).map(|_| None)
        };
        event_loop.add(Acceptor { listener, limit, open: Box::new(open) })?;
    }
    Ok(())
}
