//! The service, its certificates, and clients of it.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_watermark-service");

/// A CA, the service's certificate, a client's, and a client's of another CA; made once, since keys take time.
static CERTS: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"set -eu
        for ca in ca other-ca; do
            openssl req -x509 -newkey rsa:2048 -nodes -keyout $ca.key -out $ca.crt -subj "/CN=$ca" -days 2
        done
        leaf() {
            openssl req -new -newkey rsa:2048 -nodes -keyout "$1.key" -out "$1.csr" -subj "/CN=$2/O=Zing"
            printf '[v3_ext]\n%s\n' "$4" > ext
            openssl x509 -req -in "$1.csr" -CA "$3.crt" -CAkey "$3.key" -CAcreateserial -out "$1.crt" -days 2 \
                -extensions v3_ext -extfile ext
        }
        leaf server watermark-service ca 'subjectAltName=IP:127.0.0.1'
        leaf client tee-client ca 'extendedKeyUsage=clientAuth'
        leaf stranger tee-client other-ca 'extendedKeyUsage=clientAuth'"#;
    let made = Command::new("sh").args(["-c", script]).current_dir(&folder).output().unwrap();
    assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    folder
});

pub(crate) fn cert(name: &str) -> String {
    CERTS.path().join(name).display().to_string()
}

/// A running service; stopped when dropped.
pub(crate) struct Service {
    child: Child,
    pub(crate) url: String,
}

impl Service {
    pub(crate) fn start(options: &[&str]) -> Self {
        let mut child = serve(options).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("watermark-service: listening on ").expect(&line).to_owned();
        Service { child, url }
    }

    /// curl with the client certificate; gives status, body and curl's own exit code.
    pub(crate) fn curl(&self, options: &[&str], path: &str) -> (String, String, i32) {
        let out = curl(&self.url, &["--cert", &cert("client.crt"), "--key", &cert("client.key")], options, path);
        let text = String::from_utf8(out.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.to_owned(), body.to_owned(), out.status.code().unwrap())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (String, Value) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("body");
        fs::write(&file, body.to_string()).unwrap();
        let (status, body, _) = self.curl(&["--data-binary", &format!("@{}", file.display())], path);
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    /// Stops the service as an operator does, and gives what it logged.
    pub(crate) fn stop(mut self) -> String {
        let killed = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(killed.success());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "SIGTERM: {status}");
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        log
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn serve(options: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", "127.0.0.1:0", "--cert", &cert("server.crt"), "--key", &cert("server.key")]);
    command.args(["--client-ca", &cert("ca.crt")]).args(options);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn curl(url: &str, identity: &[&str], options: &[&str], path: &str) -> Output {
    let mut command = Command::new("curl");
    command.args(["-sS", "--noproxy", "*", "--max-time", "120", "-w", "\n%{http_code}", "--cacert", &cert("ca.crt")]);
    command.args(identity).args(options).arg(format!("{url}{path}")).output().unwrap()
}

pub(crate) fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

pub(crate) fn request(data: &str) -> Value {
    json!({"file_id": "report-7", "user_id": "alice", "data": data})
}

/// A request in form `data` with the file in base64.
pub(crate) fn in_base64(bytes: &[u8]) -> Value {
    let mut body = request(&BASE64_STANDARD.encode(bytes));
    body["encoding"] = "base64".into();
    body
}

/// A request in form `image`.
pub(crate) fn in_image(bytes: &[u8]) -> Value {
    json!({"file_id": "report-7", "user_id": "alice", "image": BASE64_STANDARD.encode(bytes)})
}

pub(crate) fn sample(folder: &Path) -> String {
    let path = folder.join("sample.png").display().to_string();
    assert!(run(&["sample", &path]).status.success());
    path
}

/// A TLS connection on which a test writes and reads as it likes.
pub(crate) struct Connection(StreamOwned<ClientConnection, TcpStream>);

impl Connection {
    pub(crate) fn to(service: &Service) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(cert("ca.crt")).unwrap()).unwrap();
        let identity = vec![CertificateDer::from_pem_file(cert("client.crt")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(cert("client.key")).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(identity, key)
            .unwrap();
        let stream = TcpStream::connect(service.url.strip_prefix("https://").unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        Connection(StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream))
    }

    /// Sends a request's head that announces a body of that many bytes.
    pub(crate) fn head(&mut self, length: usize) {
        let head = format!("POST /api/watermark HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
        self.send(head.as_bytes());
    }

    /// The same, and waits until the service is at work on the request: it wants to have the body.
    pub(crate) fn begin(&mut self, length: usize) {
        const BEGUN: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
        let head = format!("POST /api/watermark HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n");
        self.send(format!("{head}Expect: 100-continue\r\n\r\n").as_bytes());
        let mut begun = [0; BEGUN.len()];
        self.read_exact(&mut begun).unwrap();
        assert_eq!(begun, BEGUN);
    }

    /// Ends the connection as a client does that has waited long enough.
    pub(crate) fn leave(mut self) {
        self.0.conn.send_close_notify();
        let _ = self.0.flush();
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)?;
        self.0.flush()
    }

    pub(crate) fn post(&mut self, body: &Value) {
        let body = body.to_string();
        self.head(body.len());
        self.send(body.as_bytes());
    }

    /// The next answer: its head and its JSON.
    pub(crate) fn answer(&mut self) -> (String, Value) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        let mut body = vec![0; length];
        self.read_exact(&mut body).unwrap();
        (head, serde_json::from_slice(&body).unwrap())
    }

    /// Whether nothing more comes.
    pub(crate) fn is_closed(&mut self) -> bool {
        matches!(self.read_to_end(&mut Vec::new()), Ok(0))
    }
}

/// Only reads. rustls' own stream first writes what is still to be sent, and fails if the service does not read it.
impl Read for Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let StreamOwned { conn, sock } = &mut self.0;
        loop {
            match conn.reader().read(into) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    conn.read_tls(sock)?;
                    conn.process_new_packets().map_err(io::Error::other)?;
                }
                done => return done,
            }
        }
    }
}
