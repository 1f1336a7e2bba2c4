//! The little CBOR (RFC 8949) that the module speaks.
//!
//! Requests and answers are those of AWS's Nitro Secure Module API (crate aws-nitro-enclaves-nsm-api, `api`): an enum
//! is a map with one entry named after the variant, or the bare name where the variant holds nothing.

use std::convert::Infallible;

use minicbor::Encoder;
use minicbor::data::Type;
use minicbor::decode::{Decoder, Error};
use minicbor::encode::Error as EncodeError;

use super::Claims;

/// Encodes what `write` writes. Writing to memory does not fail.
pub(crate) fn encode(write: impl FnOnce(&mut Encoder<Vec<u8>>) -> Result<(), EncodeError<Infallible>>) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    write(&mut encoder).unwrap_or_default();
    encoder.into_writer()
}

/// The request for a document.
pub(crate) fn attestation_request(claims: &Claims<'_>) -> Vec<u8> {
    encode(|e| {
        e.map(1)?.str("Attestation")?.map(3)?;
        optional_claims(e, claims)
    })
}

/// Three members of a map, each bytes or null. A document has them as a request has.
pub(crate) fn optional_claims(e: &mut Encoder<Vec<u8>>, claims: &Claims<'_>) -> Result<(), EncodeError<Infallible>> {
    for (name, value) in [("user_data", claims.user_data), ("nonce", claims.nonce), ("public_key", claims.public_key)] {
        match value {
            Some(bytes) => e.str(name)?.bytes(bytes)?,
            None => e.str(name)?.null()?,
        };
    }
    Ok(())
}

/// The request for random numbers.
pub(crate) fn random_request() -> Vec<u8> {
    encode(|e| e.str("GetRandom").map(drop))
}

/// The bytes in an answer `{variant: {member: bytes}}`.
///
/// # Errors
/// What the module says instead, or that it says something else.
pub(crate) fn answer<'a>(answer: &'a [u8], variant: &str, member: &str) -> Result<&'a [u8], String> {
    let mut d = Decoder::new(answer);
    let unexpected = |e: Error| format!("its answer cannot be read: {e}");
    if d.map().map_err(unexpected)? != Some(1) {
        return Err("its answer names no variant".into());
    }
    match d.str().map_err(unexpected)? {
        "Error" => Err(format!("it refuses: {}", d.str().map_err(unexpected)?)),
        name if name == variant => bytes_member(&mut d, member).map_err(unexpected),
        _ => Err("it answers another question".into()),
    }
}

fn bytes_member<'a>(d: &mut Decoder<'a>, member: &str) -> Result<&'a [u8], Error> {
    find(d, member)?.bytes()
}

/// Goes to the value of a map's member.
fn find<'d, 'a>(d: &'d mut Decoder<'a>, member: &str) -> Result<&'d mut Decoder<'a>, Error> {
    let members = d.map()?.ok_or_else(|| Error::message("a map without a length"))?;
    for _ in 0..members {
        if d.str()? == member {
            return Ok(d);
        }
        d.skip()?;
    }
    Err(Error::message("a member is missing"))
}

/// A document's module_id and timestamp, which is in milliseconds since 1970. Its signature is not looked at: it comes
/// from the module itself.
///
/// # Errors
/// It is not an attestation document (AWS's Nitro Enclaves documentation, "Verifying the root of trust").
pub(crate) fn module_and_time(document: &[u8]) -> Result<(String, u64), Error> {
    let mut d = Decoder::new(document);
    if d.datatype()? == Type::Tag {
        d.tag()?;
    }
    if d.array()? != Some(4) {
        return Err(Error::message("not a COSE_Sign1"));
    }
    d.skip()?;
    d.skip()?;
    let payload = d.bytes()?;
    let module = find(&mut Decoder::new(payload), "module_id")?.str()?.to_owned();
    let timestamp = find(&mut Decoder::new(payload), "timestamp")?.u64()?;
    Ok((module, timestamp))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_those_of_awss_crate() {
        // As aws-nitro-enclaves-nsm-api 0.5.2 encodes them.
        assert_eq!(random_request(), b"\x69GetRandom");
        let claims = Claims { public_key: None, user_data: Some(b"u"), nonce: Some(b"") };
        let expected = b"\xa1\x6bAttestation\xa3\x69user_data\x41u\x65nonce\x40\x6apublic_key\xf6";
        assert_eq!(attestation_request(&claims), expected);
    }

    #[test]
    fn an_answer_gives_its_bytes_or_the_reason_why_not() {
        let document = b"\xa1\x6bAttestation\xa1\x68document\x43abc";
        assert_eq!(answer(document, "Attestation", "document").unwrap(), b"abc");
        for (bytes, reason) in [
            (&b"\xa1\x65Error\x6fInvalidArgument"[..], "it refuses: InvalidArgument"),
            (b"\xa1\x69GetRandom\xa1\x66random\x41r", "another question"),
            (b"\xa1\x6bAttestation\xa1\x64else\x43abc", "cannot be read"),
            (b"\xa1\x6bAttestation\xa1\x68document\x43a", "cannot be read"),
            (b"\x69GetRandom", "cannot be read"),
            (b"\xa0", "no variant"),
            (b"", "cannot be read"),
        ] {
            let e = answer(bytes, "Attestation", "document").unwrap_err();
            assert!(e.contains(reason), "{e}");
        }
    }
}
