//! The vsock between the two machines, and from this machine to their ports.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

pub use crate::switch::Traffic;
use crate::switch::{Device, Switch};

/// CID of the parent (VMADDR_CID_PARENT in AWS's documentation of Nitro Enclaves).
pub const PARENT_CID: u32 = 3;
/// CID of the enclave: the first that nitro-cli gives.
pub const ENCLAVE_CID: u32 = 16;
/// Longest wait for a guest to accept a connection, on a loaded machine.
const SOON: Duration = Duration::from_secs(60);

/// The switch with a device for each machine, and the folder of their sockets, which is removed with it.
pub struct Bus {
    switch: Arc<Switch>,
    // Dropped before the folder, since they connect to their sockets when they end.
    _devices: [Device; 2],
    folder: TempDir,
}

impl Bus {
    /// Makes a device for each machine.
    ///
    /// # Errors
    /// The folder or a socket cannot be made.
    pub fn start() -> Result<Bus> {
        // A short path, since a Unix socket's may have 107 bytes at most (unix(7)).
        let folder = tempfile::Builder::new().prefix("vm").tempdir_in("/tmp")?;
        let switch = Arc::<Switch>::default();
        let device = |cid| Device::listen(&switch, cid, &socket(folder.path(), cid));
        let devices = [device(PARENT_CID)?, device(ENCLAVE_CID)?];
        Ok(Bus { switch, _devices: devices, folder })
    }

    /// A folder for files, which is removed with the bus.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The socket at which the QEMU of the machine with this CID finds its device.
    pub fn device(&self, cid: u32) -> PathBuf {
        socket(self.folder(), cid)
    }

    /// From now on keeps every byte that goes into the enclave or comes out of it, as a hostile parent can.
    pub fn listen_in(&self) {
        self.switch.tap.listen(ENCLAVE_CID);
    }

    /// What was kept since then: one stream of bytes for each direction of a connection.
    pub fn heard(&self) -> Vec<Vec<u8>> {
        self.switch.tap.streams()
    }

    /// How far the two machines are from talking to each other.
    pub fn traffic(&self) -> Traffic {
        self.switch.traffic()
    }

    /// Takes the connections of the machine with this CID to a port of this machine, which is CID 2 to it.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn listen(&self, cid: u32, port: u32, take: impl Fn(UnixStream) + Send + 'static) -> io::Result<()> {
        self.switch.listen(cid, port, take)
    }

    /// Connects from this machine to ports of the machine with this CID.
    pub fn dialer(&self, cid: u32) -> Dialer {
        Dialer { cid, switch: self.switch.clone() }
    }
}

fn socket(folder: &Path, cid: u32) -> PathBuf {
    folder.join(format!("{cid}.device"))
}

/// Connects from this machine to vsock ports of one of the two machines. Clones connect to the same one.
#[derive(Clone)]
pub struct Dialer {
    cid: u32,
    switch: Arc<Switch>,
}

impl Dialer {
    /// Connects to a port. Reads and writes wait `limit` each.
    ///
    /// # Errors
    /// `ConnectionRefused` if nothing listens on that port; otherwise the system's error.
    pub fn connect(&self, port: u32, limit: Duration) -> io::Result<UnixStream> {
        let stream = self.switch.connect(self.cid, port, SOON)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        Ok(stream)
    }
}
