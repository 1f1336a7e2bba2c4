//! Certificates that are baked into the image, by the check that the daemon makes when it starts.

use std::path::Path;

use formats::certificates::{Fingerprint, Part, Parts};
use formats::time::Utc;
use teemarkd::mtls::Identity;

use crate::read::{InputError, read};

/// A client certificate with its key and the service's CA, good now.
pub struct Certificates {
    pub files: Parts<Vec<u8>>,
    /// What is doubtful about them, though the daemon will use them.
    pub doubts: Vec<String>,
}

impl Certificates {
    /// Reads and checks the three files of a folder. Where CAs are `pinned`, no other will do.
    ///
    /// # Errors
    /// A file that is missing, or that the daemon would not use.
    pub fn read(folder: &Path, pinned: &[Fingerprint], now: Utc) -> Result<Certificates, InputError> {
        let [certificate, key, ca] = Part::ALL.map(|part| read(&folder.join(part.file())));
        let files = Parts([certificate?, key?, ca?]);
        let identity = Identity::check(&Parts(files.0.each_ref().map(Vec::as_slice)), now);
        let identity = identity
            .and_then(|identity| identity.within(pinned))
            .map_err(|error| InputError::refused(&folder.join(error.part.file()), named_as_files(error.reason)))?;
        let doubts = identity.warnings.into_iter().map(named_as_files);
        let doubts = doubts.map(|doubt| format!("{}: {doubt}", folder.display())).collect();
        Ok(Certificates { files, doubts })
    }
}

/// The daemon's reason, with the parts of the handshake by the names of their files.
fn named_as_files(reason: String) -> String {
    Part::ALL.iter().fold(reason, |reason, part| reason.replace(part.name(), part.file()))
}
