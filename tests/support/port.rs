//! Ports to listen on.

use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

/// A port of the loopback interface on which nothing listens, for programs that this process starts, one after the other.
/// It is this process's until it ends, so nobody else is given it, also while no program listens on it.
pub(crate) fn free_port() -> u16 {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    // Bound without SO_REUSEADDR, it shares its port with nobody, and while it is bound the system assigns the port neither
    // to a listener nor to a connection.
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    // From now on it lets one other listen, who sets this too, as servers do.
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    // It never listens itself: the type is for the port's number.
    let socket = TcpListener::from(socket);
    let port = socket.local_addr().unwrap().port();
    mem::forget(socket);
    port
}
