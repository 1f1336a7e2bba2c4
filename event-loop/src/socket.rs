//! One kind of stream and of listener over any transport: AF_VSOCK (vsock(7)) at the enclave, TCP on the parent, TCP or a
//! Unix socket on a development machine.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use formats::address::Address;
use nix::sys::socket::{Backlog, listen};
use nix::sys::uio::writev;
use vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

/// The host without the brackets of an IPv6 address.
pub(crate) fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

pub(crate) fn no_cid(port: u32) -> io::Error {
    let message = format!("vsock:{port} can only be listened on; to connect write vsock:CID:{port}");
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

fn dial_tcp(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let end = Instant::now() + limit;
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    let addrs: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    for (i, addr) in addrs.iter().enumerate() {
        // Each address gets its share of the time that is left, so that one that drops packets does not use up the
        // others'.
        let share = end.saturating_duration_since(Instant::now()) / u32::try_from(addrs.len() - i).unwrap_or(u32::MAX);
        match TcpStream::connect_timeout(addr, share.max(Duration::from_millis(1))) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// A connected socket of one of the three families.
#[derive(Debug)]
pub enum Stream {
    /// AF_VSOCK.
    Vsock(VsockStream),
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

/// A listening socket of one of the three families.
#[derive(Debug)]
pub enum Listener {
    /// AF_VSOCK.
    Vsock(VsockListener),
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

/// Calls the same method on a socket of any family.
macro_rules! each {
    ($kind:ident, $socket:expr, $s:ident => $call:expr) => {
        match $socket {
            $kind::Vsock($s) => $call,
            $kind::Tcp($s) => $call,
            $kind::Unix($s) => $call,
        }
    };
}

impl Stream {
    /// Connects within `limit`. For AF_VSOCK the kernel's own limit applies instead (2 s, VSOCK_DEFAULT_CONNECT_TIMEOUT
    /// in net/vmw_vsock/af_vsock.c); a Unix socket connects at once or fails.
    ///
    /// # Errors
    /// The system's error; `InvalidInput` for a vsock address without a CID.
    pub fn dial(address: &Address, limit: Duration) -> io::Result<Stream> {
        match address {
            Address::Vsock { cid: None, port } => Err(no_cid(*port)),
            Address::Vsock { cid: Some(cid), port } => {
                VsockStream::connect(&VsockAddr::new(*cid, *port)).map(Stream::Vsock)
            }
            Address::Tcp { host, port } => dial_tcp(bare(host), *port, limit).map(Stream::Tcp),
            Address::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
        }
    }

    /// Makes reads and writes fail with `WouldBlock` instead of waiting, or not.
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        each!(Stream, self, s => s.set_nonblocking(on))
    }

    /// Takes the error that the system keeps for it, such as that of a connection that could not be made.
    ///
    /// # Errors
    /// The system's.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        each!(Stream, self, s => s.take_error())
    }

    /// Closes one direction or both while the socket stays open.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        each!(Stream, self, s => s.shutdown(how))
    }
}

impl Read for &Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        each!(Stream, self, s => (&*s).read(buf))
    }
}

impl Write for &Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        each!(Stream, self, s => (&*s).write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // a socket has nothing to flush
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        each!(Stream, self, s => s.read(buf))
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        each!(Stream, self, s => s.write(buf))
    }

    /// In one system call, for any kind of stream: TLS has a record in each buffer.
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(writev(self, bufs)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        each!(Stream, self, s => s.flush())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        each!(Stream, self, s => s.as_fd())
    }
}

impl Listener {
    /// Listens on an address. Removes a Unix socket that an earlier run left behind, but not one that answers.
    ///
    /// # Errors
    /// The system's error: the port is taken, the host is unknown, the path cannot be written.
    pub fn open(address: &Address) -> io::Result<Listener> {
        let listener = match address {
            Address::Vsock { cid, port } => {
                Listener::Vsock(VsockListener::bind_with_cid_port(cid.unwrap_or(VMADDR_CID_ANY), *port)?)
            }
            Address::Tcp { host, port } => Listener::Tcp(TcpListener::bind((bare(host), *port))?),
            Address::Unix(path) => {
                match UnixStream::connect(path) {
                    Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
                    Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
                    Err(_) => {}
                }
                Listener::Unix(UnixListener::bind(path)?)
            }
        };
        // The standard library asks for a backlog of 128. The most that the kernel allows is net.core.somaxconn, 4,096
        // unless somebody sets it (listen(2)).
        listen(&listener, Backlog::MAXALLOWABLE)?;
        Ok(listener)
    }

    /// Accepts the next connection.
    pub fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Vsock(l) => l.accept().map(|(s, _)| Stream::Vsock(s)),
            Listener::Tcp(l) => l.accept().and_then(|(s, _)| {
                s.set_nodelay(true)?;
                Ok(Stream::Tcp(s))
            }),
            Listener::Unix(l) => l.accept().map(|(s, _)| Stream::Unix(s)),
        }
    }

    /// Makes `accept` fail with `WouldBlock` instead of waiting, or not.
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        each!(Listener, self, l => l.set_nonblocking(on))
    }

    /// The address that it really listens on: with the port that the system chose, if 0 was asked for.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match self {
            Listener::Vsock(l) => Address::Vsock { cid: None, port: l.local_addr()?.port() },
            Listener::Tcp(l) => {
                let addr = l.local_addr()?;
                let ip = addr.ip();
                let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
                Address::Tcp { host, port: addr.port() }
            }
            Listener::Unix(l) => Address::Unix(l.local_addr()?.as_pathname().unwrap_or("".as_ref()).to_owned()),
        })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        each!(Listener, self, l => l.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_both_ways_over_tcp_and_unix() {
        let path = std::env::temp_dir().join(format!("teemark-addr-{}", std::process::id()));
        for address in ["tcp:127.0.0.1:0".to_owned(), format!("unix:{}", path.display())] {
            let listener = Listener::open(&address.parse().unwrap()).unwrap();
            let mut near = Stream::dial(&listener.address().unwrap(), Duration::from_secs(1)).unwrap();
            let mut far = listener.accept().unwrap();
            near.write_all(b"ping").unwrap();
            near.shutdown(Shutdown::Write).unwrap();
            let mut got = String::new();
            far.read_to_string(&mut got).unwrap();
            assert_eq!(got, "ping");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_unix_socket_left_behind_is_taken_over_and_a_living_one_is_not() {
        let path = std::env::temp_dir().join(format!("teemark-left-{}", std::process::id()));
        let address = Address::Unix(path.clone());
        drop(Listener::open(&address).unwrap());
        let living = Listener::open(&address).unwrap();
        assert_eq!(Listener::open(&address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(living);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_vsock_address_without_a_cid_cannot_be_dialled() {
        let error = Stream::dial(&"vsock:5".parse().unwrap(), Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("vsock:CID:5"));
    }
}
