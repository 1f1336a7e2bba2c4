//! Where forwarded connections lead.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use formats::address::Address;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, UnixAddr, VsockAddr, connect, socket,
};
use vsock::VsockStream;

use crate::socket::{Stream, bare, no_cid};

/// An address whose host name has been looked up, so that to connect takes no waiting.
#[derive(Debug)]
pub struct Target {
    name: String,
    places: Vec<Place>,
}

#[derive(Debug)]
enum Place {
    Vsock(VsockAddr),
    Tcp(SocketAddr),
    Unix(UnixAddr),
}

impl Target {
    /// Looks up the host name of a TCP address, which may take seconds.
    ///
    /// # Errors
    /// The name has no address; the path is too long; `InvalidInput` for a vsock address without a CID.
    pub fn find(address: &Address) -> io::Result<Target> {
        let places = match address {
            Address::Vsock { cid: None, port } => return Err(no_cid(*port)),
            Address::Vsock { cid: Some(cid), port } => vec![Place::Vsock(VsockAddr::new(*cid, *port))],
            Address::Tcp { host, port } => (bare(host), *port).to_socket_addrs()?.map(Place::Tcp).collect(),
            Address::Unix(path) => vec![Place::Unix(UnixAddr::new(path)?)],
        };
        Ok(Target { name: address.to_string(), places })
    }

    /// The address as it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Begins to connect to the first place from `next` on that does not fail at once, and moves `next` past it. The
    /// stream, which does not block, is writable once it is connected or has failed.
    ///
    /// # Errors
    /// The system's, for the last place; `NotFound` if none is left.
    pub fn begin(&self, next: &mut usize) -> io::Result<Stream> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        while let Some(place) = self.places.get(*next) {
            *next += 1;
            match place.begin() {
                Ok(stream) => return Ok(stream),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// Whether there is a place from `next` on.
    pub fn has(&self, next: usize) -> bool {
        next < self.places.len()
    }
}

impl Place {
    fn begin(&self) -> io::Result<Stream> {
        Ok(match self {
            Place::Vsock(address) => Stream::Vsock(VsockStream::from(begun(AddressFamily::Vsock, address)?)),
            Place::Unix(address) => Stream::Unix(UnixStream::from(begun(AddressFamily::Unix, address)?)),
            Place::Tcp(address) => {
                let stream = TcpStream::from(match *address {
                    SocketAddr::V4(v4) => begun(AddressFamily::Inet, &SockaddrIn::from(v4))?,
                    SocketAddr::V6(v6) => begun(AddressFamily::Inet6, &SockaddrIn6::from(v6))?,
                });
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
        })
    }
}

fn begun(family: AddressFamily, address: &dyn SockaddrLike) -> nix::Result<OwnedFd> {
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    match connect(fd.as_raw_fd(), address) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
        Err(e) => Err(e),
    }
}
