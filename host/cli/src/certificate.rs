//! What can be told about a certificate or key file before the daemon checks it in full: is it one, in a form that
//! the daemon takes, and not the other one of the two.

use std::path::Path;

use anyhow::{Context, Result, bail};
use x509_parser::prelude::{FromDer, X509Certificate};
use formats::time::Utc;

use crate::terminal::say;

/// Largest file taken, in bytes: a bundle of 1 MiB holds three of them in base64.
const LARGEST: u64 = 256 << 10;

/// From how long before a certificate's end on it is warned of, in seconds.
const SOON: u64 = 30 * 86_400;

/// Whether certificates are those of authorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// They are a chain: each has to be valid.
    No,
    /// They are roots: one that is valid is enough, as while a CA is replaced.
    Yes,
}

/// What a file is expected to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Certificates,
    PrivateKey,
}

/// Reads a PEM or DER file whole, as it is. `option` names it in errors.
///
/// # Errors
/// It cannot be read, holds neither form, or something else than `content`; no message repeats any of it.
pub fn read(path: &Path, option: &str, content: Content) -> Result<Vec<u8>> {
    let what = || format!("{option} {}", path.display());
    let found = std::fs::metadata(path).with_context(|| format!("cannot read {}", what()))?;
    if found.len() > LARGEST {
        bail!("{} is larger than 256 KiB, so it is no certificate or key file", what());
    }
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", what()))?;
    check(&bytes, content).with_context(what)?;
    Ok(bytes)
}

/// Reads certificates and looks at their dates, as the daemon will; warns of those that end soon.
///
/// # Errors
/// As [`read`]; none of the authorities, or not all of a chain, are valid now.
pub fn read_valid(path: &Path, option: &str, authority: Authority) -> Result<Vec<u8>> {
    let bytes = read(path, option, Content::Certificates)?;
    let what = || format!("{option} {}", path.display());
    if let Some(warning) = check_dates(&bytes, authority, Utc::now()).with_context(what)? {
        say(format_args!("warning: {}: {warning}", what()));
    }
    Ok(bytes)
}

/// Warns of certificates that end soon or have ended. `what` names them.
pub fn warn(bytes: &[u8], authority: Authority, what: &str) {
    match check_dates(bytes, authority, Utc::now()) {
        Ok(None) => {}
        Ok(Some(warning)) => say(format_args!("warning: {what}: {warning}")),
        Err(error) => say(format_args!("warning: {what}: {error:#}")),
    }
}

/// Gives what is to be warned of. A certificate that cannot be read here is the daemon's to refuse.
fn check_dates(bytes: &[u8], authority: Authority, now: Utc) -> Result<Option<String>> {
    let blocks = pem::parse_many(bytes).unwrap_or_default();
    let certificates = blocks.iter().filter(|block| block.tag().ends_with("CERTIFICATE")).map(pem::Pem::contents);
    let certificates: Vec<&[u8]> = if blocks.is_empty() { vec![bytes] } else { certificates.collect() };
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
            "it ends at {ends}, in {} days, and then no file is marked any more; send the next one before",
            left / 86_400
        )
    }))
}

fn check(bytes: &[u8], content: Content) -> Result<()> {
    if bytes.is_empty() {
        bail!("the file is empty");
    }
    if is_der(bytes) {
        return Ok(());
    }
    // The parser passes over a block without its end, and its errors may repeat bytes of the file.
    let begun = bytes.split(|&b| b == b'\n').filter(|line| line.starts_with(b"-----BEGIN ")).count();
    let blocks = pem::parse_many(bytes).ok().filter(|blocks| blocks.len() >= begun);
    let Some(blocks) = blocks else { bail!("a PEM block in it is damaged or cut off") };
    let any = |end: &str| blocks.iter().any(|block| block.tag().ends_with(end));
    match content {
        _ if blocks.is_empty() => bail!("it is neither PEM (-----BEGIN …) nor DER"),
        Content::Certificates if any("CERTIFICATE") => Ok(()),
        Content::Certificates if any("PRIVATE KEY") => {
            bail!("it holds a private key and no certificate; are two files swapped?")
        }
        Content::Certificates => bail!("there is no CERTIFICATE block in it"),
        Content::PrivateKey if any("ENCRYPTED PRIVATE KEY") || encrypted(&blocks) => {
            bail!("the key has a passphrase, which the daemon cannot ask for; remove it with openssl pkey")
        }
        Content::PrivateKey if any("PRIVATE KEY") => Ok(()),
        Content::PrivateKey if any("CERTIFICATE") => {
            bail!("it holds a certificate and no private key; are two files swapped?")
        }
        Content::PrivateKey => bail!("there is no PRIVATE KEY block in it"),
    }
}

/// The older form of encryption: PEM headers (RFC 1421, 4.6.1.1) inside an RSA or EC key's block.
fn encrypted(blocks: &[pem::Pem]) -> bool {
    blocks.iter().any(|block| block.headers().get("Proc-Type").is_some_and(|kind| kind.contains("ENCRYPTED")))
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
        check(format!("{CERTIFICATE}{KEY}").as_bytes(), Content::PrivateKey).unwrap();
        check(&[0x30, 0x00], Content::Certificates).unwrap();
        check(&[&[0x30, 0x81, 0x80][..], &[0; 128]].concat(), Content::PrivateKey).unwrap();
    }

    #[test]
    fn the_wrong_one_of_the_two_is_called_swapped() {
        assert!(error(KEY, Content::Certificates).contains("swapped"));
        assert!(error(CERTIFICATE, Content::PrivateKey).contains("swapped"));
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
        assert!(error("\u{30}\u{1}", Content::Certificates).contains("neither PEM"));
        assert!(error(&CERTIFICATE[..50], Content::Certificates).contains("cut off"));
        assert!(error(&KEY.replace("EC PRIVATE", "EC"), Content::PrivateKey).contains("no PRIVATE KEY"));
    }
}
