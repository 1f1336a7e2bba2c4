//! The real `teemark`, run as an operator runs it.

mod attest;
mod certs;
mod decrypt;
mod enclave;
mod encrypt;
mod expose;
mod grant;
mod interrupt;
mod json;
mod keygen;
#[path = "../nsm/mod.rs"]
mod nsm;
#[path = "../../../../tests/support/port.rs"]
mod port;
mod sealed;
mod secrets;
mod several;
mod trusted;
mod vsock_proxy;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A key in base64, as in a key file: the bytes 0 to 31.
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// A folder of its own, in which `teemark` runs.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o777
    }

    /// The names in the folder, sorted.
    fn names(&self) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(self.0.path()).unwrap().map(name).collect();
        names.sort();
        names
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_teemark"));
        // A proxy that does not work, since teemark must not use one from the environment.
        command.args(arguments).current_dir(self.0.path()).env("http_proxy", "http://127.0.0.1:1");
        command
    }

    fn teemark(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().unwrap()
    }

    fn teemark_with_input(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    /// A key file of mode 600 with KEY under each id; an id that ends in `+` is bound to file ids.
    fn keys(&self, ids: &[&str]) {
        let entry = |id: &&str| match id.strip_suffix('+') {
            Some(id) => format!(r#""{id}":{{"key":"{KEY}","aad":"file_id"}}"#),
            None => format!(r#""{id}":"{KEY}""#),
        };
        self.write("keys.json", format!("{{{}}}", ids.iter().map(entry).collect::<Vec<_>>().join(",")));
        fs::set_permissions(self.path("keys.json"), fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[track_caller]
fn succeeds(output: Output) -> Output {
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

/// Expects that the command ended with this status; returns its standard error.
#[track_caller]
fn fails(status: i32, output: &Output) -> String {
    assert_eq!(output.status.code(), Some(status), "{}", stderr(output));
    stderr(output)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs openssl in `place`, which must succeed, and returns its standard output.
#[track_caller]
fn openssl(place: &Place, arguments: &str) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args(arguments.split_whitespace()).current_dir(place.0.path());
    succeeds(command.output().unwrap()).stdout
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn completions_come_for_each_shell_and_a_closed_pipe_is_no_panic() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(stdout(&succeeds(place.teemark(&["completions", shell]))).contains("keygen"), "{shell}");
    }
    let script = r#""$0" completions bash | true"#;
    let output =
        Command::new("bash").args(["-o", "pipefail", "-c", script, env!("CARGO_BIN_EXE_teemark")]).output().unwrap();
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
}
