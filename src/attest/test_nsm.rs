//! What stands in for the module on a machine without one.
//!
//! Its documents have the form of real ones and are really signed, by a root that this process makes: whoever is given
//! that root can try the whole way, and nobody who asks for AWS's is fooled. Its PCRs are zeros, since nothing was
//! measured, as those of a real enclave in debug mode are; a test may choose others ([`TEST_PCRS`]), and let its clock be
//! wrong ([`TEST_CLOCK`]). The root is made for the first document: its keys take as long as the rest of the daemon's start.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use formats::attestation::TEST_ROOT as ROOT;
use formats::digest::sha256;
use formats::time::{Utc, now_ms};
use log::warn;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{
    ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair,
};

use super::cbor::{encode, optional_claims};
use super::test_certificate::{Certificate, signed};
use super::{Claims, Nsm, NsmError};

/// The PCRs that a real document names, and their length: SHA-384's.
const PCRS: u8 = 16;
const PCR_LENGTH: usize = 48;
/// The environment variable with which a test chooses PCRs: `0=a0,3=b3` fills PCR0 with the byte a0 and PCR3 with b3.
const TEST_PCRS: &str = "TEEMARKD_TEST_PCRS";
/// The environment variable with which a test sets the module's clock ahead, by so many seconds.
const TEST_CLOCK: &str = "TEEMARKD_TEST_CLOCK";
/// A member that real documents lack, and readers ignore. With it a document has a little over 5 KiB, where real ones have
/// 4.4 to 4.8 KB, so that whatever has to take a real one takes it here too.
const PADDING: [u8; 3 << 10] = [0; 3 << 10];

/// A module that nobody should believe.
#[derive(Default)]
pub struct TestNsm(OnceLock<Result<Chain, NsmError>>);

/// A root, and a certificate under it with the key that signs.
struct Chain {
    root: Vec<u8>,
    leaf: Vec<u8>,
    leaf_key: EcdsaKeyPair,
}

impl TestNsm {
    fn chain(&self) -> Result<&Chain, NsmError> {
        self.0.get_or_init(|| Chain::new(SystemTime::now())).as_ref().map_err(Clone::clone)
    }
}

impl Chain {
    /// Certificates that are valid from an hour before `now` on.
    fn new(now: SystemTime) -> Result<Chain, NsmError> {
        let root_key = key(&ECDSA_P384_SHA384_ASN1_SIGNING)?;
        let leaf_key = key(&ECDSA_P384_SHA384_FIXED_SIGNING)?;
        let from = Utc(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().saturating_sub(3600));
        let issue = |subject, key: &EcdsaKeyPair, authority| {
            let certificate = Certificate { issuer: ROOT, subject, key: key.public_key().as_ref(), from, authority };
            let to_sign = certificate.to_be_signed();
            let signature = root_key.sign(&SystemRandom::new(), &to_sign).map_err(|_| cannot("sign"))?;
            Ok(signed(&to_sign, signature.as_ref()))
        };
        let root = issue(ROOT, &root_key, true)?;
        let leaf = issue(LEAF, &leaf_key, false)?;
        warn!("made a test root for attestation documents, its SHA-256: {}", hex::encode(sha256(&root)));
        Ok(Chain { root, leaf, leaf_key })
    }
}

/// What the documents call it.
const MODULE: &str = "test-without-nsm";
const LEAF: &str = "teemark without a Nitro Secure Module";

fn cannot(what: &str) -> NsmError {
    NsmError(format!("test root: cannot {what}"))
}

fn key(algorithm: &'static EcdsaSigningAlgorithm) -> Result<EcdsaKeyPair, NsmError> {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(|_| cannot("make a key"))?;
    EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).map_err(|_| cannot("make a key"))
}

/// The byte that fills a PCR.
fn chosen(index: u8, pcrs: &str) -> u8 {
    let mut given = pcrs.split(',').filter_map(|pair| pair.split_once('='));
    let byte = given.find(|(number, _)| number.parse() == Ok(index)).map(|(_, byte)| byte);
    byte.and_then(|byte| u8::from_str_radix(byte, 16).ok()).unwrap_or(0)
}

impl Nsm for TestNsm {
    fn document(&self, claims: &Claims<'_>) -> Result<Vec<u8>, NsmError> {
        let Chain { root, leaf, leaf_key } = self.chain()?;
        let pcrs = std::env::var(TEST_PCRS).unwrap_or_default();
        let ahead = std::env::var(TEST_CLOCK).ok().and_then(|seconds| seconds.parse::<u64>().ok()).unwrap_or(0);
        let payload = encode(|e| {
            e.map(10)?.str("module_id")?.str(MODULE)?.str("digest")?.str("SHA384")?;
            e.str("timestamp")?.u64(now_ms() + ahead * 1000)?;
            e.str("pcrs")?.map(PCRS.into())?;
            (0..PCRS).try_for_each(|i| e.u8(i)?.bytes(&[chosen(i, &pcrs); PCR_LENGTH]).map(drop))?;
            e.str("certificate")?.bytes(leaf)?.str("cabundle")?.array(1)?.bytes(root)?;
            e.str("padding")?.bytes(&PADDING)?;
            optional_claims(e, claims)
        });
        // {1: -35}: the algorithm is ES384 (RFC 9052, 3.1; RFC 9053, 2.1).
        let protected = encode(|e| e.map(1)?.u8(1)?.i8(-35).map(drop));
        // Sig_structure (RFC 9052, 4.4).
        let to_sign =
            encode(|e| e.array(4)?.str("Signature1")?.bytes(&protected)?.bytes(b"")?.bytes(&payload).map(drop));
        let signature = leaf_key.sign(&SystemRandom::new(), &to_sign).map_err(|_| cannot("sign"))?;
        Ok(encode(|e| e.array(4)?.bytes(&protected)?.map(0)?.bytes(&payload)?.bytes(signature.as_ref()).map(drop)))
    }

    fn random(&self, bytes: &mut [u8]) -> Result<(), NsmError> {
        SystemRandom::new().fill(bytes).map_err(|_| cannot("get random numbers"))
    }

    fn has_clock(&self) -> bool {
        false
    }

    fn test_root(&self) -> Result<Option<&[u8]>, NsmError> {
        self.chain().map(|chain| Some(&chain.root[..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::cbor;

    #[test]
    fn its_pcrs_are_zeros_unless_a_test_chooses_others() {
        let chosen = |pcrs: &str| [0, 1, 3].map(|index| chosen(index, pcrs));
        assert_eq!((chosen(""), chosen("0=a0,3=b3"), chosen("nonsense")), ([0; 3], [0xa0, 0, 0xb3], [0; 3]));
    }

    #[test]
    fn its_certificates_are_a_chain_that_webpki_follows() {
        use rustls::pki_types::{CertificateDer, UnixTime};
        let chain = Chain::new(SystemTime::now()).unwrap();
        let (root, leaf) = (CertificateDer::from(&chain.root[..]), CertificateDer::from(&chain.leaf[..]));
        let anchor = webpki::anchor_from_trusted_cert(&root).unwrap();
        let leaf = webpki::EndEntityCert::try_from(&leaf).unwrap();
        let verify = |time| {
            let algorithms = [webpki::ring::ECDSA_P384_SHA384];
            let usage = webpki::KeyUsage::client_auth();
            leaf.verify_for_usage(&algorithms, std::slice::from_ref(&anchor), &[], time, usage, None, None).map(drop)
        };
        verify(UnixTime::now()).unwrap();
        verify(UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_000_000_000))).unwrap_err();
    }

    #[test]
    fn its_documents_say_what_was_asked_and_that_they_are_none() {
        let claims = Claims { public_key: Some(&[7; 32]), user_data: Some(&[b'u'; 350]), nonce: Some(b"a nonce") };
        let document = TestNsm::default().document(&claims).unwrap();
        assert!(document.windows(7).any(|w| w == b"a nonce"));
        assert_eq!(cbor::module_and_time(&document).unwrap().0, MODULE);
        let length = document.len();
        assert!(
            (5 << 10..12 << 10).contains(&length),
            "not as large as a real one, or larger than one can be: {length}"
        );
    }
}
