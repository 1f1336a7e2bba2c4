//! Nothing on the way is trusted: sealed handshakes, grants, and answers that only their user can read, as operators
//! and users make them with `teemark`.

#[path = "../support/mod.rs"]
mod support;

mod answers;
mod fleet;
mod grants;
mod handshake;
mod relay;

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::sync::LazyLock;

use tempfile::TempDir;

use support::*;

static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

/// The content of each test's file.
const TEXT: &str = "The minutes of the board, which nobody else may read.\n";

/// The options to trust a daemon without a Nitro Secure Module.
const TRUST: [&str; 5] = ["--pcrs", "image.pcrs", "--root", "root.der", "--debug-mode"];

/// A daemon with default settings of trust, its operator `operator.key`, the issuer `grant.key` of its grants, and the
/// user's key `alice.key`.
struct Scene {
    folder: TempDir,
    service: Service,
    daemon: Daemon,
    /// `http://` and the daemon's public address.
    endpoint: String,
    /// The public half of `alice.key`.
    alice: String,
}

impl Scene {
    /// Before its handshake.
    fn new() -> Scene {
        let folder = TempDir::new().unwrap();
        let operator = teemark(folder.path(), &["keygen", "--for", "operator", "--output", "operator.key"]);
        Scene::of_operator(folder, &line(operator))
    }

    /// Before its handshake; `operator.key` is in the folder.
    fn of_operator(folder: TempDir, public: &str) -> Scene {
        let service = Service::start(&CERTS, &[]);
        let settings = Setup::new(service.port).env("TEEMARK_HANDSHAKE", "sealed").env("TEEMARK_GRANTS", "required");
        let daemon = settings.env("TEEMARK_OPERATOR_KEYS", public).env("TEEMARK_FLEET", "test").start();
        let endpoint = format!("http://{}", daemon.public);
        let alice = line(teemark(folder.path(), &["keygen", "--for", "reply", "--output", "alice.key"]));
        let issuer = teemark(folder.path(), &["keygen", "--for", "grants", "--output", "grant.key"]);
        let scene = Scene { folder, service, daemon, endpoint, alice };
        scene.write("root.der", scene.daemon.test_root());
        scene.write("image.pcrs", pcrs(&["00"; 3]));
        scene.write("grant-keys.json", succeeds(issuer).stdout);
        scene.write("file", TEXT);
        succeeds(scene.teemark(&["keygen", "--output", "keys.json"]));
        succeeds(scene.teemark(&["encrypt", "file", "--keys", "keys.json", "--output", "file.enc"]));
        scene
    }

    /// After its handshake.
    fn ready() -> Scene {
        let scene = Scene::new();
        succeeds(scene.seal("operator.key", &["--send", &scene.secrets()]));
        assert_eq!(scene.daemon.get("/ready").status, 200);
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// The address of the handshake.
    fn secrets(&self) -> String {
        format!("unix:{}", self.daemon.secrets.display())
    }

    fn teemark(&self, arguments: &[&str]) -> Output {
        teemark(self.folder.path(), arguments)
    }

    /// The whole bundle, from `teemark secrets`.
    fn bundle(&self, more: &[&str]) -> Output {
        let [cert, key, ca] =
            ["client.crt", "client.key", "ecs-ca.crt"].map(|name| CERTS.path(name).display().to_string());
        let service = format!("https://localhost:{}", self.service.port);
        let certificates = ["--client-cert", &cert, "--client-key", &key, "--ca", &ca, "--endpoint", &service];
        let keys = ["--keys", "keys.json", "--grant-keys", "grant-keys.json"];
        self.teemark(&[&["secrets"], &certificates[..], &keys, more].concat())
    }

    /// The whole bundle, sealed to the daemon under this operator's key.
    fn seal(&self, operator: &str, more: &[&str]) -> Output {
        let seal = ["--seal", "--attested", &self.endpoint, "--operator-key", operator];
        self.bundle(&[&seal[..], &TRUST, more].concat())
    }

    /// Sends a file's content to the handshake.
    fn send(&self, file: &str) -> Output {
        self.teemark(&["secrets", "--bundle", file, "--send", &self.secrets()])
    }

    /// Writes the grant for alice's file, signed with this key.
    fn grant(&self, key: &str, more: &[&str]) {
        self.grant_for(key, ["report-7", "alice", "test"], more);
    }

    fn grant_for(&self, key: &str, [file_id, user_id, audience]: [&str; 3], more: &[&str]) {
        let claims = ["--file-id", file_id, "--user-id", user_id, "--audience", audience];
        let grant = self.teemark(&[&["grant", "--key", key], &claims[..], more].concat());
        self.write("grant", succeeds(grant).stdout);
    }

    /// Has the file decrypted for alice at `endpoint`, into `marked`.
    fn decrypt(&self, endpoint: &str, more: &[&str]) -> Output {
        let _ = fs::remove_file(self.path("marked"));
        let ids = ["decrypt", "file.enc", "--endpoint", endpoint, "--file-id", "report-7", "--user-id", "alice"];
        self.teemark(&[&ids[..], &["--output", "marked"], more].concat())
    }

    /// The result is the file, with a mark that names the user.
    #[track_caller]
    fn has_the_marked_file(&self) {
        let marked = fs::read(self.path("marked")).unwrap();
        let mark = extract(&marked);
        assert_eq!((&mark["user_id"], &mark["file_id"]), (&"alice".into(), &"report-7".into()), "{mark}");
        assert!(String::from_utf8(marked).unwrap().contains("minutes"));
    }

    /// The command ended with this status and message, and wrote nothing.
    #[track_caller]
    fn has_nothing(&self, status: i32, output: &Output, words: &str) {
        fails(status, output, words);
        assert!(!self.path("marked").exists());
    }
}
