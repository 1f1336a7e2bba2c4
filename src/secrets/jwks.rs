//! GRANT_KEYS: a JWK set (RFC 7517) of Ed25519 (RFC 8037) and P-256 (RFC 7518, 6.2) public keys.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::value::RawValue;

use super::bundle::{GRANT_KEYS, Refusal, refuse};
use super::object::{Keep, Object};
use crate::grants::{GrantKey, GrantKeys, Kind};
use crate::json::string;

/// Most keys of a set, and the longest kid in bytes.
const MAX_KEYS: usize = 64;
const MAX_KID: usize = 128;

/// Reads a JWK set.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse(value: &RawValue) -> Result<GrantKeys, Refusal> {
    if !value.get().starts_with('{') {
        return refuse(GRANT_KEYS, "is no JWK set: an object with a list named keys");
    }
    let set = Object::parse(GRANT_KEYS, value.get().as_bytes(), Keep::Named(&["keys"]))?;
    let list = set.get("keys").and_then(|keys| serde_json::from_str::<Vec<&RawValue>>(keys.get()).ok());
    let Some(list) = list else { return refuse(GRANT_KEYS, "has no list named keys") };
    if list.is_empty() || list.len() > MAX_KEYS {
        return refuse(GRANT_KEYS, format!("has {} keys, not 1 to {MAX_KEYS}", list.len()));
    }
    let mut keys: Vec<GrantKey> = Vec::new();
    for (i, jwk) in list.into_iter().enumerate() {
        let field = format!("{GRANT_KEYS}.keys[{i}]");
        let key = grant_key(&field, jwk)?;
        if keys.iter().any(|other| other.kid == key.kid) {
            return refuse(field, "has the kid of another key");
        }
        keys.push(key);
    }
    Ok(GrantKeys(keys))
}

fn grant_key(field: &str, jwk: &RawValue) -> Result<GrantKey, Refusal> {
    let names = ["kty", "crv", "x", "y", "kid", "alg", "d", "k"];
    let jwk = Object::parse(field, jwk.get().as_bytes(), Keep::Named(&names))?;
    if jwk.get("d").or(jwk.get("k")).is_some() {
        return refuse(field, "holds a private key: give its public half");
    }
    let text = |name| jwk.get(name).and_then(string);
    let number = |name| match text(name).map(|text| URL_SAFE_NO_PAD.decode(text.as_bytes())) {
        Some(Ok(bytes)) if bytes.len() == 32 => Ok(bytes),
        _ => refuse(format!("{field}.{name}"), "is not base64url of 32 bytes"),
    };
    let (kind, public) = match (text("kty").as_deref(), text("crv").as_deref()) {
        (Some("OKP"), Some("Ed25519")) => (Kind::Ed25519, number("x")?),
        (Some("EC"), Some("P-256")) => (Kind::P256, [&[4][..], &number("x")?, &number("y")?].concat()),
        _ => return refuse(field, "is neither kty OKP with crv Ed25519 nor kty EC with crv P-256"),
    };
    let Some(kid) = text("kid").filter(|kid| (1..=MAX_KID).contains(&kid.len())) else {
        return refuse(field, format!("has no kid of 1 to {MAX_KID} bytes"));
    };
    let key = GrantKey { kid: kid.into_owned(), kind, public };
    match jwk.get("alg").map(string) {
        Some(alg) if !alg.as_deref().is_some_and(|alg| key.is_for(alg)) => {
            refuse(field, "has an alg that is not its kind's")
        }
        _ => Ok(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The public keys of RFC 8037, A.2, and RFC 7515, A.3.
    const ED25519: &str =
        r#"{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    const P256: &str = r#"{"kty":"EC","crv":"P-256","kid":"b","alg":"ES256",
        "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;

    fn keys(text: &str) -> Result<GrantKeys, Refusal> {
        parse(&RawValue::from_string(text.into()).unwrap())
    }

    #[test]
    fn keys_of_both_kinds_are_read() {
        let keys = keys(&format!(r#"{{"keys":[{ED25519},{P256}],"more":1}}"#)).unwrap();
        let kind = |kid| keys.find(kid).map(|key| (key.kind, key.public.len()));
        assert_eq!([kind("a"), kind("b"), kind("c")], [Some((Kind::Ed25519, 32)), Some((Kind::P256, 65)), None]);
    }

    #[test]
    fn what_is_no_set_of_public_keys_is_refused_with_its_place_and_reason() {
        let with = |from: &str, to: &str| format!(r#"{{"keys":[{}]}}"#, ED25519.replace(from, to));
        for (text, field, reason) in [
            ("[]".to_owned(), "GRANT_KEYS", "no JWK set"),
            (r#"{"keys":{}}"#.into(), "GRANT_KEYS", "no list"),
            (r#"{"keys":[]}"#.into(), "GRANT_KEYS", "0 keys"),
            (format!(r#"{{"keys":[{}]}}"#, vec![ED25519; 65].join(",")), "GRANT_KEYS", "65 keys"),
            (format!(r#"{{"keys":[{ED25519},{ED25519}]}}"#), "GRANT_KEYS.keys[1]", "kid of another"),
            (r#"{"keys":[7]}"#.into(), "GRANT_KEYS.keys[0]", "not a JSON object"),
            (with("OKP", "oct"), "GRANT_KEYS.keys[0]", "neither"),
            (with("Ed25519", "X25519"), "GRANT_KEYS.keys[0]", "neither"),
            (with("\"kid\":\"a\",", ""), "GRANT_KEYS.keys[0]", "no kid"),
            (with("\"kid\"", "\"d\":\"secret\",\"kid\""), "GRANT_KEYS.keys[0]", "private key"),
            (with("\"kid\"", "\"alg\":\"ES256\",\"kid\""), "GRANT_KEYS.keys[0]", "alg"),
            (with("11qY", "11q"), "GRANT_KEYS.keys[0].x", "32 bytes"),
        ] {
            let refusal = keys(&text).unwrap_err();
            assert!(refusal.field == field && refusal.reason.contains(reason), "{text}: {refusal}");
            assert!(!refusal.reason.contains("secret"));
        }
    }
}
