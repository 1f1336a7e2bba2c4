//! Documents of the tests' own Nitro module, for cases of which there are no real documents.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ciborium::Value;
use coset::{CborSerializable, HeaderBuilder, RegisteredLabelWithPrivate, iana};
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, date_time_ymd};

use super::nsm::{self, Nsm, bytes, cbor, es384, set};
use crate::attest::chain::{ChainError, Position, Root};
use crate::attest::document::{Document, DocumentError, Signature};
use crate::attest::pcrs::PcrsError;
use crate::attest::verify::{AttestationError, Attested, Policy, verify};

const NONCE: [u8; 32] = [7; 32];

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(nsm::MADE_AT_MS)
}

fn policy(nsm: &Nsm) -> Policy {
    let registers: BTreeMap<_, _> = (0..3).map(|index| (index, vec![0xa0 + index; 48])).collect();
    Policy { pcrs: registers.into(), root: Root::of(&nsm.cabundle[0]), debug_mode: false, signature: Signature::Real }
}

fn check(nsm: &Nsm, document: &[u8]) -> Result<Attested, AttestationError> {
    verify(document, &NONCE, &policy(nsm), now())
}

/// Why a document is refused in which one field was changed.
fn refused(nsm: &Nsm, field: &str, value: Value) -> AttestationError {
    let mut payload = nsm.payload(&NONCE);
    set(&mut payload, field, value);
    check(nsm, &nsm.sign(payload)).unwrap_err()
}

fn chain_error(alter: impl FnOnce(&mut nsm::Params)) -> ChainError {
    let nsm = Nsm::with(alter);
    match check(&nsm, &nsm.document(&NONCE)) {
        Err(AttestationError::Chain(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_enclave_of_teemarkd_is_attested_with_its_keys() {
    let nsm = Nsm::new();
    for document in [nsm.document(&NONCE), nsm.tagged(&NONCE)] {
        let attested = check(&nsm, &document).unwrap();
        assert_eq!(attested.identity.as_ref(), nsm::IDENTITY);
        assert_eq!(attested.sealing_key.as_ref(), nsm::SEALING_KEY);
        assert_eq!(attested.allow_list_sha256.as_ref(), nsm::ALLOW_LIST);
        assert_eq!(attested.boot_nonce.as_ref(), nsm::BOOT_NONCE);
        assert_eq!((attested.module_id.as_str(), attested.timestamp_ms), (nsm::MODULE, nsm::MADE_AT_MS));
        assert_eq!((attested.pcrs.len(), attested.compared), (16, vec![0, 1, 2]));
    }
}

#[test]
fn teemarkds_own_fields_must_be_whole() {
    let nsm = Nsm::new();
    for key in [Value::Null, bytes(&[1; 31]), bytes(&[1; 33])] {
        assert_eq!(refused(&nsm, "public_key", key), AttestationError::Identity);
    }
    let good = nsm::user_data();
    for text in [
        good.replace("sealing_key", "sealing"),
        good.replace("IiIi", "IiI"),
        good.replace("IiIi", "Ii I"),
        good.replace("3333", "333"),
        good.replace("4444", "444x"),
        good.replace("boot_nonce", "nonce"),
        good.replace("\"version\":1,", ""),
        good.replace(",\"counter\":5", ""),
        good.replace("\"counter\":5", "\"counter\":\"5\""),
        good.replace("\"counter\":5", "\"counter\":-5"),
        good.replace("5555", "555"),
        good.replace("bundle_sha256", "bundle"),
        good.replace("}", ""),
        good.clone() + "x",
        String::new(),
    ] {
        assert_eq!(refused(&nsm, "user_data", bytes(text.as_bytes())), AttestationError::UserData, "{text}");
    }
    assert_eq!(refused(&nsm, "user_data", Value::Null), AttestationError::UserData);
    // A later version may have other members.
    assert_eq!(refused(&nsm, "user_data", bytes(br#"{"version":2}"#)), AttestationError::Version(2));
}

#[test]
fn a_document_for_another_nonce_or_of_another_image_is_refused() {
    let nsm = Nsm::new();
    assert_eq!(check(&nsm, &nsm.document(&[8; 32])), Err(AttestationError::Nonce));
    assert_eq!(refused(&nsm, "nonce", Value::Null), AttestationError::Nonce);
    let AttestationError::Pcrs(why) = refused(&nsm, "pcrs", Value::Map(vec![(0.into(), bytes(&[0xa1; 48]))])) else {
        panic!()
    };
    assert!(matches!(why, PcrsError::Differs { index: 0, .. }), "{why}");
    let zero = Value::Map((0..3).map(|index| (index.into(), bytes(&[0; 48]))).collect());
    assert_eq!(refused(&nsm, "pcrs", zero), AttestationError::Pcrs(PcrsError::DebugMode));
}

#[test]
fn the_enclave_in_debug_mode_is_attested_only_where_that_is_asked_for() {
    let nsm = Nsm::new();
    let mut payload = nsm.payload(&NONCE);
    set(&mut payload, "pcrs", Value::Map((0..3).map(|index| (index.into(), bytes(&[0; 48]))).collect()));
    let document = nsm.sign(payload);
    assert_eq!(check(&nsm, &document), Err(AttestationError::Pcrs(PcrsError::DebugMode)));
    let attested = verify(&document, &NONCE, &Policy { debug_mode: true, ..policy(&nsm) }, now()).unwrap();
    assert!(attested.in_debug_mode() && attested.compared.is_empty());
    assert!(!check(&nsm, &nsm.document(&NONCE)).unwrap().in_debug_mode());
}

#[test]
fn a_document_signed_with_another_key_is_refused() {
    let (nsm, other) = (Nsm::new(), Nsm::new());
    assert_eq!(check(&nsm, &other.sign(nsm.payload(&NONCE))), Err(AttestationError::Signature));
    // A signature in DER, as certificates have it, is not COSE's.
    let mut envelope = nsm.envelope(cbor(Value::Map(nsm.payload(&NONCE))), es384());
    envelope.signature.insert(0, 0x30);
    assert_eq!(check(&nsm, &envelope.to_vec().unwrap()), Err(AttestationError::Signature));
}

#[test]
fn a_root_of_the_same_name_is_not_the_root() {
    let (nsm, other) = (Nsm::new(), Nsm::new());
    let refused = verify(&other.document(&NONCE), &NONCE, &policy(&nsm), now()).unwrap_err();
    assert_eq!(refused, AttestationError::Chain(ChainError::Root(Root::of(&other.cabundle[0]))));
    // The right root does not help if the chain below it is not its own.
    let mut payload = other.payload(&NONCE);
    set(&mut payload, "cabundle", Value::Array(vec![bytes(&nsm.cabundle[0]), bytes(&other.cabundle[1])]));
    let refused = verify(&other.sign(payload), &NONCE, &policy(&nsm), now()).unwrap_err();
    assert!(matches!(refused, AttestationError::Chain(ChainError::Path(_))), "{refused}");
}

#[test]
fn a_chain_out_of_order_or_with_a_certificate_too_many_or_too_few_is_refused() {
    let nsm = Nsm::new();
    let [root, issuer] = [0, 1].map(|index| bytes(&nsm.cabundle[index]));
    let refused = |cabundle: &[&Value]| match refused(
        &nsm,
        "cabundle",
        Value::Array(cabundle.iter().map(|&der| der.clone()).collect()),
    ) {
        AttestationError::Chain(why) => why,
        other => panic!("{other}"),
    };
    assert_eq!(refused(&[&issuer, &root]), ChainError::Root(Root::of(&nsm.cabundle[1])));
    assert!(matches!(refused(&[&root]), ChainError::Path(_)));
    // The issuer allows no other issuer below it.
    assert_eq!(refused(&[&root, &issuer, &issuer]), ChainError::PathLength(Position::Issuer(1)));
    assert_eq!(refused(&[&root, &root, &issuer]), ChainError::Order);
}

#[test]
fn each_certificate_must_be_valid_at_the_time() {
    let (past, future) = (date_time_ymd(2025, 1, 1), date_time_ymd(2025, 2, 1));
    for place in [Position::Issuer(0), Position::Issuer(1), Position::Leaf] {
        let expired = chain_error(|params| of(params, place).not_after = past);
        assert!(matches!(expired, ChainError::Expired(named, _) if named == place), "{expired}");
        let early = chain_error(|params| of(params, place).not_before = future);
        assert!(matches!(early, ChainError::NotYetValid(named, _) if named == place), "{early}");
    }
}

fn of(params: &mut nsm::Params, place: Position) -> &mut rcgen::CertificateParams {
    match place {
        Position::Issuer(0) => &mut params.root,
        Position::Issuer(_) => &mut params.issuer,
        Position::Leaf => &mut params.leaf,
    }
}

#[test]
fn each_certificate_must_be_made_for_its_place() {
    for place in [Position::Issuer(0), Position::Issuer(1)] {
        assert_eq!(chain_error(|params| of(params, place).is_ca = IsCa::ExplicitNoCa), ChainError::Usage(place));
        assert_eq!(chain_error(|params| of(params, place).is_ca = IsCa::NoCa), ChainError::Usage(place));
    }
    let ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert_eq!(chain_error(|params| params.leaf.is_ca = ca), ChainError::Usage(Position::Leaf));
    for place in [Position::Issuer(0), Position::Issuer(1), Position::Leaf] {
        let without = chain_error(|params| of(params, place).key_usages = Vec::new());
        assert_eq!(without, ChainError::Usage(place));
        let other = chain_error(|params| of(params, place).key_usages = vec![KeyUsagePurpose::CrlSign]);
        assert_eq!(other, ChainError::Usage(place));
        let tls = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let extended = chain_error(|params| of(params, place).extended_key_usages = tls);
        assert_eq!(extended, ChainError::Usage(place));
    }
    let none = IsCa::Ca(BasicConstraints::Constrained(0));
    assert_eq!(chain_error(|params| params.root.is_ca = none), ChainError::PathLength(Position::Issuer(0)));
}

#[test]
fn a_critical_extension_that_nobody_knows_is_refused() {
    let mut unknown = rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
    unknown.set_criticality(true);
    let why = chain_error(|params| params.leaf.custom_extensions = vec![unknown]);
    assert!(matches!(why, ChainError::Path(_)), "{why}");
}

#[test]
fn what_is_no_certificate_is_called_so() {
    let nsm = Nsm::new();
    for der in [vec![0; 64], nsm.certificate[..100].to_vec(), [&nsm.certificate[..], &[0]].concat()] {
        assert_eq!(
            refused(&nsm, "certificate", bytes(&der)),
            AttestationError::Chain(ChainError::Malformed(Position::Leaf))
        );
    }
}

#[test]
fn fields_out_of_awss_bounds_are_named() {
    let nsm = Nsm::new();
    let pcrs = |index: i32, length| Value::Map(vec![(index.into(), bytes(&vec![1; length]))]);
    let twice = Value::Map([0, 0].map(|index| (index.into(), bytes(&[1; 48]))).to_vec());
    for (name, values) in [
        ("module_id", vec![Value::Text(String::new()), bytes(b"i-1"), Value::Null]),
        ("digest", vec![Value::Text("SHA256".to_owned()), Value::Null]),
        ("timestamp", vec![0.into(), (-1).into(), Value::Text("1".to_owned()), 1.5.into()]),
        ("pcrs", vec![pcrs(32, 48), pcrs(-1, 48), pcrs(0, 47), pcrs(0, 0), twice, Value::Map(vec![]), Value::Null]),
        ("certificate", vec![bytes(b""), bytes(&[0x30; 1025]), Value::Null]),
        ("cabundle", vec![Value::Array(vec![]), Value::Array(vec![bytes(b"")]), bytes(b"x"), Value::Null]),
        ("public_key", vec![bytes(b""), bytes(&[1; 1025]), Value::Text("key".to_owned())]),
        ("user_data", vec![bytes(&[1; 1025]), Value::Text("{}".to_owned())]),
        ("nonce", vec![bytes(&[1; 1025]), 1.into()]),
    ] {
        for value in values {
            let why = refused(&nsm, name, value.clone());
            let named =
                matches!(why, AttestationError::Document(DocumentError::Field { name: named, .. }) if named == name);
            assert!(named, "{name}: {value:?}: {why}");
        }
        if !["public_key", "user_data", "nonce"].contains(&name) {
            let payload = nsm.payload(&NONCE).into_iter().filter(|(key, _)| key.as_text() != Some(name)).collect();
            let why = check(&nsm, &nsm.sign(payload)).unwrap_err();
            assert!(why.to_string().contains(&format!("{name} is missing")), "{why}");
        }
    }
}

#[test]
fn a_field_that_aws_may_come_to_add_is_passed_over_and_a_repeated_one_refused() {
    let nsm = Nsm::new();
    let mut payload = nsm.payload(&NONCE);
    payload.push((Value::Text("new".to_owned()), Value::Null));
    check(&nsm, &nsm.sign(payload.clone())).unwrap();
    payload.push(payload[8].clone());
    assert_eq!(check(&nsm, &nsm.sign(payload)), Err(AttestationError::Document(DocumentError::Payload)));
}

#[test]
fn the_header_must_name_es384_and_ask_for_nothing_more() {
    let nsm = Nsm::new();
    let payload = cbor(Value::Map(nsm.payload(&NONCE)));
    let es256 = HeaderBuilder::new().algorithm(iana::Algorithm::ES256).build();
    let mut critical = es384();
    critical.crit.push(RegisteredLabelWithPrivate::Assigned(iana::HeaderParameter::Kid));
    for (header, why) in [
        (es256, DocumentError::Algorithm),
        (HeaderBuilder::new().build(), DocumentError::Algorithm),
        (critical.clone(), DocumentError::Critical),
    ] {
        let envelope = nsm.envelope(payload.clone(), header);
        assert_eq!(check(&nsm, &envelope.to_vec().unwrap()), Err(AttestationError::Document(why)));
    }
    let mut envelope = nsm.envelope(payload.clone(), es384());
    envelope.unprotected = critical;
    assert_eq!(check(&nsm, &envelope.to_vec().unwrap()), Err(AttestationError::Document(DocumentError::Critical)));
    // An algorithm that is not signed does not count.
    let mut envelope = nsm.envelope(payload, HeaderBuilder::new().build());
    envelope.unprotected = es384();
    assert_eq!(check(&nsm, &envelope.to_vec().unwrap()), Err(AttestationError::Document(DocumentError::Algorithm)));
}

#[test]
fn what_is_no_document_is_refused_without_a_panic() {
    let nsm = Nsm::new();
    let document = nsm.document(&NONCE);
    let parse = |bytes: &[u8]| Document::parse(bytes, Signature::Real).unwrap_err();
    for length in 0..document.len() {
        assert_eq!(parse(&document[..length]), DocumentError::NotCbor);
    }
    assert_eq!(parse(&[&document[..], &[0]].concat()), DocumentError::NotCbor);
    assert_eq!(parse(&[0x81; 60_000]), DocumentError::NotCbor);
    assert_eq!(parse(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), DocumentError::NotCbor);
    assert_eq!(parse(&[0; 65_537]), DocumentError::TooLarge(65_537));
    for value in [Value::Null, Value::Array(vec![]), Value::Map(vec![]), Value::Array(vec![Value::Null; 4])] {
        assert_eq!(parse(&cbor(value)), DocumentError::NotSign1);
    }
    let mut long = nsm.payload(&NONCE);
    long.push((Value::Text("long".to_owned()), bytes(&[0; 16_384])));
    for payload in [b"".to_vec(), b"\xa0\xa0".to_vec(), cbor(Value::Null), cbor(Value::Map(long))] {
        assert_eq!(parse(&nsm.envelope(payload, es384()).to_vec().unwrap()), DocumentError::Payload);
    }
    let mut detached = nsm.envelope(vec![], es384());
    detached.payload = None;
    assert_eq!(parse(&detached.to_vec().unwrap()), DocumentError::Payload);
}

#[test]
fn qemus_document_passes_only_where_its_dummy_signature_is_let_pass() {
    let document = nsm::qemu_document(&NONCE);
    let real = policy(&Nsm::new());
    assert_eq!(verify(&document, &NONCE, &real, now()), Err(AttestationError::Document(DocumentError::NotSign1)));
    let dummy = Policy { signature: Signature::Dummy, ..real };
    assert_eq!(verify(&document, &NONCE, &dummy, now()).unwrap().identity.as_ref(), nsm::IDENTITY);
    // The rest is checked as usual.
    assert_eq!(verify(&document, &[8; 32], &dummy, now()), Err(AttestationError::Nonce));
}
