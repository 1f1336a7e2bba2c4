//! The vsock between the two machines, and from this one to their ports.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use crate::switch::{Device, Switch};

/// CID of the parent (VMADDR_CID_PARENT in AWS's documentation of Nitro Enclaves).
pub const PARENT_CID: u32 = 3;
/// CID of the enclave: the first that nitro-cli gives.
pub const ENCLAVE_CID: u32 = 16;
/// Longest wait for a guest to take a connection, on a loaded machine.
const SOON: Duration = Duration::from_secs(60);

/// The switch with a device for each machine, and the folder of their sockets, which ends with it.
pub struct Bus {
    switch: Arc<Switch>,
    // Before the folder: they look for their sockets when they end.
    _devices: [Device; 2],
    folder: TempDir,
}

impl Bus {
    /// Makes a place for each machine.
    ///
    /// # Errors
    /// The folder or a socket cannot be made.
    pub fn start() -> Result<Bus> {
        // A short path: a Unix socket's may have 107 bytes (unix(7)).
        let folder = tempfile::Builder::new().prefix("vm").tempdir_in("/tmp")?;
        let switch = Arc::<Switch>::default();
        let device = |cid| Device::listen(&switch, cid, &socket(folder.path(), cid));
        let devices = [device(PARENT_CID)?, device(ENCLAVE_CID)?];
        Ok(Bus { switch, _devices: devices, folder })
    }

    /// For files that should be gone when the bus is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the QEMU of this machine finds its device.
    pub fn device(&self, cid: u32) -> PathBuf {
        socket(self.folder(), cid)
    }

    /// Keeps every byte that goes into the enclave or comes out of it from now on, as a hostile parent can.
    pub fn listen_in(&self) {
        self.switch.tap.listen(ENCLAVE_CID);
    }

    /// What was heard since, a direction of a connection each.
    pub fn heard(&self) -> Vec<Vec<u8>> {
        self.switch.tap.streams()
    }

    /// How this machine reaches the ports of that one.
    pub fn door(&self, cid: u32) -> Door {
        Door { cid, switch: self.switch.clone() }
    }
}

fn socket(folder: &Path, cid: u32) -> PathBuf {
    folder.join(format!("{cid}.device"))
}

/// The way from this machine to the vsock ports of one of the two. Clones lead to the same.
#[derive(Clone)]
pub struct Door {
    cid: u32,
    switch: Arc<Switch>,
}

impl Door {
    /// Connects to a port. Reads and writes wait `limit` each.
    ///
    /// # Errors
    /// `ConnectionRefused` where nothing listens on that port; otherwise what the system says.
    pub fn connect(&self, port: u32, limit: Duration) -> io::Result<UnixStream> {
        let stream = self.switch.connect(self.cid, port, SOON)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        Ok(stream)
    }
}
