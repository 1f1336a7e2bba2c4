//! What webpki does not expose of a certificate (RFC 5280, 4.1): its issuer, its signature's algorithm, its kind of key
//! and its permitted uses. That is what the certificate claims; nothing is verified here except a signature, on
//! request.

use rustls::pki_types::alg_id;

use super::cryptography::SIGNATURES;
use crate::der::{BIT_STRING, BOOLEAN, INTEGER, OBJECT, OCTET_STRING, SEQUENCE, element, take};

/// Context-specific: version, unique identifiers and extensions of a certificate; public half of an EC private key.
const VERSION: u8 = 0xa0;
const UNIQUE_IDS: [u8; 2] = [0x81, 0x82];
const EXTENSIONS: u8 = 0xa3;
const EC_PUBLIC: u8 = 0xa1;

/// Object identifiers: id-ce-keyUsage, -subjectAltName, -basicConstraints, -extKeyUsage; id-kp-serverAuth (RFC 5280,
/// 4.2.1); id-ecPublicKey (RFC 5480, 2.1.1).
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];

/// Sizes of RSA keys whose signatures can be verified, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The parts of a certificate.
pub struct Certificate<'a> {
    /// What is signed, in DER; the content of the signature's AlgorithmIdentifier; the signature.
    signed: &'a [u8],
    signature_algorithm: &'a [u8],
    signature: &'a [u8],
    /// Names: the content of each SEQUENCE.
    pub issuer: &'a [u8],
    /// The subject's name: the content of its SEQUENCE.
    pub subject: &'a [u8],
    /// The content of the key's AlgorithmIdentifier, and the key.
    key_algorithm: &'a [u8],
    key: &'a [u8],
    /// Whether it may sign other certificates: it is a CA's, and its keyUsage does not forbid it. A certificate of
    /// version 1 cannot say so.
    pub may_sign: bool,
    /// Whether it names a host and may be used by a TLS server.
    pub may_serve: bool,
}

impl<'a> Certificate<'a> {
    /// Takes a certificate in DER apart; `None` if it is not one.
    pub fn parse(mut der: &'a [u8]) -> Option<Certificate<'a>> {
        let mut outer = take(&mut der, SEQUENCE)?;
        let whole = outer;
        let mut tbs = take(&mut outer, SEQUENCE)?;
        let signed = &whole[..whole.len() - outer.len()];
        let signature_algorithm = take(&mut outer, SEQUENCE)?;
        let signature = take(&mut outer, BIT_STRING)?.strip_prefix(&[0])?;

        let is_version_1 = take(&mut tbs, VERSION).is_none();
        take(&mut tbs, INTEGER)?; // serial number
        take(&mut tbs, SEQUENCE)?; // the signature's algorithm once more
        let issuer = take(&mut tbs, SEQUENCE)?;
        take(&mut tbs, SEQUENCE)?; // validity
        let subject = take(&mut tbs, SEQUENCE)?;
        let mut public = take(&mut tbs, SEQUENCE)?;
        let key_algorithm = take(&mut public, SEQUENCE)?;
        let key = take(&mut public, BIT_STRING)?.strip_prefix(&[0])?;
        for id in UNIQUE_IDS {
            take(&mut tbs, id);
        }

        let (mut is_authority, mut signs, mut has_names, mut serves) = (is_version_1, true, false, true);
        let mut extensions = take(&mut tbs, EXTENSIONS).and_then(|mut list| take(&mut list, SEQUENCE)).unwrap_or(&[]);
        while let Some(mut extension) = take(&mut extensions, SEQUENCE) {
            let id = take(&mut extension, OBJECT)?;
            take(&mut extension, BOOLEAN); // critical
            let mut value = take(&mut extension, OCTET_STRING)?;
            match id {
                BASIC_CONSTRAINTS => is_authority = take(&mut take(&mut value, SEQUENCE)?, BOOLEAN) == Some(&[0xff]),
                // Bit 5, keyCertSign, after a byte that counts the unused bits.
                KEY_USAGE => signs = take(&mut value, BIT_STRING)?.get(1).is_some_and(|bits| bits & 0x04 != 0),
                SUBJECT_ALT_NAME => has_names = true,
                EXTENDED_KEY_USAGE => {
                    let mut purposes = take(&mut value, SEQUENCE)?;
                    serves = std::iter::from_fn(|| take(&mut purposes, OBJECT)).any(|purpose| purpose == SERVER_AUTH);
                }
                _ => {}
            }
        }
        Some(Certificate {
            signed,
            signature_algorithm,
            signature,
            issuer,
            subject,
            key_algorithm,
            key,
            may_sign: is_authority && signs,
            may_serve: has_names && serves,
        })
    }

    /// Whether the key of `issuer` made this certificate's signature; `None` where that cannot be verified here.
    pub fn is_signed_by(&self, issuer: &Certificate) -> Option<bool> {
        let algorithm = SIGNATURES.all.iter().find(|algorithm| {
            *algorithm.signature_alg_id() == *self.signature_algorithm
                && *algorithm.public_key_alg_id() == *issuer.key_algorithm
        })?;
        Some(algorithm.verify_signature(issuer.key, self.signed, self.signature).is_ok())
    }

    /// The algorithm of its signature, which the key of `issuer` made.
    pub fn signed_by(&self, issuer: &Certificate) -> String {
        name(self.signature_algorithm, Some(issuer.key_algorithm))
    }

    /// The kind of its key, if signatures of that kind cannot be verified.
    pub fn unknown_key(&self) -> Option<String> {
        let known = SIGNATURES.all.iter().any(|algorithm| *algorithm.public_key_alg_id() == *self.key_algorithm);
        match self.rsa_bits() {
            Some(bits) if !RSA_BITS.contains(&bits) => Some(format!("RSA of {bits} bits")),
            _ if known => None,
            _ if self.issuer == self.subject => Some(self.signed_by(self)),
            _ => Some(key_name(self.key_algorithm)),
        }
    }

    fn rsa_bits(&self) -> Option<usize> {
        if *self.key_algorithm != *alg_id::RSA_ENCRYPTION {
            return None;
        }
        let mut key = self.key;
        let modulus = take(&mut take(&mut key, SEQUENCE)?, INTEGER)?;
        let first = modulus.iter().position(|&b| b != 0)?;
        Some((modulus.len() - first) * 8 - modulus[first].leading_zeros() as usize)
    }

    /// Its public key as an uncompressed point (SEC 1, 2.3.3), if it is on the curve P-256 or P-384.
    pub fn point(&self) -> Option<&'a [u8]> {
        let lengths = [(alg_id::ECDSA_P256, 65), (alg_id::ECDSA_P384, 97)];
        let (_, length) = lengths.into_iter().find(|(id, _)| **id == *self.key_algorithm)?;
        (self.key.len() == length && self.key.starts_with(&[4])).then_some(self.key)
    }

    /// Whether its key is on an elliptic curve.
    pub fn has_elliptic_key(&self) -> bool {
        is_elliptic(self.key_algorithm)
    }
}

fn is_elliptic(mut algorithm: &[u8]) -> bool {
    take(&mut algorithm, OBJECT) == Some(EC_PUBLIC_KEY)
}

/// The secret number of an EC private key, from ECPrivateKey (RFC 5915, 3), plain or in PKCS#8 (RFC 5958, 2).
pub fn elliptic_secret(mut der: &[u8]) -> Option<&[u8]> {
    let mut key = take(&mut der, SEQUENCE)?;
    take(&mut key, INTEGER)?; // version, of either
    if let Some(algorithm) = take(&mut key, SEQUENCE) {
        let mut inner = take(&mut key, OCTET_STRING).filter(|_| is_elliptic(algorithm))?;
        key = take(&mut inner, SEQUENCE)?;
        take(&mut key, INTEGER)?;
    }
    take(&mut key, OCTET_STRING)
}

/// ECPrivateKey with this secret number and this uncompressed point. Some programs leave out the number's leading
/// zeros, or add one; here it has the length of its curve.
pub fn elliptic_key(secret: &[u8], point: &[u8]) -> Option<Vec<u8>> {
    let length = point.len() / 2;
    let secret = &secret[secret.iter().take_while(|&&b| b == 0).count()..];
    let zeros = length.checked_sub(secret.len())?;
    let secret = [&vec![0; zeros], secret].concat();
    let public = element(BIT_STRING, &[&[0], point]);
    Some(element(
        SEQUENCE,
        &[&element(INTEGER, &[&[1]]), &element(OCTET_STRING, &[&secret]), &element(EC_PUBLIC, &[&public])],
    ))
}

/// A signature's algorithm in words, by the contents of AlgorithmIdentifiers: `ECDSA P-521 with SHA-512`.
pub fn name(mut signature: &[u8], key: Option<&[u8]>) -> String {
    let id = take(&mut signature, OBJECT).unwrap_or_default();
    let Some((kind, hash)) = algorithm(id) else { return dotted(id) };
    let kind = match key {
        Some(key) if kind == "ECDSA" => key_name(key),
        _ => kind.to_owned(),
    };
    if hash.is_empty() { kind } else { format!("{kind} with {hash}") }
}

fn key_name(mut key: &[u8]) -> String {
    let id = take(&mut key, OBJECT).unwrap_or_default();
    if id != EC_PUBLIC_KEY {
        return algorithm(id).map_or_else(|| dotted(id), |(kind, _)| kind.to_owned());
    }
    // RFC 5480, 2.1.1.1; SEC 2, A.2.
    let curve = match take(&mut key, OBJECT).unwrap_or_default() {
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7] => "P-256",
        [0x2b, 0x81, 4, 0, 0x21] => "P-224",
        [0x2b, 0x81, 4, 0, 0x22] => "P-384",
        [0x2b, 0x81, 4, 0, 0x23] => "P-521",
        [0x2b, 0x81, 4, 0, 0x0a] => "secp256k1",
        other => return format!("ECDSA {}", dotted(other)),
    };
    format!("ECDSA {curve}")
}

/// Kind and hash of a signature's algorithm; of a key's the kind (RFC 5758, 3.2; RFC 8017, C; RFC 8410, 3; RFC 9881, 2).
fn algorithm(id: &[u8]) -> Option<(&'static str, &'static str)> {
    Some(match id {
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1] => ("ECDSA", "SHA-1"),
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, hash] => {
            ("ECDSA", ["SHA-224", "SHA-256", "SHA-384", "SHA-512"].get(usize::from(*hash).wrapping_sub(1))?)
        }
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, n] => match n {
            1 => ("RSA", ""),
            4 => ("RSA", "MD5"),
            5 => ("RSA", "SHA-1"),
            10 => ("RSA-PSS", ""),
            11 => ("RSA", "SHA-256"),
            12 => ("RSA", "SHA-384"),
            13 => ("RSA", "SHA-512"),
            14 => ("RSA", "SHA-224"),
            _ => return None,
        },
        [0x2b, 0x65, 0x70] => ("Ed25519", ""),
        [0x2b, 0x65, 0x71] => ("Ed448", ""),
        [0x2a, 0x86, 0x48, 0xce, 0x38, 4, 1] => ("DSA", ""),
        [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 3, 0x11..=0x13] => ("ML-DSA", ""),
        _ => return None,
    })
}

/// An object identifier as it is written, `OID 1.2.840.10045` (X.690, 8.19).
fn dotted(id: &[u8]) -> String {
    let mut text = "OID".to_owned();
    let mut number = 0_u64;
    for &b in id.iter().take(32) {
        number = number << 7 | u64::from(b & 0x7f);
        if b & 0x80 == 0 {
            let first = (number / 40).min(2);
            text += &if text == "OID" { format!(" {first}.{}", number - first * 40) } else { format!(".{number}") };
            number = 0;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_number_is_given_the_length_of_its_curve() {
        let point = [&[4][..], &[9; 64]].concat();
        let key = |secret: &[u8]| elliptic_key(secret, &point);
        let whole = key(&[7; 32]).unwrap();
        assert_eq!(elliptic_secret(&whole), Some(&[7; 32][..]));
        // As java.math.BigInteger writes a number whose first bit is set.
        assert_eq!(key(&[&[0][..], &[7; 32]].concat()), Some(whole));
        assert_eq!(elliptic_secret(&key(&[7; 30]).unwrap()), Some(&[&[0; 2][..], &[7; 30]].concat()[..]));
        assert_eq!(key(&[7; 33]), None);
    }

    #[test]
    fn a_point_has_the_length_of_its_curve() {
        let rcgen::CertifiedKey { cert, .. } = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let certificate = Certificate::parse(cert.der()).unwrap();
        assert_eq!(certificate.point().unwrap().len(), 65);
        for length in [0, 1, 64, 66, 97, 300] {
            let key = &[4; 300][..length];
            assert_eq!(Certificate { key, ..Certificate::parse(cert.der()).unwrap() }.point(), None, "{length}");
        }
    }

    #[test]
    fn the_secret_number_is_found_in_pkcs_8_and_in_no_key_of_another_kind() {
        let point = [&[4][..], &[9; 64]].concat();
        let inner = element(OCTET_STRING, &[&elliptic_key(&[7; 32], &point).unwrap()]);
        let pkcs8 = |id: &[u8]| {
            element(SEQUENCE, &[&element(INTEGER, &[&[0]]), &element(SEQUENCE, &[&element(OBJECT, &[id])]), &inner])
        };
        assert_eq!(elliptic_secret(&pkcs8(EC_PUBLIC_KEY)), Some(&[7; 32][..]));
        assert_eq!(elliptic_secret(&pkcs8(&[0x2b, 0x65, 0x70])), None, "Ed25519");
        let pkcs1 = element(SEQUENCE, &[&element(INTEGER, &[&[0]]), &element(INTEGER, &[&[7; 99]])]);
        assert_eq!(elliptic_secret(&pkcs1), None);
        for cut in 0..pkcs8(EC_PUBLIC_KEY).len() {
            assert_eq!(elliptic_secret(&pkcs8(EC_PUBLIC_KEY)[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn algorithms_are_named_and_unknown_ones_by_their_number() {
        let id = |id: &[u8]| element(OBJECT, &[id]);
        assert_eq!(name(&id(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1]), None), "ECDSA with SHA-1");
        assert_eq!(name(&id(&[0x2b, 0x65, 0x71]), None), "Ed448");
        assert_eq!(name(&id(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 99]), None), "OID 1.2.840.113549.1.1.99");
        assert_eq!(name(&id(&[0x88, 0x37, 3]), None), "OID 2.999.3");
        assert_eq!(key_name(&[&id(EC_PUBLIC_KEY)[..], &id(&[0x2b, 0x24, 3, 3])].concat()), "ECDSA OID 1.3.36.3.3");
        assert_eq!(key_name(&[]), "OID");
    }
}
