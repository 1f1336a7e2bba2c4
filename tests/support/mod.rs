//! The real programs, started for a test and ended after it: the daemon, the watermark service, openssl, curl.
//!
//! `make test` builds them first. Nothing here is a stand-in: certificates come from certs/make-certs.sh or the openssl
//! command line, and connections are real sockets.
#![allow(dead_code)] // each test program uses its part

pub(crate) mod balancer;
mod ending;
mod http;
pub(crate) mod issuer;
pub(crate) mod keeper;
pub(crate) mod markdown;
pub(crate) mod openssl;
pub(crate) mod packages;
mod port;
mod stopped;
mod teemark;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tempfile::TempDir;

#[allow(unused_imports)] // likewise
pub(crate) use http::*;
#[allow(unused_imports)] // likewise
pub(crate) use port::free_port;
#[allow(unused_imports)] // likewise
pub(crate) use stopped::Stopped;
#[allow(unused_imports)] // likewise
pub(crate) use teemark::*;

/// After this long, something that should happen is taken never to happen. It bounds tests of broken code, and is far
/// more than the busiest machine needs.
pub(crate) const SOON: Duration = Duration::from_secs(120);

/// For how long the secrets listener reads on after a refusal (LINGER in src/secrets/listener.rs).
const SECRETS_LINGER: Duration = Duration::from_secs(2);

/// The key that tests use, under the id `k`.
pub(crate) const KEY: [u8; 32] = *b"0123456789abcdefghijklmnopqrstuv";

/// A program in this test's target folder, built by `cargo build --workspace`.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_teemarkd")).with_file_name(name);
    assert!(path.exists(), "{} is not built: run `make test`, or `cargo build --workspace` before", path.display());
    path
}

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command, which must succeed, and returns its standard output.
pub(crate) fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} cannot be run (is it installed?): {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Runs a line of bash in `folder`, which must succeed.
pub(crate) fn bash(folder: &Path, line: &str) -> String {
    let script = format!("set -euo pipefail\n{line}");
    String::from_utf8(run(Command::new("bash").arg("-c").arg(script).current_dir(folder))).unwrap()
}

/// Waits until `done` returns something.
pub(crate) fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < SOON, "still waiting for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Plays a scene until it returns something, at most five times. `None` means that this machine, not the daemon, spoilt
/// it; a fault of the daemon shows every time.
pub(crate) fn unspoilt<T>(what: &str, play: impl FnMut() -> Option<T>) -> T {
    let mut played = std::iter::repeat_with(play).take(5);
    played.find_map(|came_to| came_to).unwrap_or_else(|| panic!("{what}: spoilt each time"))
}

/// CA, server and client certificate by certs/make-certs.sh, in a folder of their own.
pub(crate) struct Certs(pub(crate) TempDir);

impl Certs {
    pub(crate) fn make() -> Certs {
        let folder = TempDir::new().unwrap();
        run(Command::new(repository().join("certs/make-certs.sh")).arg(folder.path()));
        Certs(folder)
    }

    /// A TLS server's side with the service's certificate, for a service that a test writes itself.
    pub(crate) fn tls_server(&self) -> Arc<ServerConfig> {
        let chain = vec![CertificateDer::from_pem_file(self.path("server.crt")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(self.path("server.key")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key);
        Arc::new(config.unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The items MTLS_CLIENT_CERT_JSON and ECS_WATERMARK_ENDPOINT for these certificates, in the seed's form.
    pub(crate) fn bundle(&self, port: u16) -> Value {
        let part = |name| STANDARD.encode(fs::read(self.path(name)).unwrap());
        let parts = json!({
            "client_cert": part("client.crt"), "client_key": part("client.key"), "ca_cert": part("ecs-ca.crt"),
        });
        json!({"MTLS_CLIENT_CERT_JSON": parts.to_string(), "ECS_WATERMARK_ENDPOINT": format!("https://localhost:{port}")})
    }

    /// The same with FILE_KEYS: [`KEY`] as `k`.
    pub(crate) fn full_bundle(&self, port: u16) -> Value {
        let mut bundle = self.bundle(port);
        bundle["FILE_KEYS"] = json!({"k": STANDARD.encode(KEY)});
        bundle
    }
}

/// A process that is killed with its owner, and what it writes to standard error.
pub(crate) struct Process {
    pub(crate) child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command, log: PathBuf) -> Process {
        let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Process::of(child, log)
    }

    /// A process that is already running.
    pub(crate) fn of(child: Child, log: PathBuf) -> Process {
        Process { child, log }
    }

    pub(crate) fn log(&self) -> String {
        // The daemon gathers lines for a few milliseconds.
        thread::sleep(Duration::from_millis(20));
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    /// Whether this is in its log now or soon: an answer does not wait for its log lines.
    pub(crate) fn has_logged(&self, text: impl AsRef<str>) -> bool {
        let start = Instant::now();
        while !self.log().contains(text.as_ref()) {
            if start.elapsed() > SOON {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// What `found` finds in its log, now or soon; nothing if the process ends without it.
    pub(crate) fn announced<T>(&mut self, what: &str, found: impl Fn(&str) -> Option<T>) -> Option<T> {
        wait_for(what, || {
            // In this order: what a process wrote before it ended is in the log by then.
            let ended = self.child.try_wait().unwrap().is_some();
            let announced = found(&self.log());
            (announced.is_some() || ended).then_some(announced)
        })
    }

    /// Sends a signal by its name, as kill(1) does.
    pub(crate) fn signal(&self, name: &str) {
        run(Command::new("kill").args(["-s", name, &self.child.id().to_string()]));
    }

    /// A figure of /proc/PID/status in KiB, such as VmRSS and VmHWM.
    pub(crate) fn memory(&self, figure: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix(figure)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The development watermark service.
pub(crate) struct Service {
    pub(crate) process: Process,
    pub(crate) port: u16,
    _folder: TempDir,
}

impl Service {
    /// Starts it with these certificates on a port of the system's choice.
    pub(crate) fn start(certs: &Certs, arguments: &[&str]) -> Service {
        Service::start_on(0, certs, arguments)
    }

    pub(crate) fn start_on(port: u16, certs: &Certs, arguments: &[&str]) -> Service {
        let folder = TempDir::new().unwrap();
        let mut command = Command::new(program("watermark-service"));
        command.arg("serve").args(["--listen", &format!("127.0.0.1:{port}")]);
        command.arg("--cert").arg(certs.path("server.crt")).arg("--key").arg(certs.path("server.key"));
        command.arg("--client-ca").arg(certs.path("ca.crt")).args(arguments).stdout(Stdio::piped());
        let mut process = Process::spawn(&mut command, folder.path().join("log"));
        let mut line = String::new();
        BufReader::new(process.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let port = port.unwrap_or_else(|| panic!("the service did not start: {line}{}", process.log()));
        Service { process, port, _folder: folder }
    }

    /// Lines of its log that contain `text`: `TLS handshake: client` for each TLS handshake, `POST /api/watermark` for
    /// each call.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.process.log().lines().filter(|line| line.contains(text)).count()
    }
}

/// How a test's daemon is set up.
pub(crate) struct Setup {
    pub(crate) allowed: String,
    /// The command that starts the daemon, which is its last argument; empty if none does.
    by: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) folder: TempDir,
}

impl Setup {
    /// Everything on the loopback interface; `localhost:port` is allowed.
    pub(crate) fn new(port: u16) -> Setup {
        let allowed = format!("endpoints:\n  - localhost:{port}\n");
        Setup { allowed, by: Vec::new(), env: Vec::new(), folder: TempDir::new().unwrap() }
    }

    /// The daemon is the last argument of this command, which runs it.
    pub(crate) fn by(mut self, command: &[&str]) -> Setup {
        self.by = command.iter().map(|&word| word.to_owned()).collect();
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Setup {
        self.env.push((name.into(), value.into()));
        self
    }

    pub(crate) fn envs(mut self, more: &[(&str, &str)]) -> Setup {
        self.env.extend(more.iter().map(|&(name, value)| (name.into(), value.into())));
        self
    }

    /// The daemon's command, not started.
    pub(crate) fn command(&self) -> Command {
        let list = self.folder.path().join("allowed_endpoints.yaml");
        fs::write(&list, &self.allowed).unwrap();
        // The same tests can be run on the image's daemon: TEEMARKD=target/x86_64-…/teemarkd
        let daemon = std::env::var_os("TEEMARKD").unwrap_or(env!("CARGO_BIN_EXE_teemarkd").into());
        let mut words = self.by.iter().map(OsString::from).chain([daemon]);
        let mut command = Command::new(words.next().expect("the daemon at least"));
        command.args(words);
        for name in ["MTLS_CLIENT_CERT_JSON", "ECS_WATERMARK_ENDPOINT", "FILE_KEYS"] {
            command.env_remove(name);
        }
        command.env("TEEMARK_PUBLIC", "tcp:127.0.0.1:0").env("TEEMARK_ADMIN", "tcp:127.0.0.1:0");
        command.env("TEEMARK_SECRETS", format!("unix:{}", self.folder.path().join("secrets.sock").display()));
        command.env("TEEMARK_EGRESS", "direct").env("TEEMARK_ENDPOINTS", &list);
        command.env("TEEMARK_CERTS", self.folder.path().join("certs")).env("RUST_LOG", "trace");
        // Tests that are not about trust leave it out.
        command.env("TEEMARK_HANDSHAKE", "plain").env("TEEMARK_GRANTS", "off");
        // glibc keeps the stacks of threads that have ended for the next ones; musl, which is shipped, frees them.
        command.env("GLIBC_TUNABLES", "glibc.pthread.stack_cache_size=0");
        // However busy the machine is, connections are kept from one call to the next.
        command.env("TEEMARK_WATERMARK_KEEPALIVE", "3600s");
        command.envs(self.env.iter().map(|(n, v)| (n, v)));
        command
    }

    /// Starts the daemon and waits until it listens.
    pub(crate) fn start(self) -> Daemon {
        let mut process = Process::spawn(&mut self.command(), self.folder.path().join("log"));
        let mut listening_on = |start: &str| {
            let address = |log: &str| log.lines().find_map(|line| Some(line.split_once(start)?.1.to_owned()));
            let address = process.announced(start, address);
            address.unwrap_or_else(|| panic!("the daemon did not start: {}", process.log()))
        };
        let public = listening_on("public: listening on tcp:").parse().unwrap();
        let admin = listening_on("admin: listening on tcp:").parse().unwrap();
        // The socket's file exists a moment before the daemon listens.
        listening_on("secrets: listening on ");
        let secrets = self.folder.path().join("secrets.sock");
        Daemon { process, public, admin, secrets, folder: self.folder }
    }
}

/// A running daemon.
pub(crate) struct Daemon {
    pub(crate) process: Process,
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) secrets: PathBuf,
    pub(crate) folder: TempDir,
}

impl Daemon {
    /// A daemon that has had its handshake with this service.
    pub(crate) fn ready(service: &Service, certs: &Certs) -> Daemon {
        Daemon::ready_with(Setup::new(service.port), service.port, certs)
    }

    pub(crate) fn ready_with(setup: Setup, port: u16, certs: &Certs) -> Daemon {
        let daemon = setup.start();
        let answer = daemon.handshake(certs.full_bundle(port).to_string().as_bytes());
        assert_eq!(answer["ok"], true, "{answer}");
        daemon
    }

    /// Sends bytes to the secrets listener, ends the stream, and returns the answer.
    pub(crate) fn handshake(&self, bytes: &[u8]) -> Value {
        let answer = unspoilt("an answer to the handshake", || {
            let mut stream = UnixStream::connect(&self.secrets).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            let start = Instant::now();
            // A refused sender may find the stream closed before its last byte is sent.
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(Shutdown::Write);
            let mut answer = String::new();
            match stream.read_to_string(&mut answer) {
                // Refused while it was sending, and no longer listened to after that: the end took the answer with it.
                Err(e) if e.kind() == ErrorKind::ConnectionReset && start.elapsed() >= SECRETS_LINGER => None,
                read => Some(read.map(|_| answer).unwrap()),
            }
        });
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
    }

    /// The answer of a strict health check; `None` if the service, or an endpoint that can be reached, had no time for its
    /// own on this machine, since the check has 2.8 s (src/api/health.rs).
    pub(crate) fn health_in_time(&self) -> Option<Answer> {
        let late = |error: &str| ["did not answer in time", "not answered within"].iter().any(|w| error.contains(w));
        let answer = self.get("/health_check?strict=1");
        let told = answer.json();
        let endpoints = told["endpoints_status"].as_object().into_iter().flatten();
        let is_late =
            told["watermark"]["error"].as_str().is_some_and(late) || endpoints.into_iter().any(|e| e.1 == false);
        (!is_late).then_some(answer)
    }

    /// The answer of a strict health check once it is as expected; a busy machine is asked again.
    pub(crate) fn health(&self, good: impl Fn(&Answer) -> bool) -> Answer {
        wait_for("a health check that is as it should be", || Some(self.get("/health_check?strict=1")).filter(&good))
    }

    /// Waits until no request holds memory any more: that of an answer comes back a moment after its last byte.
    pub(crate) fn has_all_its_memory(&self) {
        let [left, limit] = ["left", "limit"].map(|what| format!("teemark_memory_{what}_bytes"));
        wait_for("all memory to come back", || (self.metric(&left) == self.metric(&limit)).then_some(()));
    }

    /// A GET request's answer.
    pub(crate) fn get(&self, path: &str) -> Answer {
        get_from(self.public, path)
    }

    /// The same on the admin listener.
    pub(crate) fn get_admin(&self, path: &str) -> Answer {
        get_from(self.admin, path)
    }

    /// The certificate (DER) of the root that it made for its attestation documents, as it has no Nitro Secure Module.
    pub(crate) fn test_root(&self) -> Vec<u8> {
        STANDARD.decode(self.get("/get_attestation").json()["test_root"].as_str().unwrap()).unwrap()
    }

    /// The raw route: a file for a user.
    pub(crate) fn decrypt(&self, file: &[u8], file_id: &str, user_id: &str) -> Answer {
        self.post(&format!("/files/{file_id}/decrypt?user_id={user_id}"), file)
    }

    pub(crate) fn post(&self, path: &str, body: &[u8]) -> Answer {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        request(self.public, &head, body)
    }

    /// The value of the metric whose line begins with this.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.metric_if_any(name).unwrap_or_else(|| panic!("no {name} in\n{}", self.get_admin("/metrics").text()))
    }

    /// The same; `None` if it has not been counted yet.
    pub(crate) fn metric_if_any(&self, name: &str) -> Option<f64> {
        let text = self.get_admin("/metrics").text();
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(|value| value.parse().unwrap())
    }
}

/// A number as [`Daemon::metric`] gives it.
pub(crate) fn as_metric(n: usize) -> f64 {
    f64::from(u32::try_from(n).expect("a number of 32 bits"))
}

/// Encrypts as Zing's clients do: IV, ciphertext, tag.
pub(crate) fn encrypt(key: &[u8; 32], plain: &[u8]) -> Vec<u8> {
    let iv: [u8; 12] = ring::rand::generate(&ring::rand::SystemRandom::new()).unwrap().expose();
    let mut sealed = plain.to_vec();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut sealed).unwrap();
    [&iv[..], &sealed].concat()
}

/// The ids that the mark in a file carries, by `watermark-service extract`.
pub(crate) fn extract(marked: &[u8]) -> Value {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("marked");
    fs::write(&file, marked).unwrap();
    serde_json::from_slice(&run(Command::new(program("watermark-service")).arg("extract").arg(file))).unwrap()
}

/// Reports that a test is not run. Not by eprintln!, whose output the harness hides if a test passes.
pub(crate) fn not_run(test: &str, reason: &str) {
    let line = format!("\n*** NOT RUN: {test}: {reason}\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
}
