//! The files that an image is built from, each checked before anything is built.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use formats::allow_list::AllowListError;
use formats::time::Utc;

use crate::certificates::Certificates;
use crate::settings::Settings;
use crate::signer::Signer;
use crate::{kernel, program};

/// Where the files are.
#[derive(Clone, Debug, clap::Args)]
pub struct Files {
    /// The kernel, a bzImage
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// PID 1, a static program
    #[arg(long, value_name = "FILE")]
    pub init: PathBuf,
    /// teemarkd, a static program
    #[arg(long, value_name = "FILE")]
    pub daemon: PathBuf,
    /// The allow list
    #[arg(long, value_name = "FILE")]
    pub endpoints: PathBuf,
    /// The daemon's settings, NAME=value a line; they are measured with the image
    #[arg(long, value_name = "FILE")]
    pub environment: PathBuf,
    /// Public half of an operator's key, as `teemark keygen --for operator` prints it; may be given several times. It
    /// goes into the daemon's settings as TEEMARK_OPERATOR_KEYS
    #[arg(long = "operator", value_name = "FILE")]
    pub operators: Vec<PathBuf>,
    /// Folder of client.crt, client.key and ecs-ca.crt, to be baked in; else the handshake delivers them
    #[arg(long, value_name = "FOLDER")]
    pub certs: Option<PathBuf>,
    /// Put a launcher and a shell into the image, and start the launcher
    #[arg(long, requires_all = ["launcher", "shell"])]
    pub debug: bool,
    /// The launcher of a debug image: run.sh
    #[arg(long, value_name = "FILE", requires = "debug")]
    pub launcher: Option<PathBuf>,
    /// The shell of a debug image: a static busybox
    #[arg(long, value_name = "FILE", requires = "debug")]
    pub shell: Option<PathBuf>,
    /// Sign the image with this key, PEM, of P-384 (or P-256 or P-521); then it has a PCR8
    #[arg(long, value_name = "FILE", requires = "sign_certificate")]
    pub sign_key: Option<PathBuf>,
    /// The certificate of that key, PEM
    #[arg(long, value_name = "FILE", requires = "sign_key")]
    pub sign_certificate: Option<PathBuf>,
}

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

/// A file that no image is built from: which one, and why.
#[derive(Debug)]
pub enum InputError {
    Unreadable {
        file: PathBuf,
        error: io::Error,
    },
    Empty(PathBuf),
    /// The daemon would refuse the allow list. The error names file and line.
    AllowList(AllowListError),
    /// Its contents will not do. The line is counted from 1; 0 is the file as a whole.
    Refused {
        file: PathBuf,
        line: usize,
        reason: String,
    },
}

impl InputError {
    pub(crate) fn refused(file: &Path, reason: impl Into<String>) -> InputError {
        InputError::Refused { file: file.to_owned(), line: 0, reason: reason.into() }
    }
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, error } => write!(f, "{} cannot be read: {error}", file.display()),
            Self::Empty(file) => write!(f, "{} is empty", file.display()),
            Self::AllowList(error) => write!(f, "{error}"),
            Self::Refused { file, line: 0, reason } => write!(f, "{} {reason}", file.display()),
            Self::Refused { file, line, reason } => write!(f, "{}:{line}: {reason}", file.display()),
        }
    }
}

impl std::error::Error for InputError {}

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

/// The contents of a file that has any.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>, InputError> {
    match fs::read(file) {
        Ok(contents) if contents.is_empty() => Err(InputError::Empty(file.to_owned())),
        Ok(contents) => Ok(contents),
        Err(error) => Err(InputError::Unreadable { file: file.to_owned(), error }),
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
