//! Connections out of the enclave: there is no other way.

use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_loop::socket::Stream;
use formats::address::Address;
use formats::allow_list::{AllowList, Endpoint};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{ConnectionDetails, Connector, NextTimeout};

use super::sessions::Sessions;
use super::tls::{TlsTransport, deadline, with_timeout};

/// How an allowed endpoint is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Through the parent's vsock-proxy: endpoint i at `first_port + i` of this CID.
    Parent {
        /// The parent's CID.
        cid: u32,
        /// The vsock port of the first endpoint.
        first_port: u32,
    },
    /// By TCP from this machine, in development.
    Direct,
}

impl FromStr for Route {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "direct" => Ok(Route::Direct),
            Ok(Address::Vsock { cid: Some(cid), port }) => Ok(Route::Parent { cid, first_port: port }),
            _ => Err(format!("{text:?} is neither vsock:CID:PORT nor direct")),
        }
    }
}

impl Route {
    /// Where an endpoint is reached.
    ///
    /// # Errors
    /// The parent has no port for it: the first one is too high.
    pub fn address(&self, endpoint: &Endpoint) -> io::Result<Address> {
        Ok(match *self {
            Route::Parent { cid, first_port } => {
                let port = u32::try_from(endpoint.index()).ok().and_then(|i| first_port.checked_add(i));
                let port = port.ok_or(io::ErrorKind::AddrNotAvailable)?;
                Address::Vsock { cid: Some(cid), port }
            }
            Route::Direct => Address::Tcp { host: endpoint.host().to_owned(), port: endpoint.port() },
        })
    }

    /// Connects to an endpoint within `limit` (a vsock connection within the kernel's 2 s).
    ///
    /// # Errors
    /// The system's error.
    pub fn dial(&self, endpoint: &Endpoint, limit: Duration) -> io::Result<Stream> {
        Stream::dial(&self.address(endpoint)?, limit)
    }
}

/// Makes ureq's connections: to a host on the allow list, by the route, under mutual TLS. Anything else fails before a
/// socket exists.
#[derive(Debug)]
pub struct Egress {
    /// The endpoints that may be dialled.
    pub allowed: Arc<AllowList>,
    /// How they are reached.
    pub route: Route,
    /// The client certificate, how the service is verified, and what may be resumed.
    pub sessions: Arc<Sessions>,
}

impl Connector for Egress {
    type Out = TlsTransport;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<TlsTransport>, ureq::Error> {
        let (host, port) = (details.uri.host().unwrap_or_default(), details.uri.port_u16().unwrap_or(443));
        let endpoint = self.allowed.find(host, port).ok_or_else(|| {
            io::Error::new(io::ErrorKind::PermissionDenied, format!("{host}:{port} is not on the allow list"))
        })?;
        if !details.needs_tls() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "only https leaves the enclave").into());
        }
        let limit = details.timeout.not_zero().map_or(Duration::from_secs(30), |d| *d);
        // One deadline for both: time spent dialling is not available for the TLS handshake.
        let deadline = deadline(details.timeout);
        let stream = self.route.dial(endpoint, limit)?;
        let transport = TlsTransport::handshake(stream, endpoint, self.sessions.config(Instant::now()), deadline);
        transport.map(Some).map_err(|e| with_timeout(e, details.timeout))
    }
}

/// Does not resolve names: the parent's proxy needs no address, and a direct route resolves the name when it connects,
/// after the allow list was checked.
#[derive(Debug)]
pub struct NoLookup;

impl Resolver for NoLookup {
    fn resolve(
        &self,
        _: &ureq::http::Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_a_vsock_address_with_a_cid_or_direct() {
        assert_eq!("vsock:3:8101".parse(), Ok(Route::Parent { cid: 3, first_port: 8101 }));
        assert_eq!("direct".parse(), Ok(Route::Direct));
        for bad in ["", "vsock:8101", "tcp:h:1", "Direct"] {
            assert!(bad.parse::<Route>().is_err(), "{bad}");
        }
    }
}
