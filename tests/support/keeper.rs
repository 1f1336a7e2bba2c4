//! `teemark keeper`, and enclaves that it watches.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::*;

/// The registers of the image, and of the instances that it may run on.
pub(crate) const PCRS: &str = "0=a0,1=a1,2=a2,3=b3";

/// Where a keeper and the enclaves' service are, with sources of its own.
pub(crate) struct Scene {
    pub(crate) folder: TempDir,
    pub(crate) service: Service,
    /// The public half of `operator.key`.
    pub(crate) operator: String,
}

/// A running keeper.
pub(crate) struct Keeper {
    pub(crate) process: Process,
    pub(crate) output: PathBuf,
}

impl Scene {
    pub(crate) fn new(certs: &Certs) -> Scene {
        let folder = TempDir::new().unwrap();
        for name in ["client.crt", "client.key", "ecs-ca.crt", "ca.crt", "ca.key"] {
            fs::copy(certs.path(name), folder.path().join(name)).unwrap();
        }
        let service = Service::start(certs, &[]);
        let mut scene = Scene { folder, service, operator: String::new() };
        scene.operator = line(scene.teemark(&["keygen", "--for", "operator", "--output", "operator.key"]));
        succeeds(scene.teemark(&["keygen", "--id", "k", "--output", "keys.json"]));
        scene.write("image.pcrs", pcrs(&["a0", "a1", "a2", "b3"]));
        scene
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub(crate) fn teemark(&self, arguments: &[&str]) -> Output {
        teemark(self.folder.path(), arguments)
    }

    /// An enclave that has nothing yet, at this port, with these registers.
    pub(crate) fn enclave(&self, port: u16, pcrs: &str) -> Daemon {
        self.enclave_with(port, pcrs, &[])
    }

    pub(crate) fn enclave_with(&self, port: u16, pcrs: &str, more: &[(&str, &str)]) -> Daemon {
        let setup = Setup::new(self.service.port)
            .env("TEEMARK_HANDSHAKE", "sealed")
            .env("TEEMARK_OPERATOR_KEYS", &self.operator)
            .env("TEEMARK_PUBLIC", &format!("tcp:127.0.0.1:{port}"))
            .env("TEEMARKD_TEST_PCRS", pcrs);
        setup.envs(more).start()
    }

    /// Writes keeper.toml for enclaves at these ports, with every item; `more` goes to its beginning, and to the enclaves.
    pub(crate) fn config(&self, ports: &[u16], file_keys: &str, more: [&str; 2]) {
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
    pub(crate) fn config_of_files(&self, ports: &[u16]) {
        self.config(ports, "{ file = 'keys.json' }", ["", ""]);
    }

    pub(crate) fn keeper(&self) -> Keeper {
        self.keeper_of("keeper.toml")
    }

    pub(crate) fn keeper_of(&self, config: &str) -> Keeper {
        let output = self.path(&format!("{config}.out"));
        let mut command = Command::new(program("teemark"));
        command.args(["keeper", "--config", config]).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(File::create(&output).unwrap());
        Keeper { process: Process::spawn(&mut command, self.path(&format!("{config}.log"))), output }
    }

    /// A file that is encrypted under a key of keys.json.
    pub(crate) fn encrypted(&self, key_id: &str) -> Vec<u8> {
        self.write("file", "minutes");
        let encrypted = ["encrypt", "file", "--keys", "keys.json", "--key-id", key_id, "--output", "file.enc"];
        succeeds(self.teemark(&[&encrypted[..], &["--force"]].concat()));
        fs::read(self.path("file.enc")).unwrap()
    }

    /// The enclave decrypts such a file.
    pub(crate) fn decrypts(&self, enclave: &Daemon, key_id: &str) {
        let path = format!("/files/f/decrypt?user_id=u&key_id={key_id}");
        let answer = enclave.post(&path, &self.encrypted(key_id));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

impl Keeper {
    /// What it has told.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.output).unwrap();
        // The last one may not be complete.
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The first line of this kind whose text has these words, now or soon.
    pub(crate) fn tells(&mut self, event: &str, words: &str) -> Value {
        wait_for(&format!("{event}: {words}"), || {
            let ended = self.process.child.try_wait().unwrap().is_some();
            let found = self.lines().into_iter().find(|l| l["event"] == event && l.to_string().contains(words));
            assert!(found.is_some() || !ended, "it has ended: {}", self.process.log());
            found
        })
    }

    pub(crate) fn count(&self, event: &str) -> usize {
        self.lines().iter().filter(|line| line["event"] == event).count()
    }
}

pub(crate) fn is_ready(enclave: &Daemon) {
    wait_for("the enclave to be ready", || (enclave.get("/ready").status == 200).then_some(()));
}

/// An enclave that a keeper, with files alone, has made ready.
pub(crate) fn ready(certs: &Certs) -> (Scene, u16, Daemon, Keeper) {
    let (scene, port) = (Scene::new(certs), free_port());
    scene.config_of_files(&[port]);
    let (enclave, keeper) = (scene.enclave(port, PCRS), scene.keeper());
    is_ready(&enclave);
    (scene, port, enclave, keeper)
}
