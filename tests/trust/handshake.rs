//! The sealed handshake.

use super::*;

#[test]
fn the_daemon_accepts_what_an_operator_seals_by_teemark_or_by_socat() {
    let scene = Scene::ready();
    succeeds(scene.seal("operator.key", &["--output", "sealed"]));
    let relayed = format!("socat -t 30 - UNIX-CONNECT:{} < sealed", scene.daemon.secrets.display());
    let answer = bash(scene.folder.path(), &relayed);
    assert!(answer.contains(r#""ok":true"#) && answer.contains("GRANT_KEYS"), "{answer}");
}

#[test]
fn a_parent_that_withholds_a_bundle_and_says_that_it_was_accepted_is_noticed() {
    let scene = Scene::new();
    let parent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", parent.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut stream = parent.accept().unwrap().0;
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
        std::io::Write::write_all(&mut stream, b"{\"ok\":true,\"updated\":[]}\n").unwrap();
    });
    fails(1, &scene.seal("operator.key", &["--counter", "7", "--send", &address]), "says counter 0, not 7");
    let confirmed = line(scene.seal("operator.key", &["--counter", "7", "--send", &scene.secrets()]));
    assert!(confirmed.ends_with("confirmed by the enclave: the bundle of counter 7 is in force"), "{confirmed}");
}

#[test]
fn a_bundle_that_is_not_sealed_changes_nothing() {
    let scene = Scene::new();
    let output = scene.bundle(&["--plain", "--send", &scene.secrets()]);
    fails(1, &output, "is not sealed");
    assert_eq!(scene.daemon.get("/ready").status, 503);
}

#[test]
fn a_sealed_bundle_that_is_sent_again_is_refused_and_so_is_an_older_one() {
    let scene = Scene::new();
    for (file, counter) in [("old", "7"), ("new", "8")] {
        succeeds(scene.seal("operator.key", &["--output", file, "--counter", counter]));
    }
    succeeds(scene.send("new"));
    for late in ["new", "old"] {
        fails(1, &scene.send(late), "sealed_bundle_v2.counter: is not above 8");
    }
    assert_eq!(scene.daemon.get("/ready").status, 200);
}

#[test]
fn a_bundle_signed_by_somebody_else_is_refused() {
    let scene = Scene::new();
    succeeds(scene.teemark(&["keygen", "--for", "operator", "--output", "mallory.key"]));
    fails(1, &scene.seal("mallory.key", &["--send", &scene.secrets()]), "sealed_bundle_v2.signatures");
    assert_eq!(scene.daemon.get("/ready").status, 503);
}

#[test]
fn a_bundle_that_was_sealed_to_another_enclave_is_refused() {
    let (one, another) = (Scene::new(), Scene::new());
    // By the operator of the first, to the second.
    let key = one.path("operator.key").display().to_string();
    succeeds(another.seal(&key, &["--output", "sealed"]));
    fs::copy(another.path("sealed"), one.path("sealed")).unwrap();
    fails(1, &one.send("sealed"), "sealed_bundle_v2.boot_nonce: is from another boot");
    assert_eq!(one.daemon.get("/ready").status, 503);
}

#[test]
fn an_operators_key_by_openssl_serves_as_well() {
    let folder = TempDir::new().unwrap();
    bash(folder.path(), "openssl genpkey -algorithm ed25519 -out operator.key");
    let public = line(teemark(folder.path(), &["keygen", "--for", "operator", "--public", "operator.key"]));
    let scene = Scene::of_operator(folder, &public);
    succeeds(scene.seal("operator.key", &["--send", &scene.secrets()]));
}
