//! `teemark keeper` with real daemons: enclaves have their secrets again with nobody, whoever is killed and whenever, and
//! nobody else is given any.

#[path = "../support/mod.rs"]
mod support;

mod relay;
mod sources;
mod threshold;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use serde_json::Value;
use tempfile::TempDir;

use support::*;

static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

/// The registers of the image, and of the instances that it may run on.
const PCRS: &str = "0=a0,1=a1,2=a2,3=b3";

/// Where a keeper and the enclaves' service are, with sources of its own.
struct Scene {
    folder: TempDir,
    service: Service,
    /// The public half of `operator.key`.
    operator: String,
}

/// A running keeper.
struct Keeper {
    process: Process,
    output: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let folder = TempDir::new().unwrap();
        for name in ["client.crt", "client.key", "ecs-ca.crt", "ca.crt", "ca.key"] {
            fs::copy(CERTS.path(name), folder.path().join(name)).unwrap();
        }
        let service = Service::start(&CERTS, &[]);
        let mut scene = Scene { folder, service, operator: String::new() };
        scene.operator = line(scene.teemark(&["keygen", "--for", "operator", "--output", "operator.key"]));
        succeeds(scene.teemark(&["keygen", "--id", "k", "--output", "keys.json"]));
        let registers = [(0, "a0"), (1, "a1"), (2, "a2"), (3, "b3")];
        let line_of = |(index, byte): (u8, &str)| format!("{} PCR{index}\n", byte.repeat(48));
        scene.write("image.pcrs", registers.map(line_of).concat());
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn teemark(&self, arguments: &[&str]) -> Output {
        Command::new(program("teemark")).args(arguments).current_dir(self.folder.path()).output().unwrap()
    }

    /// An enclave that has nothing yet, at this port, with these registers.
    fn enclave(&self, port: u16, pcrs: &str) -> Daemon {
        self.enclave_with(port, pcrs, &[])
    }

    fn enclave_with(&self, port: u16, pcrs: &str, more: &[(&str, &str)]) -> Daemon {
        let setup = Setup::new(self.service.port)
            .env("TEEMARK_HANDSHAKE", "sealed")
            .env("TEEMARK_OPERATOR_KEYS", &self.operator)
            .env("TEEMARK_PUBLIC", &format!("tcp:127.0.0.1:{port}"))
            .env("TEEMARKD_TEST_PCRS", pcrs);
        more.iter().fold(setup, |setup, (name, value)| setup.env(name, value)).start()
    }

    /// Writes keeper.toml for enclaves at these ports, with every item; `more` goes to its beginning, and to the enclaves.
    fn config(&self, ports: &[u16], file_keys: &str, more: [&str; 2]) {
        let urls: Vec<_> = ports.iter().map(|port| format!("'http://127.0.0.1:{port}'")).collect();
        let service = self.service.port;
        self.write(
            "keeper.toml",
            format!(
                "interval = 1\nlisten = '127.0.0.1:0'\nfolder = '.'\noperator_key = {{ file = 'operator.key' }}\n{}\n\
                 [enclaves]\nurls = [{}]\npcrs = ['image.pcrs']\ndevelopment = true\nany_instance = true\n{}\n\
                 [items]\nendpoint = 'https://localhost:{service}'\nfile_keys = {file_keys}\n[items.certificate]\n\
                 cert = {{ file = 'client.crt' }}\nkey = {{ file = 'client.key' }}\nca = {{ file = 'ecs-ca.crt' }}\n",
                more[0],
                urls.join(", "),
                more[1],
            ),
        );
    }

    /// Writes keeper.toml with files alone.
    fn config_of_files(&self, ports: &[u16]) {
        self.config(ports, "{ file = 'keys.json' }", ["", ""]);
    }

    fn keeper(&self) -> Keeper {
        self.keeper_of("keeper.toml")
    }

    fn keeper_of(&self, config: &str) -> Keeper {
        let output = self.path(&format!("{config}.out"));
        let mut command = Command::new(program("teemark"));
        command.args(["keeper", "--config", config]).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(File::create(&output).unwrap());
        Keeper { process: Process::spawn(&mut command, self.path(&format!("{config}.log"))), output }
    }

    /// Decrypts a file that is encrypted under a key of keys.json.
    fn decrypts(&self, enclave: &Daemon, key_id: &str) {
        self.write("file", "minutes");
        let encrypted = ["encrypt", "file", "--keys", "keys.json", "--key-id", key_id, "--output", "file.enc"];
        succeeds(self.teemark(&[&encrypted[..], &["--force"]].concat()));
        let path = format!("/files/f/decrypt?user_id=u&key_id={key_id}");
        let answer = enclave.post(&path, &fs::read(self.path("file.enc")).unwrap());
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

impl Keeper {
    /// What it has told.
    fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.output).unwrap();
        // The last one may not be complete.
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The first line of this kind whose text has these words, now or soon.
    fn tells(&mut self, event: &str, words: &str) -> Value {
        wait_for(&format!("{event}: {words}"), || {
            let ended = self.process.child.try_wait().unwrap().is_some();
            let found = self.lines().into_iter().find(|l| l["event"] == event && l.to_string().contains(words));
            assert!(found.is_some() || !ended, "it has ended: {}", self.process.log());
            found
        })
    }

    fn count(&self, event: &str) -> usize {
        self.lines().iter().filter(|line| line["event"] == event).count()
    }
}

fn is_ready(enclave: &Daemon) {
    wait_for("the enclave to be ready", || (enclave.get("/ready").status == 200).then_some(()));
}

#[track_caller]
fn has_nothing(enclave: &Daemon) {
    assert_eq!(enclave.get("/state").text(), r#"{"items":{}}"#);
    assert_eq!(enclave.get("/ready").status, 503);
}

#[track_caller]
fn succeeds(output: Output) -> Output {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[track_caller]
fn fails(status: i32, output: &Output, words: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{told}");
    assert!(told.contains(words), "{words} in {told}");
}

/// The line that was printed.
fn line(output: Output) -> String {
    String::from_utf8(succeeds(output).stdout).unwrap().trim_end().to_owned()
}

#[test]
fn an_enclave_that_restarts_has_its_secrets_again_with_nobody() {
    let (scene, port) = (Scene::new(), free_port());
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
    let (scene, ports) = (Scene::new(), [free_port(), free_port()]);
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
    let (scene, ports) = (Scene::new(), [free_port(), free_port(), free_port()]);
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
    let (scene, port) = (Scene::new(), free_port());
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
    let (scene, ports) = (Scene::new(), [free_port(), free_port()]);
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
    let (scene, port) = (Scene::new(), free_port());
    scene.config_of_files(&[port]);
    let enclave = scene.enclave(port, PCRS);
    let mut keeper = scene.keeper();
    is_ready(&enclave);
    keeper.tells("current", "");
    succeeds(scene.teemark(&["keygen", "--id", "by-hand", "--output", "by-hand.json"]));
    let url = format!("http://127.0.0.1:{port}");
    let send = ["secrets", "--keys", "by-hand.json", "--seal", "--attested", &url, "--operator-key", "operator.key"];
    // Its registers are chosen by the test, so it is not in debug mode, and only its own root vouches for it.
    let root = enclave.get("/get_attestation").json()["test_root"].as_str().unwrap().to_owned();
    bash(scene.folder.path(), &format!("printf %s {root} | base64 -d >root.der"));
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
    let (scene, port) = (Scene::new(), free_port());
    scene.config_of_files(&[port]);
    let config = fs::read_to_string(scene.path("keeper.toml")).unwrap().replace("http://127", "https://127");
    scene.write("keeper.toml", config.replace("any_instance", "cacert = 'later.crt'\nany_instance"));
    let mut keeper = scene.keeper();
    keeper.tells("not_watched", "later.crt");
    fs::copy(scene.path("ca.crt"), scene.path("later.crt")).unwrap();
    // Nobody listens there, and that is all that is wrong now.
    keeper.tells("unreachable", &port.to_string());
}
