//! ca_cert: the certificates that the watermark service is verified by.
//!
//! A certificate that may sign others is a root. Besides, each is trusted if the service presents that very
//! certificate: `openssl req -x509` makes a server certificate that claims to be a CA's, which webpki does not accept
//! for a server, and other tools make one that may sign nothing, not even itself. Whoever has its key is the service,
//! whatever it may sign.

use std::fmt;

use formats::certificates::{Part, PartError, refuse};
use formats::time::Utc;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};

use super::check_validity;
use crate::mtls::certificate::Certificate;
use crate::mtls::cryptography::SIGNATURES;

/// Most certificates that warnings are given for.
const MAX_WARNINGS: usize = 16;

pub(crate) struct Authorities {
    roots: RootCertStore,
    given: Vec<CertificateDer<'static>>,
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorities")
    }
}

impl Authorities {
    /// Checks ca_cert as of `now`; `anchors` are its certificates as roots. If one of them is usable, the others only
    /// cause warnings: while a CA is replaced, the old one may expire.
    ///
    /// None is usable: what is wrong with the first.
    pub(crate) fn check(
        given: Vec<CertificateDer<'static>>,
        anchors: &[TrustAnchor<'static>],
        now: Utc,
    ) -> Result<(Authorities, Vec<String>), PartError> {
        let (mut roots, mut warnings, mut useful) = (RootCertStore::empty(), Vec::new(), false);
        for (i, (der, anchor)) in given.iter().zip(anchors).enumerate() {
            let n = i + 1;
            let Some(certificate) = Certificate::parse(der) else {
                return refuse(Part::Authority, format!("certificate {n} cannot be read as an X.509 certificate"));
            };
            if certificate.may_sign {
                roots.roots.push(anchor.clone());
            }
            match look(n, &certificate)
                .and_then(|warning| check_validity(Part::Authority, i, der, now).map(|_| warning).map_err(|e| e.reason))
            {
                Ok(warning) => {
                    useful = true;
                    warnings.extend(warning);
                }
                Err(reason) => warnings.push(reason),
            }
        }
        if !useful {
            return refuse(Part::Authority, warnings.swap_remove(0));
        }
        if let more @ 1.. = warnings.len().saturating_sub(MAX_WARNINGS) {
            warnings.truncate(MAX_WARNINGS);
            warnings.push(format!("there are warnings about {more} more certificates"));
        }
        Ok((Authorities { roots, given }, warnings.into_iter().map(|warning| format!("ca_cert: {warning}")).collect()))
    }
}

/// What may be unexpected about this certificate; an error if no call could use it.
fn look(n: usize, certificate: &Certificate) -> Result<Option<String>, String> {
    if let Some(kind) = certificate.unknown_key() {
        return Err(format!("certificate {n} has a key whose signatures cannot be verified here: {kind}"));
    }
    if !certificate.may_sign && !certificate.may_serve {
        return Err(format!(
            "certificate {n} may not sign others (basicConstraints, keyUsage), and a server could not present it either"
        ));
    }
    if !certificate.may_sign {
        return Ok(Some(format!(
            "certificate {n} is not a CA certificate: the service must present this very certificate"
        )));
    }
    let signs_like_itself = certificate.issuer == certificate.subject;
    match certificate.is_signed_by(certificate) {
        None if signs_like_itself => Ok(Some(format!(
            "certificate {n} is signed by {}, which cannot be verified here: a service whose certificate is signed like this is refused",
            certificate.signed_by(certificate)
        ))),
        _ => Ok(None),
    }
}

impl ServerCertVerifier for Authorities {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        match verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, SIGNATURES.all) {
            Ok(()) => {}
            // webpki reports either error only for a certificate that is valid now.
            Err(e) if self.given.contains(leaf) && is_untrusted(&e) => {}
            Err(e) => return Err(e),
        }
        verify_server_name(&parsed, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signature, &SIGNATURES)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &SIGNATURES)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SIGNATURES.supported_schemes()
    }
}

/// Whether nothing is wrong with a certificate except that no CA vouches for it, or that it claims to be a CA's.
fn is_untrusted(e: &Error) -> bool {
    match e {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
        Error::InvalidCertificate(CertificateError::Other(OtherError(e))) => {
            matches!(e.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
        }
        _ => false,
    }
}
