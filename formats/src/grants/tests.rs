//! Tokens as an issuer makes them, and as an attacker does.

use base64_simd::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use super::*;
use crate::digest::sha256;
use crate::jwks::{GrantKey, Kind};

const NOW: u64 = 1_764_000_000;
/// A clock that was never set back.
const NOT_SET_BACK: Now = Now { clock: Utc(NOW), latest: Utc(NOW) };

fn encode(part: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode_to_string(part)
}

/// An issuer with a key of each kind, `a` and `b`.
struct Issuer {
    ed25519: Ed25519KeyPair,
    p256: EcdsaKeyPair,
}

impl Issuer {
    fn new() -> Issuer {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let p256 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        Issuer { ed25519: Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap(), p256 }
    }

    fn keys(&self) -> GrantKeys {
        let key = |kid: &str, kind, public: &[u8]| GrantKey { kid: kid.into(), kind, public: public.to_vec() };
        GrantKeys(vec![
            key("a", Kind::Ed25519, self.ed25519.public_key().as_ref()),
            key("b", Kind::P256, self.p256.public_key().as_ref()),
        ])
    }

    /// Signs any text with the key `a`.
    fn sign(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encode(header.as_bytes()), encode(claims.as_bytes()));
        let signature = self.ed25519.sign(signed.as_bytes());
        format!("{signed}.{}", encode(signature.as_ref()))
    }

    fn token(&self, claims: &Value) -> String {
        self.sign(r#"{"alg":"EdDSA","kid":"a","typ":"JWT"}"#, &claims.to_string())
    }

    fn check(&self, token: &str) -> Result<Grant, GrantError> {
        self.keys().check(token, &["identity".into(), "fleet".into()], NOT_SET_BACK)
    }
}

fn claims() -> Value {
    json!({"sub": "alice", "file_id": "f", "aud": "fleet", "jti": "1", "nbf": NOW - 5, "exp": NOW + 300})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn invalid(result: Result<Grant, GrantError>) -> &'static str {
    match result {
        Err(GrantError::Invalid(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn tokens_of_both_kinds_of_keys_are_good() {
    let issuer = Issuer::new();
    let grant = issuer.check(&issuer.token(&claims())).unwrap();
    assert_eq!((grant.covers("f", "alice"), grant.reply_key), (Ok(()), None));
    assert_eq!(grant.covers("g", "alice"), Err(GrantError::OtherFile));
    assert_eq!(grant.covers("f", "bob"), Err(GrantError::OtherUser));

    let signed = format!("{}.{}", encode(br#"{"alg":"ES256","kid":"b"}"#), encode(claims().to_string().as_bytes()));
    let signature = issuer.p256.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    issuer.check(&format!("{signed}.{}", encode(signature.as_ref()))).unwrap();
    // RFC 9864's name for the algorithm.
    issuer.check(&issuer.sign(r#"{"alg":"Ed25519","kid":"a"}"#, &claims().to_string())).unwrap();
}

#[test]
fn the_signatures_of_rfc_8037_and_rfc_7515_verify() {
    // RFC 8037, A.1 and A.4; RFC 7515, A.3.
    let ed25519 = ("Ed25519", "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "");
    let p256 = ("P-256", "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0");
    for ((curve, x, y), signed, signature) in [
        (
            ed25519,
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        ),
        (
            p256,
            "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290\
             Ijp0cnVlfQ",
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
    ] {
        let decode = |text: &str| URL_SAFE_NO_PAD.decode_to_vec(text).unwrap();
        let (kind, public) = match curve {
            "Ed25519" => (Kind::Ed25519, decode(x)),
            _ => (Kind::P256, [&[4][..], &decode(x), &decode(y)].concat()),
        };
        let key = GrantKey { kid: "k".into(), kind, public };
        assert!(key.verifies(signed.as_bytes(), &decode(signature)), "{curve}");
        assert!(!key.verifies(&signed.as_bytes()[1..], &decode(signature)), "{curve}");
    }
}

#[test]
fn what_a_token_says_of_its_own_checking_changes_nothing() {
    let issuer = Issuer::new();
    let claims = claims().to_string();
    for (header, reason) in [
        (r#"{"alg":"none","kid":"a"}"#, "alg"),
        (r#"{"alg":"None","kid":"a"}"#, "alg"),
        (r#"{"alg":"HS256","kid":"a"}"#, "alg"),
        (r#"{"alg":"ES256","kid":"a"}"#, "alg"),
        (r#"{"alg":"EdDSA","kid":"b"}"#, "alg"),
        (r#"{"alg":"eddsa","kid":"a"}"#, "alg"),
        (r#"{"kid":"a"}"#, "alg"),
        (r#"{"alg":"EdDSA"}"#, "no kid"),
        (r#"{"alg":"EdDSA","kid":"c"}"#, "no key in GRANT_KEYS"),
        (r#"{"alg":"EdDSA","kid":"a","crit":["exp"],"exp":0}"#, "crit"),
        (r#"{"alg":"none","alg":"EdDSA","kid":"a"}"#, "header cannot be read"),
        (r#"{"alg":"EdDSA","kid":"c","kid":"a"}"#, "header cannot be read"),
        (r#"{"alg":"EdDSA","kid":["a"]}"#, "header cannot be read"),
        (r#"["EdDSA","a"]"#, "header cannot be read"),
        (r#"["EdDSA","a",null]"#, "header cannot be read"),
        ("", "header cannot be read"),
    ] {
        let told = invalid(issuer.check(&issuer.sign(header, &claims)));
        assert!(told.contains(reason), "{header}: {told}");
    }
    // No signature at all, and the public key as if it were a shared secret (RFC 8725, 2.1).
    let unsigned = format!("{}.{}.", encode(br#"{"alg":"none","kid":"a"}"#), encode(claims.as_bytes()));
    assert!(invalid(issuer.check(&unsigned)).contains("alg"));
    for alg in ["HS256", "EdDSA"] {
        let signed =
            format!("{}.{}", encode(json!({"alg": alg, "kid": "a"}).to_string().as_bytes()), encode(claims.as_bytes()));
        let secret = hmac::Key::new(hmac::HMAC_SHA256, issuer.ed25519.public_key().as_ref());
        let token = format!("{signed}.{}", encode(hmac::sign(&secret, signed.as_bytes()).as_ref()));
        invalid(issuer.check(&token));
    }
    // A key of its own, which the token brings along.
    let own = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).unwrap();
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": encode(own.public_key().as_ref())});
    let header = json!({"alg": "EdDSA", "kid": "a", "jwk": jwk}).to_string();
    let forger = Issuer { ed25519: own, ..Issuer::new() };
    assert!(invalid(issuer.check(&forger.sign(&header, &claims))).contains("signature"));
}

#[test]
fn any_changed_character_makes_a_token_bad() {
    let issuer = Issuer::new();
    let token = issuer.token(&claims());
    for at in 0..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        issuer.check(str::from_utf8(&changed).unwrap()).unwrap_err();
    }
}

#[test]
fn what_is_not_a_token_is_refused() {
    let issuer = Issuer::new();
    let token = issuer.token(&claims());
    let padded = token.replacen('.', "=.", 1);
    let huge = issuer.token(&with("more", json!("x".repeat(4096))));
    for bad in ["", "a", "a.b", "a.b.c", &format!("{token}.x"), &format!(" {token}"), &format!("{token}="), &padded] {
        invalid(issuer.check(bad));
    }
    assert!(invalid(issuer.check(&huge)).contains("4 KiB"));
}

#[test]
fn claims_that_are_missing_repeated_or_of_another_type_are_refused() {
    let issuer = Issuer::new();
    for name in ["sub", "file_id", "aud", "jti", "exp", "nbf"] {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(name);
        assert!(invalid(issuer.check(&issuer.token(&claims))).contains(name), "{name}");
        let twice = self::claims().to_string().replacen('{', &format!("{{\"{name}\":{},", self::claims()[name]), 1);
        let told = invalid(issuer.check(&issuer.sign(r#"{"alg":"EdDSA","kid":"a"}"#, &twice)));
        assert_eq!(told, "its claims cannot be read", "{name}");
        let number = if ["exp", "nbf"].contains(&name) { json!("1764000000") } else { json!(1.5) };
        for other in [json!({}), number, json!(-1), json!([1]), json!(true)] {
            invalid(issuer.check(&issuer.token(&with(name, other))));
        }
        invalid(issuer.check(&issuer.token(&with(name, json!(null)))));
    }
    invalid(issuer.check(&issuer.token(&with("jti", json!("")))));
    invalid(issuer.check(&issuer.token(&with("reply_key", json!("AAAA")))));
    invalid(issuer.check(&issuer.token(&with("reply_key", json!(STANDARD.encode_to_string([0; 32]))))));
    invalid(issuer.check(&issuer.token(&with("content_sha256", json!("00")))));
    for name in ["reply_key", "content_sha256"] {
        assert_eq!(
            invalid(issuer.check(&issuer.token(&with(name, json!(null))))),
            "its claims cannot be read",
            "{name}"
        );
    }
    let crit = issuer.sign(r#"{"alg":"EdDSA","kid":"a","crit":null}"#, &claims().to_string());
    assert_eq!(invalid(issuer.check(&crit)), "its header has crit");
}

#[test]
fn a_token_is_for_an_audience_that_it_names() {
    let issuer = Issuer::new();
    let check = |aud| issuer.check(&issuer.token(&with("aud", aud)));
    for good in [json!("fleet"), json!("identity"), json!(["x", "fleet"])] {
        check(good).unwrap();
    }
    for bad in [json!("Fleet"), json!("fleet "), json!([]), json!(["x"]), json!([["fleet"]]), json!("")] {
        assert!(invalid(check(bad)).contains("another enclave"));
    }
}

#[test]
fn a_token_is_valid_from_nbf_to_exp_and_for_a_day_at_most() {
    let issuer = Issuer::new();
    let check = |name, value: u64| issuer.check(&issuer.token(&with(name, json!(value)))).map(drop);
    assert_eq!(check("exp", NOW - LEEWAY + 1), Ok(()));
    assert_eq!(check("exp", NOW - LEEWAY), Err(GrantError::Expired));
    assert_eq!(check("exp", 0), Err(GrantError::Expired));
    assert_eq!(check("nbf", NOW + LEEWAY), Ok(()));
    assert_eq!(check("nbf", NOW + LEEWAY + 1), Err(GrantError::NotYetValid));
    assert_eq!(check("exp", NOW + MAX_LIFE + LEEWAY), Ok(()));
    assert_eq!(check("exp", NOW + MAX_LIFE + LEEWAY + 1), Err(GrantError::Invalid("it is valid for more than a day")));
    assert_eq!(check("exp", u64::MAX), Err(GrantError::Invalid("it is valid for more than a day")));
}

#[test]
fn dates_with_a_fraction_or_an_exponent_are_rounded_so_that_no_token_is_valid_for_longer() {
    let issuer = Issuer::new();
    let check = |name: &str, value: String| {
        let claims =
            claims().to_string().replace(&format!("\"{name}\":{}", claims()[name]), &format!("\"{name}\":{value}"));
        assert!(claims.contains(&value));
        issuer.check(&issuer.sign(r#"{"alg":"EdDSA","kid":"a"}"#, &claims)).map(drop)
    };
    assert_eq!(check("exp", format!("{}.25", NOW - LEEWAY + 1)), Ok(()));
    assert_eq!(check("exp", format!("{}.999", NOW - LEEWAY)), Err(GrantError::Expired));
    assert_eq!(check("exp", format!("{}e-2", NOW * 100 + 30_000)), Ok(()));
    assert_eq!(check("nbf", format!("{}.5", NOW + LEEWAY - 1)), Ok(()));
    assert_eq!(check("nbf", format!("{}.001", NOW + LEEWAY)), Err(GrantError::NotYetValid));
    assert_eq!(check("nbf", "1.5E+9".into()), Ok(()));
    for (name, reason) in [("exp", "its exp is not a number"), ("nbf", "its nbf is not a number")] {
        for number in ["1e99", "-1764000000.5", "\"1764000000\""] {
            assert!(invalid_reason(check(name, number.into())).contains(reason), "{name} {number}");
        }
    }
}

fn invalid_reason(result: Result<(), GrantError>) -> &'static str {
    match result {
        Err(GrantError::Invalid(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn claims_that_are_not_utf_8_or_not_an_object_are_refused() {
    let issuer = Issuer::new();
    let header = encode(br#"{"alg":"EdDSA","kid":"a"}"#);
    let sign = |header: &str, claims: &[u8]| {
        let signed = format!("{header}.{}", encode(claims));
        format!("{signed}.{}", encode(issuer.ed25519.sign(signed.as_bytes()).as_ref()))
    };
    let mut odd = claims().to_string().replacen('{', "{\"new\":\"?\",", 1).into_bytes();
    issuer.check(&sign(&header, &odd)).unwrap();
    *odd.iter_mut().find(|b| **b == b'?').unwrap() = 0xff;
    assert_eq!(invalid(issuer.check(&sign(&header, &odd))), "its claims cannot be read");
    let list = json!(["alice", "f", "1", "fleet", null, null, NOW + 300, NOW]).to_string();
    assert_eq!(invalid(issuer.check(&sign(&header, list.as_bytes()))), "its claims cannot be read");
    let odd = encode(b"{\"alg\":\"EdDSA\",\"kid\":\"a\",\"new\":\"\xff\"}");
    assert_eq!(invalid(issuer.check(&sign(&odd, claims().to_string().as_bytes()))), "its header cannot be read");
}

#[test]
fn a_token_may_name_the_encrypted_file_itself() {
    let issuer = Issuer::new();
    let hash = sha256(b"a file").to_string();
    let grant = issuer.check(&issuer.token(&with("content_sha256", json!(hash)))).unwrap();
    assert_eq!(grant.covers_content(sha256(b"a file")), Ok(()));
    assert_eq!(grant.covers_content(sha256(b"another")), Err(GrantError::OtherContent));
    assert_eq!(issuer.check(&issuer.token(&claims())).unwrap().covers_content(sha256(b"any")), Ok(()));
}

#[test]
fn the_signatures_of_rfc_8032_verify_and_are_what_the_identity_key_would_make() {
    // RFC 8032, 7.1, tests 1 to 3: secret key, public key, message, signature.
    for [secret, public, message, signature] in [
        [
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ],
        [
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ],
        [
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ],
    ] {
        let [secret, public, message, signature] =
            [secret, public, message, signature].map(|t| hex::decode(t).unwrap());
        let pair = Ed25519KeyPair::from_seed_unchecked(&secret).unwrap();
        assert_eq!(pair.public_key().as_ref(), public);
        assert_eq!(pair.sign(&message).as_ref(), signature);
        let key = GrantKey { kid: "k".into(), kind: Kind::Ed25519, public };
        assert!(key.verifies(&message, &signature) && !key.verifies(b"else", &signature));
    }
}

#[test]
fn a_token_may_name_the_key_that_the_answer_is_sealed_to() {
    let issuer = Issuer::new();
    let [key, other] = [[9; 32], [8; 32]].map(|bytes| PublicKey::from_bytes(bytes).unwrap());
    for text in [STANDARD.encode_to_string(key), URL_SAFE_NO_PAD.encode_to_string(key)] {
        let grant = issuer.check(&issuer.token(&with("reply_key", json!(text)))).unwrap();
        assert_eq!(grant.seals_to(None), Ok(Some(key)));
        assert_eq!(grant.seals_to(Some(key)), Ok(Some(key)));
        assert_eq!(grant.seals_to(Some(other)), Err(GrantError::OtherKey));
    }
    let open = issuer.check(&issuer.token(&claims())).unwrap();
    assert_eq!((open.seals_to(None), open.seals_to(Some(key))), (Ok(None), Ok(Some(key))));
}

#[test]
fn the_same_jti_of_two_issuers_is_two_grants() {
    assert_ne!(Id::of("a", "bc"), Id::of("ab", "c"));
}

#[test]
fn what_an_issuer_signs_is_checked_with_the_keys_that_it_publishes() {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let p256 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
    let ed25519 = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    for issuer in [super::Issuer::from(ed25519), super::Issuer::from(p256)] {
        let reply_key = PublicKey::from_bytes([9; 32]);
        let grant = NewGrant {
            user_id: "alice",
            file_id: "f",
            audience: "fleet",
            from: Utc(NOW),
            valid: 300,
            jti: [5; 16],
            reply_key,
            content_sha256: Some(sha256(b"a file")),
        };
        let token = issuer.sign(&grant.claims()).unwrap();
        assert!(is_token(&token) && names_reply_key(&token));
        let set = RawValue::from_string(issuer.public().to_jwk_set()).unwrap();
        let keys = crate::jwks::parse(crate::items::GRANT_KEYS, &set, &mut Vec::new()).unwrap();
        let grant = keys.check(&token, &["fleet".into()], NOT_SET_BACK).unwrap();
        assert_eq!((grant.covers("f", "alice"), grant.covers_content(sha256(b"a file"))), (Ok(()), Ok(())));
        assert_eq!((grant.reply_key, grant.ends), (reply_key, NOW + 300 + LEEWAY));
    }
}
