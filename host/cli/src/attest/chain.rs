//! Checks the certificates of a document: from the trusted root, each signed by the one before it, to the one whose key
//! signed the document.
//!
//! rustls-webpki builds and checks the path: signatures, names, critical extensions, dates, CA flags, path lengths. It
//! trusts a root without looking at its dates and flags, ignores the key usage, and accepts issuers in any order. AWS
//! requires these checks too (attestation_process.md, 3.2.3), so they are made here with x509-parser.

use std::fmt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::bail;
use formats::digest::{Sha256, sha256};
use formats::time::Utc;
use ring::signature::{ECDSA_P384_SHA384_FIXED, VerificationAlgorithm};
use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm, UnixTime, alg_id,
};
use webpki::ring::ECDSA_P384_SHA384;
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificate::{self, Content};

/// The root certificate that is trusted, by the SHA-256 of its DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Root(Sha256);

impl Root {
    /// The AWS Nitro Enclaves root G1, of the commercial partitions, valid until 2049. The fingerprint is in
    /// "Verifying the root of trust" (<https://docs.aws.amazon.com/enclaves/latest/user/verify-root.html>); the
    /// certificate is in <https://aws-nitro-enclaves.amazonaws.com/AWS_NitroEnclaves_Root-G1.zip> and in every document.
    pub(crate) const AWS: Root = Root(Sha256::from_bytes([
        0x64, 0x1a, 0x03, 0x21, 0xa3, 0xe2, 0x44, 0xef, 0xe4, 0x56, 0x46, 0x31, 0x95, 0xd6, 0x06, 0x31, //
        0x7e, 0xd7, 0xcd, 0xcc, 0x3c, 0x17, 0x56, 0xe0, 0x98, 0x93, 0xf3, 0xc6, 0x8f, 0x79, 0xbb, 0x5b,
    ]));

    /// The root with this DER.
    pub(crate) fn of(der: &[u8]) -> Root {
        Root(sha256(der))
    }

    /// Reads the certificate that `--root` names, PEM or DER.
    ///
    /// # Errors
    /// It cannot be read, or is not one certificate.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Root> {
        let bytes = certificate::read(path, "--root", Content::Certificates)?;
        let blocks = pem::parse_many(&bytes).unwrap_or_default();
        match blocks.as_slice() {
            [] => Ok(Root::of(&bytes)),
            [block] => Ok(Root::of(block.contents())),
            _ => bail!("--root {} holds several PEM blocks; give the root certificate alone", path.display()),
        }
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The position of a certificate in the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    /// An issuer: its index in cabundle, where 0 is the root.
    Issuer(usize),
    /// The one whose key signed the document.
    Leaf,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Position::Issuer(index) => write!(f, "cabundle[{index}]"),
            Position::Leaf => f.write_str("certificate"),
        }
    }
}

/// Why the certificates are not to be trusted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ChainError {
    /// The document has this root, and another is trusted.
    Root(Root),
    /// This is not an X.509 certificate.
    Malformed(Position),
    /// This one is not valid before that time.
    NotYetValid(Position, Utc),
    /// This one expired at that time.
    Expired(Position, Utc),
    /// It is not made for its position: an issuer is not a CA, the leaf is one, or its key is for another use.
    Usage(Position),
    /// It allows fewer issuers below it than there are.
    PathLength(Position),
    /// They are not each signed by the one before.
    Path(webpki::Error),
    /// They are, but in another order, or some are not part of the path.
    Order,
}

impl fmt::Display for ChainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChainError::Root(found) => write!(
                f,
                "root: the document leads to the root certificate {found} (SHA-256), which is not the trusted one \
                 (that of --root, or by default AWS' for Nitro Enclaves)"
            ),
            ChainError::Malformed(position) => write!(f, "chain: {position} is not an X.509 certificate"),
            ChainError::NotYetValid(position, from) => {
                write!(f, "chain: {position} is not valid before {from}; is this machine's clock right?")
            }
            ChainError::Expired(position, until) => {
                write!(f, "chain: {position} expired at {until}; is the document old, or this machine's clock wrong?")
            }
            ChainError::Usage(position @ Position::Issuer(_)) => {
                write!(f, "chain: {position} is not made to sign certificates (CA flag, key usages)")
            }
            ChainError::Usage(Position::Leaf) => {
                f.write_str("chain: certificate is not made to sign a document (CA flag, key usages)")
            }
            ChainError::PathLength(position) => {
                write!(f, "chain: {position} allows fewer certificates below it than there are")
            }
            ChainError::Path(why) => {
                write!(f, "chain: the certificates are not each signed by the one before ({why})")
            }
            ChainError::Order => f.write_str("chain: the certificates are not in order, with the root first"),
        }
    }
}

impl std::error::Error for ChainError {}

/// The certificate at the end of a valid chain.
#[derive(Clone, Debug)]
pub(crate) struct TrustedLeaf(CertificateDer<'static>);

impl TrustedLeaf {
    /// Follows the chain from `cabundle[0]`, which must be `root`, to `leaf`. Every certificate must be valid at `now`.
    ///
    /// # Errors
    /// See [`ChainError`]; the first that fails is named.
    pub(crate) fn trust(
        cabundle: &[Vec<u8>],
        leaf: &[u8],
        root: Root,
        now: SystemTime,
    ) -> Result<TrustedLeaf, ChainError> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let found = cabundle.first().map(|der| Root::of(der)).ok_or(ChainError::Order)?;
        if found != root {
            return Err(ChainError::Root(found));
        }
        for (index, der) in cabundle.iter().enumerate() {
            look_at(der, Position::Issuer(index), cabundle.len() - 1 - index, now.as_secs())?;
        }
        look_at(leaf, Position::Leaf, 0, now.as_secs())?;

        let ders: Vec<_> = cabundle.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let leaf = CertificateDer::from(leaf);
        let anchors = [anchor_from_trusted_cert(&ders[0]).map_err(ChainError::Path)?];
        let end = EndEntityCert::try_from(&leaf).map_err(ChainError::Path)?;
        let (algorithms, time) = (&[ECDSA_P384_SHA384], UnixTime::since_unix_epoch(now));
        let path = end
            .verify_for_usage(algorithms, &anchors, &ders[1..], time, Settled, None, None)
            .map_err(ChainError::Path)?;
        if !path.intermediate_certificates().map(webpki::Cert::der).eq(ders[1..].iter().rev().cloned()) {
            return Err(ChainError::Order);
        }
        Ok(TrustedLeaf(leaf.into_owned()))
    }

    /// Whether this is an ES384 signature of `message`, in COSE's form.
    pub(crate) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        EndEntityCert::try_from(&self.0).is_ok_and(|leaf| leaf.verify_signature(&CoseEs384, message, signature).is_ok())
    }
}

/// Checks what webpki does not; `below` is the number of issuers between this certificate and the leaf. Dates are checked
/// here too, since webpki does not say which certificate is not valid.
fn look_at(der: &[u8], position: Position, below: usize, now: u64) -> Result<(), ChainError> {
    let malformed = |_| ChainError::Malformed(position);
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| ChainError::Malformed(position))?;
    if !rest.is_empty() {
        return Err(ChainError::Malformed(position));
    }
    let validity = certificate.validity();
    let [from, until] = [validity.not_before, validity.not_after].map(|time| time.timestamp().try_into().unwrap_or(0));
    if now < from {
        return Err(ChainError::NotYetValid(position, Utc(from)));
    }
    if now > until {
        return Err(ChainError::Expired(position, Utc(until)));
    }
    let usage = certificate.key_usage().map_err(malformed)?.map(|usage| usage.value);
    let constraints = certificate.basic_constraints().map_err(malformed)?.map(|constraints| constraints.value);
    let is_ca = constraints.is_some_and(|constraints| constraints.ca);
    let fits = match position {
        Position::Issuer(_) => is_ca && usage.is_some_and(|usage| usage.key_cert_sign()),
        Position::Leaf => !is_ca && usage.is_some_and(|usage| usage.digital_signature()),
    };
    // AWS' certificates have no extended key usage; one that has is for that use alone (RFC 5280, 4.2.1.12).
    if !fits || certificate.extended_key_usage().map_err(malformed)?.is_some() {
        return Err(ChainError::Usage(position));
    }
    match constraints.and_then(|constraints| constraints.path_len_constraint) {
        Some(allowed) if (allowed as usize) < below => Err(ChainError::PathLength(position)),
        _ => Ok(()),
    }
}

/// webpki asks what a path is for; [`look_at`] has checked that before.
struct Settled;

impl ExtendedKeyUsageValidator for Settled {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// ES384 as COSE has it (RFC 9053, 2.1): r and s in 48 bytes each, where a certificate has a DER SEQUENCE of the two.
#[derive(Debug)]
struct CoseEs384;

impl SignatureVerificationAlgorithm for CoseEs384 {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        ECDSA_P384_SHA384_FIXED.verify(key.into(), message.into(), signature.into()).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P384
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA384
    }
}
