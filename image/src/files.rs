//! Where the files that an image is built from are, as options of the command line.

use std::path::PathBuf;

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
