//! Mutual TLS with the watermark service: certificates and a key in any accepted form ([`formats::pem`]), checked once,
//! and the ureq agent that presents them and verifies the service by `authorities`.

mod authorities;
pub mod certificate;
pub mod cryptography;
pub mod tls_error;

use std::fmt;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use formats::allow_list::AllowList;
use formats::certificates::{Fingerprint, Part, PartError, Parts, refuse};
use formats::digest::sha256;
use formats::pem;
use formats::state::Item;
use formats::time::Utc;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivateSec1KeyDer, TrustAnchor, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, Error, InconsistentKeys};
use ureq::Agent;
use webpki::{EndEntityCert, KeyUsage};

use self::authorities::Authorities;
use self::certificate::{Certificate, elliptic_key, elliptic_secret};
use self::cryptography::SIGNATURES;
use crate::net::egress::{Egress, NoLookup, Route};
use crate::net::sessions::{PERIOD, Sessions};
use crate::net::tls::MAX_ANSWER_HEAD;

/// Time limit to connect and shake hands.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A client certificate with its key, valid now and usable by TLS clients, and the CAs that the service's certificate
/// must come from.
pub struct Identity {
    /// Its own, so that the first connection of the next identity presents and verifies certificates.
    sessions: Arc<Sessions>,
    pem: Parts<String>,
    /// When the last certificate of the client's chain becomes valid.
    pub begins: Utc,
    /// When the first certificate of the client's chain expires.
    pub ends: Utc,
    /// What the operator may not have intended, though calls can succeed.
    pub warnings: Vec<String>,
    /// The fingerprint of each root.
    roots: Vec<Fingerprint>,
}

impl Identity {
    /// Checks client_cert, client_key and ca_cert, each PEM, DER, or base64 of either, as of `now`.
    ///
    /// # Errors
    /// The first part that cannot be used.
    pub fn check(parts: &Parts<&[u8]>, now: Utc) -> Result<Identity, PartError> {
        let chain = pem::certificates(Part::Certificate, parts.get(Part::Certificate))?;
        let key = pem::private_key(parts.get(Part::Key))?;
        let given = pem::certificates(Part::Authority, parts.get(Part::Authority))?;
        let fingerprints = given.iter().map(|authority| Fingerprint(sha256(authority))).collect();
        let pem = Parts([pem::of_certificates(&chain), pem::of_key(&key), pem::of_certificates(&given)]);
        let provider = Arc::new(cryptography::provider());
        let anchors = anchors(&given)?;

        check_order(&chain)?;
        let certified = certify(chain.clone(), key, &provider)?;
        let (mut begins, mut ends) = (Utc(0), Utc(u64::MAX));
        for (i, certificate) in chain.iter().enumerate() {
            let (from, until) = check_validity(Part::Certificate, i, certificate, now)?;
            (begins, ends) = (begins.max(from), ends.min(until));
        }
        let (authorities, mut warnings) = Authorities::check(given, &anchors, now)?;
        if !check_usage(&anchors, &chain, now)? {
            warnings.insert(0, "client_cert is not issued by ca_cert: the service must know its CA".to_owned());
        }

        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .or_else(|e| refuse(Part::Key, e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(authorities))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        let sessions = Arc::new(Sessions::new(config, Instant::now()));
        Ok(Identity { sessions, pem, begins, ends, warnings, roots: fingerprints })
    }

    /// Accepts the identity if each of its roots is among the `pinned` ones, or none is pinned.
    ///
    /// # Errors
    /// The first root that is not pinned.
    pub fn within(self, pinned: &[Fingerprint]) -> Result<Identity, PartError> {
        match self.roots.iter().position(|root| !pinned.contains(root)) {
            Some(i) if !pinned.is_empty() => {
                refuse(Part::Authority, format!("certificate {} is not pinned in the image (TEEMARK_PIN_CA)", i + 1))
            }
            _ => Ok(self),
        }
    }

    /// The certificates and the key, described without revealing the key.
    pub fn describe(&self) -> Item {
        Item::certificates(&self.pem, self.ends)
    }

    /// Reads the three files of `folder`; `None` if none of them exists.
    ///
    /// # Errors
    /// A file cannot be read, or [`Identity::check`] refuses it.
    pub fn load(folder: &Path, now: Utc) -> Result<Option<Identity>, PartError> {
        if Part::ALL.iter().all(|part| !folder.join(part.file()).exists()) {
            return Ok(None);
        }
        let mut files = [const { Vec::new() }; 3];
        for (part, file) in Part::ALL.into_iter().zip(&mut files) {
            let path = folder.join(part.file());
            *file = fs::read(&path).or_else(|e| refuse(part, format!("{} cannot be read: {e}", path.display())))?;
        }
        Identity::check(&Parts(files.each_ref().map(Vec::as_slice)), now).map(Some)
    }

    /// Writes the three files into `folder`, as PEM. All are complete before the first is renamed to its final name.
    ///
    /// # Errors
    /// The file system's error.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let new = |name| folder.join(format!(".{name}.new"));
        for (part, pem) in self.pem.iter() {
            let (path, mode) = (new(part.file()), part.mode());
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(pem.as_bytes())?;
            file.sync_all()?;
        }
        Part::ALL.iter().try_for_each(|part| fs::rename(new(part.file()), folder.join(part.file())))
    }

    /// The client of the watermark service under this identity.
    pub fn connect(&self, allowed: Arc<AllowList>, route: Route, calls: Calls) -> MutualTls {
        let Calls { timeout, keepalive, at_once } = calls;
        let sessions = self.sessions.clone();
        let agent = move |pooled| {
            let config = Agent::config_builder()
                .http_status_as_error(false)
                .https_only(true)
                .proxy(None)
                .max_redirects(0)
                .max_idle_connections(pooled)
                .max_idle_connections_per_host(pooled)
                .max_idle_age(keepalive)
                .max_response_header_size(MAX_ANSWER_HEAD)
                .timeout_connect(Some(CONNECT_LIMIT))
                .timeout_global(Some(timeout))
                .user_agent(concat!("teemarkd/", env!("CARGO_PKG_VERSION")))
                .build();
            let egress = Egress { allowed: allowed.clone(), route, sessions: sessions.clone() };
            Agent::with_parts(config, egress, NoLookup)
        };
        let pooled = Mutex::new(Pooled { agent: agent(at_once), made: Instant::now(), used: Instant::now() });
        MutualTls { fresh: agent(0), pooled, empty: Box::new(move || agent(at_once)), timeout, keepalive }
    }
}

/// Bounds of calls to the watermark service.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    /// TEEMARK_TIMEOUT.
    pub timeout: Duration,
    /// How long an idle connection is kept.
    pub keepalive: Duration,
    /// Most calls at once, of which each may leave a connection to the pool.
    pub at_once: usize,
}

/// The agents of one identity.
pub struct MutualTls {
    pooled: Mutex<Pooled>,
    /// Makes an agent with an empty pool.
    empty: Box<dyn Fn() -> Agent + Send + Sync>,
    keepalive: Duration,
    /// Opens a new connection each time: for the one retry after a pooled connection proved stale.
    pub fresh: Agent,
    /// TEEMARK_TIMEOUT.
    pub timeout: Duration,
}

struct Pooled {
    agent: Agent,
    made: Instant,
    /// When a call last took it.
    used: Instant,
}

impl fmt::Debug for MutualTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MutualTls(…)")
    }
}

impl MutualTls {
    /// The agent that reuses connections, for a call that begins now. Like sessions, connections that are never idle for long
    /// stand for the certificates of their handshakes, so that new ones are made each [`PERIOD`].
    pub fn pooled(&self, now: Instant) -> Agent {
        let mut pooled = self.lock();
        if now.saturating_duration_since(pooled.made) >= PERIOD {
            (pooled.agent, pooled.made) = ((self.empty)(), now);
        }
        pooled.used = now;
        pooled.agent.clone()
    }

    /// Closes the pooled connections if no call may use them any more. ureq closes them at the next call only, and until
    /// then each holds a descriptor and some KiB.
    pub fn close_idle(&self, now: Instant) {
        let mut pooled = self.lock();
        if now.saturating_duration_since(pooled.used) > self.keepalive {
            // A call under way keeps the agent that it took, which goes with it.
            (pooled.agent, pooled.made) = ((self.empty)(), now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pooled> {
        self.pooled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The certificates of ca_cert as trust anchors.
fn anchors(given: &[CertificateDer<'static>]) -> Result<Vec<TrustAnchor<'static>>, PartError> {
    let anchor = |(i, authority): (usize, &CertificateDer<'static>)| match webpki::anchor_from_trusted_cert(authority) {
        Ok(anchor) => Ok(anchor.to_owned()),
        Err(_) => refuse(Part::Authority, format!("certificate {} cannot be read as an X.509 certificate", i + 1)),
    };
    given.iter().enumerate().map(anchor).collect()
}

/// Checks that each certificate is issued by the next (RFC 5246, 7.4.2): services treat chains in another order
/// differently. Names that differ may still mean the same, so then the signature decides, if it can be verified.
fn check_order(chain: &[CertificateDer<'static>]) -> Result<(), PartError> {
    let parsed = chain.iter().enumerate().map(|(i, der)| {
        Certificate::parse(der)
            .map_or_else(|| refuse(Part::Certificate, format!("certificate {} {NOT_READ}", i + 1)), Ok)
    });
    let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
    for (i, pair) in parsed.windows(2).enumerate() {
        let signed = pair[0].is_signed_by(&pair[1]);
        if !signed.unwrap_or(pair[0].issuer == pair[1].subject) {
            let (this, next) = (i + 1, i + 2);
            return refuse(
                Part::Certificate,
                format!(
                    "certificate {this} is not issued by certificate {next}: the client's own certificate comes first, \
                     then each one's issuer"
                ),
            );
        }
    }
    Ok(())
}

fn certify(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, PartError> {
    const OTHER_KEY: &str = "does not belong to client_cert";
    const UNSUPPORTED: &str = "is not of a supported kind: RSA of 2048 to 4096 bits, P-256, P-384 or Ed25519";
    let (key, failure) = match elliptic_secret(key.secret_der()) {
        None => (key, UNSUPPORTED),
        // The public half may be missing (RFC 5915, 3), but ring needs it. The certificate has it, and ring checks that
        // the two match.
        Some(secret) => {
            let certificate = Certificate::parse(&chain[0]);
            let point = certificate.as_ref().and_then(Certificate::point);
            match point.and_then(|point| elliptic_key(secret, point)) {
                Some(whole) => (PrivateSec1KeyDer::from(whole).into(), OTHER_KEY),
                None if point.is_none() && certificate.is_some_and(|c| c.has_elliptic_key()) => (key, UNSUPPORTED),
                None => return refuse(Part::Key, OTHER_KEY),
            }
        }
    };
    CertifiedKey::from_der(chain, key, provider).or_else(|e| match e {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => refuse(Part::Key, OTHER_KEY),
        Error::InvalidCertificate(_) => refuse(Part::Certificate, format!("certificate 1 {NOT_READ}")),
        _ => refuse(Part::Key, failure),
    })
}

/// When this certificate, number `i` of its part, becomes valid, and when it expires. Refuses one that has expired, is
/// not valid yet, or cannot be read.
///
/// webpki does not expose the dates, but reports them in its error for a certificate that is too young or too old, so
/// it is asked about the beginning and the end of time.
fn check_validity(part: Part, i: usize, certificate: &CertificateDer<'_>, now: Utc) -> Result<(Utc, Utc), PartError> {
    let n = i + 1;
    match verify(certificate, &[], &[], Duration::from_secs(now.0)) {
        Err(webpki::Error::CertExpired { not_after, .. }) => {
            return refuse(part, format!("certificate {n} expired at {}", Utc(not_after.as_secs())));
        }
        Err(webpki::Error::CertNotValidYet { not_before, .. }) => {
            return refuse(part, format!("certificate {n} is not valid before {}", Utc(not_before.as_secs())));
        }
        Err(webpki::Error::BadDer | webpki::Error::BadDerTime | webpki::Error::TrailingData(_)) => {
            return refuse(part, format!("certificate {n} {NOT_READ}"));
        }
        _ => {}
    }
    let begins = match verify(certificate, &[], &[], Duration::ZERO) {
        Err(webpki::Error::CertNotValidYet { not_before, .. }) => Utc(not_before.as_secs()),
        _ => Utc(0),
    };
    match verify(certificate, &[], &[], Duration::MAX) {
        Err(webpki::Error::CertExpired { not_after, .. }) => Ok((begins, Utc(not_after.as_secs()))),
        _ => Ok((begins, Utc(u64::MAX))),
    }
}

/// Whether a TLS client may present this certificate to a peer that trusts these CAs. Its own dates and purpose are
/// checked first.
fn verify(
    certificate: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    since_1970: Duration,
) -> Result<(), webpki::Error> {
    let (usage, time) = (KeyUsage::client_auth(), UnixTime::since_unix_epoch(since_1970));
    let leaf = EndEntityCert::try_from(certificate)?;
    leaf.verify_for_usage(SIGNATURES.all, anchors, intermediates, time, usage, None, None).map(drop)
}

/// Without an extension file, openssl makes certificates of version 1.
const NOT_READ: &str = "cannot be read as an X.509 certificate (version 3, without unknown critical extensions)";

/// Checks that the leaf may be used by a TLS client (RFC 5280, 4.2.1.12). Returns whether it leads to ca_cert, as far
/// as that can be verified here. It usually does, but which CA its clients need is the service's decision.
fn check_usage(anchors: &[TrustAnchor<'_>], chain: &[CertificateDer<'_>], now: Utc) -> Result<bool, PartError> {
    match verify(&chain[0], &chain[1..], anchors, Duration::from_secs(now.0)) {
        Err(webpki::Error::RequiredEkuNotFoundContext(_)) => {
            refuse(Part::Certificate, "is not for TLS clients: its extendedKeyUsage lacks clientAuth")
        }
        // webpki does not check the usage of a CA's certificate, which does not belong at the end of a chain.
        Err(webpki::Error::CaUsedAsEndEntity) => {
            refuse(Part::Certificate, "is a CA's certificate: use one that was issued to a client")
        }
        Err(webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey) => Ok(false),
        _ => Ok(true),
    }
}
