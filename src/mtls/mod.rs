//! Who the enclave is to the watermark service: certificates and a key in any accepted form, checked once, and the
//! ureq agent that shows them.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, Error, InconsistentKeys, OtherError, RootCertStore};
use ureq::Agent;

use crate::digest::sha256;
use crate::net::cryptography;
use crate::net::egress::{Egress, NoLookup, Route};
use crate::net::endpoints::AllowList;
use crate::time::Utc;

/// The parts of an identity, as the handshake names them.
pub const PARTS: [&str; 3] = ["client_cert", "client_key", "ca_cert"];
/// The same parts as files, with their modes.
const FILES: [(&str, u32); 3] = [("client.crt", 0o644), ("client.key", 0o600), ("ecs-ca.crt", 0o644)];

/// Idle connections kept for the next request, and how long: shorter than the usual idle limit of a server, 60 s.
const POOLED: usize = 32;
const POOLED_FOR: Duration = Duration::from_secs(30);
/// Time to connect and shake hands.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A client certificate with the key that fits it, valid now and good for TLS clients, and the roots that the service
/// must be certified by.
pub struct Identity {
    config: Arc<ClientConfig>,
    pem: [String; 3],
    /// When the first certificate of the client's chain expires.
    pub ends: Utc,
    /// Whether the given CA issued the client certificate too. Where not, the service must know another CA.
    pub issued_by_ca: bool,
    /// SHA-256 of each root, in DER.
    roots: Vec<[u8; 32]>,
}

/// Which part is refused, and why; never a value.
#[derive(Debug, PartialEq, Eq)]
pub struct IdentityError {
    /// One of [`PARTS`].
    pub part: &'static str,
    pub reason: String,
}

fn refuse<T>(part: usize, reason: impl Into<String>) -> Result<T, IdentityError> {
    Err(IdentityError { part: PARTS[part], reason: reason.into() })
}

impl Identity {
    /// Checks client_cert, client_key and ca_cert, each PEM, DER, or base64 of either, as of `now`.
    ///
    /// # Errors
    /// The first part that will not do.
    pub fn check(parts: [&[u8]; 3], now: Utc) -> Result<Identity, IdentityError> {
        let chain = certificates(0, parts[0])?;
        let key = private_key(parts[1])?;
        let authorities = certificates(2, parts[2])?;
        let fingerprints = authorities.iter().map(|authority| sha256(authority)).collect();
        let provider = Arc::new(cryptography::provider());
        let roots = roots(&authorities)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .or_else(|e| refuse(2, format!("cannot be a root: {e}")))?;

        let pem = [pem_of(&chain), pem_of_key(&key), pem_of(&authorities)];
        let certified = certify(chain.clone(), key, &provider)?;
        let ends = check_validity(0, &*verifier, &chain, now)?;
        check_validity_of_any(&*verifier, &authorities, now)?;
        let issued_by_ca = check_usage(&*verifier, &chain, now)?;

        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .or_else(|e| refuse(1, e.to_string()))?
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        // Pooled connections make handshakes rare; without resumption each one shows the certificate in force.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Identity { config: Arc::new(config), pem, ends, issued_by_ca, roots: fingerprints })
    }

    /// Lets it pass if each of its roots is among the `pinned` ones, or none is pinned.
    ///
    /// # Errors
    /// The first root that is not.
    pub fn within(self, pinned: &[[u8; 32]]) -> Result<Identity, IdentityError> {
        match self.roots.iter().position(|root| !pinned.contains(root)) {
            Some(i) if !pinned.is_empty() => {
                refuse(2, format!("certificate {} is not pinned in the image (TEEMARK_PIN_CA)", i + 1))
            }
            _ => Ok(self),
        }
    }

    /// Reads the three files of `folder`; `None` if none of them is there.
    ///
    /// # Errors
    /// A file that cannot be read, or is refused by [`Identity::check`].
    pub fn load(folder: &Path, now: Utc) -> Result<Option<Identity>, IdentityError> {
        let mut read = [const { Vec::new() }; 3];
        if FILES.iter().all(|(name, _)| !folder.join(name).exists()) {
            return Ok(None);
        }
        for (i, (name, _)) in FILES.iter().enumerate() {
            let path = folder.join(name);
            read[i] = fs::read(&path).or_else(|e| refuse(i, format!("{} cannot be read: {e}", path.display())))?;
        }
        Identity::check([&read[0], &read[1], &read[2]], now).map(Some)
    }

    /// Writes the three files into `folder`, as PEM. All are complete before the first takes its name.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let new = |name| folder.join(format!(".{name}.new"));
        for ((name, mode), pem) in FILES.iter().zip(&self.pem) {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(*mode).open(new(name))?;
            file.set_permissions(Permissions::from_mode(*mode))?;
            file.write_all(pem.as_bytes())?;
            file.sync_all()?;
        }
        FILES.iter().try_for_each(|(name, _)| fs::rename(new(name), folder.join(name)))
    }

    /// The way to the watermark service under this identity. `limit` bounds a whole call.
    pub fn connect(&self, allowed: Arc<AllowList>, route: Route, limit: Duration) -> MutualTls {
        let agent = |pooled| {
            let config = Agent::config_builder()
                .http_status_as_error(false)
                .https_only(true)
                .proxy(None)
                .max_redirects(0)
                .max_idle_connections(pooled)
                .max_idle_connections_per_host(pooled)
                .max_idle_age(POOLED_FOR)
                .timeout_connect(Some(CONNECT_LIMIT))
                .timeout_global(Some(limit))
                .user_agent(concat!("teemarkd/", env!("CARGO_PKG_VERSION")))
                .build();
            let egress = Egress { allowed: allowed.clone(), route, tls: self.config.clone() };
            Agent::with_parts(config, egress, NoLookup)
        };
        MutualTls { pooled: agent(POOLED), fresh: agent(0), limit }
    }
}

/// The agents of one identity.
#[derive(Debug)]
pub struct MutualTls {
    /// Uses connections again.
    pub pooled: Agent,
    /// Opens a new connection each time: for the one retry after a pooled connection proved stale.
    pub fresh: Agent,
    /// Time for a whole call.
    pub limit: Duration,
}

/// The bytes that a part stands for: PEM or DER as it is, or what base64 of either decodes to.
fn decode(part: usize, given: &[u8]) -> Result<Vec<u8>, IdentityError> {
    const SEQUENCE: u8 = 0x30; // every certificate and key in DER begins so (X.690, 8.9)
    if is_pem(given) || given.first() == Some(&SEQUENCE) && std::str::from_utf8(given).is_err() {
        return Ok(given.to_owned());
    }
    let compact: Vec<u8> = given.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
    match STANDARD.decode(&compact) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        Ok(_) => refuse(part, "is empty"),
        Err(_) => refuse(part, "is neither PEM nor base64 of PEM or DER"),
    }
}

fn is_pem(bytes: &[u8]) -> bool {
    bytes.windows(11).any(|w| w == b"-----BEGIN ")
}

fn certificates(part: usize, given: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let bytes = decode(part, given)?;
    let list = match is_pem(&bytes) {
        true => rustls_pemfile::certs(&mut &bytes[..]).collect::<Result<_, _>>(),
        false => Ok(vec![CertificateDer::from(bytes)]),
    };
    match list {
        Ok(list) if list.is_empty() => refuse(part, "is PEM without a certificate"),
        Ok(list) => Ok(list),
        Err(_) => refuse(part, "is PEM that is cut off or damaged"),
    }
}

fn private_key(given: &[u8]) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let bytes = decode(1, given)?;
    if !is_pem(&bytes) {
        return PrivateKeyDer::try_from(bytes).or_else(|_| refuse(1, "is no private key in PKCS#8, PKCS#1 or SEC1"));
    }
    match rustls_pemfile::private_key(&mut &bytes[..]) {
        Ok(Some(key)) => Ok(key),
        // PKCS#8 says so in its label, the others in a header (RFC 1421, 4.6.1.1), which the parser takes for damage.
        Ok(None) | Err(_) if bytes.windows(9).any(|w| w == b"ENCRYPTED") => {
            refuse(1, "is protected by a passphrase: give it without one (openssl pkey -in client.key)")
        }
        Ok(None) => refuse(1, "is PEM without a private key"),
        Err(_) => refuse(1, "is PEM that is cut off or damaged"),
    }
}

fn roots(authorities: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    for (i, authority) in authorities.iter().enumerate() {
        roots.add(authority.clone()).or_else(|_| refuse(2, format!("certificate {} is not a certificate", i + 1)))?;
    }
    Ok(Arc::new(roots))
}

fn certify(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, IdentityError> {
    CertifiedKey::from_der(chain, key, provider).or_else(|e| match e {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => refuse(1, "does not belong to client_cert"),
        Error::InvalidCertificate(_) => refuse(0, format!("certificate 1 {NO_CERTIFICATE}")),
        _ => refuse(1, "is of no supported kind: RSA of 2048 to 4096 bits, P-256, P-384 or Ed25519"),
    })
}

/// When the first of these certificates expires. Refuses one that has, one that does not hold yet, and one that is none.
///
/// webpki keeps the dates to itself but tells them in its error when a certificate is too old, so it is asked about
/// the end of time.
fn check_validity(
    part: usize,
    verifier: &dyn ClientCertVerifier,
    certificates: &[CertificateDer<'_>],
    now: Utc,
) -> Result<Utc, IdentityError> {
    let mut ends = Utc(u64::MAX);
    for (i, certificate) in certificates.iter().enumerate() {
        let at = |time| match verifier.verify_client_cert(certificate, &[], time) {
            Err(Error::InvalidCertificate(e)) => Some(e),
            _ => None,
        };
        let n = i + 1;
        match at(UnixTime::since_unix_epoch(Duration::from_secs(now.0))) {
            Some(CertificateError::ExpiredContext { not_after, .. }) => {
                return refuse(part, format!("certificate {n} expired at {}", Utc(not_after.as_secs())));
            }
            Some(CertificateError::NotValidYetContext { not_before, .. }) => {
                return refuse(part, format!("certificate {n} is not valid before {}", Utc(not_before.as_secs())));
            }
            Some(CertificateError::BadEncoding) => {
                return refuse(part, format!("certificate {n} {NO_CERTIFICATE}"));
            }
            _ => {}
        }
        if let Some(CertificateError::ExpiredContext { not_after, .. }) = at(UnixTime::since_unix_epoch(Duration::MAX))
        {
            ends = ends.min(Utc(not_after.as_secs()));
        }
    }
    Ok(ends)
}

/// What openssl makes without an extension file is of version 1.
const NO_CERTIFICATE: &str = "is not a certificate (of X.509 version 3, without unknown critical extensions)";

/// One valid root is enough: while a CA is replaced, the old one may run out.
fn check_validity_of_any(
    verifier: &dyn ClientCertVerifier,
    authorities: &[CertificateDer<'_>],
    now: Utc,
) -> Result<(), IdentityError> {
    let mut refused = None;
    for authority in authorities.chunks(1) {
        match check_validity(2, verifier, authority, now) {
            Ok(_) => return Ok(()),
            Err(e) => refused = refused.or(Some(e)),
        }
    }
    refused.map_or(Ok(()), Err)
}

/// Whether the leaf may be used by a TLS client (RFC 5280, 4.2.1.12). Says also whether the given CA issued it: that
/// is the usual case, but which CA its clients need is the service's affair.
fn check_usage(
    verifier: &dyn ClientCertVerifier,
    chain: &[CertificateDer<'_>],
    now: Utc,
) -> Result<bool, IdentityError> {
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now.0));
    match verifier.verify_client_cert(&chain[0], &chain[1..], now) {
        Ok(_) => Ok(true),
        Err(Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        )) => refuse(0, "is not for TLS clients: its extendedKeyUsage lacks clientAuth"),
        Err(Error::InvalidCertificate(CertificateError::Other(e))) if is_ca_leaf(&e) => {
            refuse(0, "is a CA's certificate: use one that was issued to a client")
        }
        Err(_) => Ok(false),
    }
}

/// webpki does not look at the usage of a certificate with the CA flag: it has no business at the end of a chain.
fn is_ca_leaf(e: &OtherError) -> bool {
    matches!(e.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

fn pem_of(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|c| armour("CERTIFICATE", c)).collect()
}

fn pem_of_key(key: &PrivateKeyDer<'_>) -> String {
    let label = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    armour(label, key.secret_der())
}

/// RFC 7468, section 2: base64 in lines of 64 characters between the labels.
fn armour(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in STANDARD.encode(der).as_bytes().chunks(64) {
        text.extend(line.iter().map(|&b| b as char));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}
