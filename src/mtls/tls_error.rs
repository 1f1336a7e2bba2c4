//! Why TLS with the watermark service failed, in words for the operator on call. docs/TROUBLE.md has a line for each.

use formats::time::Utc;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, Error, OtherError};

use super::certificate;

/// Most names of a certificate that are shown.
const NAMES: usize = 4;

/// Describes the failure.
pub fn words(e: &Error) -> String {
    match e {
        Error::InvalidCertificate(e) => of_certificate(e),
        Error::AlertReceived(alert) => of_alert(*alert),
        Error::NoCertificatesPresented => "the service shows no certificate".into(),
        Error::InvalidMessage(_) => "the service does not speak TLS on this port".into(),
        Error::PeerIncompatible(_) => "the service offers no TLS version or cipher that is spoken here".into(),
        Error::DecryptError | Error::PeerSentOversizedRecord => "the service's answer was altered on the way".into(),
        _ => "the service breaks the rules of TLS".into(),
    }
}

/// What is wrong with the service's certificate.
fn of_certificate(e: &CertificateError) -> String {
    let at = |time: &UnixTime| Utc(time.as_secs());
    let reason = match e {
        CertificateError::ExpiredContext { not_after, .. } => format!("expired at {}", at(not_after)),
        CertificateError::NotValidYetContext { not_before, .. } => format!("is not valid before {}", at(not_before)),
        CertificateError::UnknownIssuer => "is not issued by ca_cert".into(),
        CertificateError::NotValidForNameContext { expected, presented } => other_name(expected, presented),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "is not for TLS servers: its extendedKeyUsage lacks serverAuth".into()
        }
        CertificateError::BadSignature => {
            return "the service's signature is wrong: its CA only has the name of ca_cert, or its key is another's"
                .into();
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { signature_algorithm_id: id, .. } => {
            format!("is signed by an algorithm that cannot be verified here: {}", certificate::name(id, None))
        }
        CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext {
            signature_algorithm_id: id,
            public_key_algorithm_id: key,
        } => format!("is signed by an algorithm that cannot be verified here: {}", certificate::name(id, Some(key))),
        CertificateError::Other(OtherError(e)) => of_webpki(e.downcast_ref()).into(),
        _ => MALFORMED.into(),
    };
    format!("the service's certificate {reason}")
}

const MALFORMED: &str = "is malformed";

fn of_webpki(e: Option<&webpki::Error>) -> &'static str {
    use webpki::Error::*;
    match e {
        Some(CaUsedAsEndEntity) => "is a CA's, and not in ca_cert itself",
        Some(EndEntityUsedAsCa) => "is issued by one that is not a CA's",
        Some(UnsupportedCertVersion) => "is of X.509 version 1",
        Some(UnsupportedCriticalExtension) => "has a critical extension that is unknown here",
        Some(NameConstraintViolation | PathLenConstraintViolated) => "breaks the constraints of its CA",
        _ => MALFORMED,
    }
}

/// Names as webpki gives them: `DnsName("localhost")`.
fn other_name(expected: &ServerName, presented: &[String]) -> String {
    let bare = |name: &String| {
        let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
        inner.trim_matches('"').to_owned()
    };
    let mut names: Vec<String> = presented.iter().take(NAMES).map(bare).collect();
    if presented.len() > NAMES {
        names.push("others".into());
    }
    let names = if names.is_empty() { "no host".into() } else { names.join(", ") };
    format!("is not for {}, but for {names}", expected.to_str())
}

/// Why the service refused the connection (RFC 8446, 6.2).
fn of_alert(alert: AlertDescription) -> String {
    use AlertDescription::*;
    let (name, reason) = match alert {
        UnknownCA => ("unknown_ca", "it does not know the CA of client_cert"),
        CertificateRequired | NoCertificate => ("certificate_required", "client_cert is not of a kind that it takes"),
        BadCertificate => ("bad_certificate", "it cannot use client_cert"),
        UnsupportedCertificate => ("unsupported_certificate", "client_cert is not of a kind that it takes"),
        CertificateRevoked => ("certificate_revoked", "client_cert is revoked"),
        CertificateExpired => ("certificate_expired", "client_cert has expired by its clock"),
        CertificateUnknown => ("certificate_unknown", "it does not accept client_cert"),
        AccessDenied => ("access_denied", "client_cert is valid and has no right there"),
        DecryptError => ("decrypt_error", "client_cert is not from the CA that it knows by this name"),
        HandshakeFailure => ("handshake_failure", "it found nothing in common, or wants another certificate"),
        InsufficientSecurity => ("insufficient_security", "it wants other ciphers"),
        ProtocolVersion => ("protocol_version", "it speaks neither TLS 1.2 nor TLS 1.3"),
        UnrecognisedName => ("unrecognized_name", "it does not serve this host name"),
        InternalError => ("internal_error", "it failed by itself"),
        other => return format!("the service refused the connection (alert {})", u8::from(other)),
    };
    format!("the service refused the connection ({name}): {reason}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{InvalidMessage, PeerIncompatible, PeerMisbehaved};

    use super::*;

    fn webpki(e: webpki::Error) -> Error {
        CertificateError::Other(OtherError(Arc::new(e))).into()
    }

    /// One of each failure that a user can meet.
    fn failures() -> Vec<Error> {
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_764_000_000));
        let expected = ServerName::try_from("localhost").unwrap();
        let sha512 = vec![0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4];
        let p521 = vec![0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 0x06, 5, 0x2b, 0x81, 4, 0, 0x23];
        let mut all: Vec<Error> = vec![
            CertificateError::ExpiredContext { time, not_after: time }.into(),
            CertificateError::NotValidYetContext { time, not_before: time }.into(),
            CertificateError::UnknownIssuer.into(),
            CertificateError::NotValidForNameContext { expected, presented: vec!["DnsName(\"a.example\")".into()] }
                .into(),
            CertificateError::InvalidPurpose.into(),
            CertificateError::BadSignature.into(),
            CertificateError::BadEncoding.into(),
            CertificateError::UnsupportedSignatureAlgorithmContext {
                signature_algorithm_id: sha512.clone(),
                supported_algorithms: Vec::new(),
            }
            .into(),
            CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext {
                signature_algorithm_id: sha512,
                public_key_algorithm_id: p521,
            }
            .into(),
            webpki(webpki::Error::CaUsedAsEndEntity),
            webpki(webpki::Error::EndEntityUsedAsCa),
            webpki(webpki::Error::UnsupportedCertVersion),
            webpki(webpki::Error::UnsupportedCriticalExtension),
            webpki(webpki::Error::NameConstraintViolation),
            webpki(webpki::Error::SignatureAlgorithmMismatch),
            Error::NoCertificatesPresented,
            Error::InvalidMessage(InvalidMessage::InvalidContentType),
            Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon),
            Error::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedCipherSuite),
            Error::DecryptError,
        ];
        all.extend((0..=u8::MAX).map(|number| Error::AlertReceived(number.into())));
        all
    }

    /// The rows of a page's table: the text in backquotes that begins each line, split at its placeholders.
    fn rows(page: &str) -> Vec<Vec<&str>> {
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `the service")?.split_once("` |"));
        let rows: Vec<Vec<&str>> = rows.map(|(words, _)| words.split('…').collect()).collect();
        assert!(rows.len() > 20, "the table is not found");
        rows
    }

    fn stands_in(told: &str, row: &[&str]) -> bool {
        let mut rest = told.strip_prefix("the service").unwrap_or_default();
        for (i, piece) in row.iter().enumerate() {
            match rest.find(piece) {
                Some(at) if i > 0 || at == 0 => rest = &rest[at + piece.len()..],
                _ => return false,
            }
        }
        rest.is_empty() || row.last() == Some(&"")
    }

    #[test]
    fn every_tls_failure_has_its_line_in_both_pages_on_trouble_and_every_line_its_failure() {
        let pages = [
            ("docs/TROUBLE.md", include_str!("../../docs/TROUBLE.md")),
            ("docs/TROUBLE.zh.md", include_str!("../../docs/TROUBLE.zh.md")),
        ];
        for (name, page) in pages {
            let rows = rows(page);
            let mut met = vec![false; rows.len()];
            for failure in failures() {
                let told = words(&failure);
                let lines: Vec<usize> = (0..rows.len()).filter(|&i| stands_in(&told, &rows[i])).collect();
                assert_eq!(lines.len(), 1, "{name} has {} lines for: {told}", lines.len());
                met[lines[0]] = true;
            }
            for (row, met) in rows.iter().zip(met) {
                assert!(met, "{name} has a line that nothing prints: {row:?}");
            }
        }
    }

    #[test]
    fn no_failure_is_told_in_the_words_of_rust() {
        for failure in failures() {
            let told = words(&failure);
            for rust in ["Error", "Context", "Some(", "{", "DnsName", "[", "\""] {
                assert!(!told.contains(rust), "{told}");
            }
        }
    }

    #[test]
    fn what_is_unsupported_is_named_by_curve_and_hash_and_other_names_are_listed() {
        let told = failures().iter().map(words).collect::<Vec<_>>().join("\n");
        assert!(told.contains("ECDSA with SHA-512") && told.contains("ECDSA P-521 with SHA-512"), "{told}");
        let expected = ServerName::try_from("localhost").unwrap();
        let names: Vec<String> = (0..9).map(|i| format!("DnsName(\"{i}.example\")")).collect();
        let told = other_name(&expected, &names);
        assert_eq!(told, "is not for localhost, but for 0.example, 1.example, 2.example, 3.example, others");
    }
}
