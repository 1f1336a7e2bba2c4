//! ca_cert: whom the watermark service is certified by.
//!
//! A certificate that may sign others is a root. Besides, each is trusted when the service shows that very certificate:
//! `openssl req -x509` makes a server's certificate that calls itself a CA's, which webpki takes for no server's, and
//! others make one that may sign nothing, not even itself. Whoever has its key is the service, whatever it may sign.

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
use crate::net::certificate::Certificate;
use crate::net::cryptography::SIGNATURES;

/// Most certificates of which something is said.
const TOLD: usize = 16;

pub struct Authorities {
    roots: RootCertStore,
    given: Vec<CertificateDer<'static>>,
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorities")
    }
}

impl Authorities {
    /// Checks ca_cert as of `now`; `anchors` are its certificates as roots. Says of those that are of no use, beside one that
    /// is: while a CA is replaced, the old one may run out.
    ///
    /// # Errors
    /// What is wrong with the first, where none is of use.
    pub fn check(
        given: Vec<CertificateDer<'static>>,
        anchors: &[TrustAnchor<'static>],
        now: Utc,
    ) -> Result<(Authorities, Vec<String>), PartError> {
        let (mut roots, mut warnings, mut useful) = (RootCertStore::empty(), Vec::new(), false);
        for (i, (der, anchor)) in given.iter().zip(anchors).enumerate() {
            let n = i + 1;
            let Some(certificate) = Certificate::parse(der) else {
                return refuse(Part::Authority, format!("certificate {n} is not a certificate"));
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
        if let more @ 1.. = warnings.len().saturating_sub(TOLD) {
            warnings.truncate(TOLD);
            warnings.push(format!("there is something to say of {more} more certificates"));
        }
        Ok((Authorities { roots, given }, warnings.into_iter().map(|warning| format!("ca_cert: {warning}")).collect()))
    }
}

/// What would surprise about this certificate; an error where no call could use it.
fn look(n: usize, certificate: &Certificate) -> Result<Option<String>, String> {
    if let Some(kind) = certificate.unknown_key() {
        return Err(format!("certificate {n} has a key whose signatures cannot be verified here: {kind}"));
    }
    if !certificate.may_sign && !certificate.may_serve {
        return Err(format!(
            "certificate {n} may not sign others (basicConstraints, keyUsage), nor is it one that a server could show"
        ));
    }
    if !certificate.may_sign {
        return Ok(Some(format!("certificate {n} is not a CA's: a service has to show this very certificate")));
    }
    let signs_like_itself = certificate.issuer == certificate.subject;
    match certificate.is_signed_by(certificate) {
        None if signs_like_itself => Ok(Some(format!(
            "certificate {n} is signed by {}, which cannot be verified here: a service whose certificate is so too is refused",
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
            // webpki says either only of a certificate that is valid now.
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

/// Whether nothing is wrong with a certificate, but that nobody vouches for it or that it calls itself a CA's.
fn is_untrusted(e: &Error) -> bool {
    match e {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
        Error::InvalidCertificate(CertificateError::Other(OtherError(e))) => {
            matches!(e.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
        }
        _ => false,
    }
}
