//! The files that an image is built from, each checked before anything is built.

use std::path::Path;

use formats::time::Utc;

use crate::certificates::Certificates;
use crate::files::Files;
use crate::read::{InputError, read};
use crate::settings::Settings;
use crate::signer::Signer;
use crate::{kernel, program};

/// The files' contents, checked.
pub struct Inputs {
    pub kernel: Vec<u8>,
    /// What the kernel calls itself.
    pub kernel_version: Option<String>,
    pub init: Vec<u8>,
    pub daemon: Vec<u8>,
    pub settings: Settings,
    pub certificates: Option<Certificates>,
    pub debug: Option<Debug>,
    pub signer: Option<Signer>,
}

/// What a debug image has beside the others.
pub struct Debug {
    /// run.sh
    pub launcher: Vec<u8>,
    /// busybox
    pub shell: Vec<u8>,
}

impl Inputs {
    /// Reads and checks the files; `now` is when certificates have to be valid.
    ///
    /// # Errors
    /// The first file that will not do.
    pub fn read(files: &Files, now: Utc) -> Result<Inputs, InputError> {
        let kernel = read(&files.kernel)?;
        let kernel_version = kernel::version(&kernel).map_err(|reason| InputError::refused(&files.kernel, reason))?;
        let debug = match (&files.launcher, &files.shell) {
            (Some(launcher), Some(shell)) if files.debug => {
                Some(Debug { launcher: read_script(launcher)?, shell: read_program(shell)? })
            }
            _ => None,
        };
        let signer = match (&files.sign_key, &files.sign_certificate) {
            (Some(key), Some(certificate)) => Some(Signer::read(key, certificate)?),
            _ => None,
        };
        let settings = Settings::read(files, now)?;
        let certificates = files.certs.as_deref();
        let certificates = certificates.map(|folder| Certificates::read(folder, &settings.pinned, now)).transpose()?;
        Ok(Inputs {
            kernel,
            kernel_version,
            init: read_program(&files.init)?,
            daemon: read_program(&files.daemon)?,
            settings,
            certificates,
            debug,
            signer,
        })
    }

    /// What of the image is secret, so that who has the image has it: as an operator calls it.
    pub fn secrets(&self) -> Vec<&'static str> {
        let key = self.certificates.iter().map(|_| "client.key");
        key.chain(self.settings.secrets.iter().copied()).collect()
    }
}

fn read_program(file: &Path) -> Result<Vec<u8>, InputError> {
    let contents = read(file)?;
    program::check(&contents).map_err(|reason| InputError::refused(file, reason))?;
    Ok(contents)
}

/// A script for the one shell that the image has.
fn read_script(file: &Path) -> Result<Vec<u8>, InputError> {
    let contents = read(file)?;
    match contents.starts_with(b"#!/bin/sh\n") {
        true => Ok(contents),
        false => Err(InputError::refused(file, "does not begin with the line #!/bin/sh")),
    }
}
