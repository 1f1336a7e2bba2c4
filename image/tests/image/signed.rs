//! Signed images, verified by the openssl command line.

use super::*;
use ciborium::Value;

const SIGNED: [&str; 4] = ["--sign-key", "signer.key", "--sign-certificate", "signer.crt"];

fn signed() -> Place {
    let place = Place::new();
    place.certificate("signer", P_384, "signer", FOR_CLIENT, VALID);
    succeeds(place.build(&SIGNED));
    place
}

fn cbor(bytes: &[u8]) -> Value {
    ciborium::from_reader(bytes).unwrap()
}

fn to_cbor(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

/// The member of a map whose values are arrays of bytes, as serde writes a Vec<u8>.
fn member(map: &Value, name: &str) -> Vec<u8> {
    let (_, value) = map.as_map().unwrap().iter().find(|(key, _)| key.as_text() == Some(name)).unwrap();
    value.as_array().unwrap().iter().map(|byte| u8::try_from(byte.as_integer().unwrap()).unwrap()).collect()
}

/// The last section, which is the signature. Its header has the type 4 in two bytes, flags in two and the length in 8.
fn signature_section(image: &[u8]) -> &[u8] {
    let count = u16::from_be_bytes([image[26], image[27]]) as usize;
    let offset = u64::from_be_bytes(image[28 + 8 * (count - 1)..][..8].try_into().unwrap());
    let offset = usize::try_from(offset).unwrap();
    let section = &image[offset..];
    assert_eq!(section[..2], [0, 4]);
    &section[12..]
}

/// An unsigned big-endian number as an INTEGER in DER (X.690, 8.3).
fn der_integer(number: &[u8]) -> Vec<u8> {
    let number = &number[number.iter().position(|b| *b != 0).unwrap()..];
    let zero = if number[0] >= 0x80 { &[0][..] } else { &[] };
    [&[2, u8::try_from(zero.len() + number.len()).unwrap()], zero, number].concat()
}

#[test]
fn openssl_verifies_the_signature_over_pcr0() {
    let place = signed();
    let image = place.read("out/teemark.eif");
    let signatures = cbor(signature_section(&image));
    let signature = &signatures.as_array().unwrap()[0];
    assert_eq!(member(signature, "signing_certificate"), place.read("signer.crt"));

    // COSE_Sign1 (RFC 9052, 4.2 and 4.4): protected header, header, payload, signature.
    let cose = cbor(&member(signature, "signature"));
    let cose = cose.as_tag().map_or(&cose, |(_, inner)| inner).as_array().unwrap();
    let signed = [Value::Text("Signature1".into()), cose[0].clone(), Value::Bytes(vec![]), cose[2].clone()];
    place.write("signed", to_cbor(&Value::Array(signed.to_vec())));
    let (r, s) = cose[3].as_bytes().unwrap().split_at(48);
    let numbers = [der_integer(r), der_integer(s)].concat();
    place.write("signature", [&[0x30, u8::try_from(numbers.len()).unwrap()][..], &numbers].concat());
    let verify = "openssl x509 -in signer.crt -noout -pubkey >key.pem
                  openssl dgst -sha384 -verify key.pem -signature signature signed";
    assert_eq!(place.shell(verify), "Verified OK\n");

    let payload = cbor(cose[2].as_bytes().unwrap());
    let pcr0: String = member(&payload, "register_value").iter().map(|b| format!("{b:02x}")).collect();
    assert!(place.text("out/teemark.pcrs").starts_with(&format!("{pcr0} PCR0\n")));
}

#[test]
fn pcr8_is_the_measurement_of_the_certificate() {
    let place = signed();
    let pcr8 = place.shell(
        "{ head -c 48 /dev/zero; openssl x509 -in signer.crt -outform DER | openssl dgst -sha384 -binary; } |
         sha384sum | cut -c -96",
    );
    let pcrs = place.text("out/teemark.pcrs");
    assert_eq!(pcrs.lines().last().unwrap(), format!("{} PCR8", pcr8.trim()));
    assert_eq!(pcrs.lines().count(), 4);
    assert_eq!(place.json("out/teemark.json")["signed"], true);
}

#[test]
fn a_signature_changes_nothing_that_is_measured_and_is_another_each_time() {
    let place = signed();
    let (image, pcrs) = (place.read("out/teemark.eif"), place.text("out/teemark.pcrs"));
    succeeds(place.build(&SIGNED));
    assert!(place.read("out/teemark.eif") != image);
    assert_eq!(place.text("out/teemark.pcrs"), pcrs);
    succeeds(place.build(&[]));
    let unsigned = place.text("out/teemark.pcrs");
    assert!(pcrs.starts_with(&unsigned) && pcrs.len() > unsigned.len());
}

#[test]
fn describe_tells_a_signature_over_this_image_from_one_over_another() {
    let place = signed();
    let described: serde_json::Value =
        serde_json::from_slice(&succeeds(place.run(&["describe", "out/teemark.eif"])).stdout).unwrap();
    assert_eq!((&described["IsSigned"], &described["SignatureCheck"]), (&true.into(), &true.into()));
    assert_eq!(described["Measurements"]["PCR8"], place.json("out/teemark.json")["pcrs"]["PCR8"]);

    // Another kernel under the same signature.
    let image = place.read("out/teemark.eif");
    place.write("other.eif", changed(&image, 1500, &[0x91]));
    let output = place.run(&["describe", "other.eif"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stdout(&output).contains("\"SignatureCheck\": false"));
    assert_eq!(stderr(&output), "other.eif: the signature does not match this image\n");
}

#[test]
fn a_list_of_no_signatures_is_an_error() {
    let place = signed();
    let image = place.read("out/teemark.eif");
    let list = image.len() - signature_section(&image).len();
    place.write("none.eif", changed(&image, list, &[0x80]));
    let output = place.run(&["describe", "none.eif"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr(&output), "error: none.eif cannot be described: its signature section has no signature\n");
}
