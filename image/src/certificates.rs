//! Certificates that are baked into the image, by the check that the daemon makes when it starts.

use std::path::Path;

use teemarkd::mtls::{Identity, PARTS};
use teemarkd::time::Utc;

use crate::inputs::{InputError, read};

/// The files, in the order of [`PARTS`], with their modes in the image.
pub const FILES: [(&str, u32); 3] = [("client.crt", 0o644), ("client.key", 0o600), ("ecs-ca.crt", 0o644)];

/// A client certificate with its key and the service's CA, good now.
pub struct Certificates {
    /// The contents, in the order of [`FILES`].
    pub contents: [Vec<u8>; 3],
    /// What is doubtful about them, though the daemon will use them.
    pub doubts: Vec<String>,
}

impl Certificates {
    /// Reads and checks the three files of a folder. Where CAs are `pinned`, by their SHA-256, no other will do.
    ///
    /// # Errors
    /// A file that is missing, or that the daemon would not use.
    pub fn read(folder: &Path, pinned: &[[u8; 32]], now: Utc) -> Result<Certificates, InputError> {
        let [certificate, key, ca] = FILES.map(|(name, _)| read(&folder.join(name)));
        let contents = [certificate?, key?, ca?];
        let identity = Identity::check(contents.each_ref().map(Vec::as_slice), now);
        let identity = identity.and_then(|identity| identity.within(pinned)).map_err(|error| {
            let part = PARTS.iter().position(|part| *part == error.part).unwrap_or(0);
            InputError::refused(&folder.join(FILES[part].0), named_as_files(error.reason))
        })?;
        let doubts = identity.warnings.into_iter().map(named_as_files);
        let doubts = doubts.map(|doubt| format!("{}: {doubt}", folder.display())).collect();
        Ok(Certificates { contents, doubts })
    }
}

/// The daemon's reason, with the parts of the handshake by the names of their files.
fn named_as_files(reason: String) -> String {
    PARTS.iter().zip(FILES).fold(reason, |reason, (part, (file, _))| reason.replace(part, file))
}
