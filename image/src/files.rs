//! The options of the command line that name an image's input files.

use std::path::PathBuf;

use crate::compression::Compression;

/// The paths of the input files.
#[derive(Clone, Debug, clap::Args)]
pub struct Files {
    /// The kernel: a bzImage for x86-64, or an uncompressed Image for aarch64. The programs have to be for the same
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// How the ramdisks are compressed; the kernel has to be built for it
    #[arg(long, value_enum, default_value_t)]
    pub compression: Compression,
    /// The module of the Nitro Secure Module for a kernel that has none built in, such as AWS' own; /init loads it
    #[arg(long, value_name = "nsm.ko")]
    pub module: Option<PathBuf>,
    /// PID 1, a static program
    #[arg(long, value_name = "FILE")]
    pub init: PathBuf,
    /// teemarkd, a static program
    #[arg(long, value_name = "FILE")]
    pub daemon: PathBuf,
    /// The allow list
    #[arg(long, value_name = "FILE")]
    pub endpoints: PathBuf,
    /// The daemon's settings, one NAME=value per line; they are measured with the image
    #[arg(long, value_name = "FILE")]
    pub environment: PathBuf,
    /// Public half of an operator's key, as `teemark keygen --for operator` prints it; may be given several times. All
    /// go into the daemon's settings as TEEMARK_OPERATOR_KEYS
    #[arg(long = "operator", value_name = "FILE")]
    pub operators: Vec<PathBuf>,
    /// Folder of client.crt, client.key and ecs-ca.crt, to be baked in; without it the handshake delivers them
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
    /// Sign the image with this PEM key for P-384 (or P-256 or P-521), which gives it a PCR8
    #[arg(long, value_name = "FILE", requires = "sign_certificate")]
    pub sign_key: Option<PathBuf>,
    /// The certificate of that key, PEM
    #[arg(long, value_name = "FILE", requires = "sign_key")]
    pub sign_certificate: Option<PathBuf>,
}
