//! What scenarios need: certificates, keys, encrypted files and images, each made when it is first needed.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;
use teemark_vm::{Image, operator, program, qemu, run};
use tempfile::TempDir;

/// The id of the one file key.
pub(crate) const KEY_ID: &str = "vm-test";
/// The fleet that the sealed image belongs to.
pub(crate) const FLEET: &str = "vm-fleet";

pub(crate) struct Workshop {
    folder: TempDir,
    certs: OnceLock<PathBuf>,
    keys: OnceLock<PathBuf>,
    operator: OnceLock<PathBuf>,
    grant_key: OnceLock<PathBuf>,
    sealed: OnceLock<Image>,
    ordinary: OnceLock<Image>,
    baked: OnceLock<Image>,
    baked_with_test_nsm: OnceLock<Image>,
    debug: OnceLock<Image>,
}

impl Workshop {
    pub(crate) fn new() -> Result<Workshop> {
        let folder = tempfile::tempdir()?;
        let (certs, keys, operator, grant_key) = Default::default();
        let (sealed, ordinary, baked, baked_with_test_nsm, debug) = Default::default();
        Ok(Workshop { folder, certs, keys, operator, grant_key, sealed, ordinary, baked, baked_with_test_nsm, debug })
    }

    /// A path in the workshop's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// CA, server and client certificate.
    pub(crate) fn certs(&self) -> Result<&Path> {
        made(&self.certs, || {
            let folder = self.path("certs");
            operator::make_certs(&folder, &[])?;
            Ok(folder)
        })
        .map(PathBuf::as_path)
    }

    /// Another client certificate of the same CA, in a folder of its own with the rest.
    pub(crate) fn rotated_certs(&self) -> Result<PathBuf> {
        let folder = self.path("rotated");
        fs::create_dir_all(&folder)?;
        for name in ["ca.crt", "ca.key", "server.crt", "server.key", "ecs-ca.crt"] {
            fs::copy(self.certs()?.join(name), folder.join(name)).context(name)?;
        }
        operator::make_certs(&folder, &["--client-only"])?;
        Ok(folder)
    }

    /// The key file, as `teemark keygen` makes it.
    pub(crate) fn keys(&self) -> Result<&Path> {
        made(&self.keys, || {
            let file = self.path("keys.json");
            run(Command::new(program("teemark")?).args(["keygen", "--id", KEY_ID, "--output"]).arg(&file))?;
            Ok(file)
        })
        .map(PathBuf::as_path)
    }

    /// FILE_KEYS for the handshake and for an environment file.
    pub(crate) fn file_keys(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.keys()?)?)?)
    }

    /// A file, encrypted as Zing's clients do it.
    pub(crate) fn encrypt(&self, plain: &[u8]) -> Result<Vec<u8>> {
        let (input, output) = (self.path("plain"), self.path("plain.enc"));
        fs::write(&input, plain)?;
        let mut command = Command::new(program("teemark")?);
        run(command.args(["encrypt", "--force", "--keys"]).arg(self.keys()?).arg(&input).arg("--output").arg(&output))?;
        Ok(fs::read(output)?)
    }

    /// The ids that a marked file carries, read by `watermark-service extract`.
    pub(crate) fn mark(&self, marked: &[u8]) -> Result<(String, String)> {
        let file = self.path("marked");
        fs::write(&file, marked)?;
        let mark = run(Command::new(program("watermark-service")?).arg("extract").arg(&file))?;
        let mark: Value = serde_json::from_slice(&mark)?;
        let id = |name: &str| mark[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {mark}"));
        Ok((id("file_id")?, id("user_id")?))
    }

    /// The sample picture of the watermark service.
    pub(crate) fn picture(&self) -> Result<Vec<u8>> {
        let file = self.path("sample.png");
        run(Command::new(program("watermark-service")?).arg("sample").arg(&file))?;
        Ok(fs::read(file)?)
    }

    /// The image as `make image` builds it, but for the workshop's own operator and with a fleet's name. Stock QEMU has no
    /// module that attests an enclave, so there the daemon brings the stand-in.
    pub(crate) fn sealed(&self) -> Result<&Image> {
        made(&self.sealed, || self.sealed_with("sealed", ""))
    }

    /// An image under this name that is like [`Workshop::sealed`], but for these settings.
    pub(crate) fn sealed_with(&self, name: &str, settings: &str) -> Result<Image> {
        self.sealed_by(name, settings, &[])
    }

    /// The same, built with these arguments too.
    pub(crate) fn sealed_by(&self, name: &str, settings: &str, more: &[PathBuf]) -> Result<Image> {
        let shipped = fs::read_to_string(teemark_vm::repository().join("image/teemark.env"))?;
        let environment = self.path(&format!("{name}.env"));
        fs::write(&environment, format!("{shipped}TEEMARK_FLEET={FLEET}\n{settings}"))?;
        let operator = self.operator()?.with_extension("pub");
        let mut arguments = vec!["--environment".into(), environment, "--operator".into(), operator];
        if qemu::nitro().is_none() {
            arguments.push("--test-nsm".into());
        }
        arguments.extend_from_slice(more);
        self.build(name, &arguments)
    }

    /// An image like [`Workshop::sealed`], and signed (PCR8).
    pub(crate) fn signed(&self) -> Result<Image> {
        let (key, certificate) = (self.path("signer.key"), self.path("signer.crt"));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp384r1", "-nodes"]);
        openssl.args(["-subj", "/CN=vm-test", "-days", "30", "-keyout"]).arg(&key).arg("-out").arg(&certificate);
        run(&mut openssl)?;
        self.sealed_by("signed", "", &["--sign-key".into(), key, "--sign-certificate".into(), certificate])
    }

    /// The image as `make image ARCH=aarch64` builds it, but for the workshop's own operator. No QEMU has a module for it.
    pub(crate) fn graviton(&self) -> Result<Image> {
        let operator = self.operator()?.with_extension("pub");
        let arguments: [PathBuf; 4] = ["--arch".into(), "aarch64".into(), "--operator".into(), operator];
        self.build("graviton", &arguments)
    }

    /// The same with the daemon's stand-in for the module, and with a fleet's name. What it attests, nobody can compare
    /// with the image.
    pub(crate) fn graviton_with_test_nsm(&self) -> Result<Image> {
        let more: [PathBuf; 3] = ["--arch".into(), "aarch64".into(), "--test-nsm".into()];
        Ok(self.sealed_by("graviton-testnsm", "", &more)?.taken_apart())
    }

    /// The image for the documents' commands, unchanged: everything comes by plain handshake (option B).
    pub(crate) fn ordinary(&self) -> Result<&Image> {
        made(&self.ordinary, || self.build("ordinary", &["--environment".into(), self.plain("")?]))
    }

    /// Certificates, endpoint and keys in the image (option A).
    pub(crate) fn baked(&self) -> Result<&Image> {
        made(&self.baked, || self.build("baked", &self.with_secrets()?))
    }

    /// The same with a daemon that has its stand-in for the Nitro Secure Module.
    pub(crate) fn baked_with_test_nsm(&self) -> Result<&Image> {
        made(&self.baked_with_test_nsm, || {
            self.build("baked-testnsm", &[&self.with_secrets()?[..], &["--test-nsm".into()]].concat())
        })
    }

    /// The same with these settings too, and with the stand-in where QEMU has no module.
    pub(crate) fn baked_with(&self, name: &str, settings: &str) -> Result<Image> {
        let environment = self.plain(&format!("FILE_KEYS={}\n{settings}", self.file_keys()?))?;
        let mut arguments = vec!["--certs".into(), self.certs()?.to_owned(), "--environment".into(), environment];
        if qemu::nitro().is_some() {
            return self.build(name, &arguments);
        }
        arguments.push("--test-nsm".into());
        Ok(self.build(name, &arguments)?.taken_apart())
    }

    /// The same with run.sh and a shell.
    pub(crate) fn debug(&self) -> Result<&Image> {
        made(&self.debug, || self.build("debug", &[&self.with_secrets()?[..], &["--debug".into()]].concat()))
    }

    fn with_secrets(&self) -> Result<Vec<PathBuf>> {
        let environment = self.plain(&format!("FILE_KEYS={}\n", self.file_keys()?))?;
        Ok(vec!["--certs".into(), self.certs()?.to_owned(), "--environment".into(), environment])
    }

    /// The least strict settings, and these.
    fn plain(&self, more: &str) -> Result<PathBuf> {
        let file = self.path("teemark.env");
        let text = "TEEMARK_HANDSHAKE=plain\nTEEMARK_GRANTS=off\nECS_WATERMARK_ENDPOINT=";
        fs::write(&file, format!("{text}{}\n{more}", operator::ENDPOINT))?;
        Ok(file)
    }

    /// The operator's private key; the public half is beside it.
    pub(crate) fn operator(&self) -> Result<&Path> {
        made(&self.operator, || self.key_pair("operator.key", "operator", "operator.pub")).map(PathBuf::as_path)
    }

    /// A private key that is not one of the image's operators'.
    pub(crate) fn stranger(&self) -> Result<PathBuf> {
        self.key_pair("stranger.key", "operator", "stranger.pub")
    }

    /// The key that signs grants; its JWK set is beside it, as grants.json.
    pub(crate) fn grant_key(&self) -> Result<&Path> {
        made(&self.grant_key, || self.key_pair("grants.key", "grants", "grants.json")).map(PathBuf::as_path)
    }

    /// A private key for this purpose, and its public half, as `teemark keygen` makes them.
    pub(crate) fn key_pair(&self, private: &str, purpose: &str, public: &str) -> Result<PathBuf> {
        let (private, public) = (self.path(private), self.path(public));
        let mut keygen = Command::new(program("teemark")?);
        keygen.args(["keygen", "--for", purpose, "--output"]).arg(&private).arg("--public-output").arg(&public);
        run(&mut keygen)?;
        Ok(private)
    }

    fn build(&self, name: &str, arguments: &[PathBuf]) -> Result<Image> {
        let start = Instant::now();
        let arguments: Vec<&OsStr> = arguments.iter().map(|argument| argument.as_os_str()).collect();
        let image = Image::build(&self.path("images"), name, &arguments)?;
        println!("   {:6.1} s  the {name} image is built", start.elapsed().as_secs_f64());
        Ok(image)
    }
}

fn made<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    match cell.get() {
        Some(value) => Ok(value),
        None => make().map(|value| cell.get_or_init(|| value)),
    }
}
