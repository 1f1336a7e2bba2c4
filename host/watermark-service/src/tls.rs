//! Mutual TLS: the service's own certificate, and what a client's certificate says.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig, ServerConnection};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The only TLS version to speak.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Version {
    #[value(name = "1.2")]
    Tls12,
    #[value(name = "1.3")]
    Tls13,
}

/// Configures the server: it presents `cert` with its chain, and requires a client certificate from `client_ca`.
///
/// # Errors
/// A file cannot be read or used; the error says which and why.
pub(crate) fn server_config(cert: &Path, key: &Path, client_ca: &Path, only: Option<Version>) -> Result<ServerConfig> {
    let chain = certificates(cert, "--cert")?;
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(readable)
        .with_context(|| format!("--key {}: cannot read a private key", key.display()))?;
    let mut roots = RootCertStore::empty();
    for root in certificates(client_ca, "--client-ca")? {
        roots.add(root).with_context(|| format!("--client-ca {}: not a CA certificate", client_ca.display()))?;
    }
    let provider = Arc::new(default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .build()
        .with_context(|| format!("--client-ca {}", client_ca.display()))?;
    let versions = match only {
        None => &[&TLS13, &TLS12][..],
        Some(Version::Tls13) => &[&TLS13],
        Some(Version::Tls12) => &[&TLS12],
    };
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, private)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => anyhow::anyhow!(
                "--key {} does not match --cert {}: give the key that the certificate was made for",
                key.display(),
                cert.display()
            ),
            other => anyhow::anyhow!("--cert {} with --key {}: {other}", cert.display(), key.display()),
        })
}

fn certificates(path: &Path, option: &str) -> Result<Vec<CertificateDer<'static>>> {
    let what = || format!("{option} {}: cannot read certificates", path.display());
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(readable)
        .with_context(what)?;
    if certificates.is_empty() {
        bail!("{option} {}: the file holds no PEM certificate", path.display());
    }
    Ok(certificates)
}

/// The PEM error in plain words; its own text is made for debugging.
fn readable(error: pem::Error) -> anyhow::Error {
    match error {
        pem::Error::Io(error) => error.into(),
        pem::Error::NoItemsFound => anyhow::anyhow!("the file holds none in PEM form"),
        other => anyhow::anyhow!("damaged PEM ({other:?})"),
    }
}

/// The client at the other end of a connection, by its certificate.
pub(crate) struct Client {
    /// Common name; control characters escaped.
    pub(crate) name: String,
    /// Serial number in hex, as `openssl x509 -serial` prints it.
    pub(crate) serial: String,
    /// SHA-256 of the certificate's DER, in hex.
    pub(crate) sha256: String,
    /// `TLSv1.2` or `TLSv1.3`.
    pub(crate) version: &'static str,
}

impl Client {
    /// Reads the client's certificate; none before the handshake is complete. The verifier lets no client through without.
    pub(crate) fn of(connection: &ServerConnection) -> Option<Self> {
        let leaf = connection.peer_certificates()?.first()?;
        let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
        let name = parsed.subject().iter_common_name().next().and_then(|cn| cn.as_str().ok()).unwrap_or("-");
        let serial = parsed.raw_serial();
        // DER puts a zero before a number whose first bit is set.
        let serial = if serial.len() > 1 { serial.strip_prefix(&[0]).unwrap_or(serial) } else { serial };
        Some(Client {
            name: name.escape_debug().collect(),
            serial: hex(serial).to_uppercase(),
            sha256: hex(ring::digest::digest(&ring::digest::SHA256, leaf).as_ref()),
            version: match connection.protocol_version()? {
                rustls::ProtocolVersion::TLSv1_2 => "TLSv1.2",
                rustls::ProtocolVersion::TLSv1_3 => "TLSv1.3",
                _ => "TLS?",
            },
        })
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client CN={}, serial={}, sha256={}, {}", self.name, self.serial, self.sha256, self.version)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
