use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::*;

fn keys(text: &[u8]) -> serde_json::Map<String, Value> {
    serde_json::from_slice(text).unwrap()
}

#[test]
fn each_key_is_new_and_256_bits_long_under_a_number_as_tink_gives() {
    let place = Place::new();
    let mut seen = HashSet::new();
    for _ in 0..20 {
        let made = keys(&succeeds(place.teemark(&["keygen"])).stdout);
        let (id, key) = made.into_iter().next().unwrap();
        assert_ne!(id.parse::<u32>().unwrap(), 0);
        assert_eq!(STANDARD.decode(key.as_str().unwrap()).unwrap().len(), 32);
        assert!(seen.insert(key.as_str().unwrap().to_owned()) && seen.insert(id));
    }
}

#[test]
fn a_key_file_is_for_its_owner_only_and_the_key_is_not_shown() {
    let place = Place::new();
    let output = succeeds(place.teemark(&["keygen", "--id", "7", "--aad", "--output", "keys.json"]));
    let key = &keys(&place.read("keys.json"))["7"];
    assert_eq!(key["aad"], "file_id");
    assert_eq!(place.mode("keys.json"), 0o600);
    assert!(output.stdout.is_empty());
    assert!(!stderr(&output).contains(key["key"].as_str().unwrap()));
}

#[test]
fn a_key_file_is_never_overwritten() {
    let place = Place::new();
    place.keys(&["1"]);
    let before = place.read("keys.json");
    let error = fails(2, &place.teemark(&["keygen", "--output", "keys.json"]));
    assert!(error.contains("keys.json is there already") && error.contains("--add"), "{error}");
    assert_eq!(place.read("keys.json"), before);
    assert_eq!(place.names(), ["keys.json"]);
}

#[test]
fn several_keys_are_kept_in_one_file_by_add() {
    let place = Place::new();
    place.keys(&["1"]);
    succeeds(place.teemark(&["keygen", "--output", "keys.json", "--add", "--id", "2", "--aad"]));
    let all = keys(&place.read("keys.json"));
    assert_eq!(all["1"], KEY);
    assert_eq!(all["2"]["aad"], "file_id");
    assert_eq!((place.mode("keys.json"), place.names().len()), (0o600, 1));

    let before = place.read("keys.json");
    let error = fails(2, &place.teemark(&["keygen", "--output", "keys.json", "--add", "--id", "2"]));
    assert!(error.contains("two keys with id \"2\""), "{error}");
    assert_eq!(place.read("keys.json"), before);
}

#[test]
fn add_needs_a_key_file_that_is_there_and_whole() {
    let place = Place::new();
    assert!(fails(2, &place.teemark(&["keygen", "--output", "typo.json", "--add"])).contains("typo.json"));
    fails(2, &place.teemark(&["keygen", "--output", "-", "--add"]));
    place.write("broken.json", format!(r#"{{"1":"{KEY}""#));
    let error = fails(2, &place.teemark(&["keygen", "--output", "broken.json", "--add"]));
    assert!(error.contains("line 1") && !error.contains(&KEY[..8]), "{error}");
    assert_eq!(place.names(), ["broken.json"]);
}

#[test]
fn a_key_id_that_the_daemon_would_not_take_is_refused() {
    let place = Place::new();
    for id in ["", "a\nb", &"x".repeat(129)] {
        fails(2, &place.teemark(&["keygen", "--id", id, "--output", "keys.json"]));
    }
    assert!(place.names().is_empty());
}

/// The public half of a key file as openssl reads it: the end of its SubjectPublicKeyInfo.
fn public_half_by_openssl(place: &Place, file: &str, length: usize) -> Vec<u8> {
    let der = openssl(place, &format!("pkey -in {file} -pubout -outform DER"));
    der[der.len() - length..].to_vec()
}

/// The only line that was printed.
fn line(output: Output) -> String {
    let text = stdout(&succeeds(output));
    assert!(text.ends_with('\n') && text.lines().count() == 1, "{text:?}");
    text.trim_end().to_owned()
}

#[test]
fn openssl_reads_each_key_pair_and_finds_the_public_half_that_was_printed() {
    let place = Place::new();
    for (purpose, kind) in [("operator", "ED25519"), ("grants", "ED25519"), ("reply", "X25519")] {
        let file = format!("{purpose}.key");
        let output = place.teemark(&["keygen", "--for", purpose, "--output", &file]);
        let printed = line(output.clone());
        let public = public_half_by_openssl(&place, &file, 32);
        match purpose {
            "grants" => assert!(printed.contains(&format!(r#""x":"{}""#, URL_SAFE_NO_PAD.encode(public)))),
            _ => assert_eq!(printed, STANDARD.encode(public)),
        }
        let text = String::from_utf8(openssl(&place, &format!("pkey -in {file} -noout -text"))).unwrap();
        assert!(text.starts_with(kind), "{text}");
        assert_eq!(place.mode(&file), 0o600);
        let secret = String::from_utf8(place.read(&file)).unwrap().lines().nth(2).unwrap().to_owned();
        assert!(!stderr(&output).contains(&secret[30..]) && !printed.contains(&secret[30..]));
        assert_eq!(line(place.teemark(&["keygen", "--for", purpose, "--public", &file])), printed);
    }
}

#[test]
fn each_key_pair_is_new() {
    let place = Place::new();
    let made: HashSet<_> =
        ["a", "b", "c"].map(|file| line(place.teemark(&["keygen", "--for", "reply", "--output", file]))).into();
    assert_eq!(made.len(), 3);
}

#[test]
fn keys_that_openssl_made_serve_as_well() {
    let place = Place::new();
    openssl(&place, "genpkey -algorithm ed25519 -out ed25519.key");
    openssl(&place, "genpkey -algorithm x25519 -out x25519.key");
    openssl(&place, "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out p256.key");
    let public = |purpose, file| line(place.teemark(&["keygen", "--for", purpose, "--public", file]));
    assert_eq!(public("operator", "ed25519.key"), STANDARD.encode(public_half_by_openssl(&place, "ed25519.key", 32)));
    assert_eq!(public("reply", "x25519.key"), STANDARD.encode(public_half_by_openssl(&place, "x25519.key", 32)));
    let jwk = |file| serde_json::from_str::<Value>(&public("grants", file)).unwrap()["keys"][0].take();
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    assert_eq!(jwk("ed25519.key")["x"], number(&public_half_by_openssl(&place, "ed25519.key", 32)));
    let point = public_half_by_openssl(&place, "p256.key", 64);
    let (jwk, x, y) = (jwk("p256.key"), number(&point[..32]), number(&point[32..]));
    let kid = thumbprint(&place, &format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#));
    assert_eq!(jwk, json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid, "alg": "ES256", "use": "sig"}));
}

/// The hash of RFC 7638, 3, by openssl.
fn thumbprint(place: &Place, members: &str) -> String {
    place.write("members", members);
    URL_SAFE_NO_PAD.encode(openssl(place, "dgst -sha256 -binary members"))
}

#[test]
fn the_public_half_of_a_grants_key_is_a_jwk_set_with_the_thumbprint_as_kid() {
    let place = Place::new();
    let set = line(place.teemark(&["keygen", "--for", "grants", "--output", "grant.key"]));
    let x = URL_SAFE_NO_PAD.encode(public_half_by_openssl(&place, "grant.key", 32));
    let kid = thumbprint(&place, &format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#));
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid, "alg": "EdDSA", "use": "sig"});
    assert_eq!(serde_json::from_str::<Value>(&set).unwrap(), json!({"keys": [jwk]}));
}

#[test]
fn a_private_key_is_never_overwritten() {
    let place = Place::new();
    place.write("operator.key", "precious");
    let told = fails(2, &place.teemark(&["keygen", "--for", "operator", "--output", "operator.key"]));
    assert!(told.contains("operator.key is there already") && told.contains("--public"), "{told}");
    assert_eq!(place.read("operator.key"), b"precious");
}

#[test]
fn options_that_make_no_sense_together_are_refused_and_nothing_is_made() {
    let place = Place::new();
    openssl(&place, "genpkey -algorithm x25519 -out x25519.key");
    for (arguments, words) in [
        ("--for operator", "--output"),
        ("--for grants --output -", "--output"),
        ("--for operator --output new.key --id 7", "file keys only"),
        ("--for reply --output new.key --aad", "file keys only"),
        ("--for reply --output new.key --add", "file keys only"),
        ("--for operator --output new.key --public x25519.key", "cannot be used with"),
        ("--public x25519.key", "no public half"),
        ("--for operator --public x25519.key", "is an X25519 key"),
        ("--for grants --public x25519.key", "is an X25519 key"),
        ("--for reply --public none.key", "cannot open the key file none.key"),
        ("--for somebody --output new.key", "[possible values: file, operator, grants, reply, log, collector]"),
    ] {
        let arguments: Vec<_> = ["keygen"].into_iter().chain(arguments.split_whitespace()).collect();
        let told = fails(2, &place.teemark(&arguments));
        assert!(told.contains(words), "{arguments:?}: {told}");
        assert_eq!(place.names(), ["x25519.key"]);
    }
}

#[test]
fn a_private_key_that_others_can_read_is_warned_of() {
    let place = Place::new();
    succeeds(place.teemark(&["keygen", "--for", "operator", "--output", "operator.key"]));
    let public = ["keygen", "--for", "operator", "--public", "operator.key"];
    assert_eq!(stderr(&succeeds(place.teemark(&public))), "");
    fs::set_permissions(place.path("operator.key"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(stderr(&succeeds(place.teemark(&public))).contains("chmod 600"));
}

#[test]
fn the_public_half_goes_to_a_file_of_its_own_and_neither_is_ever_overwritten() {
    let place = Place::new();
    let keygen = |more: &[&str]| place.teemark(&[&["keygen", "--for", "operator"], more].concat());
    let both = ["--output", "operator.key", "--public-output", "operator.pub"];
    let made = succeeds(keygen(&both));
    assert!(made.stdout.is_empty() && stderr(&made).contains("the public half is in operator.pub"));
    let public = place.read("operator.pub");
    assert_eq!(String::from_utf8(public.clone()).unwrap(), line(keygen(&["--public", "operator.key"])) + "\n");
    assert_eq!(place.mode("operator.key"), 0o600);

    // A second run changes nothing, whether one of the two files exists or both.
    let private = place.read("operator.key");
    let told = fails(2, &keygen(&both));
    assert!(told.contains("operator.key is there already"), "{told}");
    assert_eq!((place.read("operator.key"), place.read("operator.pub")), (private, public.clone()));
    let told = fails(2, &keygen(&["--output", "new.key", "--public-output", "operator.pub"]));
    assert!(told.contains("operator.pub is there already"), "{told}");
    fails(2, &keygen(&["--output", "new.key", "--public-output", "none/operator.pub"]));
    fails(2, &keygen(&["--output", "new.key", "--public-output", "new.key"]));
    assert_eq!(place.names(), ["operator.key", "operator.pub"]);

    // The public half of a key that exists.
    succeeds(keygen(&["--public", "operator.key", "--public-output", "again.pub"]));
    assert_eq!(place.read("again.pub"), public);
    fails(2, &keygen(&["--public", "operator.key", "--public-output", "again.pub"]));
    fails(2, &place.teemark(&["keygen", "--public-output", "file.pub", "--output", "keys.json"]));
}

#[test]
fn a_key_that_was_made_for_another_use_is_refused_by_name_and_one_that_does_not_say_is_taken() {
    let place = Place::new();
    for purpose in ["operator", "grants", "reply"] {
        succeeds(place.teemark(&["keygen", "--for", purpose, "--output", &format!("{purpose}.key")]));
    }
    let grant = |key| ["grant", "--key", key, "--file-id", "f", "--user-id", "u", "--audience", "a"];
    let told = fails(2, &place.teemark(&grant("operator.key")));
    let words = "it is an operator's key (keygen --for operator), but a key to sign grants with (keygen --for grants) is \
                 needed here";
    assert!(told.contains("--key operator.key") && told.contains(words), "{told}");
    let told = fails(2, &place.teemark(&["keygen", "--for", "operator", "--public", "grants.key"]));
    assert!(told.contains("it is a key to sign grants with") && told.contains("--public grants.key"), "{told}");

    // As earlier versions of teemark and openssl write them: PEM alone.
    let text = String::from_utf8(place.read("operator.key")).unwrap();
    let (first, pem) = text.split_once('\n').unwrap();
    assert_eq!(first, "teemark private key for: operator");
    place.write("old.key", pem);
    succeeds(place.teemark(&grant("old.key")));
    succeeds(place.teemark(&["keygen", "--for", "operator", "--public", "old.key"]));
}
