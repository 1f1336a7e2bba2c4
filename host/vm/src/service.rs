//! The development watermark service on this machine, in place of the parent: for files that are too large to be marked
//! by a machine under TCG.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::process::Process;
use crate::workspace::program;

/// The running service, ended when it is dropped.
pub struct Service {
    /// Its port on the loopback interface.
    pub address: SocketAddr,
    _process: Process,
}

impl Service {
    /// Starts it with the certificates of this folder, for requests of `max_body` at most, as its option has them. Its log
    /// is `service.log` in `logs`.
    ///
    /// # Errors
    /// It cannot be run, or does not listen.
    pub fn start(certs: &Path, max_body: &str, logs: &Path) -> Result<Service> {
        let program = program("watermark-service")?;
        let mut command = Process::command(program.to_str().context("the program's path is not UTF-8")?);
        command.args(["serve", "--listen", "127.0.0.1:0", "--max-body", max_body]);
        for (option, name) in [("--cert", "server.crt"), ("--key", "server.key"), ("--client-ca", "ca.crt")] {
            command.arg(option).arg(certs.join(name));
        }
        command.stdout(Stdio::piped()).stderr(File::create(logs.join("service.log"))?);
        let mut process = Process::spawn(&mut command)?;
        let mut line = String::new();
        BufReader::new(process.stdout().context("no standard output")?).read_line(&mut line)?;
        let address = line.trim_end().rsplit_once("https://").and_then(|(_, address)| address.parse().ok());
        let address = address.with_context(|| format!("the watermark service does not listen: {line:?}"))?;
        Ok(Service { address, _process: process })
    }
}
