//! Checks certificate and key files before the daemon checks them in full: reads them as the daemon does
//! ([`formats::pem`]), and looks at the dates of certificates.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use formats::certificates::Part;
use formats::time::Utc;
use formats::{base64, pem};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::terminal::say;

/// Largest file, in bytes: a bundle of 1 MiB holds three of them in base64.
const LARGEST: u64 = 256 << 10;

/// A certificate that expires within this many seconds is warned about.
const SOON: u64 = 30 * 86_400;

/// Whether certificates are those of authorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Authority {
    /// They are a chain: each has to be valid.
    No,
    /// They are roots: one valid root is enough, so that a CA can be replaced.
    Yes,
}

/// What a file is expected to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Certificates,
    PrivateKey,
}

/// Reads a PEM or DER file whole, as it is. `option` names it in errors.
///
/// # Errors
/// It cannot be read, has neither form, or does not hold `content`; no message repeats any of it.
pub(crate) fn read(path: &Path, option: &str, content: Content) -> Result<Vec<u8>> {
    let what = || format!("{option} {}", path.display());
    let found = std::fs::metadata(path).with_context(|| format!("cannot read {}", what()))?;
    if found.len() > LARGEST {
        bail!("{} is larger than 256 KiB, so it is not a certificate or key file", what());
    }
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", what()))?;
    check(&bytes, content).with_context(what)?;
    Ok(bytes)
}

/// Reads certificates and checks their dates, as the daemon will; warns of those that expire soon.
///
/// # Errors
/// As [`read`]; no authority, or not every certificate of a chain, is valid now.
pub(crate) fn read_valid(path: &Path, option: &str, authority: Authority) -> Result<Vec<u8>> {
    let bytes = read(path, option, Content::Certificates)?;
    let what = || format!("{option} {}", path.display());
    if let Some(warning) = check_dates(&bytes, authority, Utc::now()).with_context(what)? {
        say(format_args!("warning: {}: {warning}", what()));
    }
    Ok(bytes)
}

/// Warns of certificates that expire soon or have expired. `what` names them.
pub(crate) fn warn(bytes: &[u8], authority: Authority, what: &str) {
    match check_dates(bytes, authority, Utc::now()) {
        Ok(None) => {}
        Ok(Some(warning)) => say(format_args!("warning: {what}: {warning}")),
        Err(error) => say(format_args!("warning: {what}: {error:#}")),
    }
}

/// Returns a warning, if there is a reason for one. A certificate that cannot be read here is left to the daemon.
pub(crate) fn check_dates(bytes: &[u8], authority: Authority, now: Utc) -> Result<Option<String>> {
    let certificates = pem::certificates(Part::Certificate, as_sent(bytes).as_bytes());
    let certificates = certificates.map_err(|e| anyhow!("it {}", e.reason))?;
    let (mut first, mut last, mut invalid) = (None, None, None);
    for (at, der) in certificates.iter().enumerate() {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Ok(None) };
        let validity = certificate.validity();
        let [from, until] =
            [validity.not_before, validity.not_after].map(|time| Utc(time.timestamp().try_into().unwrap_or(0)));
        let n = at + 1;
        if now > until {
            invalid = invalid.or(Some(format!("certificate {n} expired at {until}")));
        } else if now < from {
            invalid =
                invalid.or(Some(format!("certificate {n} is not valid before {from}; is this machine's clock right?")));
        } else {
            first = first.min(Some(until)).or(Some(until));
            last = last.max(Some(until));
        }
    }
    let ends = match authority {
        Authority::No => first.filter(|_| invalid.is_none()),
        Authority::Yes => last,
    };
    let Some(ends) = ends else {
        bail!("{}", invalid.as_deref().unwrap_or("there is no certificate in it"));
    };
    let left = ends.0 - now.0;
    Ok((left < SOON).then(|| {
        format!(
            "it expires at {ends}, in {} days, and then no file can be marked; send a new one before",
            left / 86_400
        )
    }))
}

/// When the first of these certificates expires; `None` if one cannot be read.
pub(crate) fn earliest_end(chain: &[CertificateDer<'_>]) -> Option<Utc> {
    let ends = chain.iter().map(|der| {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(Utc(certificate.validity().not_after.timestamp().try_into().unwrap_or(0)))
    });
    ends.collect::<Option<Vec<_>>>()?.into_iter().min()
}

/// Checks that a private key is that of the first certificate. A kind of key that cannot be compared is left to the daemon.
///
/// # Errors
/// It is another's, as while a renewed pair is being written.
pub(crate) fn check_pair(chain: &[u8], key: &[u8]) -> Result<()> {
    let chain = pem::certificates(Part::Certificate, as_sent(chain).as_bytes()).map_err(|e| anyhow!("{e}"))?;
    let key = pem::private_key(as_sent(key).as_bytes()).map_err(|e| anyhow!("{e}"))?;
    let Ok(key) = rustls::crypto::ring::sign::any_supported_type(&key) else { return Ok(()) };
    match rustls::sign::CertifiedKey::new(chain, key).keys_match() {
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            bail!("{} is not the key of {}", Part::Key.name(), Part::Certificate.name())
        }
        _ => Ok(()),
    }
}

/// Checks what a file holds; no message repeats any of it.
///
/// # Errors
/// It is not `content`, or in neither form.
pub(crate) fn check(bytes: &[u8], content: Content) -> Result<()> {
    if bytes.is_empty() {
        bail!("the file is empty");
    }
    // The bundle has base64 of the file, so base64 in the file would be encoded twice.
    if !pem::is_pem(bytes) && !is_der(bytes) {
        bail!("it is neither PEM (-----BEGIN …) nor DER");
    }
    let sent = as_sent(bytes);
    let read = match content {
        Content::Certificates => pem::certificates(Part::Certificate, sent.as_bytes()).map(drop),
        Content::PrivateKey => pem::private_key(sent.as_bytes()).map(drop),
    };
    read.map_err(|e| anyhow!("it {}", e.reason))
}

/// A file's contents as the bundle has them.
pub(crate) fn as_sent(file: &[u8]) -> String {
    base64::encode(file)
}

/// Certificates and keys alike are one SEQUENCE (X.690, 8.9) that ends where the file ends.
fn is_der(bytes: &[u8]) -> bool {
    let (head, length) = match bytes {
        [0x30, length @ 0..=0x7f, ..] => (2, usize::from(*length)),
        [0x30, 0x81, a, ..] => (3, usize::from(*a)),
        [0x30, 0x82, a, b, ..] => (4, usize::from(u16::from_be_bytes([*a, *b]))),
        [0x30, 0x83, a, b, c, ..] => (5, u32::from_be_bytes([0, *a, *b, *c]) as usize),
        _ => return false,
    };
    bytes.len() == head + length
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &str = "a comment\n-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    const KEY: &str = "-----BEGIN EC PRIVATE KEY-----\nMAA=\n-----END EC PRIVATE KEY-----\n";

    fn error(text: &str, content: Content) -> String {
        check(text.as_bytes(), content).unwrap_err().to_string()
    }

    #[test]
    fn pem_and_der_of_the_right_kind_pass() {
        check(CERTIFICATE.as_bytes(), Content::Certificates).unwrap();
        check(KEY.as_bytes(), Content::PrivateKey).unwrap();
        check(&[0x30, 0x00], Content::Certificates).unwrap();
        check(&[&[0x30, 0x81, 0x80][..], &[0; 128]].concat(), Content::Certificates).unwrap();
    }

    #[test]
    fn the_wrong_one_of_the_two_is_named() {
        assert!(error(KEY, Content::Certificates).contains("EC PRIVATE KEY, where certificates belong"));
        assert!(error(CERTIFICATE, Content::PrivateKey).contains("CERTIFICATE, where a private key belongs"));
    }

    #[test]
    fn a_key_with_a_passphrase_is_told_apart() {
        let pkcs8 = KEY.replace("EC PRIVATE", "ENCRYPTED PRIVATE");
        let older = KEY.replacen("\nMAA=", "\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMAA=", 1);
        for text in [pkcs8, older] {
            assert!(error(&text, Content::PrivateKey).contains("passphrase"), "{text}");
        }
    }

    #[test]
    fn anything_else_is_neither() {
        assert!(error("", Content::PrivateKey).contains("empty"));
        assert!(error("hello", Content::Certificates).contains("neither PEM"));
        assert!(error("MAA=", Content::Certificates).contains("neither PEM"), "base64 would go out as base64 of it");
        assert!(error("\u{30}\u{1}", Content::Certificates).contains("neither PEM"));
        assert!(error(&CERTIFICATE[..50], Content::Certificates).contains("cut off"));
        assert!(error(&KEY.replace("EC PRIVATE", "PUBLIC"), Content::PrivateKey).contains("PUBLIC KEY, where"));
    }
}
