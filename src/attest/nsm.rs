//! The Nitro Secure Module's device.

use std::fs::{File, OpenOptions};
use std::io;

use super::{Claims, Nsm, NsmError, cbor, raw};

const DEVICE: &str = "/dev/nsm";

/// The module of the enclave that this process runs in.
pub struct DevNsm(File);

impl DevNsm {
    /// Opens the device; `None` if this machine has none.
    ///
    /// # Errors
    /// The device exists but cannot be opened.
    pub fn open() -> Result<Option<DevNsm>, NsmError> {
        match OpenOptions::new().read(true).write(true).open(DEVICE) {
            Ok(device) => Ok(Some(DevNsm(device))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(NsmError(format!("{DEVICE} cannot be opened: {e}"))),
        }
    }

    fn ask(&self, what: &str, request: &[u8]) -> Result<Vec<u8>, NsmError> {
        raw::call(&self.0, request).map_err(|e| NsmError(format!("{what}: {e}")))
    }
}

impl Nsm for DevNsm {
    fn document(&self, claims: &Claims<'_>) -> Result<Vec<u8>, NsmError> {
        let answer = self.ask("Attestation", &cbor::attestation_request(claims))?;
        let document = cbor::answer(&answer, "Attestation", "document");
        document.map(<[u8]>::to_vec).map_err(|e| NsmError(format!("Attestation: {e}")))
    }

    fn random(&self, bytes: &mut [u8]) -> Result<(), NsmError> {
        let mut filled = 0;
        while filled < bytes.len() {
            let answer = self.ask("GetRandom", &cbor::random_request())?;
            let random = cbor::answer(&answer, "GetRandom", "random");
            let random = random.map_err(|e| NsmError(format!("GetRandom: {e}")))?;
            let n = random.len().min(bytes.len() - filled);
            if n == 0 {
                return Err(NsmError("GetRandom: it returned no bytes".into()));
            }
            bytes[filled..filled + n].copy_from_slice(&random[..n]);
            filled += n;
        }
        Ok(())
    }
}
