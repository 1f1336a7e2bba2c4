use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

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
