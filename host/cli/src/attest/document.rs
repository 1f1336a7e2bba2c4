//! The attestation document: a COSE_Sign1 structure (RFC 9052, 4.2) around a CBOR map, with the fields and bounds of
//! "Verifying the root of trust" (<https://docs.aws.amazon.com/enclaves/latest/user/verify-root.html>) and of AWS'
//! longer text on it (aws-nitro-enclaves-nsm-api, docs/attestation_process.md).
//!
//! A parsed document is well formed, and no more than that: chain.rs checks who signed it.

use std::collections::BTreeMap;
use std::fmt;

use ciborium::Value;
use coset::{AsCborValue, CoseSign1, iana};

/// Largest document, in bytes; AWS' are below 5 KiB.
const LARGEST: usize = 64 << 10;
/// Largest payload, certificate and free field, in bytes.
const LARGEST_PAYLOAD: usize = 16 << 10;
const LARGEST_CERTIFICATE: usize = 1024;
const LARGEST_FREE: usize = 1024;
/// The CBOR tag of COSE_Sign1, which may be left out (RFC 9052, 2).
const COSE_SIGN1: u64 = 18;

/// What an attestation says, and the envelope that it came in.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    /// The Nitro module that made it: the parent's instance id and the enclave's.
    pub(crate) module_id: String,
    /// When it was made, in milliseconds since 1970.
    pub(crate) timestamp_ms: u64,
    /// The registers by number, 0 to 31.
    pub(crate) pcrs: BTreeMap<u8, Vec<u8>>,
    /// DER of the certificate whose key signed the document.
    pub(crate) certificate: Vec<u8>,
    /// DER of its issuers; the root comes first.
    pub(crate) cabundle: Vec<Vec<u8>>,
    /// The three free fields hold whatever the program in the enclave asked for.
    pub(crate) public_key: Option<Vec<u8>>,
    pub(crate) user_data: Option<Vec<u8>>,
    pub(crate) nonce: Option<Vec<u8>>,
    envelope: CoseSign1,
}

/// Whether a document has a signature to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signature {
    /// As every Nitro document has it: ES384.
    Real,
    /// As QEMU's emulated NSM has it (hw/virtio/virtio-nsm.c): algorithm -1, which is not assigned, and zeros in place of
    /// signature and certificates.
    Dummy,
}

/// Why bytes are not an attestation document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DocumentError {
    /// It has this many bytes.
    TooLarge(usize),
    /// It is not one CBOR value, to the last byte.
    NotCbor,
    /// It is CBOR, but not a COSE_Sign1.
    NotSign1,
    /// Its header names another algorithm than ES384, or none.
    Algorithm,
    /// Its header has parameters that must be understood (RFC 9052, 3.1: crit).
    Critical,
    /// It has no payload of 1 byte to 16 KiB, or the payload is not a map with unique names.
    Payload,
    /// A field of the payload is missing, or is not of this form.
    Field { name: &'static str, form: &'static str },
}

/// When a document says that it was made, in milliseconds since 1970; nothing of it is checked. `None`: it is not a document.
pub(crate) fn told_time_ms(bytes: &[u8]) -> Option<u64> {
    let parse = |signature| Document::parse(bytes, signature).ok();
    Some(parse(Signature::Real).or_else(|| parse(Signature::Dummy))?.timestamp_ms)
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DocumentError::TooLarge(bytes) => write!(f, "it has {bytes} bytes, and a document has at most 64 KiB"),
            DocumentError::NotCbor => f.write_str("it is not CBOR, or more follows it"),
            DocumentError::NotSign1 => f.write_str("it is CBOR, but not a COSE_Sign1"),
            DocumentError::Algorithm => f.write_str("its header does not name the algorithm ES384"),
            DocumentError::Critical => f.write_str("its header has critical parameters, and a Nitro document has none"),
            DocumentError::Payload => {
                f.write_str("its payload is not a CBOR map of at most 16 KiB with each name once")
            }
            DocumentError::Field { name, form } => write!(f, "{name} is missing, or is not {form}"),
        }
    }
}

impl std::error::Error for DocumentError {}

impl Document {
    /// Parses a document, tagged or not, and checks it against AWS' bounds.
    ///
    /// # Errors
    /// See [`DocumentError`].
    pub(crate) fn parse(bytes: &[u8], signature: Signature) -> Result<Document, DocumentError> {
        if bytes.len() > LARGEST {
            return Err(DocumentError::TooLarge(bytes.len()));
        }
        let envelope = open(bytes, signature)?;
        let payload = envelope.payload.as_deref().filter(|payload| payload.len() <= LARGEST_PAYLOAD);
        let mut fields = Fields::read(payload.ok_or(DocumentError::Payload)?)?;
        fields.take("digest", "SHA384", |value| value.into_text().ok().filter(|name| name == "SHA384"))?;
        Ok(Document {
            module_id: fields
                .take("module_id", "a text", |value| value.into_text().ok().filter(|id| !id.is_empty()))?,
            timestamp_ms: fields.take("timestamp", "a time in milliseconds after 1970", positive)?,
            pcrs: fields.take("pcrs", "1 to 32 registers 0 to 31 of 32, 48 or 64 bytes", registers)?,
            certificate: fields.take("certificate", "1 to 1024 bytes", certificate)?,
            cabundle: fields.take("cabundle", "a list of certificates of 1 to 1024 bytes", certificates)?,
            public_key: fields
                .optional("public_key", "1 to 1024 bytes", |value| free(value).filter(|key| !key.is_empty()))?,
            user_data: fields.optional("user_data", "at most 1024 bytes", free)?,
            nonce: fields.optional("nonce", "at most 1024 bytes", free)?,
            envelope,
        })
    }

    /// Gives `check` the bytes that are signed (the Sig_structure of RFC 9052, 4.4) and the signature.
    pub(crate) fn is_signed_by(&self, check: impl FnOnce(&[u8], &[u8]) -> bool) -> bool {
        check(&self.envelope.tbs_data(b""), &self.envelope.signature)
    }
}

fn open(bytes: &[u8], signature: Signature) -> Result<CoseSign1, DocumentError> {
    let mut value = match cbor(bytes).ok_or(DocumentError::NotCbor)? {
        Value::Tag(COSE_SIGN1, inner) => *inner,
        untagged => untagged,
    };
    if let (Signature::Dummy, Some([protected, ..])) = (signature, value.as_array_mut().map(Vec::as_mut_slice)) {
        // No signature is checked, so no algorithm is read; coset would not take QEMU's.
        *protected = Value::Bytes(Vec::new());
    }
    let envelope = CoseSign1::from_cbor_value(value).map_err(|_| DocumentError::NotSign1)?;
    let protected = &envelope.protected.header;
    let es384 = Some(coset::Algorithm::Assigned(iana::Algorithm::ES384));
    if signature == Signature::Real && protected.alg != es384 {
        return Err(DocumentError::Algorithm);
    }
    if !protected.crit.is_empty() || !envelope.unprotected.crit.is_empty() {
        return Err(DocumentError::Critical);
    }
    Ok(envelope)
}

/// The only CBOR value in these bytes.
fn cbor(mut bytes: &[u8]) -> Option<Value> {
    let value = ciborium::from_reader(&mut bytes).ok()?;
    bytes.is_empty().then_some(value)
}

/// The payload's fields by name. A field that AWS adds later is signed too, and is ignored here.
struct Fields(BTreeMap<String, Value>);

impl Fields {
    fn read(payload: &[u8]) -> Result<Fields, DocumentError> {
        let members = cbor(payload).and_then(|value| value.into_map().ok()).ok_or(DocumentError::Payload)?;
        let mut fields = BTreeMap::new();
        for (name, value) in members {
            let name = name.into_text().map_err(|_| DocumentError::Payload)?;
            if fields.insert(name, value).is_some() {
                return Err(DocumentError::Payload);
            }
        }
        Ok(Fields(fields))
    }

    fn take<T>(
        &mut self,
        name: &'static str,
        form: &'static str,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<T, DocumentError> {
        self.0.remove(name).and_then(read).ok_or(DocumentError::Field { name, form })
    }

    /// A field that may be left out or null: the NSM writes null for what was not asked for.
    fn optional<T>(
        &mut self,
        name: &'static str,
        form: &'static str,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<Option<T>, DocumentError> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.take(name, form, read).map(Some),
        }
    }
}

fn positive(value: Value) -> Option<u64> {
    value.into_integer().ok().and_then(|number| u64::try_from(number).ok()).filter(|&number| number > 0)
}

fn registers(value: Value) -> Option<BTreeMap<u8, Vec<u8>>> {
    let mut registers = BTreeMap::new();
    for (index, value) in value.into_map().ok()? {
        let index = index.into_integer().ok().and_then(|index| u8::try_from(index).ok()).filter(|&index| index < 32)?;
        let value = value.into_bytes().ok().filter(|value| matches!(value.len(), 32 | 48 | 64))?;
        if registers.insert(index, value).is_some() {
            return None;
        }
    }
    Some(registers).filter(|registers| !registers.is_empty())
}

fn certificate(value: Value) -> Option<Vec<u8>> {
    value.into_bytes().ok().filter(|der| (1..=LARGEST_CERTIFICATE).contains(&der.len()))
}

fn certificates(value: Value) -> Option<Vec<Vec<u8>>> {
    let list = value.into_array().ok().filter(|list| !list.is_empty())?;
    list.into_iter().map(certificate).collect()
}

fn free(value: Value) -> Option<Vec<u8>> {
    value.into_bytes().ok().filter(|bytes| bytes.len() <= LARGEST_FREE)
}
