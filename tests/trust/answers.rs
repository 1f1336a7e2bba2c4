//! Sealed and signed answers, through a parent that sees and changes what it relays.

use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::relay::{Meddling, NONE, parent};
use super::*;

fn is_reply_key(line: &str) -> bool {
    line.to_ascii_lowercase().starts_with("teemark-reply-key: ")
}

fn without_reply_key(head: Vec<String>) -> Vec<String> {
    head.into_iter().filter(|line| !is_reply_key(line)).collect()
}

/// With another's key in place of the user's.
fn with_another_reply_key(head: Vec<String>) -> Vec<String> {
    let another = format!("Teemark-Reply-Key: {}", STANDARD.encode([9; 32]));
    head.into_iter().map(|line| if is_reply_key(&line) { another.clone() } else { line }).collect()
}

fn flip_last_byte(answer: &mut Answer) {
    *answer.body.last_mut().unwrap() ^= 1;
}

#[test]
fn a_sealed_and_verified_answer_is_the_marked_file_and_the_parent_sees_none_of_it() {
    let scene = Scene::ready();
    let (endpoint, seen) = parent(&scene, NONE);
    let saw_the_text = |answer: &Answer| answer.body.windows(7).any(|window| window == b"minutes");
    let ways = [
        (&[][..], true),
        (&["--verify"], true),
        (&["--seal"], false),
        (&["--seal", "--verify"], false),
        (&["--seal", "--verify", "--reply-key", "alice.key"], false),
    ];
    for (way, readable) in ways {
        scene.grant("grant.key", &[]);
        let trust = if way.contains(&"--verify") { &TRUST[..] } else { &[] };
        succeeds(scene.decrypt(&endpoint, &[&["--grant", "grant"], way, trust].concat()));
        scene.has_the_marked_file();
        assert_eq!(saw_the_text(&seen.recv().unwrap()), readable, "{way:?}");
    }
}

#[test]
fn a_parent_that_asks_for_an_unsealed_answer_is_noticed() {
    let scene = Scene::ready();
    let (endpoint, _seen) = parent(&scene, Meddling { request: without_reply_key, ..NONE });
    scene.grant("grant.key", &[]);
    scene.has_nothing(
        2,
        &scene.decrypt(&endpoint, &["--grant", "grant", "--seal"]),
        "the answer is not sealed, although",
    );
}

#[test]
fn a_parent_that_has_the_answer_sealed_to_itself_gets_none_where_the_grant_names_the_key() {
    let scene = Scene::ready();
    let (endpoint, seen) = parent(&scene, Meddling { request: with_another_reply_key, ..NONE });
    scene.grant("grant.key", &["--reply-key", &scene.alice]);
    let options = ["--grant", "grant", "--seal", "--reply-key", "alice.key"];
    scene.has_nothing(1, &scene.decrypt(&endpoint, &options), "another reply_key");
    assert_eq!(seen.recv().unwrap().status, 403);
    // The grant is still valid.
    succeeds(scene.decrypt(&scene.endpoint, &options));
    scene.has_the_marked_file();
}

#[test]
fn an_answer_that_the_parent_changed_is_not_written() {
    let scene = Scene::ready();
    let (endpoint, _seen) = parent(&scene, Meddling { answer: flip_last_byte, ..NONE });
    for (way, words) in [
        (&["--verify"][..], "the answer is not signed by the attested enclave: "),
        (&["--seal"], "the sealed answer cannot be opened"),
        (&["--seal", "--verify"], "the answer is not signed by the attested enclave: "),
    ] {
        scene.grant("grant.key", &[]);
        let trust = if way.contains(&"--verify") { &TRUST[..] } else { &[] };
        scene.has_nothing(2, &scene.decrypt(&endpoint, &[&["--grant", "grant"], way, trust].concat()), words);
    }
}

#[test]
fn an_answer_of_an_enclave_that_is_not_attested_is_not_written() {
    let scene = Scene::ready();
    let another = Scene::ready();
    another.grant("grant.key", &[]);
    for name in ["file.enc", "grant"] {
        fs::copy(another.path(name), scene.path(name)).unwrap();
    }
    let (endpoint, seen) = parent(&scene, Meddling { daemon: Some(another.daemon.public), ..NONE });
    let told = scene.decrypt(&endpoint, &[&["--grant", "grant", "--seal", "--verify"], &TRUST[..]].concat());
    scene.has_nothing(1, &told, "refused: marked was not written: root: ");
    assert_eq!(seen.recv().unwrap().status, 200);
}

/// examples/client.sh, run with the documents' own commands.
#[test]
fn the_client_in_shell_gets_the_marked_file_and_no_answer_that_was_changed_or_is_of_another_enclave() {
    let scene = Scene::ready();
    let attested = scene.teemark(&[&["attest", "--endpoint", &scene.endpoint, "--json"][..], &TRUST].concat());
    let attested: serde_json::Value = serde_json::from_slice(&succeeds(attested).stdout).unwrap();
    let identity = attested["identity"].as_str().unwrap();
    let client = |endpoint: &str, identity: &str| {
        scene.grant("grant.key", &[]);
        let arguments = [endpoint, identity, "file.enc", "report-7", "alice", "grant", "marked"];
        let client = repository().join("examples/client.sh");
        Command::new(client).args(arguments).current_dir(scene.folder.path()).output().unwrap()
    };
    succeeds(client(&scene.endpoint, identity));
    scene.has_the_marked_file();
    fs::remove_file(scene.path("marked")).unwrap();

    let (meddling, _seen) = parent(&scene, Meddling { answer: flip_last_byte, ..NONE });
    let another = "11".repeat(32);
    for (endpoint, identity) in [(&meddling, identity), (&scene.endpoint, &another)] {
        scene.has_nothing(1, &client(endpoint, identity), "the signature is not this enclave's");
    }
}
