use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::*;

/// A token, taken apart by its dots.
struct Token {
    header: Value,
    claims: Value,
    signed: String,
    signature: Vec<u8>,
}

impl Token {
    fn of(output: Output) -> Token {
        let text = stdout(&succeeds(output));
        assert!(text.ends_with('\n') && text.lines().count() == 1, "{text:?}");
        let (signed, signature) = text.trim_end().rsplit_once('.').unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let json = |part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        Token { header: json(header), claims: json(claims), signed: signed.to_owned(), signature }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn grant(place: &Place, more: &[&str]) -> Output {
    let base = ["grant", "--key", "grant.key", "--file-id", "report/7", "--user-id", "zoë", "--audience", "staging"];
    place.teemark(&[&base[..], more].concat())
}

/// A folder with a new issuer's key, and that key's JWK.
fn issuer() -> (Place, Value) {
    let place = Place::new();
    let set = succeeds(place.teemark(&["keygen", "--for", "grants", "--output", "grant.key"])).stdout;
    (place, serde_json::from_slice::<Value>(&set).unwrap()["keys"][0].take())
}

#[test]
fn openssl_verifies_the_signature_of_an_ed25519_key() {
    let (place, jwk) = issuer();
    let token = Token::of(grant(&place, &[]));
    assert_eq!(token.header, json!({"alg": "EdDSA", "kid": jwk["kid"], "typ": "JWT"}));
    openssl(&place, "pkey -in grant.key -pubout -out grant.pub");
    place.write("signed", &token.signed);
    place.write("signature", &token.signature);
    openssl(&place, "pkeyutl -verify -rawin -pubin -inkey grant.pub -in signed -sigfile signature");
}

#[test]
fn openssl_verifies_the_signature_of_a_p256_key() {
    let place = Place::new();
    openssl(&place, "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out grant.key");
    openssl(&place, "pkey -in grant.key -pubout -out grant.pub");
    let set = succeeds(place.teemark(&["keygen", "--for", "grants", "--public", "grant.key"])).stdout;
    let kid = serde_json::from_slice::<Value>(&set).unwrap()["keys"][0]["kid"].take();
    let token = Token::of(grant(&place, &[]));
    assert_eq!(token.header, json!({"alg": "ES256", "kid": kid, "typ": "JWT"}));
    // A JWS has the two numbers side by side (RFC 7518, 3.4); openssl reads them in DER.
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (r, s) = token.signature.split_at(32);
    place.write("numbers", format!("asn1=SEQUENCE:s\n[s]\nr=INTEGER:0x{}\ns=INTEGER:0x{}\n", hex(r), hex(s)));
    openssl(&place, "asn1parse -genconf numbers -noout -out signature");
    place.write("signed", &token.signed);
    openssl(&place, "dgst -sha256 -verify grant.pub -signature signature signed");
}

#[test]
fn the_claims_name_the_user_the_file_the_audience_and_the_times() {
    let (place, _) = issuer();
    let before = now();
    let claims = Token::of(grant(&place, &[])).claims;
    let iat = claims["iat"].as_u64().unwrap();
    assert!((before..=now()).contains(&iat), "{claims}");
    let expected = json!({
        "sub": "zoë", "file_id": "report/7", "aud": "staging",
        "iat": iat, "nbf": iat, "exp": iat + 300, "jti": claims["jti"],
    });
    assert_eq!(claims, expected);

    let key = STANDARD_KEY.replace('+', "-").replace('/', "_").replace('=', "");
    let claims = Token::of(grant(&place, &["--valid", "86400", "--reply-key", &key])).claims;
    assert_eq!(claims["exp"].as_u64(), claims["iat"].as_u64().map(|iat| iat + 86400));
    assert_eq!(claims["reply_key"], STANDARD_KEY);
}

#[test]
fn a_grant_may_name_the_encrypted_file_by_its_hash() {
    let (place, _) = issuer();
    place.write("report.enc", b"abc");
    let claims = Token::of(grant(&place, &["--content", "report.enc"])).claims;
    // FIPS 180-4's example.
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(claims["content_sha256"], expected);
    let told = fails(2, &grant(&place, &["--content", "none.enc"]));
    assert!(told.contains("--content none.enc: cannot read none.enc"), "{told}");
}

#[test]
fn a_grant_that_names_no_reply_key_is_told_to_leave_that_choice_to_its_holder() {
    let (place, _) = issuer();
    let told = stderr(&succeeds(grant(&place, &[])));
    assert!(told.contains("whoever holds the token chooses who can read the answer"), "{told}");
    assert_eq!(told.lines().count(), 1);
    assert_eq!(stderr(&succeeds(grant(&place, &["--reply-key", STANDARD_KEY]))), "");
}

/// 32 bytes in base64 with every character that the URL alphabet has other ones for.
const STANDARD_KEY: &str = "++//++//++//++//++//++//++//++//++//++//++8=";

#[test]
fn each_grant_has_an_id_of_128_random_bits() {
    let (place, _) = issuer();
    let ids: std::collections::HashSet<_> = (0..10)
        .map(|_| URL_SAFE_NO_PAD.decode(Token::of(grant(&place, &[])).claims["jti"].as_str().unwrap()).unwrap())
        .collect();
    assert!(ids.len() == 10 && ids.iter().all(|id| id.len() == 16));
}

#[test]
fn what_the_daemon_would_refuse_is_refused() {
    let (place, _) = issuer();
    openssl(&place, "genpkey -algorithm x25519 -out x25519.key");
    for (more, words) in [
        (["--valid", "86401"], "86400"),
        (["--valid", "0"], "1..=86400"),
        (["--reply-key", "AAAA"], "32 bytes"),
        (["--reply-key", "not base64"], "32 bytes"),
    ] {
        let told = fails(2, &grant(&place, &more));
        assert!(told.contains(words), "{more:?}: {told}");
    }
    let with = |key| ["grant", "--key", key, "--file-id", "f", "--user-id", "u", "--audience", "a"];
    let told = fails(2, &place.teemark(&with("x25519.key")));
    assert!(told.contains("--key x25519.key: it is an X25519 key"), "{told}");
    fails(2, &place.teemark(&["grant", "--key", "grant.key", "--file-id", "f", "--user-id", "", "--audience", "a"]));
}
