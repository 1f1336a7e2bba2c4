//! The tests' own Nitro module: a P-384 root, an issuer, a leaf, and documents signed with the leaf's key. The unit tests
//! of src/attest and the command line's tests share it, and each uses a part.
#![allow(dead_code)]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ciborium::Value;
use coset::{CborSerializable, CoseSign1, CoseSign1Builder, Header, HeaderBuilder, TaggedCborSerializable, iana};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P384_SHA384,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};

pub(crate) const IDENTITY: [u8; 32] = [0x11; 32];
pub(crate) const SEALING_KEY: [u8; 32] = [0x22; 32];
pub(crate) const ALLOW_LIST: [u8; 32] = [0x33; 32];
pub(crate) const COUNTER: u64 = 5;
pub(crate) const BOOT_NONCE: [u8; 32] = [0x44; 32];
pub(crate) const BUNDLE: [u8; 32] = [0x55; 32];
/// 2025-01-06T16:07:05Z
pub(crate) const MADE_AT_MS: u64 = 1_736_179_625_472;
pub(crate) const MODULE: &str = "i-0123456789abcdef0-enc0123456789abcdef";

/// The payload of a document: a CBOR map's members.
pub(crate) type Payload = Vec<(Value, Value)>;

/// The three certificates, before they are signed.
#[derive(Debug)]
pub(crate) struct Params {
    pub(crate) root: CertificateParams,
    pub(crate) issuer: CertificateParams,
    pub(crate) leaf: CertificateParams,
}

#[derive(Clone)]
pub(crate) struct Nsm {
    /// DER of the root and of the issuer below it.
    pub(crate) cabundle: Vec<Vec<u8>>,
    /// DER of the certificate that signs.
    pub(crate) certificate: Vec<u8>,
    /// PKCS#8 of its key.
    key: Vec<u8>,
}

impl Nsm {
    pub(crate) fn new() -> Nsm {
        Nsm::with(|_| {})
    }

    /// A module with certificates that `alter` has changed.
    pub(crate) fn with(alter: impl FnOnce(&mut Params)) -> Nsm {
        let mut params = Params {
            root: params("root", Some(BasicConstraints::Unconstrained), KeyUsagePurpose::KeyCertSign),
            issuer: params("issuer", Some(BasicConstraints::Constrained(0)), KeyUsagePurpose::KeyCertSign),
            leaf: params("leaf", None, KeyUsagePurpose::DigitalSignature),
        };
        alter(&mut params);
        let [root, issuer, leaf] = [(); 3].map(|()| KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap());
        let signer = Issuer::from_params(&params.root, &root);
        let cabundle = [params.root.self_signed(&root), params.issuer.signed_by(&issuer, &signer)];
        let certificate = params.leaf.signed_by(&leaf, &Issuer::from_params(&params.issuer, &issuer));
        Nsm {
            cabundle: cabundle.map(|certificate| der(certificate.unwrap())).to_vec(),
            certificate: der(certificate.unwrap()),
            key: leaf.serialize_der(),
        }
    }

    /// The document's payload for teemarkd: PCR0 to PCR2 hold 48 times 0xa0, 0xa1, 0xa2.
    pub(crate) fn payload(&self, nonce: &[u8]) -> Payload {
        let pcrs = (0..16).map(|index| (index.into(), bytes(&[if index < 3 { 0xa0 + index } else { 0 }; 48])));
        let text = |name: &str| Value::Text(name.to_owned());
        vec![
            (text("module_id"), text(MODULE)),
            (text("digest"), text("SHA384")),
            (text("timestamp"), MADE_AT_MS.into()),
            (text("pcrs"), Value::Map(pcrs.collect())),
            (text("certificate"), bytes(&self.certificate)),
            (text("cabundle"), Value::Array(self.cabundle.iter().map(|der| bytes(der)).collect())),
            (text("public_key"), bytes(&IDENTITY)),
            (text("user_data"), bytes(user_data().as_bytes())),
            (text("nonce"), bytes(nonce)),
        ]
    }

    /// The document with this payload, untagged as AWS' are.
    pub(crate) fn sign(&self, payload: Payload) -> Vec<u8> {
        self.envelope(cbor(Value::Map(payload)), es384()).to_vec().unwrap()
    }

    pub(crate) fn document(&self, nonce: &[u8]) -> Vec<u8> {
        self.sign(self.payload(nonce))
    }

    pub(crate) fn tagged(&self, nonce: &[u8]) -> Vec<u8> {
        self.envelope(cbor(Value::Map(self.payload(nonce))), es384()).to_tagged_vec().unwrap()
    }

    /// Any payload with any header, signed.
    pub(crate) fn envelope(&self, payload: Vec<u8>, header: Header) -> CoseSign1 {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &self.key, &random).unwrap();
        let sign = |message: &[u8]| key.sign(&random, message).unwrap().as_ref().to_vec();
        CoseSign1Builder::new().protected(header).payload(payload).create_signature(b"", sign).build()
    }
}

/// A document of QEMU's emulated NSM (hw/virtio/virtio-nsm.c): algorithm -1, zeros for certificates and signature.
pub(crate) fn qemu_document(nonce: &[u8]) -> Vec<u8> {
    let mut payload = Nsm::new().payload(nonce);
    set(&mut payload, "certificate", bytes(&[0; 64]));
    set(&mut payload, "cabundle", Value::Array(vec![bytes(&[0; 64])]));
    let header = Value::Map(vec![(1.into(), (-1).into())]);
    let parts = [bytes(&cbor(header)), Value::Map(vec![]), bytes(&cbor(Value::Map(payload))), bytes(&[0; 64])];
    cbor(Value::Array(parts.to_vec()))
}

/// A file of the registers that [`Nsm::payload`] has.
pub(crate) fn pcrs_file() -> String {
    (0..3).map(|index| format!("{} PCR{index}\n", format!("a{index}").repeat(48))).collect()
}

pub(crate) fn user_data() -> String {
    let [allow_list, boot_nonce, bundle] = [ALLOW_LIST, BOOT_NONCE, BUNDLE].map(hex::encode);
    let sealing_key = STANDARD.encode(SEALING_KEY);
    format!(
        r#"{{"version":1,"sealing_key":"{sealing_key}","allow_list_sha256":"{allow_list}","boot_nonce":"{boot_nonce}","counter":{COUNTER},"bundle_sha256":"{bundle}"}}"#
    )
}

pub(crate) fn es384() -> Header {
    HeaderBuilder::new().algorithm(iana::Algorithm::ES384).build()
}

/// Replaces a field's value.
pub(crate) fn set(payload: &mut Payload, name: &str, value: Value) {
    let field = payload.iter_mut().find(|(key, _)| key.as_text() == Some(name));
    field.unwrap_or_else(|| panic!("no field {name}")).1 = value;
}

pub(crate) fn bytes(bytes: &[u8]) -> Value {
    Value::Bytes(bytes.to_vec())
}

pub(crate) fn cbor(value: Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(&value, &mut bytes).unwrap();
    bytes
}

fn params(name: &str, ca: Option<BasicConstraints>, usage: KeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = ca.map_or(IsCa::ExplicitNoCa, IsCa::Ca);
    params.key_usages = vec![usage];
    params
}

fn der(certificate: Certificate) -> Vec<u8> {
    certificate.der().to_vec()
}
