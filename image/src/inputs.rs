//! The files that an image is built from, each checked before anything is built.

use std::path::Path;

use formats::time::Utc;

use crate::arch::Arch;
use crate::certificates::Certificates;
use crate::files::Files;
use crate::kernel::Kernel;
use crate::program;
use crate::read::{InputError, read};
use crate::settings::Settings;
use crate::signer::Signer;

/// The files' contents, checked.
pub struct Inputs {
    /// The kernel.
    pub kernel: Vec<u8>,
    /// The architecture that it is for, and so are the programs.
    pub arch: Arch,
    /// The kernel's version, if the kernel tells it.
    pub kernel_version: Option<String>,
    /// nsm.ko, if the kernel needs it.
    pub module: Option<Vec<u8>>,
    /// PID 1.
    pub init: Vec<u8>,
    /// teemarkd.
    pub daemon: Vec<u8>,
    /// The allow list and the environment file.
    pub settings: Settings,
    /// The certificates to bake in, if any.
    pub certificates: Option<Certificates>,
    /// What a debug image has in addition.
    pub debug: Option<Debug>,
    /// The key to sign the image with, if any.
    pub signer: Option<Signer>,
}

/// What only a debug image has.
pub struct Debug {
    /// run.sh
    pub launcher: Vec<u8>,
    /// busybox
    pub shell: Vec<u8>,
}

impl Inputs {
    /// Reads and checks the files. Certificates have to be valid at `now`.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn read(files: &Files, now: Utc) -> Result<Inputs, InputError> {
        let kernel = read(&files.kernel)?;
        let Kernel { arch, version: kernel_version } =
            Kernel::read(&kernel).map_err(|reason| InputError::refused(&files.kernel, reason))?;
        let debug = match (&files.launcher, &files.shell) {
            (Some(launcher), Some(shell)) if files.debug => {
                Some(Debug { launcher: read_script(launcher)?, shell: read_program(shell, arch)? })
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
            arch,
            kernel_version,
            module: files.module.as_deref().map(read).transpose()?,
            init: read_program(&files.init, arch)?,
            daemon: read_program(&files.daemon, arch)?,
            settings,
            certificates,
            debug,
            signer,
        })
    }

    /// The secrets that anyone with the image can read, by the names that operators know.
    pub fn secrets(&self) -> Vec<&'static str> {
        let key = self.certificates.iter().map(|_| "client.key");
        key.chain(self.settings.secrets.iter().copied()).collect()
    }
}

fn read_program(file: &Path, arch: Arch) -> Result<Vec<u8>, InputError> {
    let contents = read(file)?;
    program::check(&contents, arch).map_err(|reason| InputError::refused(file, reason))?;
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
