//! Grants as `teemark grant` signs them.

use super::*;

#[test]
fn a_grant_has_its_file_decrypted_once() {
    let scene = Scene::ready();
    scene.grant("grant.key", &[]);
    succeeds(scene.decrypt(&scene.endpoint, &["--grant", "grant"]));
    scene.has_the_marked_file();
    let again = scene.decrypt(&scene.endpoint, &["--grant", "grant"]);
    scene.has_nothing(1, &again, "the grant has been used");
}

#[test]
fn without_a_grant_or_with_one_for_something_else_there_is_no_file() {
    let scene = Scene::ready();
    scene.has_nothing(1, &scene.decrypt(&scene.endpoint, &[]), "no grant");
    for (claims, words) in [
        (["report-8", "alice", "test"], "another file_id"),
        (["report-7", "bob", "test"], "another user_id"),
        (["report-7", "alice", "production"], "another enclave or fleet"),
    ] {
        scene.grant_for("grant.key", claims, &[]);
        scene.has_nothing(1, &scene.decrypt(&scene.endpoint, &["--grant", "grant"]), words);
    }
    succeeds(scene.teemark(&["keygen", "--for", "grants", "--output", "mallory.key"]));
    scene.grant("mallory.key", &[]);
    scene.has_nothing(1, &scene.decrypt(&scene.endpoint, &["--grant", "grant"]), "no key in GRANT_KEYS");
}

#[test]
fn a_grant_for_one_encrypted_file_serves_for_no_other_under_its_id() {
    let scene = Scene::ready();
    succeeds(scene.teemark(&["encrypt", "file", "--keys", "keys.json", "--output", "another.enc"]));
    scene.grant("grant.key", &["--content", "another.enc"]);
    let output = scene.decrypt(&scene.endpoint, &["--grant", "grant"]);
    scene.has_nothing(1, &output, "the grant is for another encrypted file");
    scene.grant("grant.key", &["--content", "file.enc"]);
    succeeds(scene.decrypt(&scene.endpoint, &["--grant", "grant"]));
    scene.has_the_marked_file();
}

#[test]
fn a_grant_may_be_for_the_one_enclave_of_an_identity_key() {
    let scene = Scene::ready();
    let attested = line(scene.teemark(&[&["attest", "--endpoint", &scene.endpoint, "--json"], &TRUST[..]].concat()));
    let identity = serde_json::from_str::<serde_json::Value>(&attested).unwrap()["identity"].take();
    scene.grant_for("grant.key", ["report-7", "alice", identity.as_str().unwrap()], &[]);
    succeeds(scene.decrypt(&scene.endpoint, &["--grant", "grant"]));
    scene.has_the_marked_file();
}

#[test]
fn an_issuers_p256_key_by_openssl_serves_as_well() {
    let scene = Scene::new();
    bash(scene.folder.path(), "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out p256.key");
    let set = line(scene.teemark(&["keygen", "--for", "grants", "--public", "p256.key"]));
    scene.write("grant-keys.json", set);
    succeeds(scene.seal("operator.key", &["--send", &scene.secrets()]));
    scene.grant("p256.key", &[]);
    succeeds(scene.decrypt(&scene.endpoint, &["--grant", "grant"]));
    scene.has_the_marked_file();
}
