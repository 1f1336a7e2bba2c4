//! Several operators: the enclave wants two of three signatures.

use super::*;

/// A scene with `operator.key`, `second.key` and `third.key`, and an enclave that wants two of them.
struct Three {
    scene: Scene,
    enclave: Daemon,
    url: String,
    port: u16,
}

impl Three {
    fn new() -> Three {
        let mut scene = Scene::new(&CERTS);
        for name in ["second.key", "third.key"] {
            let public = line(scene.teemark(&["keygen", "--for", "operator", "--output", name]));
            scene.operator = format!("{},{public}", scene.operator);
        }
        let port = free_port();
        let enclave = scene.enclave_with(port, PCRS, &[("TEEMARK_OPERATOR_THRESHOLD", "2")]);
        scene.write("root.der", enclave.test_root());
        Three { url: format!("http://{}", enclave.public), scene, enclave, port }
    }

    fn seal(&self, more: &[&str]) -> Output {
        let service = format!("https://localhost:{}", self.scene.service.port);
        let items = ["secrets", "--client-cert", "client.crt", "--client-key", "client.key", "--ca", "ecs-ca.crt"];
        let keys = ["--endpoint", &service, "--keys", "keys.json", "--seal", "--attested", &self.url];
        let trust = ["--pcrs", "image.pcrs", "--root", "root.der", "--operator-key", "operator.key"];
        self.scene.teemark(&[&items[..], &keys, &trust, more].concat())
    }

    fn sign(&self, more: &[&str]) -> Output {
        let bundle: &[&str] = if more.contains(&"--bundle") { &[] } else { &["--bundle", "bundle"] };
        let sign = ["sign", "--attested", &self.url, "--pcrs", "image.pcrs", "--root", "root.der"];
        self.scene.teemark(&[&sign[..], bundle, more].concat())
    }

    fn send(&self, to: &str) -> Output {
        self.scene.teemark(&["secrets", "--bundle", "bundle", "--send", to])
    }
}

#[test]
fn two_of_three_operators_have_to_sign_and_each_sees_what_changes() {
    let three = Three::new();
    succeeds(three.seal(&["--output", "bundle"]));
    fails(1, &three.send(&three.url), "2 by different operators");
    let shown = line(three.sign(&[]));
    for words in [
        "in force: nothing",
        "change     client certificate: a first one, until ",
        "change     watermark service: https://localhost:",
        "change     file keys: 1 key added: k",
    ] {
        assert!(shown.contains(words), "{words} in {shown}");
    }
    assert_eq!(shown.matches("signed by").count(), 1, "{shown}");
    assert!(!shown.contains("warning"), "{shown}");
    succeeds(three.seal(&["--counter", &u64::MAX.to_string(), "--output", "highest"]));
    let highest = three.sign(&["--bundle", "highest"]);
    assert!(line(highest).contains("warning    the counter is "));
    // The same operator again counts once.
    succeeds(three.sign(&["--operator-key", "operator.key"]));
    fails(1, &three.send(&three.url), "hold 1 that verify");
    bash(three.scene.folder.path(), "chmod 640 bundle");
    assert_eq!(line(three.sign(&["--operator-key", "third.key"])).matches("signed by").count(), 2);
    assert_eq!(bash(three.scene.folder.path(), "stat -c %a bundle").trim(), "640");
    has_nothing(&three.enclave);
    succeeds(three.send(&three.url));
    is_ready(&three.enclave);
    // It has been used.
    fails(1, &three.send(&three.url), "counter");
    fails(1, &three.sign(&["--operator-key", "second.key"]), "is in force already");
}

#[test]
fn the_handshakes_own_port_takes_it_too_and_keys_come_and_go_one_by_one() {
    let three = Three::new();
    let secrets = format!("unix:{}", three.enclave.secrets.display());
    succeeds(three.seal(&["--output", "bundle"]));
    succeeds(three.sign(&["--operator-key", "second.key", "--output", "signed"]));
    fails(1, &three.send(&secrets), "2 by different operators");
    fs::rename(three.scene.path("signed"), three.scene.path("bundle")).unwrap();
    succeeds(three.send(&secrets));
    is_ready(&three.enclave);
    succeeds(three.scene.teemark(&["keygen", "--id", "new", "--output", "new.json"]));
    let change = ["secrets", "--add-keys", "new.json", "--remove-key", "k", "--seal", "--attested", &three.url];
    let trust = ["--pcrs", "image.pcrs", "--root", "root.der", "--operator-key", "operator.key"];
    fs::remove_file(three.scene.path("bundle")).unwrap();
    succeeds(three.scene.teemark(&[&change[..], &trust, &["--output", "bundle"]].concat()));
    let shown = line(three.sign(&["--operator-key", "third.key"]));
    assert!(shown.contains("file keys: 1 key added: new") && shown.contains("file keys: 1 key removed: k"), "{shown}");
    succeeds(three.send(&three.url));
    assert_eq!(three.enclave.get("/state").json()["items"]["FILE_KEYS"]["ids"], serde_json::json!(["new"]));
}

#[test]
fn a_bundle_for_another_boot_is_not_signed() {
    let mut three = Three::new();
    succeeds(three.seal(&["--output", "bundle"]));
    drop(three.enclave);
    three.enclave = three.scene.enclave_with(three.port, PCRS, &[("TEEMARK_OPERATOR_THRESHOLD", "2")]);
    three.scene.write("root.der", three.enclave.test_root());
    let before = fs::read(three.scene.path("bundle")).unwrap();
    fails(1, &three.sign(&["--operator-key", "second.key"]), "restarted, or is another");
    assert_eq!(fs::read(three.scene.path("bundle")).unwrap(), before);
}

#[test]
fn a_keeper_alone_is_one_signature_too_few_and_says_so() {
    let three = Three::new();
    three.scene.config_of_files(&[three.port]);
    let mut keeper = three.scene.keeper();
    keeper.tells("not_confirmed", "2 by different operators");
    has_nothing(&three.enclave);
}

/// Two keepers, each with a key of its own, that pass bundles on to each other. The second has the file keys of this file.
fn two_keepers(three: &Three, second_keys: &str) -> [Keeper; 2] {
    let ports = [free_port(), free_port()];
    let names = ["first", "second"];
    for (n, (key, keys)) in [("operator.key", "keys.json"), ("second.key", second_keys)].into_iter().enumerate() {
        let (own, other) = (ports[n], ports[1 - n]);
        let operators: Vec<_> = three.scene.operator.split(',').map(|key| format!("'{key}'")).collect();
        let operators = operators.join(", ");
        let pass = format!(
            "signatures = 2\noperators = [{operators}]\nbundles = '127.0.0.1:{own}'\nnext = ['http://127.0.0.1:{other}']"
        );
        three.scene.config(&[three.port], &format!("{{ file = '{keys}' }}"), [&pass, ""]);
        let config = fs::read_to_string(three.scene.path("keeper.toml")).unwrap();
        let config = config.replace("operator.key", key).replace("folder = '.'", &format!("folder = '{}'", names[n]));
        three.scene.write(&format!("{}.toml", names[n]), config);
        fs::create_dir(three.scene.path(names[n])).unwrap();
    }
    names.map(|name| three.scene.keeper_of(&format!("{name}.toml")))
}

#[test]
fn two_keepers_sign_for_each_other_and_an_enclave_that_restarts_has_its_secrets_again() {
    let mut three = Three::new();
    let mut keepers = two_keepers(&three, "keys.json");
    // Whichever of them passed a bundle on to the other.
    let have_told = |keepers: &[Keeper; 2], event: &str, times| {
        wait_for(event, || (keepers.iter().map(|keeper| keeper.count(event)).sum::<usize>() >= times).then_some(()));
    };
    is_ready(&three.enclave);
    // The one that signed tells so once the enclave has answered, which it has to live for.
    have_told(&keepers, "signed", 1);
    drop(three.enclave);
    three.enclave = three.scene.enclave_with(three.port, PCRS, &[("TEEMARK_OPERATOR_THRESHOLD", "2")]);
    is_ready(&three.enclave);
    // A key that comes is passed on too, once both have it.
    succeeds(three.scene.teemark(&["keygen", "--id", "new", "--output", "keys.json", "--add"]));
    wait_for("the new key", || three.enclave.get("/state").text().contains("\"new\"").then_some(()));
    have_told(&keepers, "signed", 3);
    have_told(&keepers, "confirmed", 1);
    for keeper in &mut keepers {
        keeper.tells("current", "");
    }
}

#[test]
fn a_keeper_does_not_sign_what_its_own_sources_do_not_have() {
    let three = Three::new();
    succeeds(three.scene.teemark(&["keygen", "--id", "k", "--output", "other.json"]));
    let [mut first, mut second] = two_keepers(&three, "other.json");
    second.tells("not_signed", "it has another FILE_KEYS than this keeper's sources");
    first.tells("not_confirmed", "another FILE_KEYS");
    has_nothing(&three.enclave);
}

#[test]
fn what_strangers_pass_on_is_not_signed_and_no_counter_is_used_up() {
    let three = Three::new();
    let keepers = two_keepers(&three, "keys.json");
    is_ready(&three.enclave);
    let service = format!("https://localhost:{}", three.scene.service.port);
    succeeds(three.scene.teemark(&["keygen", "--for", "operator", "--output", "stranger.key"]));
    let highest = u64::MAX.to_string();
    let post = |key: &str, more: &[&str], words: &str| {
        let _ = fs::remove_file(three.scene.path("bundle"));
        // What every keeper's sources have.
        let seal = ["secrets", "--endpoint", &service, "--seal", "--attested", &three.url, "--pcrs", "image.pcrs"];
        let rest = ["--root", "root.der", "--operator-key", key, "--output", "bundle"];
        succeeds(three.scene.teemark(&[&seal[..], &rest, more].concat()));
        let bundle = fs::read(three.scene.path("bundle")).unwrap();
        for keeper in &keepers {
            let address = keeper.lines().iter().find(|line| line["event"] == "started").unwrap()["bundles"].clone();
            let length = bundle.len();
            let head = format!("POST /sealed-bundle HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
            let answer = request(address.as_str().unwrap().parse().unwrap(), &head, &bundle);
            assert_eq!(answer.status, 400, "{}", answer.text());
            assert!(answer.text().contains(words), "{words} in {}", answer.text());
        }
    };
    post("stranger.key", &["--counter", &highest], "no operator whom this keeper knows has signed it");
    post("stranger.key", &[], "no operator whom this keeper knows has signed it");
    post("third.key", &["--counter", &highest], "minutes above");
    post("third.key", &[], "it changes nothing");
    // The enclave goes on taking bundles.
    succeeds(three.scene.teemark(&["keygen", "--id", "new", "--output", "keys.json", "--add"]));
    wait_for("the new key", || three.enclave.get("/state").text().contains("\"new\"").then_some(()));
}

#[test]
fn an_enclave_is_not_ready_before_the_state_that_its_bundle_names() {
    let three = Three::new();
    let last = "ab".repeat(32);
    succeeds(three.seal(&["--complete-at", &last, "--output", "bundle"]));
    let shown = line(three.sign(&["--operator-key", "second.key"]));
    assert!(shown.contains(&format!("the enclave is not ready before it has state {last}")), "{shown}");
    succeeds(three.send(&three.url));
    let ready = three.enclave.get("/ready");
    assert_eq!((ready.status, &ready.json()["complete_at"]), (503, &last.into()), "{}", ready.text());
    // The same items again lead to the state that is there; a bundle that names it is the last.
    let attest = ["attest", "--endpoint", &three.url, "--pcrs", "image.pcrs", "--root", "root.der", "--json"];
    let attested: Value = serde_json::from_str(&line(three.scene.teemark(&attest))).unwrap();
    fs::remove_file(three.scene.path("bundle")).unwrap();
    succeeds(three.seal(&["--complete-at", attested["state_sha256"].as_str().unwrap(), "--output", "bundle"]));
    succeeds(three.sign(&["--operator-key", "third.key"]));
    succeeds(three.send(&three.url));
    is_ready(&three.enclave);
}
