//! A connection to an address of any of the three kinds.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use formats::address::Address;
use vsock::{VsockAddr, VsockStream};

/// A connected socket, of whatever kind.
pub(crate) trait Stream: Read + Write {
    /// How long one read may wait.
    fn set_read_timeout(&self, limit: Duration) -> io::Result<()>;
    /// How long one write may wait.
    fn set_write_timeout(&self, limit: Duration) -> io::Result<()>;
    /// Tells the other side that no more bytes will come.
    fn end_writing(&self) -> io::Result<()>;
}

macro_rules! streams {
    ($($socket:ty),+) => {$(
        impl Stream for $socket {
            fn set_read_timeout(&self, limit: Duration) -> io::Result<()> {
                <$socket>::set_read_timeout(self, Some(limit))
            }

            fn set_write_timeout(&self, limit: Duration) -> io::Result<()> {
                <$socket>::set_write_timeout(self, Some(limit))
            }

            fn end_writing(&self) -> io::Result<()> {
                self.shutdown(Shutdown::Write)
            }
        }
    )+};
}
streams!(VsockStream, TcpStream, UnixStream);

/// Connects. `limit` is for each of a host's addresses; for AF_VSOCK the kernel has its own, 2 s.
///
/// # Errors
/// The system's; `InvalidInput` for a vsock address without a CID.
pub(crate) fn connect(address: &Address, limit: Duration) -> io::Result<Box<dyn Stream>> {
    match address {
        Address::Vsock { cid: None, .. } => Err(ErrorKind::InvalidInput.into()),
        Address::Vsock { cid: Some(cid), port } => Ok(Box::new(VsockStream::connect(&VsockAddr::new(*cid, *port))?)),
        Address::Tcp { host, port } => Ok(Box::new(connect_tcp(host, *port, limit)?)),
        Address::Unix(path) => Ok(Box::new(UnixStream::connect(path)?)),
    }
}

fn connect_tcp(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut last = ErrorKind::NotFound.into();
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, limit) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
