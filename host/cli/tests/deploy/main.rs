//! The scripts of host/deploy, run as an operator runs them on the parent: by the system's shell, and by busybox with only
//! jq, socat and teemark beside it. A stand-in replaces nitro-cli and Unix sockets replace vsock; the daemon is the real
//! one. And host/install-tools.sh.

mod expose;
mod first_boot;
mod install_tools;
#[path = "../../../../tests/support/port.rs"]
mod port;
mod run_enclave;
mod send_secrets;
mod which_enclave;

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use port::free_port;

/// Longest wait for something that should happen at once, on a loaded machine.
const SOON: Duration = Duration::from_secs(120);

/// A parent instance: its PATH, and the folder that stands for nitro-cli and vsock.
struct Parent {
    folder: TempDir,
    shell: Shell,
    has_teemark: bool,
}

#[derive(Clone, Copy, Debug)]
enum Shell {
    System,
    /// Its applets are the only programs beside jq, socat and teemark.
    Busybox,
}

const SHELLS: [Shell; 2] = [Shell::System, Shell::Busybox];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn installed(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{program} is not installed; host/install-tools.sh does it"))
}

impl Parent {
    /// No enclave is running.
    fn new(shell: Shell) -> Parent {
        let parent = Parent { folder: tempfile::tempdir().unwrap(), shell, has_teemark: true };
        fs::create_dir(parent.path("bin")).unwrap();
        for stand_in in ["nitro-cli", "socat", "teemark"] {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy").join(stand_in);
            symlink(script, parent.path("bin").join(stand_in)).unwrap();
        }
        symlink(installed("jq"), parent.path("bin/jq")).unwrap();
        if let Shell::Busybox = shell {
            succeeds(Command::new(installed("busybox")).args(["--install", "-s"]).arg(parent.path("bin")));
        }
        parent.write("device", "");
        parent.write("image.eif", "");
        parent.running(&[]);
        parent
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    /// A script that can be run. Another process writes it: a process that another test starts meanwhile would inherit the
    /// open file, and a file that is open for writing cannot be run.
    fn write_script(&self, name: &str, text: &str) {
        self.write("script", text);
        succeeds(Command::new("install").args(["-m", "755"]).arg(self.path("script")).arg(self.path(name)));
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The enclaves that nitro-cli lists: name, CID, state.
    fn running(&self, enclaves: &[(&str, u32, &str)]) {
        self.running_with_process(enclaves, 0);
    }

    fn running_with_process(&self, enclaves: &[(&str, u32, &str)], process: u32) {
        let described = enclaves.iter().map(|(name, cid, state)| {
            json!({
                "EnclaveName": name, "EnclaveID": format!("i-0f5a-enc{cid}"), "ProcessID": process, "EnclaveCID": cid,
                "NumberOfCPUs": 2, "CPUIDs": [1, 3], "MemoryMiB": 512, "State": state, "Flags": "NONE",
                "Measurements": {"HashAlgorithm": "Sha384 { ... }", "PCR0": "5a", "PCR1": "bc", "PCR2": "9f"},
            })
        });
        let list = described.collect::<Vec<Value>>();
        self.write("enclaves", serde_json::to_string_pretty(&list).unwrap());
    }

    fn script(&self, name: &str) -> Command {
        let script = repository().join("host/deploy").join(name);
        let bin = self.path("bin").into_os_string().into_string().unwrap();
        let mut command = match self.shell {
            Shell::System => Command::new("sh"),
            Shell::Busybox => {
                let mut busybox = Command::new(installed("busybox"));
                busybox.arg("sh");
                busybox
            }
        };
        let path = match self.shell {
            Shell::System => format!("{bin}:{}", std::env::var("PATH").unwrap()),
            Shell::Busybox => bin,
        };
        command.arg(script).env("PATH", path).env("STAND_IN", self.folder.path()).env("SOCAT", installed("socat"));
        command.env("TEEMARK", env!("CARGO_BIN_EXE_teemark"));
        command.env("NITRO_DEVICE", self.path("device")).env("ENCLAVE_EIF", self.path("image.eif"));
        command.stdin(Stdio::null());
        command
    }

    /// No enclave is running, and teemark is not installed, also where this machine has it.
    fn without_teemark(shell: Shell) -> Parent {
        let mut parent = Parent::new(shell);
        parent.lacks("teemark");
        parent.write_script("bin/teemark", "#!/bin/sh\nexit 127\n");
        parent.has_teemark = false;
        parent
    }

    /// What expose.sh calls a port of the enclave: with teemark, what stands for it.
    fn vsock(&self, cid: u32, port: u32) -> String {
        if !self.has_teemark {
            return format!("vsock:{cid}:{port}");
        }
        format!("unix:{}", self.path(&format!("{cid}.{port}")).display())
    }

    /// Removes a program that the script needs.
    fn lacks(&self, program: &str) {
        fs::remove_file(self.path("bin").join(program)).unwrap();
    }
}

/// A program that ends with the test.
struct Running {
    child: Child,
    /// Both of its outputs.
    words: PathBuf,
}

impl Running {
    fn start(command: &mut Command, words: PathBuf) -> Running {
        let file = fs::File::create(&words).unwrap();
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Running { child, words }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.words).unwrap()
    }

    fn wait_until_it_says(&self, words: &str) {
        wait_for(words, || self.said().contains(words).then_some(()));
    }

    fn terminate(&self) {
        let number = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &number]).status().unwrap().success());
    }

    /// Its exit status.
    fn ends(&mut self) -> Option<i32> {
        wait_for("the end of a program", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A script ends its own programs when it is asked to end.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.terminate();
            let _ = self.child.wait();
        }
    }
}

fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < SOON, "{what}: not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The daemon as the enclave with this CID.
fn enclave(parent: &Parent, cid: u32) -> Running {
    let daemon = Path::new(env!("CARGO_BIN_EXE_teemark")).with_file_name("teemarkd");
    assert!(daemon.exists(), "{} is not built: run `make test`, or `cargo build --workspace` before", daemon.display());
    let port = |port: u32| format!("unix:{}", parent.path(&format!("{cid}.{port}")).display());
    let mut command = Command::new(daemon);
    for name in ["MTLS_CLIENT_CERT_JSON", "ECS_WATERMARK_ENDPOINT", "FILE_KEYS"] {
        command.env_remove(name);
    }
    command.env("TEEMARK_PUBLIC", port(3000)).env("TEEMARK_ADMIN", port(3001)).env("TEEMARK_SECRETS", port(7777));
    command.env("TEEMARK_ENDPOINTS", repository().join("allowed_endpoints.yaml")).env("TEEMARK_EGRESS", "direct");
    command.env("TEEMARK_CERTS", parent.path("certs"));
    command.env("TEEMARK_HANDSHAKE", "plain").env("TEEMARK_GRANTS", "off");
    let daemon = Running::start(&mut command, parent.path("log"));
    daemon.wait_until_it_says("not ready: waiting for the handshake");
    daemon
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    output
}

/// Expects that the script ended with 1; returns its standard error.
#[track_caller]
fn fails(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}{}", stdout(&output), stderr(&output));
    stderr(&output)
}
