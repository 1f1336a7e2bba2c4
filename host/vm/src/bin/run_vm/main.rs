//! `run-vm`: boots the enclave image and a parent on this machine, so that curl on 127.0.0.1 talks to an enclave.

#![forbid(unsafe_code)]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use serde_json::Value;
use teemark_vm::{BOOT, Bus, Enclave, Image, Parent, forward, operator, program, qemu, repository, run};

/// The folder for what it makes: certificates, keys, an encrypted picture, the consoles' logs.
const FOLDER: &str = "out/vm";

/// Boot the enclave image with a parent beside it, and forward ports of this machine to the enclave until Ctrl-C
#[derive(Parser)]
#[command(name = "run-vm", version)]
struct Arguments {
    /// The enclave image [default: out/teemark.eif, or out/teemark-testnsm.eif for a microvm, which has no /dev/nsm]
    #[arg(long, value_name = "EIF")]
    image: Option<PathBuf>,
    /// The machine; by default nitro-enclave if QEMU_NITRO names a QEMU that has it
    #[arg(long)]
    machine: Option<Machine>,
    /// The enclave's memory in MiB; the default is that of host/deploy
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    memory: u32,
    /// Folder of certificates, made if missing; for an image with certificates, the folder they were baked in from
    #[arg(long, value_name = "FOLDER", default_value = "out/vm/certs")]
    certs: PathBuf,
    /// Port of this machine for the public HTTP interface; 0 lets the system choose
    #[arg(long, default_value_t = 3000)]
    port: u16,
    /// The same for the admin interface
    #[arg(long, default_value_t = 3001)]
    admin_port: u16,
    /// The same for the handshake
    #[arg(long, default_value_t = 7777)]
    secrets_port: u16,
    /// The operator's private key, for an image that takes sealed secrets [default: the one that make image made]
    #[arg(long, value_name = "FILE")]
    operator_key: Option<PathBuf>,
    /// Do no handshake, so that you can
    #[arg(long)]
    no_handshake: bool,
    /// Show what the enclave says on its console
    #[arg(long)]
    console: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Machine {
    /// The unchanged EIF, with /dev/nsm
    Nitro,
    /// Its kernel and ramdisks, on stock QEMU
    Microvm,
}

fn main() -> ExitCode {
    match start(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("run-vm: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the steps with numbers, as `make run` does.
struct Steps(u32);

impl Steps {
    fn print(&mut self, what: &str) {
        self.0 += 1;
        println!("\n{:2}. {what}", self.0);
    }
}

/// The running system.
struct Running<'a> {
    image: &'a Image,
    ports: &'a Ports,
    folder: &'a Path,
    arguments: &'a Arguments,
}

/// Where the enclave's ports are on this machine.
struct Ports {
    public: SocketAddr,
    admin: SocketAddr,
    secrets: SocketAddr,
}

fn start(arguments: &Arguments) -> Result<()> {
    let end = ctrl_c()?;
    let mut steps = Steps(0);
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder)?;

    let machine = arguments.machine.unwrap_or(if qemu::nitro().is_some() { Machine::Nitro } else { Machine::Microvm });
    if machine == Machine::Nitro && qemu::nitro().is_none() {
        bail!("--machine nitro: set QEMU_NITRO to a qemu-system-x86_64 with the machine nitro-enclave");
    }
    let (built, making) = match machine {
        Machine::Nitro => ("out/teemark.eif", "make image builds it"),
        Machine::Microvm => ("out/teemark-testnsm.eif", "make image TESTNSM=1 builds it"),
    };
    let eif = arguments.image.as_deref().unwrap_or(Path::new(built));
    let mut image = Image::open(eif).context(making)?;
    if machine == Machine::Microvm {
        image = image.taken_apart();
    }
    steps.print("Certificates, keys for files and for grants, and a picture encrypted");
    prepare(folder, &arguments.certs)?;

    steps.print("The parent boots, CID 3: socat, curl, the watermark service, a proxy to it on vsock port 8101");
    let bus = Bus::start()?;
    let parent = Parent::boot(&bus, image.kernel(), &program("watermark-service")?, folder, false)?;
    let ports = set_up(&parent, arguments)?;

    steps.print(&format!("The enclave boots, CID 16: {}", eif.display()));
    let mut enclave = Enclave::boot(&bus, &image, arguments.memory, folder, arguments.console)?;
    let begun = Instant::now();
    let listening = enclave.console.wait_for("secrets: listening on", BOOT);
    let listening = listening.with_context(|| format!("see {FOLDER}/enclave.log"))?;
    println!("    it listens after {:.1} s", listening.at.duration_since(begun).as_secs_f64());

    let vm = Running { image: &image, ports: &ports, folder, arguments };
    if enclave.get(3000, "/ready")?.0 == 200 {
        steps.print("It is ready: what it needs is in the image");
    } else if !arguments.no_handshake {
        let bundle = if enclave.console.find("the handshake takes what").is_some() {
            steps.print("The operator attests the enclave, and seals the secrets to it");
            vm.seal()?
        } else {
            fs::write(folder.join("bundle.json"), run(&mut vm.secrets()?)?)?;
            folder.join("bundle.json")
        };
        steps.print("The handshake, from the parent: host/deploy/send-secrets.sh, which is socat on vsock port 7777");
        let answer = operator::send_secrets(&parent, &fs::read(bundle)?)?;
        println!("    {}", answer.text());
        answer.success()?;
    }
    vm.invite()?;
    wait(&end, &mut enclave)?;
    println!("\nended: the enclave, then the parent");
    Ok(())
}

/// The first Ctrl-C (or SIGTERM) ends the machines once they run; a second one ends this process and them at once.
fn ctrl_c() -> Result<mpsc::Receiver<()>> {
    let (ended, end) = mpsc::sync_channel(1);
    ctrlc::set_handler(move || {
        if ended.try_send(()).is_err() {
            std::process::exit(130);
        }
    })?;
    Ok(end)
}

/// Makes the files that are missing.
fn prepare(folder: &Path, certs: &Path) -> Result<()> {
    operator::make_certs(certs, &[])?;
    let (keys, picture) = (folder.join("keys.json"), folder.join("original.png"));
    if !keys.exists() {
        run(Command::new(program("teemark")?).args(["keygen", "--output"]).arg(&keys))?;
    }
    let (grants, jwks) = (folder.join("grants.key"), folder.join("grants.json"));
    if !jwks.exists() {
        let mut keygen = Command::new(program("teemark")?);
        keygen.args(["keygen", "--for", "grants"]);
        keygen
            .arg(if grants.exists() { "--public" } else { "--output" })
            .arg(&grants)
            .arg("--public-output")
            .arg(&jwks);
        run(&mut keygen)?;
    }
    run(Command::new(program("watermark-service")?).arg("sample").arg(&picture))?;
    run(Command::new(program("teemark")?).args(["encrypt", "--force", "--keys"]).arg(&keys).arg(&picture)).map(drop)
}

/// Starts what an operator has on the parent, and forwards this machine's ports there.
fn set_up(parent: &Parent, arguments: &Arguments) -> Result<Ports> {
    operator::set_up(parent, &arguments.certs, &operator::OF_SERVICE)?;
    let forward_to = |name: &str, port: u16, to: u32, target: &str| -> Result<SocketAddr> {
        operator::forward(parent, to, target)?;
        forward::forward(name, port, parent.dialer(), to)
    };
    Ok(Ports {
        public: forward_to("port", arguments.port, 3000, "TCP:127.0.0.1:3000")?,
        admin: forward_to("admin-port", arguments.admin_port, 3001, "TCP:127.0.0.1:3001")?,
        secrets: forward_to("secrets-port", arguments.secrets_port, 7777, "VSOCK-CONNECT:16:7777")?,
    })
}

impl Running<'_> {
    fn teemark(&self, command: &str) -> Result<Command> {
        let mut teemark = Command::new(program("teemark")?);
        teemark.arg(command);
        Ok(teemark)
    }

    /// The command that makes a bundle of everything.
    fn secrets(&self) -> Result<Command> {
        let (certs, folder) = (&self.arguments.certs, self.folder);
        let mut secrets = self.teemark("secrets")?;
        secrets.arg("--client-cert").arg(certs.join("client.crt")).arg("--client-key").arg(certs.join("client.key"));
        secrets.arg("--ca").arg(certs.join("ecs-ca.crt")).args(["--endpoint", operator::ENDPOINT]);
        secrets.arg("--keys").arg(folder.join("keys.json")).arg("--grant-keys").arg(folder.join("grants.json"));
        Ok(secrets)
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.ports.public)
    }

    /// Seals the bundle and returns its file, which anybody may see.
    fn seal(&self) -> Result<PathBuf> {
        let sealed = self.folder.join("sealed.bundle");
        if sealed.exists() {
            fs::remove_file(&sealed)?;
        }
        let key = match &self.arguments.operator_key {
            Some(key) => key.clone(),
            None => {
                let public = run(&mut Command::new(repository().join("image/operator.sh")))?;
                Path::new(String::from_utf8(public)?.trim()).with_extension("key")
            }
        };
        let mut secrets = self.secrets()?;
        secrets.args(["--seal", "--attested", &self.endpoint()]).args(operator::trust(self.image));
        secrets.arg("--operator-key").arg(key).arg("--output").arg(&sealed);
        run(&mut secrets)?;
        Ok(sealed)
    }

    /// Prints what a user can type now.
    fn invite(&self) -> Result<()> {
        let Ports { public, admin, secrets } = self.ports;
        let shown = |name: &str| -> Result<String> {
            let path = program(name)?;
            Ok(path.strip_prefix(repository()).unwrap_or(&path).display().to_string())
        };
        let (folder, teemark) = (self.folder.display(), shown("teemark")?);
        println!("\nRunning. Try, from another terminal in this folder (Ctrl-C here ends it):");
        println!("    curl http://{public}/health_check");
        println!("    {teemark} attest --endpoint http://{public} {}", operator::trust(self.image).join(" "));
        println!("    {teemark} doctor --endpoint http://{public} {}", operator::trust(self.image).join(" "));
        let attested = run(self
            .teemark("attest")?
            .args(["--endpoint", &self.endpoint(), "--json"])
            .args(operator::trust(self.image)))?;
        let attested: Value = serde_json::from_slice(&attested)?;
        let identity = attested["identity"].as_str().context("no identity key")?;
        println!(
            "    {teemark} grant --key {folder}/grants.key --file-id picture-1 --user-id alice \\\n      \
             --audience {identity} >grant"
        );
        println!(
            "    curl -f -H \"Authorization: Bearer $(cat grant)\" --data-binary @{folder}/original.png.enc \\\n      \
             -o mine.png 'http://{public}/files/picture-1/decrypt?user_id=alice'"
        );
        println!("    {} extract mine.png", shown("watermark-service")?);
        println!(
            "The admin interface is http://{admin}, the handshake tcp:{secrets}; the consoles are in {folder}/*.log."
        );
        Ok(())
    }
}

/// Waits until Ctrl-C, or until the enclave ends by itself.
fn wait(end: &mpsc::Receiver<()>, enclave: &mut Enclave) -> Result<()> {
    while end.recv_timeout(Duration::from_millis(200)).is_err() {
        if enclave.ended(Duration::ZERO).is_some() {
            let last = enclave.console.lines().pop().map(|line| line.text).unwrap_or_default();
            bail!("the enclave has ended by itself: {last}");
        }
    }
    Ok(())
}
