use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::*;

/// Opens `IV || ciphertext || tag` under KEY.
fn open(sealed: &[u8], aad: &str) -> Option<Vec<u8>> {
    let key: Vec<u8> = (0..32).collect();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
    let (iv, body) = sealed.split_at(12);
    let mut body = body.to_vec();
    let iv = Nonce::try_assume_unique_for_key(iv).unwrap();
    Some(key.open_in_place(iv, Aad::from(aad), &mut body).ok()?.to_vec())
}

#[test]
fn a_file_of_any_size_becomes_iv_ciphertext_and_tag() {
    let place = Place::new();
    place.keys(&["1"]);
    for size in [0, 1, 15, 16, 70_000, 6 << 20] {
        let plain: Vec<u8> = (0..251).cycle().take(size).collect();
        place.write("file", &plain);
        let output = succeeds(place.teemark(&["encrypt", "file", "--keys", "keys.json", "--force"]));
        assert_eq!(stderr(&output), "", "no bar where stderr is no terminal");
        let sealed = place.read("file.enc");
        assert_eq!(sealed.len(), 12 + size + 16);
        assert_eq!(open(&sealed, "").unwrap(), plain);
    }
}

#[test]
fn tinks_form_has_the_key_id_in_front() {
    let place = Place::new();
    place.keys(&["16909060", "contracts"]);
    place.write("file", "hello");
    succeeds(place.teemark(&["encrypt", "file", "--keys", "keys.json", "--key-id", "16909060", "--tink"]));
    let sealed = place.read("file.enc");
    assert_eq!(sealed[..5], [1, 1, 2, 3, 4]);
    assert_eq!(open(&sealed[5..], "").unwrap(), b"hello");

    let named = ["encrypt", "file", "--keys", "keys.json", "--key-id", "contracts", "--tink", "--output", "other"];
    assert!(fails(2, &place.teemark(&named)).contains("as a number"));
    assert!(!place.path("other").exists());
}

#[test]
fn the_iv_is_never_the_same_twice() {
    let place = Place::new();
    place.keys(&["1"]);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..50 {
        let sealed = succeeds(place.teemark_with_input(&["encrypt", "-", "--keys", "keys.json"], b"same")).stdout;
        assert_eq!(open(&sealed, "").unwrap(), b"same");
        assert!(seen.insert(sealed[..12].to_vec()));
    }
}

#[test]
fn a_bound_key_makes_the_file_id_associated_data() {
    let place = Place::new();
    place.keys(&["1+"]);
    place.write("file", "hello");
    let error = fails(2, &place.teemark(&["encrypt", "-", "--keys", "keys.json"]));
    assert!(error.contains("--file-id"), "{error}");
    succeeds(place.teemark(&["encrypt", "file", "--keys", "keys.json", "--output", "by-name"]));
    assert!(open(&place.read("by-name"), "file").is_some());
    succeeds(place.teemark(&["encrypt", "file", "--keys", "keys.json", "--file-id", "f-1"]));
    let sealed = place.read("file.enc");
    assert_eq!(open(&sealed, "f-1").unwrap(), b"hello");
    assert!(open(&sealed, "f-2").is_none() && open(&sealed, "").is_none());
}

#[test]
fn python_opens_what_teemark_seals() {
    let has_cryptography = Command::new("python3").args(["-c", "import cryptography"]).output();
    if !has_cryptography.is_ok_and(|output| output.status.success()) {
        eprintln!("not run: there is no python3 with cryptography here");
        return;
    }
    let place = Place::new();
    place.keys(&["1+"]);
    place.write("file", "hello");
    succeeds(place.teemark(&["encrypt", "file", "--keys", "keys.json", "--file-id", "f-1"]));
    let program = "from cryptography.hazmat.primitives.ciphers.aead import AESGCM; import sys; \
                   d = open('file.enc', 'rb').read(); \
                   sys.stdout.buffer.write(AESGCM(bytes(range(32))).decrypt(d[:12], d[12:], b'f-1'))";
    let output = Command::new("python3").args(["-c", program]).current_dir(place.0.path()).output().unwrap();
    assert_eq!(stdout(&succeeds(output)), "hello");
}

#[test]
fn nothing_is_overwritten_without_force_and_nothing_half_done_is_left() {
    let place = Place::new();
    place.keys(&["1"]);
    place.write("file", "hello");
    place.write("file.enc", "precious");
    let error = fails(2, &place.teemark(&["encrypt", "file", "--keys", "keys.json"]));
    assert!(error.contains("file.enc is there already") && error.contains("--force"), "{error}");
    assert_eq!(place.read("file.enc"), b"precious");

    // A folder can be opened but not read, so the work fails after the output was opened.
    fails(2, &place.teemark(&["encrypt", ".", "--keys", "keys.json", "--output", "file.enc", "--force"]));
    assert_eq!(place.read("file.enc"), b"precious");
    assert_eq!(place.names(), ["file", "file.enc", "keys.json"]);

    succeeds(place.teemark(&["encrypt", "file", "--keys", "keys.json", "--force"]));
    assert_eq!(open(&place.read("file.enc"), "").unwrap(), b"hello");
}

#[test]
fn an_operator_is_told_what_is_missing() {
    let place = Place::new();
    place.keys(&["1", "2"]);
    place.write("file", "hello");
    let told = |arguments: &[&str], words: &str| {
        let error = fails(2, &place.teemark(arguments));
        assert!(error.contains(words) && !error.contains(&KEY[..8]), "{error}");
    };
    told(&["encrypt", "file", "--keys", "keys.json"], "choose one with --key-id: 1, 2");
    told(&["encrypt", "file", "--keys", "keys.json", "--key-id", "3"], "it has: 1, 2");
    told(&["encrypt", "file", "--keys", "none.json"], "teemark keygen");
    told(&["encrypt", "none", "--keys", "keys.json", "--key-id", "1"], "cannot read none");
    told(&["encrypt", "file", "--keys", "file"], "it is not JSON");
    assert_eq!(place.names(), ["file", "keys.json"]);
}

#[test]
fn a_key_file_that_others_can_read_is_warned_about() {
    let place = Place::new();
    place.keys(&["1"]);
    fs::set_permissions(place.path("keys.json"), fs::Permissions::from_mode(0o644)).unwrap();
    let output = succeeds(place.teemark_with_input(&["encrypt", "-", "--keys", "keys.json"], b"x"));
    assert!(stderr(&output).contains("chmod 600"), "{}", stderr(&output));
}

#[test]
fn a_file_above_the_daemons_default_limit_is_warned_about() {
    let place = Place::new();
    place.keys(&["1"]);
    let limit = 64 << 20;
    for (size, warned) in [(limit, false), (limit + 1, true)] {
        fs::File::create(place.path("file")).unwrap().set_len(size).unwrap();
        let output = succeeds(place.teemark(&["encrypt", "file", "--keys", "keys.json", "--output", "/dev/null"]));
        assert_eq!(stderr(&output).contains("TEEMARK_MAX_FILE"), warned, "{size}");
    }
}
