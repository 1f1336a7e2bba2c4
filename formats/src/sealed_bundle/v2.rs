//! A sealed bundle, version 2: signed by one operator or several, who see what it changes and need not see the secrets.
//!
//! A line of JSON, then the manifest, then the ciphertext. The line is `{"sealed_bundle_v2": {"boot_nonce", "counter",
//! "enc", "manifest", "ciphertext", "signatures"}}`, where `manifest` and `ciphertext` are `{"length", "sha256"}` of what
//! follows, so the enclave reads nothing past the line before its signatures verify.

use ring::error::Unspecified;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::json;
use serde_json::value::RawValue;

use super::Destination;
use crate::attestation::{BootNonce, BundleId};
use crate::base64;
use crate::digest::{Sha256, sha256};
use crate::hpke::{self, HpkeError, PrivateKey, PublicKey, Sender};
use crate::items::MAX_BUNDLE_V2;
use crate::object::{Keep, Object};
use crate::refusal::{Refusal, refuse};
use crate::signature::VerifyingKey;
use crate::state::Manifest;

/// The member that holds the line's content.
pub const SEALED: &str = "sealed_bundle_v2";
/// HPKE's info, and the prefix of what is signed: neither has a meaning elsewhere.
pub const PURPOSE: &[u8] = b"teemark sealed bundle v2";
/// Longest line, with its end, in bytes.
pub const MAX_LINE: usize = 16 << 10;

/// What the line says of the manifest, and of the ciphertext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Bytes.
    pub length: usize,
    /// Their SHA-256.
    pub sha256: Sha256,
}

/// A signature, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The operator's key.
    pub key: VerifyingKey,
    /// The signature of [`Line::to_be_signed`], 64 bytes.
    pub signature: Vec<u8>,
}

/// The line in front of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The boot that the bundle is for.
    pub boot_nonce: BootNonce,
    /// The operators' counter, above that of the last bundle in force.
    pub counter: u64,
    /// HPKE's encapsulated key.
    pub enc: PublicKey,
    /// The manifest.
    pub manifest: Part,
    /// The ciphertext.
    pub ciphertext: Part,
    /// The operators' signatures.
    pub signatures: Vec<Signed>,
}

impl Part {
    fn of(bytes: &[u8]) -> Part {
        Part { length: bytes.len(), sha256: sha256(bytes) }
    }

    fn is(self, bytes: &[u8]) -> bool {
        self == Part::of(bytes)
    }

    fn parse(name: &str, value: &RawValue) -> Result<Part, Refusal> {
        let field = field(name);
        let part = only(&field, value.get().as_bytes(), &["length", "sha256"])?;
        let length = part.get("length").and_then(|length| length.get().parse().ok());
        let sha256 = Sha256::from_hex(&part.text(&field, "sha256")?);
        match (length, sha256) {
            (Some(length), Some(sha256)) => Ok(Part { length, sha256 }),
            _ => refuse(field, "is not a length in bytes and a SHA-256 in hex"),
        }
    }
}

impl Signed {
    fn parse(value: &RawValue) -> Result<Signed, Refusal> {
        let field = field("signatures");
        let signed = only(&field, value.get().as_bytes(), &["key", "signature"])?;
        let bytes = |name| Ok(base64::decode(&signed.text(&field, name)?));
        let key = bytes("key")?.and_then(|bytes| VerifyingKey::from_slice(&bytes));
        match (key, bytes("signature")?) {
            (Some(key), Some(signature)) => Ok(Signed { key, signature }),
            _ => refuse(field, "hold one that is not base64 of a key and of a signature"),
        }
    }
}

/// An object with these members and no others.
fn only<'a>(field: &str, json: &'a [u8], names: &[&str]) -> Result<Object<'a>, Refusal> {
    let object = Object::parse(field, json, Keep::Named(names))?;
    match object.ignored.first() {
        Some(name) => refuse(field, format!("has a member that this version does not know: {name}")),
        None => Ok(object),
    }
}

/// A whole bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedBundle {
    /// The line.
    pub line: Line,
    /// The manifest, as JSON.
    pub manifest: Vec<u8>,
    /// The sealed bundle.
    pub ciphertext: Vec<u8>,
}

/// Seals a bundle, which has to be signed then: the operator's side.
///
/// # Errors
/// The system gave no random numbers.
pub fn seal(bundle: &[u8], manifest: &Manifest, to: &Destination, counter: u64) -> Result<SealedBundle, Unspecified> {
    seal_by(hpke::sender(&to.sealing_key, PURPOSE)?, bundle, manifest, to, counter).map_err(|_| Unspecified)
}

pub(crate) fn seal_by(
    (enc, mut sender): (PublicKey, Sender),
    bundle: &[u8],
    manifest: &Manifest,
    to: &Destination,
    counter: u64,
) -> Result<SealedBundle, HpkeError> {
    let (manifest, boot_nonce) = (manifest.to_json().into_bytes(), to.boot_nonce);
    let mut ciphertext = bundle.to_vec();
    sender.seal(&super::associated(&boot_nonce, counter), &mut ciphertext, 0)?;
    let (manifest_part, ciphertext_part) = (Part::of(&manifest), Part::of(&ciphertext));
    let line =
        Line { boot_nonce, counter, enc, manifest: manifest_part, ciphertext: ciphertext_part, signatures: Vec::new() };
    Ok(SealedBundle { line, manifest, ciphertext })
}

impl Line {
    /// Whether bytes that begin like this are a bundle of version 2, and not of version 1 or a plain one.
    pub fn is_one(line: &[u8]) -> bool {
        let after = |bytes: &[u8], token: &[u8]| bytes.trim_ascii_start().strip_prefix(token).map(<[u8]>::to_vec);
        after(line, b"{").and_then(|rest| after(&rest, b"\"sealed_bundle_v2\"")).is_some()
    }

    /// Parses the line.
    ///
    /// # Errors
    /// It is not such a line, or announces more than [`MAX_BUNDLE_V2`] bytes.
    pub fn parse(line: &[u8]) -> Result<Line, Refusal> {
        const MEMBERS: [&str; 6] = ["boot_nonce", "counter", "enc", "manifest", "ciphertext", "signatures"];
        let outer = only("line", line, &[SEALED])?;
        let Some(inner) = outer.get(SEALED) else { return refuse(SEALED, "is missing") };
        let inner = only(SEALED, inner.get().as_bytes(), &MEMBERS)?;
        let member = |name| inner.get(name).map_or_else(|| refuse(field(name), "is missing"), Ok);
        let Some(boot_nonce) = BootNonce::from_hex(&inner.text(SEALED, "boot_nonce")?) else {
            return refuse(field("boot_nonce"), "is not hex of 32 bytes");
        };
        let Ok(counter) = member("counter")?.get().parse() else {
            return refuse(field("counter"), "is not a whole number from 0 to 2^64 - 1");
        };
        let Some(enc) = PublicKey::from_base64(&inner.text(SEALED, "enc")?) else {
            return refuse(field("enc"), "is not base64 of a usable X25519 public key");
        };
        let part = |name| Part::parse(name, member(name)?);
        let (manifest, ciphertext) = (part("manifest")?, part("ciphertext")?);
        if manifest.length.saturating_add(ciphertext.length) > MAX_BUNDLE_V2 {
            return refuse(SEALED, format!("is larger than {MAX_BUNDLE_V2} bytes"));
        }
        let Ok(signatures) = serde_json::from_str::<Vec<&RawValue>>(member("signatures")?.get()) else {
            return refuse(field("signatures"), "is not a list");
        };
        let signatures = signatures.into_iter().map(Signed::parse).collect::<Result<_, _>>()?;
        Ok(Line { boot_nonce, counter, enc, manifest, ciphertext, signatures })
    }

    /// The line, with its end.
    pub fn to_json(&self) -> String {
        let part = |Part { length, sha256 }: Part| json!({"length": length, "sha256": sha256});
        let signed = |Signed { key, signature }: &Signed| json!({"key": base64::encode(key), "signature": base64::encode(signature)});
        let line = json!({SEALED: {
            "boot_nonce": self.boot_nonce,
            "counter": self.counter,
            "enc": base64::encode(self.enc),
            "manifest": part(self.manifest),
            "ciphertext": part(self.ciphertext),
            "signatures": self.signatures.iter().map(signed).collect::<Vec<_>>(),
        }});
        line.to_string() + "\n"
    }

    /// How many bytes follow the line.
    pub fn following(&self) -> usize {
        self.manifest.length + self.ciphertext.length
    }

    /// Identifies this bundle.
    pub fn id(&self) -> BundleId {
        BundleId { counter: self.counter, sha256: self.ciphertext.sha256 }
    }

    /// The bytes that an operator signs. All parts have a fixed length, so no two bundles give the same bytes.
    pub fn to_be_signed(&self) -> Vec<u8> {
        let length = |part: Part| (part.length as u64).to_be_bytes();
        [
            PURPOSE,
            self.boot_nonce.as_ref(),
            &self.counter.to_be_bytes(),
            self.enc.as_ref(),
            &length(self.manifest),
            self.manifest.sha256.as_ref(),
            &length(self.ciphertext),
            self.ciphertext.sha256.as_ref(),
        ]
        .concat()
    }

    /// The operators whose signatures are there and verify, each once, in the order of the list.
    pub fn signers(&self, operators: &[VerifyingKey]) -> Vec<VerifyingKey> {
        let signed = self.to_be_signed();
        let mut found: Vec<VerifyingKey> = Vec::new();
        // At most one verification for each key: a hostile line may have as many signatures as fit.
        for operator in operators {
            let by_them = self.signatures.iter().find(|signature| signature.key == *operator);
            if !found.contains(operator) && by_them.is_some_and(|by| operator.verifies(&signed, &by.signature)) {
                found.push(*operator);
            }
        }
        found
    }

    /// Checks that this many of these operators signed the line, and returns them.
    ///
    /// # Errors
    /// Fewer did.
    pub fn check_signatures(&self, operators: &[VerifyingKey], threshold: usize) -> Result<Vec<VerifyingKey>, Refusal> {
        let signers = self.signers(operators);
        Line::suffice(&signers, threshold).map(|()| signers)
    }

    /// Checks that so many operators are enough.
    ///
    /// # Errors
    /// They are not.
    pub fn suffice(signers: &[VerifyingKey], threshold: usize) -> Result<(), Refusal> {
        if signers.len() >= threshold && !signers.is_empty() {
            return Ok(());
        }
        let needed = match threshold {
            1 => "one by an operator whose key is in the image (TEEMARK_OPERATOR_KEYS) is needed".to_owned(),
            n => format!(
                "{n} by different operators whose keys are in the image are needed (TEEMARK_OPERATOR_THRESHOLD): teemark \
                 sign adds one"
            ),
        };
        refuse(field("signatures"), format!("hold {} that verify; {needed}", signers.len()))
    }

    /// Adds an operator's signature, in place of an earlier one.
    pub fn sign(&mut self, operator: &Ed25519KeyPair) {
        let key = VerifyingKey::from_slice(operator.public_key().as_ref()).expect("an Ed25519 key has 32 bytes");
        let signature = operator.sign(&self.to_be_signed()).as_ref().to_vec();
        self.signatures.retain(|other| other.key != key);
        self.signatures.push(Signed { key, signature });
    }
}

impl SealedBundle {
    /// Takes a whole bundle apart.
    ///
    /// # Errors
    /// As [`Line::parse`] and [`SealedBundle::complete`].
    pub fn parse(bytes: &[u8]) -> Result<SealedBundle, Refusal> {
        let end = bytes.iter().take(MAX_LINE).position(|byte| *byte == b'\n');
        let Some(end) = end else { return refuse(SEALED, format!("has no line end within {MAX_LINE} bytes")) };
        let (line, rest) = bytes.split_at(end + 1);
        SealedBundle::complete(Line::parse(line)?, rest.to_vec())
    }

    /// Takes apart what follows a line.
    ///
    /// # Errors
    /// It is not what the line says.
    pub fn complete(line: Line, mut rest: Vec<u8>) -> Result<SealedBundle, Refusal> {
        if rest.len() != line.following() {
            let said = line.following();
            return refuse(SEALED, format!("has {} bytes after its line, which says {said}", rest.len()));
        }
        let manifest: Vec<u8> = rest.drain(..line.manifest.length).collect();
        for (name, part, bytes) in [("manifest", line.manifest, &manifest), ("ciphertext", line.ciphertext, &rest)] {
            if !part.is(bytes) {
                return refuse(field(name), "is not the one that the line names");
            }
        }
        Ok(SealedBundle { line, manifest, ciphertext: rest })
    }

    /// The bundle as it is sent and kept in files.
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.line.to_json().as_bytes(), &self.manifest, &self.ciphertext].concat()
    }

    /// Opens the bundle: the enclave's side. The buffer of the ciphertext then holds the bundle.
    ///
    /// # Errors
    /// It was not sealed to this key.
    pub fn open(self, sealing_key: &PrivateKey) -> Result<Vec<u8>, Refusal> {
        let associated = super::associated(&self.line.boot_nonce, self.line.counter);
        let recipient = hpke::recipient(&self.line.enc, PURPOSE, sealing_key);
        super::open_ciphertext(recipient, &associated, self.ciphertext, field)
    }
}

/// A member's name as refusals give it.
pub fn field(name: &str) -> String {
    format!("{SEALED}.{name}")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::state::Items;

    fn operator(byte: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[byte; 32]).unwrap()
    }

    fn public(pair: &Ed25519KeyPair) -> VerifyingKey {
        VerifyingKey::from_slice(pair.public_key().as_ref()).unwrap()
    }

    fn key(byte: u8) -> PrivateKey {
        PrivateKey::new(Box::new([byte; 32]))
    }

    fn sealed() -> SealedBundle {
        let to = Destination { sealing_key: key(5).public(), boot_nonce: BootNonce::from_bytes([3; 32]) };
        let manifest = Manifest { complete_at: None, from: sha256(b"a state"), items: Items::new() };
        seal(b"a bundle", &manifest, &to, 7).unwrap()
    }

    fn signed(by: &[u8]) -> SealedBundle {
        let mut sealed = sealed();
        by.iter().for_each(|byte| sealed.line.sign(&operator(*byte)));
        sealed
    }

    #[test]
    fn what_operators_seal_and_sign_the_enclave_opens() {
        let sealed = signed(&[1, 2]);
        let bytes = sealed.to_bytes();
        assert!(Line::is_one(&bytes) && !bytes.windows(8).any(|part| part == b"a bundle"));
        let read = SealedBundle::parse(&bytes).unwrap();
        assert_eq!(read, sealed);
        assert_eq!(read.line.id().sha256, sha256(&sealed.ciphertext));
        assert_eq!(Manifest::parse(&read.manifest).unwrap().from, sha256(b"a state"));
        assert_eq!(read.clone().open(&key(5)).unwrap(), b"a bundle");
        assert_eq!(read.open(&key(6)).unwrap_err().field, "sealed_bundle_v2.ciphertext");
    }

    #[test]
    fn a_key_that_is_listed_or_signs_twice_counts_once_and_a_strangers_does_not() {
        let [one, two] = [1, 2].map(|byte| public(&operator(byte)));
        let check = |by: &[u8], operators: &[VerifyingKey], threshold| {
            signed(by).line.check_signatures(operators, threshold).map(|signers| signers.len()).ok()
        };
        assert_eq!(check(&[1, 2], &[one, two], 2), Some(2));
        assert_eq!(check(&[1], &[one, two], 1), Some(1));
        assert_eq!(check(&[1, 1], &[one, two], 2), None);
        assert_eq!(check(&[1], &[one, one], 2), None);
        assert_eq!(check(&[1, 9], &[one, two], 2), None);
        assert_eq!(check(&[], &[one, two], 1), None);
        assert_eq!(check(&[1], &[], 1), None);
        let mut twice = signed(&[1]);
        twice.line.signatures.push(twice.line.signatures[0].clone());
        assert!(twice.line.check_signatures(&[one, two], 2).unwrap_err().reason.contains("hold 1 that verify"));
    }

    #[test]
    fn nothing_in_the_line_or_after_it_can_be_altered() {
        let whole = signed(&[1]);
        let operators = [public(&operator(1))];
        let accepted = |bytes: &[u8]| {
            SealedBundle::parse(bytes).and_then(|sealed| sealed.line.check_signatures(&operators, 1).map(|_| sealed))
        };
        let bytes = whole.to_bytes();
        accepted(&bytes).unwrap();
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            assert!(accepted(&altered).is_err(), "byte {at}");
            assert!(accepted(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert!(accepted(&[&bytes[..], b"x"].concat()).is_err());
    }

    #[test]
    fn a_line_with_a_member_that_is_missing_unknown_or_too_large_is_refused_without_quoting_it() {
        let whole: Value = serde_json::from_str(&signed(&[1]).line.to_json()).unwrap();
        let members: Vec<String> = whole[SEALED].as_object().unwrap().keys().cloned().collect();
        for member in members {
            let mut missing = whole.clone();
            missing[SEALED].as_object_mut().unwrap().remove(&member);
            assert!(Line::parse(missing.to_string().as_bytes()).is_err(), "{member}");
        }
        let with = |member: &str, value: Value| {
            let mut line = whole.clone();
            line[SEALED][member] = value;
            Line::parse(line.to_string().as_bytes()).unwrap_err()
        };
        let unknown = with("expires", json!("a secret")).reason;
        assert!(unknown.contains("does not know: expires") && !unknown.contains("secret"), "{unknown}");
        assert_eq!(with("enc", base64::encode([0; 32]).into()).field, "sealed_bundle_v2.enc");
        let part = |length: usize| json!({"length": length, "sha256": Sha256::default()});
        assert!(with("ciphertext", part(MAX_BUNDLE_V2)).reason.contains("larger"));
        assert!(with("manifest", part(usize::MAX)).reason.contains("larger"));
        for other in [&b"{\"sealed_bundle\":{}}"[..], b"{\"FILE_KEYS\":{}}", b"sealed_bundle_v2", b""] {
            assert!(!Line::is_one(other));
        }
        assert!(Line::is_one(b" { \"sealed_bundle_v2\" : {"));
    }
}
