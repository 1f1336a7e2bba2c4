//! Certificates and keys as people have them: PEM (RFC 7468), DER, or base64 of either.

use std::borrow::Cow;

use rustls_pemfile::Item;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::base64;
use crate::certificates::{Part, PartError, refuse};

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";

const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEYS: [&str; 3] = ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"];
/// `openssl ecparam -genkey` writes this block before an EC key. The key itself names the curve too.
const CURVE: &str = "EC PARAMETERS";
const LOCKED: &str = "ENCRYPTED PRIVATE KEY";
/// Other kinds of blocks that a refusal may name. Unknown names are not shown: they may be a secret in the wrong place.
const OTHERS: [&str; 10] = [
    "PUBLIC KEY",
    "CERTIFICATE REQUEST",
    "NEW CERTIFICATE REQUEST",
    "TRUSTED CERTIFICATE",
    "X509 CERTIFICATE",
    "X509 CRL",
    "PKCS7",
    "DH PARAMETERS",
    "DSA PRIVATE KEY",
    "OPENSSH PRIVATE KEY",
];

/// Parses all certificates of a part, at least one.
///
/// # Errors
/// It holds no certificate, or something else, or cannot be read completely.
pub fn certificates(part: Part, given: &[u8]) -> Result<Vec<CertificateDer<'static>>, PartError> {
    let bytes = decode(part, given)?;
    if !is_pem(&bytes) {
        return Ok(vec![CertificateDer::from(bytes)]);
    }
    let items = blocks(part, &bytes)?;
    Ok(items
        .into_iter()
        .filter_map(|item| if let Item::X509Certificate(der) = item { Some(der) } else { None })
        .collect())
}

/// Parses the one private key of client_key.
///
/// # Errors
/// It holds no key, several, or something else, or cannot be read.
pub fn private_key(given: &[u8]) -> Result<PrivateKeyDer<'static>, PartError> {
    let bytes = decode(Part::Key, given)?;
    if !is_pem(&bytes) {
        return PrivateKeyDer::try_from(bytes)
            .or_else(|_| refuse(Part::Key, "is not a private key in PKCS#8, PKCS#1 or SEC1"));
    }
    let mut keys = blocks(Part::Key, &bytes)?;
    match (keys.pop(), keys.len()) {
        (Some(Item::Pkcs1Key(key)), 0) => Ok(key.into()),
        (Some(Item::Pkcs8Key(key)), 0) => Ok(key.into()),
        (Some(Item::Sec1Key(key)), 0) => Ok(key.into()),
        (_, 0) => refuse(Part::Key, "is PEM without a private key"),
        (_, n) => refuse(Part::Key, format!("holds {} private keys, not one", n + 1)),
    }
}

/// The bytes that a part stands for: PEM or DER unchanged, or base64 of either, decoded.
fn decode(part: Part, given: &[u8]) -> Result<Vec<u8>, PartError> {
    const SEQUENCE: u8 = 0x30; // every certificate and key in DER begins with it (X.690, 8.9)
    let text = std::str::from_utf8(given);
    if is_pem(given) || given.first() == Some(&SEQUENCE) && text.is_err() {
        return Ok(given.to_owned());
    }
    match text.ok().and_then(base64::decode) {
        Some(bytes) if !bytes.is_empty() => Ok(bytes),
        Some(_) => refuse(part, "is empty"),
        None => refuse(part, "is neither PEM nor base64 of PEM or DER"),
    }
}

/// Whether the bytes contain a PEM block, or half of one.
pub fn is_pem(bytes: &[u8]) -> bool {
    bytes.windows(BEGIN.len()).any(|w| w == BEGIN.as_bytes())
}

/// Reads every block, wherever in a line it begins: where files without a final line end were joined, an end and a
/// beginning share a line. Text between blocks is ignored, unless it contains half a block.
fn blocks(part: Part, bytes: &[u8]) -> Result<Vec<Item>, PartError> {
    let (wanted, place) = match part {
        Part::Key => (&PRIVATE_KEYS[..], "a private key belongs"),
        _ => (&[CERTIFICATE][..], "certificates belong"),
    };
    let damaged = || refuse(part, "is PEM that is cut off or damaged");
    let text = String::from_utf8_lossy(bytes);
    let mut pieces = text.split(BEGIN);
    if pieces.next().is_some_and(|before| before.contains(END)) {
        return damaged();
    }
    let mut items = Vec::new();
    for piece in pieces {
        let Some((label, rest)) = piece.split_once(DASHES) else { return damaged() };
        let Some((body, rest)) = rest.split_once(END) else { return damaged() };
        let ended = rest.strip_prefix(label).and_then(|rest| rest.strip_prefix(DASHES));
        if ended.is_none_or(|after| after.contains(END)) {
            return damaged();
        }
        // PKCS#8 says so in its label, other formats in a header (RFC 1421, 4.6.1.1).
        if part == Part::Key && (label == LOCKED || body.contains("ENCRYPTED")) {
            return refuse(part, "is protected by a passphrase: give it without one (openssl pkey -in client.key)");
        }
        if part == Part::Key && label == CURVE {
            continue;
        }
        if !wanted.contains(&label) {
            return refuse(part, format!("holds {}, where {place}", shown(label)));
        }
        match rustls_pemfile::read_one_from_slice(strict(label, body).as_bytes()) {
            Ok(Some((item, _))) => items.push(item),
            _ => return damaged(),
        }
    }
    Ok(items)
}

fn shown(label: &str) -> Cow<'static, str> {
    let known =
        [CERTIFICATE, CURVE, LOCKED].into_iter().chain(PRIVATE_KEYS).chain(OTHERS).find(|known| *known == label);
    known.map_or("a PEM block of an unknown kind".into(), |known| format!("a PEM block {known}").into())
}

/// One block in the form that the parser expects: each label on its own line, no white space in the base64.
fn strict(label: &str, body: &str) -> String {
    let body: String = body.split_ascii_whitespace().collect();
    format!("{BEGIN}{label}{DASHES}\n{body}\n{END}{label}{DASHES}\n")
}

/// Writes certificates as PEM, in order.
pub fn of_certificates(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|c| armour(CERTIFICATE, c)).collect()
}

/// Writes a private key as PEM, labelled with its format.
pub fn of_key(key: &PrivateKeyDer<'_>) -> String {
    let label = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    armour(label, key.secret_der())
}

/// RFC 7468, section 2: base64 in lines of 64 characters between the labels.
fn armour(label: &str, der: &[u8]) -> String {
    let mut text = format!("{BEGIN}{label}{DASHES}\n");
    for line in base64::encode(der).as_bytes().chunks(64) {
        text.extend(line.iter().map(|&b| b as char));
        text.push('\n');
    }
    text + &format!("{END}{label}{DASHES}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_blocks_as_begin_are_read_whole_or_the_part_is_refused() {
        let text = armour(CERTIFICATE, &[1; 100]) + &armour(CERTIFICATE, &[2; 49]);
        let whole = certificates(Part::Authority, text.as_bytes()).unwrap();
        assert_eq!(whole.iter().map(|der| der.len()).collect::<Vec<_>>(), [100, 49]);
        let mut read = 0;
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed.remove(at);
            if let Ok(list) = certificates(Part::Authority, changed.as_bytes()) {
                assert_eq!(list, whole, "without the character {at}: {changed}");
                read += 1;
            }
        }
        assert_eq!(read, text.matches('\n').count(), "only a line end can be missed");
        for cut in 1..text.len() {
            match certificates(Part::Authority, &text.as_bytes()[..cut]) {
                Ok(list) => assert_eq!(list.len(), text[..cut].matches(BEGIN).count(), "cut at {cut}"),
                Err(e) => assert_eq!(e.part, Part::Authority),
            }
        }
    }

    #[test]
    fn a_label_that_may_be_a_secret_is_not_shown() {
        for (label, told) in [("PKCS7", "a PEM block PKCS7"), ("S3cret", "a PEM block of an unknown kind")] {
            let refusal = certificates(Part::Certificate, armour(label, &[1; 9]).as_bytes()).unwrap_err();
            assert_eq!(refusal.reason, format!("holds {told}, where certificates belong"));
        }
    }
}
