//! The programs under test, and how each is started with the same certificates, key and service.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::grants::{FLEET, Issuer};
use crate::material::Material;
use crate::process::Process;

/// A program under test.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// The name in the tables: `teemarkd`, `teemarkd:NAME` for another build, `async-…` for a peer.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// Where a daemon's log goes besides its standard error.
    pub(crate) collector: Option<Collector>,
}

/// What takes the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Collector {
    /// Reads all of it.
    Reads,
    /// Accepts and never reads, so that the sockets and the daemon's memory are full before long.
    NeverReads,
}

/// Of the daemon, TEEMARK_MAX_CONNECTIONS: twice as many as there are clients.
const CONNECTIONS: u64 = 512;
/// Open files that it needs for these, by src/boot.rs: four a connection for each of two listeners, and 320.
pub(crate) const OPEN_FILES: u64 = CONNECTIONS * 4 * 2 + 320;

/// What every server is given.
pub(crate) struct Setting {
    pub(crate) material: Material,
    pub(crate) issuer: Issuer,
    /// The watermark service's port.
    pub(crate) service: u16,
}

/// A server that answers.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    /// The public key that its answers verify under.
    pub(crate) identity: Vec<u8>,
    /// Its sockets and files, which go when it goes.
    folder: TempDir,
}

impl Program {
    pub(crate) fn is_daemon(&self) -> bool {
        self.name.starts_with("teemarkd")
    }

    /// Starts it, and waits until it answers. `grants`: whether it requires them, where it can.
    pub(crate) fn start(&self, setting: &Setting, grants: bool) -> Result<Server> {
        let folder = tempfile::tempdir()?;
        let mut command = if self.is_daemon() {
            ready_daemon(&self.path, setting, folder.path(), grants)?
        } else {
            peer(&self.path, setting, if self.name.contains("as-deployed") { "as-deployed" } else { "pooled" })
        };
        if let Some(collector) = self.collector {
            command.env("TEEMARK_LOG_TO", collector.start()?);
        }
        let mut process = Process::start(&command, &folder.path().join("log")).with_context(|| self.name.clone())?;
        let identity = unhex(&process.awaits("identity key ")?)?;
        let address = process.awaits("public: listening on tcp:")?.parse()?;
        await_ready(address, if self.is_daemon() { "/ready" } else { "/health" })?;
        Ok(Server { process, address, identity, folder })
    }
}

impl Server {
    /// A counter of a daemon's metrics.
    pub(crate) fn counter(&self, name: &str) -> Result<u64> {
        let mut connection = UnixStream::connect(self.folder.path().join("admin"))?;
        connection.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).with_context(|| format!("no {name} in {answer}"))
    }
}

impl Collector {
    /// Takes one stream, for as long as this program runs; gives its address.
    fn start(self) -> Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = format!("tcp:{}", listener.local_addr()?);
        thread::spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else { return };
            match self {
                Collector::Reads => drop(io::copy(&mut stream, &mut io::sink())),
                Collector::NeverReads => loop {
                    thread::park();
                },
            }
        });
        Ok(address)
    }
}

/// The daemon as it is shipped, but for its addresses, which are TCP and Unix sockets in `folder`, and with room for as
/// many connections as there are clients. `endpoint` is the only one that it may connect to.
pub(crate) fn daemon(program: &Path, endpoint: &str, folder: &Path) -> Result<Command> {
    let path = |name: &str| folder.join(name).display().to_string();
    fs::write(folder.join("endpoints.yaml"), format!("endpoints:\n  - {endpoint}\n"))?;
    let mut command = Command::new(program);
    command.envs([
        ("TEEMARK_PUBLIC", "tcp:127.0.0.1:0".to_owned()),
        ("TEEMARK_ADMIN", format!("unix:{}", path("admin"))),
        ("TEEMARK_SECRETS", format!("unix:{}", path("secrets"))),
        ("TEEMARK_ENDPOINTS", path("endpoints.yaml")),
        ("TEEMARK_EGRESS", "direct".to_owned()),
        ("TEEMARK_CERTS", path("certs")),
        ("TEEMARK_HOSTS", String::new()),
        ("TEEMARK_MAX_CONNECTIONS", CONNECTIONS.to_string()),
    ]);
    Ok(command)
}

/// The same with room for their files, and with secrets that are there at the start.
fn ready_daemon(program: &Path, setting: &Setting, folder: &Path, grants: bool) -> Result<Command> {
    let endpoint = format!("localhost:{}", setting.service);
    let mut command = daemon(program, &endpoint, folder)?;
    command.envs([
        ("TEEMARK_MEMORY", "8GiB".to_owned()),
        ("TEEMARK_GRANTS", if grants { "required" } else { "off" }.to_owned()),
        ("TEEMARK_FLEET", FLEET.to_owned()),
        ("MTLS_CLIENT_CERT_JSON", setting.material.client_certificate()?),
        ("ECS_WATERMARK_ENDPOINT", format!("https://{endpoint}")),
        ("FILE_KEYS", serde_json::json!({"key-1": setting.material.file_key()}).to_string()),
        ("GRANT_KEYS", setting.issuer.jwk_set()),
    ]);
    Ok(command)
}

fn peer(program: &Path, setting: &Setting, mode: &str) -> Command {
    let mut command = Command::new(program);
    command.arg(mode);
    command.env("CERTS", &setting.material.certs);
    command.env("WATERMARK_URL", format!("https://localhost:{}/api/watermark", setting.service));
    command.env("FILE_KEY", setting.material.file_key());
    command
}

fn await_ready(address: SocketAddr, path: &str) -> Result<()> {
    let mut answer = String::new();
    for _ in 0..200 {
        answer.clear();
        let mut connection = TcpStream::connect(address)?;
        write!(connection, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        connection.read_to_string(&mut answer)?;
        if answer.starts_with("HTTP/1.1 200") {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    bail!("not ready: {answer}")
}

pub(crate) fn unhex(text: &str) -> Result<Vec<u8>> {
    let digits = |i: usize| text.get(2 * i..2 * i + 2).context("odd");
    (0..text.len() / 2).map(|i| Ok(u8::from_str_radix(digits(i)?, 16)?)).collect()
}
