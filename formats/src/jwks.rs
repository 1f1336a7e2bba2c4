//! JWK sets: GRANT_KEYS, the keys that may sign grants (RFC 7517): Ed25519 (RFC 8037) and P-256 (RFC 7518, 6.2). Only
//! the type of a key decides its algorithm.

use std::collections::BTreeSet;
use std::fmt;

use base64_simd::URL_SAFE_NO_PAD;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::digest::sha256;
use crate::file_keys::ChangeError;
use crate::json::{Text, string};
use crate::object::{Keep, Object, object_text, shown};
use crate::refusal::{Refusal, refuse};

/// Most keys of a set, and the longest kid in bytes.
pub const MAX_KEYS: usize = 64;
const MAX_KID: usize = 128;

/// Members that only a private key has: RFC 7518, 6.2.2, 6.3.2 and 6.4.1; RFC 9964, 3.
const PRIVATE: [&str; 8] = ["d", "k", "p", "q", "dp", "dq", "qi", "priv"];
/// The members of a public key that are read. Others are ignored (RFC 7517, 4).
const PUBLIC: [&str; 8] = ["kty", "crv", "x", "y", "kid", "alg", "use", "key_ops"];

/// The names of both algorithms. RFC 9864 has a new one for Ed25519.
pub const ALGORITHMS: [&str; 3] = ["EdDSA", "Ed25519", "ES256"];

/// The keys in force, with unique kids.
#[derive(Clone, Default)]
pub struct GrantKeys(pub Vec<GrantKey>);

/// One public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantKey {
    /// The name by which a token refers to the key.
    pub kid: String,
    /// The key's type, which decides its algorithm.
    pub kind: Kind,
    /// Ed25519: its 32 bytes (RFC 8032, 5.1.5); P-256: the uncompressed point (SEC 1, 2.3.3).
    pub public: Vec<u8>,
}

/// A type of keys that sign grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ed25519 (RFC 8032), for EdDSA.
    Ed25519,
    /// P-256 with SHA-256, for ES256.
    P256,
}

impl fmt::Debug for GrantKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GrantKeys({} keys)", self.0.len())
    }
}

impl Kind {
    /// The algorithm's name, as it is written.
    pub fn alg(self) -> &'static str {
        match self {
            Kind::Ed25519 => "EdDSA",
            Kind::P256 => "ES256",
        }
    }
}

impl GrantKeys {
    /// The key with this kid, and which it is.
    pub fn find(&self, kid: &str) -> Option<(usize, &GrantKey)> {
        self.0.iter().enumerate().find(|(_, key)| key.kid == kid)
    }
}

impl GrantKeys {
    /// These keys without the `removed` ones and with the `added` ones, in this order: so one bundle can replace a key.
    ///
    /// # Errors
    /// The first key that cannot go or come.
    pub fn changed(&self, removed: &BTreeSet<String>, added: GrantKeys) -> Result<GrantKeys, ChangeError> {
        let mut keys = self.clone();
        if let Some(kid) = removed.iter().find(|kid| keys.find(kid).is_none()) {
            return Err(ChangeError::Missing(shown(kid)));
        }
        keys.0.retain(|key| !removed.contains(&key.kid));
        for key in added.0 {
            if keys.find(&key.kid).is_some() {
                return Err(ChangeError::Exists(shown(&key.kid)));
            }
            keys.0.push(key);
        }
        match keys.0.len() {
            0 => Err(ChangeError::Empty),
            n if n > MAX_KEYS => Err(ChangeError::TooMany(MAX_KEYS)),
            _ => Ok(keys),
        }
    }
}

impl GrantKey {
    /// Names the key by its thumbprint (RFC 7638), in base64url.
    pub fn new(kind: Kind, public: Vec<u8>) -> GrantKey {
        let members = serde_json::to_vec(&Public::new(kind, &public)).expect("texts are JSON");
        GrantKey { kid: URL_SAFE_NO_PAD.encode_to_string(sha256(&members)), kind, public }
    }

    /// A JWK set with this key alone, on one line.
    pub fn to_jwk_set(&self) -> String {
        let public = Public::new(self.kind, &self.public);
        let jwk = Jwk { public, kid: &self.kid, alg: self.kind.alg(), usage: "sig" };
        serde_json::to_string(&JwkSet { keys: [jwk] }).expect("texts are JSON")
    }

    /// Whether this is a name of the key's algorithm.
    pub fn is_for(&self, alg: &str) -> bool {
        match self.kind {
            Kind::Ed25519 => ALGORITHMS[..2].contains(&alg),
            Kind::P256 => ALGORITHMS[2..].contains(&alg),
        }
    }

    /// Whether this is a signature of the message by the key's private half.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = match self.kind {
            Kind::Ed25519 => UnparsedPublicKey::new(&ED25519, &self.public).verify(message, signature),
            Kind::P256 => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.public).verify(message, signature),
        };
        verified.is_ok()
    }
}

/// The public half, with the members and their order that RFC 7638 (3.2; RFC 8037, 2) hashes.
#[derive(Serialize)]
struct Public {
    crv: &'static str,
    kty: &'static str,
    x: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    y: Option<String>,
}

#[derive(Serialize)]
struct JwkSet<'a> {
    keys: [Jwk<'a>; 1],
}

#[derive(Serialize)]
struct Jwk<'a> {
    #[serde(flatten)]
    public: Public,
    kid: &'a str,
    alg: &'a str,
    #[serde(rename = "use")]
    usage: &'a str,
}

impl Public {
    fn new(kind: Kind, public: &[u8]) -> Public {
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode_to_string(bytes);
        match kind {
            Kind::Ed25519 => Public { crv: "Ed25519", kty: "OKP", x: number(public), y: None },
            Kind::P256 => {
                let (x, y) = public[1..].split_at(32);
                Public { crv: "P-256", kty: "EC", x: number(x), y: Some(number(y)) }
            }
        }
    }
}

/// Parses the JWK set of the item of this name. What is unknown goes to `ignored`, including keys that do not sign with a known algorithm (RFC
/// 7517, 5), with the member that shows it.
///
/// # Errors
/// The first error. A private key of any kind is one.
pub fn parse(item: &str, value: &RawValue, ignored: &mut Vec<String>) -> Result<GrantKeys, Refusal> {
    let text = object_text(item, value)?;
    let set = Object::parse(item, text.as_bytes(), Keep::Named(&["keys"]))?;
    let list = set.get("keys").and_then(|keys| serde_json::from_str::<Vec<&RawValue>>(keys.get()).ok());
    let Some(list) = list else { return refuse(item, "has no list named keys") };
    if list.is_empty() || list.len() > MAX_KEYS {
        return refuse(item, format!("has {} keys, not 1 to {MAX_KEYS}", list.len()));
    }
    let (mut keys, mut others): (Vec<GrantKey>, Vec<String>) = Default::default();
    for (i, jwk) in list.into_iter().enumerate() {
        let field = format!("{item}.keys[{i}]");
        let names = [&PUBLIC[..], &PRIVATE].concat();
        let jwk = Object::parse(&field, jwk.get().as_bytes(), Keep::Named(&names))?;
        if PRIVATE.iter().any(|name| jwk.get(name).is_some()) {
            return refuse(field, "holds a private key: give its public half");
        }
        match kind(&jwk) {
            Ok(kind) => {
                let key = grant_key(&field, &jwk, kind)?;
                if keys.iter().any(|other| other.kid == key.kid) {
                    return refuse(field, "has the kid of another key");
                }
                keys.push(key);
            }
            Err(member) => others.push(format!("keys[{i}] ({member})")),
        }
    }
    if keys.is_empty() {
        return refuse(item, format!("has no key for EdDSA (Ed25519) or ES256 (P-256): {}", others.join(", ")));
    }
    let others = others.iter().map(|other| format!("{item}.{other}"));
    ignored.extend(set.ignored_in(item).chain(others));
    Ok(GrantKeys(keys))
}

/// The key's kind; the error is the member that shows that it does not sign grants.
fn kind(jwk: &Object) -> Result<Kind, &'static str> {
    let text = |name| jwk.get(name).and_then(string);
    let kind = match (text("kty").as_deref(), text("crv").as_deref()) {
        (Some("OKP"), Some("Ed25519")) => Kind::Ed25519,
        (Some("EC"), Some("P-256")) => Kind::P256,
        (Some("OKP" | "EC"), _) => return Err("crv"),
        _ => return Err("kty"),
    };
    if jwk.get("use").is_some_and(|purpose| string(purpose).as_deref() != Some("sig")) {
        return Err("use");
    }
    let verifies = |list: &RawValue| {
        serde_json::from_str::<Vec<Text>>(list.get())
            .is_ok_and(|operations| operations.iter().any(|o| &**o == "verify"))
    };
    if jwk.get("key_ops").is_some_and(|list| !verifies(list)) {
        return Err("key_ops");
    }
    let names_ours = |alg: &RawValue| string(alg).is_some_and(|alg| ALGORITHMS.contains(&&*alg));
    match jwk.get("alg") {
        Some(alg) if !names_ours(alg) => Err("alg"),
        _ => Ok(kind),
    }
}

fn grant_key(field: &str, jwk: &Object, kind: Kind) -> Result<GrantKey, Refusal> {
    let text = |name| jwk.get(name).and_then(string);
    let number = |name| match text(name).map(|text| URL_SAFE_NO_PAD.decode_to_vec(text.as_bytes())) {
        Some(Ok(bytes)) if bytes.len() == 32 => Ok(bytes),
        _ => refuse(format!("{field}.{name}"), "is not base64url of 32 bytes"),
    };
    let public = match kind {
        Kind::Ed25519 => number("x")?,
        Kind::P256 => [&[4][..], &number("x")?, &number("y")?].concat(),
    };
    let Some(kid) = text("kid").filter(|kid| (1..=MAX_KID).contains(&kid.len())) else {
        return refuse(field, format!("has no kid of 1 to {MAX_KID} bytes"));
    };
    let key = GrantKey { kid: kid.into_owned(), kind, public };
    match jwk.get("alg").map(string) {
        Some(alg) if !alg.as_deref().is_some_and(|alg| key.is_for(alg)) => {
            refuse(field, "has an alg that does not match its key type")
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

    fn keys(text: &str) -> Result<(GrantKeys, Vec<String>), Refusal> {
        let mut ignored = Vec::new();
        parse("GRANT_KEYS", &RawValue::from_string(text.into()).unwrap(), &mut ignored).map(|keys| (keys, ignored))
    }

    fn keys_of(text: &str) -> GrantKeys {
        keys(text).unwrap().0
    }

    #[test]
    fn the_thumbprint_is_that_of_rfc_8037() {
        // RFC 8037, A.2 and A.3.
        let public = URL_SAFE_NO_PAD.decode_to_vec("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").unwrap();
        let key = GrantKey::new(Kind::Ed25519, public);
        assert_eq!(key.kid, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn a_set_is_read_as_it_was_written() {
        let decode = |text: &str| URL_SAFE_NO_PAD.decode_to_vec(text).unwrap();
        let p256 = [
            &[4][..],
            &decode("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"),
            &decode("x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"),
        ]
        .concat();
        for key in [GrantKey::new(Kind::Ed25519, vec![7; 32]), GrantKey::new(Kind::P256, p256)] {
            let (read, ignored) = keys(&key.to_jwk_set()).unwrap();
            assert_eq!((read.0.as_slice(), ignored.len()), (&[key][..], 0));
        }
    }

    #[test]
    fn keys_of_both_kinds_are_read_from_an_object_and_from_a_string() {
        let set = format!(r#"{{"keys":[{ED25519},{P256}],"more":1}}"#);
        for text in [serde_json::Value::String(set.clone()).to_string(), set] {
            let (keys, ignored) = keys(&text).unwrap();
            let kind = |kid| keys.find(kid).map(|(_, key)| (key.kind, key.public.len()));
            assert_eq!([kind("a"), kind("b"), kind("c")], [Some((Kind::Ed25519, 32)), Some((Kind::P256, 65)), None]);
            assert_eq!(ignored, ["GRANT_KEYS.more"]);
        }
    }

    #[test]
    fn keys_that_are_not_for_signatures_known_here_are_passed_over_and_named() {
        let with =
            |members: &str| P256.replacen('{', &format!("{{{members},"), 1).replace("\"kid\":\"b\"", "\"kid\":\"a\"");
        for (other, member) in [
            (r#"{"kty":"RSA","kid":"r","use":"sig","alg":"RS256","n":"sXchD","e":"AQAB"}"#.to_owned(), "kty"),
            (r#"{"kty":"AKP","alg":"ML-DSA-65","kid":"pq","pub":"AAAA"}"#.into(), "kty"),
            (r#"{"kid":"none"}"#.into(), "kty"),
            (r#"{"kty":"EC","crv":"P-384","kid":"e","alg":"ES384","x":"AAAA","y":"AAAA"}"#.into(), "crv"),
            (r#"{"kty":"OKP","crv":"X25519","kid":"x","x":"AAAA"}"#.into(), "crv"),
            (with(r#""use":"enc""#), "use"),
            (with(r#""key_ops":["deriveBits"]"#), "key_ops"),
            (with(r#""key_ops":[]"#), "key_ops"),
            (with(r#""key_ops":"verify""#), "key_ops"),
            (P256.replace("ES256", "ECDH-ES"), "alg"),
        ] {
            let (keys, ignored) = keys(&format!(r#"{{"keys":[{ED25519},{other}]}}"#)).unwrap();
            assert_eq!((keys.0.len(), ignored), (1, vec![format!("GRANT_KEYS.keys[1] ({member})")]), "{other}");
            let refusal = self::keys(&format!(r#"{{"keys":[{other}]}}"#)).unwrap_err();
            assert!(
                refusal.field == "GRANT_KEYS" && refusal.reason.contains(&format!("keys[0] ({member})")),
                "{refusal}"
            );
        }
    }

    #[test]
    fn a_member_of_a_key_that_is_null_counts_as_absent() {
        let nulls = r#"{"use":null,"key_ops":null,"alg":null,"d":null,"k":null,"#;
        assert_eq!(keys(&format!(r#"{{"keys":[{}]}}"#, ED25519.replacen('{', nulls, 1))).unwrap().0.0.len(), 1);
        for kind in [r#""use":"sig","#, r#""key_ops":["sign","verify"],"#, r#""alg":"Ed25519","#] {
            let key = ED25519.replacen('{', &format!("{{{kind}"), 1);
            assert_eq!(keys(&format!(r#"{{"keys":[{key}]}}"#)).unwrap().0.0.len(), 1, "{kind}");
        }
    }

    #[test]
    fn grant_keys_come_and_go_one_by_one() {
        let set = |keys: &[&str]| keys_of(&format!(r#"{{"keys":[{}]}}"#, keys.join(",")));
        let kids = |keys: &GrantKeys| keys.0.iter().map(|key| key.kid.clone()).collect::<Vec<_>>();
        let (first, second) = (set(&[ED25519]), set(&[P256]));
        let both = first.changed(&BTreeSet::new(), second.clone()).unwrap();
        assert_eq!((kids(&both), kids(&first)), (vec!["a".to_owned(), "b".to_owned()], vec!["a".to_owned()]));
        let a: BTreeSet<String> = ["a".to_owned()].into();
        assert_eq!(kids(&both.changed(&a, GrantKeys::default()).unwrap()), ["b"]);
        assert_eq!(kids(&first.changed(&a, first.clone()).unwrap()), ["a"], "a key is replaced");
        assert_eq!(first.changed(&BTreeSet::new(), first.clone()).err(), Some(ChangeError::Exists("a".into())));
        assert_eq!(second.changed(&a, first.clone()).err(), Some(ChangeError::Missing("a".into())));
        assert_eq!(first.changed(&a, GrantKeys::default()).err(), Some(ChangeError::Empty));
    }

    #[test]
    fn a_private_key_of_any_kind_is_refused_also_where_it_would_be_passed_over() {
        for private in [
            r#"{"kty":"RSA","kid":"r","n":"sXchD","e":"AQAB","d":"secret","p":"secret"}"#,
            r#"{"kty":"oct","kid":"o","k":"secret"}"#,
            r#"{"kty":"EC","crv":"P-384","kid":"e","use":"enc","d":"secret"}"#,
            r#"{"kty":"AKP","alg":"ML-DSA-65","kid":"pq","pub":"AAAA","priv":"secret"}"#,
        ] {
            let refusal = keys(&format!(r#"{{"keys":[{ED25519},{private}]}}"#)).unwrap_err();
            assert_eq!(refusal.field, "GRANT_KEYS.keys[1]");
            assert!(refusal.reason.contains("private key") && !refusal.reason.contains("secret"), "{refusal}");
        }
    }

    #[test]
    fn what_is_not_a_set_of_public_keys_is_refused_with_its_place_and_reason() {
        let with = |from: &str, to: &str| format!(r#"{{"keys":[{}]}}"#, ED25519.replace(from, to));
        for (text, field, reason) in [
            ("[]".to_owned(), "GRANT_KEYS", "neither an object nor a string"),
            (r#""[]""#.into(), "GRANT_KEYS", "not a JSON object"),
            (r#"{"keys":{}}"#.into(), "GRANT_KEYS", "no list"),
            (r#"{"keys":null}"#.into(), "GRANT_KEYS", "no list"),
            (r#"{"keys":[]}"#.into(), "GRANT_KEYS", "0 keys"),
            (format!(r#"{{"keys":[{}]}}"#, vec![ED25519; 65].join(",")), "GRANT_KEYS", "65 keys"),
            (format!(r#"{{"keys":[{ED25519},{ED25519}]}}"#), "GRANT_KEYS.keys[1]", "kid of another"),
            (r#"{"keys":[7]}"#.into(), "GRANT_KEYS.keys[0]", "not a JSON object"),
            (r#"{"keys":[["OKP"]]}"#.into(), "GRANT_KEYS.keys[0]", "not a JSON object"),
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
