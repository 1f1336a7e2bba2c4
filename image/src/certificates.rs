//! Certificates that are baked into the image, checked by the code that the daemon runs when it starts.

use std::path::Path;

use formats::certificates::{Fingerprint, Part, Parts};
use formats::time::Utc;
use teemarkd::mtls::Identity;

use crate::read::{InputError, read};

/// A client certificate with its key and the service's CA, valid now.
pub struct Certificates {
    /// The contents of the three files.
    pub files: Parts<Vec<u8>>,
    /// What an operator should know about them, though the daemon will use them.
    pub warnings: Vec<String>,
}

impl Certificates {
    /// Reads and checks the three files of a folder. If `pinned` is not empty, the CA has to be one of these.
    ///
    /// # Errors
    /// A file is missing, or the daemon would not use it.
    pub fn read(folder: &Path, pinned: &[Fingerprint], now: Utc) -> Result<Certificates, InputError> {
        let [certificate, key, ca] = Part::ALL.map(|part| read(&folder.join(part.file())));
        let files = Parts([certificate?, key?, ca?]);
        let identity = Identity::check(&Parts(files.0.each_ref().map(Vec::as_slice)), now);
        let identity = identity
            .and_then(|identity| identity.within(pinned))
            .map_err(|error| InputError::refused(&folder.join(error.part.file()), named_as_files(error.reason)))?;
        let warnings = identity.warnings.into_iter().map(named_as_files);
        let warnings = warnings.map(|warning| format!("{}: {warning}", folder.display())).collect();
        Ok(Certificates { files, warnings })
    }
}

/// The daemon's reason, with the names of the files in place of the names that the parts have in a bundle.
fn named_as_files(reason: String) -> String {
    Part::ALL.iter().fold(reason, |reason, part| reason.replace(part.name(), part.file()))
}
