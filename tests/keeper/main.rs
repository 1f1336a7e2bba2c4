//! `teemark keeper` with real daemons: enclaves have their secrets again with nobody, whoever is killed and whenever, and
//! nobody else is given any.

#[path = "../support/mod.rs"]
mod support;

mod relay;
mod sources;
mod threshold;

use std::fs;
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;

use support::keeper::*;
use support::*;

static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

#[track_caller]
fn has_nothing(enclave: &Daemon) {
    assert_eq!(enclave.get("/state").text(), r#"{"items":{}}"#);
    assert_eq!(enclave.get("/ready").status, 503);
}

#[test]
fn an_enclave_that_restarts_has_its_secrets_again_with_nobody() {
    let (scene, port) = (Scene::new(&CERTS), free_port());
    scene.config_of_files(&[port]);
    succeeds(scene.teemark(&["keeper", "--config", "keeper.toml", "--check"]));
    let mut keeper = scene.keeper();
    keeper.tells("unreachable", "");
    for boots in 1..=3 {
        let enclave = scene.enclave(port, PCRS);
        is_ready(&enclave);
        scene.decrypts(&enclave, "k");
        wait_for("the confirmation", || (keeper.count("confirmed") == boots).then_some(()));
    }
    assert_eq!((keeper.count("boot"), keeper.count("sent"), keeper.count("not_confirmed")), (3, 3, 0));
    // Development is said in each line, and nothing secret in any.
    let told = fs::read_to_string(&keeper.output).unwrap();
    assert!(told.lines().all(|line| line.contains("\"development\":true")), "{told}");
    let keys: Value = serde_json::from_slice(&fs::read(scene.path("keys.json")).unwrap()).unwrap();
    assert!(!told.contains(keys["k"].as_str().unwrap()) && !told.contains("PRIVATE KEY"));
}

#[test]
fn two_enclaves_that_are_killed_at_once_both_come_back() {
    let (scene, ports) = (Scene::new(&CERTS), [free_port(), free_port()]);
    scene.config_of_files(&ports);
    let enclaves = ports.map(|port| scene.enclave(port, PCRS));
    let _keeper = scene.keeper();
    enclaves.iter().for_each(is_ready);
    drop(enclaves);
    let enclaves = ports.map(|port| scene.enclave(port, PCRS));
    for enclave in &enclaves {
        is_ready(enclave);
        scene.decrypts(enclave, "k");
    }
}

#[test]
fn a_genuine_enclave_of_another_instance_or_image_is_given_nothing() {
    let (scene, ports) = (Scene::new(&CERTS), [free_port(), free_port(), free_port()]);
    scene.config_of_files(&ports);
    let [right, instance, image] = [(0, PCRS), (1, "0=a0,1=a1,2=a2,3=b4"), (2, "0=af,1=a1,2=a2,3=b3")]
        .map(|(n, pcrs)| scene.enclave(ports[n], pcrs));
    let mut keeper = scene.keeper();
    is_ready(&right);
    keeper.tells("not_attested", "PCR3");
    keeper.tells("not_attested", "PCR0");
    [&instance, &image].into_iter().for_each(has_nothing);
    // At its address, an enclave that may have them gets them.
    drop(instance);
    is_ready(&scene.enclave(ports[1], PCRS));
    has_nothing(&image);
}

#[test]
fn without_pcr3_and_pcr4_the_keeper_does_not_start_unless_any_instance_will_do() {
    let (scene, port) = (Scene::new(&CERTS), free_port());
    let pcrs = fs::read_to_string(scene.path("image.pcrs")).unwrap();
    let image: String = pcrs.lines().take(3).map(|line| format!("{line}\n")).collect();
    scene.config_of_files(&[port]);
    let any_instance = fs::read_to_string(scene.path("keeper.toml")).unwrap();
    scene.write("keeper.toml", any_instance.replace("any_instance = true\n", ""));
    // In development nothing vouches for PCR3 either.
    for registers in [&pcrs, &image] {
        scene.write("image.pcrs", registers);
        fails(2, &scene.teemark(&["keeper", "--config", "keeper.toml"]), "Give roles or instances");
    }
    scene.write("keeper.toml", any_instance);
    let enclave = scene.enclave(port, "0=a0,1=a1,2=a2,3=b4");
    let keeper = scene.keeper();
    is_ready(&enclave);
    assert!(keeper.lines().iter().all(|line| line["any_instance"] == true && line["development"] == true));
}

#[test]
fn no_more_enclaves_are_given_secrets_than_there_may_be() {
    let (scene, ports) = (Scene::new(&CERTS), [free_port(), free_port()]);
    scene.config(&ports, "{ file = 'keys.json' }", ["", "max_enclaves = 1"]);
    let enclaves = ports.map(|port| scene.enclave(port, PCRS));
    let mut keeper = scene.keeper();
    keeper.tells("no_place", "max_enclaves is 1");
    keeper.tells("confirmed", "");
    let ready = enclaves.iter().filter(|enclave| enclave.get("/ready").status == 200).count();
    assert_eq!(ready, 1);
}

#[test]
fn a_bundle_by_hand_stays_in_force_until_the_source_changes_or_the_enclave_restarts() {
    let (scene, port, enclave, mut keeper) = ready(&CERTS);
    keeper.tells("current", "");
    succeeds(scene.teemark(&["keygen", "--id", "by-hand", "--output", "by-hand.json"]));
    let url = format!("http://127.0.0.1:{port}");
    let send = ["secrets", "--keys", "by-hand.json", "--seal", "--attested", &url, "--operator-key", "operator.key"];
    // Its registers are chosen by the test, so it is not in debug mode, and only its own root vouches for it.
    scene.write("root.der", enclave.test_root());
    succeeds(scene.teemark(&[&send[..], &["--pcrs", "image.pcrs", "--root", "root.der", "--send", &url]].concat()));
    keeper.tells("held", "FILE_KEYS");
    let state = || enclave.get("/state").json()["items"]["FILE_KEYS"]["ids"].clone();
    assert_eq!(state(), serde_json::json!(["by-hand"]));
    succeeds(scene.teemark(&["keygen", "--id", "k2", "--output", "k2.json"]));
    fs::rename(scene.path("k2.json"), scene.path("keys.json")).unwrap();
    wait_for("the new keys", || (state() == serde_json::json!(["k2"])).then_some(()));
}

#[test]
fn an_address_that_cannot_be_watched_yet_is_tried_again() {
    let (scene, port) = (Scene::new(&CERTS), free_port());
    scene.config_of_files(&[port]);
    let config = fs::read_to_string(scene.path("keeper.toml")).unwrap().replace("http://127", "https://127");
    scene.write("keeper.toml", config.replace("any_instance", "cacert = 'later.crt'\nany_instance"));
    let mut keeper = scene.keeper();
    keeper.tells("not_watched", "later.crt");
    fs::copy(scene.path("ca.crt"), scene.path("later.crt")).unwrap();
    // Nobody listens there, and that is all that is wrong now.
    keeper.tells("unreachable", &port.to_string());
}
