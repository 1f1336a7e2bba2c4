//! The people who are on neither machine: the operator, the issuer of grants and the user, with the commands of `teemark`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use teemark_vm::{Image, forward, operator, program, qemu, run};

use crate::stage::Stage;
use crate::workshop::{FLEET, Workshop};
use crate::world::World;

/// A user's key for answers.
pub(crate) struct User {
    pub(crate) key: PathBuf,
    pub(crate) reply_key: String,
}

impl User {
    pub(crate) fn new(workshop: &Workshop) -> Result<User> {
        let key = workshop.path("reply.key");
        if key.exists() {
            fs::remove_file(&key)?;
        }
        let public = run(Command::new(program("teemark")?).args(["keygen", "--for", "reply", "--output"]).arg(&key))?;
        Ok(User { key, reply_key: String::from_utf8(public)?.trim().to_owned() })
    }
}

/// What a keeper seals: a folder with the files of the workshop, which may change.
pub(crate) struct Sources {
    pub(crate) folder: PathBuf,
}

impl Sources {
    /// The workshop's certificates and keys.
    pub(crate) fn new(workshop: &Workshop) -> Result<Sources> {
        let folder = workshop.path("keeper");
        fs::create_dir_all(&folder)?;
        for name in ["client.crt", "client.key", "ecs-ca.crt", "ca.crt", "ca.key"] {
            fs::copy(workshop.certs()?.join(name), folder.join(name)).context(name)?;
        }
        fs::copy(workshop.keys()?, folder.join("keys.json"))?;
        fs::copy(workshop.grant_key()?.with_extension("json"), folder.join("grants.json"))?;
        fs::copy(workshop.operator()?, folder.join("operator.key"))?;
        Ok(Sources { folder })
    }
}

/// A running keeper, which is killed with this.
pub(crate) struct Keeper {
    process: Child,
    log: PathBuf,
}

impl Keeper {
    /// Starts one that watches these enclaves with the sources in [`Sources`], and remembers there what another has seen
    /// before.
    pub(crate) fn start(sources: &Sources, enclaves: &[&Outside]) -> Result<Keeper> {
        let trust = match enclaves[0].trust.last() {
            Some(pcrs) if pcrs.ends_with(".pcrs") => format!("pcrs = ['{pcrs}']\nunsigned = true"),
            _ => "development = true".to_owned(),
        };
        let urls: Vec<String> = enclaves.iter().map(|enclave| format!("'{}'", enclave.endpoint)).collect();
        let config = format!(
            "interval = 1\nlisten = '127.0.0.1:0'\nfolder = '.'\noperator_key = {{ file = 'operator.key' }}\n[enclaves]\n\
             urls = [{}]\n{trust}\nany_instance = true\n[items]\nendpoint = '{}'\nfile_keys = {{ file = 'keys.json' }}\n\
             grant_keys = {{ file = 'grants.json' }}\n[items.certificate]\ncert = {{ file = 'client.crt' }}\n\
             key = {{ file = 'client.key' }}\nca = {{ file = 'ecs-ca.crt' }}\n",
            urls.join(", "),
            operator::ENDPOINT,
        );
        let (file, log) = (sources.folder.join("keeper.toml"), sources.folder.join("keeper.log"));
        fs::write(&file, config)?;
        let mut keeper = Command::new(program("teemark")?);
        keeper.arg("keeper").arg("--config").arg(&file).stdin(Stdio::null()).stdout(fs::File::create(&log)?);
        Ok(Keeper { process: keeper.spawn().context("no keeper")?, log })
    }

    /// Waits until it has told this of an enclave.
    pub(crate) fn tells(&self, enclave: &Outside, event: &str) -> Result<Value> {
        let start = Instant::now();
        loop {
            if let Some(line) = self.told(enclave, event)?.pop() {
                return Ok(line);
            }
            ensure!(start.elapsed() < teemark_vm::BOOT, "the keeper does not tell {event}");
            sleep(Duration::from_millis(10));
        }
    }

    /// What it has told of an enclave since its start.
    pub(crate) fn told(&self, enclave: &Outside, event: &str) -> Result<Vec<Value>> {
        let lines = fs::read_to_string(&self.log)?;
        let lines: Vec<Value> = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let of_enclave = |line: &Value| {
            line["event"] == event && line["enclave"].as_str().is_some_and(|name| name.starts_with(&enclave.endpoint))
        };
        Ok(lines.into_iter().filter(of_enclave).collect())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The operator, the issuer and the user.
pub(crate) struct Outside<'a> {
    workshop: &'a Workshop,
    teemark: PathBuf,
    /// The address to which the parent forwards the enclave's public interface.
    pub(crate) endpoint: String,
    /// See [`operator::trust`].
    pub(crate) trust: Vec<String>,
}

impl Outside<'_> {
    /// They trust an enclave of this image. `port` is the parent's vsock port that leads to it.
    pub(crate) fn new<'a>(workshop: &'a Workshop, world: &World, image: &Image, port: u32) -> Result<Outside<'a>> {
        let address: SocketAddr = forward::forward("port", 0, world.parent.dialer(), port)?;
        let trust = operator::trust(image);
        Ok(Outside { workshop, teemark: program("teemark")?, endpoint: format!("http://{address}"), trust })
    }

    /// The same people, reached by another port of the parent.
    pub(crate) fn at(&self, world: &World, port: u32) -> Result<Outside<'_>> {
        Ok(self.by(forward::forward("port", 0, world.parent.dialer(), port)?))
    }

    /// The same people, who reach the enclave by this address.
    pub(crate) fn by(&self, address: SocketAddr) -> Outside<'_> {
        let endpoint = format!("http://{address}");
        Outside { workshop: self.workshop, teemark: self.teemark.clone(), endpoint, trust: self.trust.clone() }
    }

    /// The state that the enclave attests.
    pub(crate) fn state(&self) -> Result<Value> {
        let said = run(self.teemark("attest").args(["--endpoint", &self.endpoint, "--json"]).args(&self.trust))?;
        Ok(serde_json::from_slice::<Value>(&said)?["state_sha256"].take())
    }

    pub(crate) fn teemark(&self, command: &str) -> Command {
        let mut teemark = Command::new(&self.teemark);
        teemark.arg(command);
        teemark
    }

    /// The document has the PCRs that the image's build printed, the keys, and the hash of the image's allow list.
    pub(crate) fn attest(&self, stage: &Stage) -> Result<()> {
        let said = run(self.teemark("attest").args(["--endpoint", &self.endpoint, "--json"]).args(&self.trust))?;
        let attested: Value = serde_json::from_slice(&said)?;
        let list = teemark_vm::repository().join("allowed_endpoints.yaml");
        let sum = String::from_utf8(run(Command::new("sha256sum").arg(list))?)?;
        let allowed = attested["allow_list_sha256"].as_str().context("no allow list")?;
        ensure!(sum.starts_with(allowed), "{attested}");
        let compared = if qemu::nitro().is_some() { json!([0, 1, 2]) } else { json!([]) };
        ensure!(attested["pcrs_compared"] == compared, "{attested}");
        stage.figure(&format!("module {}, PCRs compared: {compared}", attested["module_id"]));
        // Another image's PCRs are not this one's.
        if qemu::nitro().is_some() {
            let other = self.workshop.ordinary()?.path().context("no image")?.with_extension("pcrs");
            let mut attest = self.teemark("attest");
            attest.args(["--endpoint", &self.endpoint, "--unsigned", "--pcrs"]).arg(other);
            let said = format!("{:#}", run(&mut attest).err().context("another image's PCRs passed")?);
            ensure!(said.contains("PCR"), "{said}");
        }
        Ok(())
    }

    /// The command that makes a complete bundle.
    fn bundle(&self) -> Result<Command> {
        let certs = self.workshop.certs()?;
        let mut secrets = self.teemark("secrets");
        secrets.arg("--client-cert").arg(certs.join("client.crt")).arg("--client-key").arg(certs.join("client.key"));
        secrets.arg("--ca").arg(certs.join("ecs-ca.crt")).args(["--endpoint", operator::ENDPOINT]);
        secrets.arg("--keys").arg(self.workshop.keys()?);
        secrets.arg("--grant-keys").arg(self.workshop.grant_key()?.with_extension("json"));
        Ok(secrets)
    }

    /// The bundle before it is sealed.
    pub(crate) fn plain_bundle(&self) -> Result<Vec<u8>> {
        run(&mut self.bundle()?)
    }

    /// The same, sealed with this counter.
    pub(crate) fn seal(&self, counter: u64) -> Result<Vec<u8>> {
        self.seal_with(counter, self.workshop.operator()?)
    }

    pub(crate) fn seal_as_stranger(&self) -> Result<Vec<u8>> {
        self.seal_with(9, &self.workshop.stranger()?)
    }

    fn seal_with(&self, counter: u64, operator: &Path) -> Result<Vec<u8>> {
        let output = self.workshop.path("sealed.bundle");
        if output.exists() {
            fs::remove_file(&output)?;
        }
        let mut secrets = self.bundle()?;
        secrets.args(["--seal", "--attested", &self.endpoint]).args(&self.trust);
        secrets.arg("--operator-key").arg(operator).args(["--counter", &counter.to_string(), "--output"]).arg(&output);
        run(&mut secrets)?;
        Ok(fs::read(output)?)
    }

    /// The encrypted file that users ask for.
    pub(crate) fn encrypted(&self) -> PathBuf {
        self.workshop.path("text.enc")
    }

    /// A grant for that file, and the file that holds it.
    pub(crate) fn grant(&self, file_id: &str, user_id: &str, reply_key: &str) -> Result<PathBuf> {
        self.grant_in("grant", file_id, user_id, reply_key)
    }

    /// The same in a file of this name.
    pub(crate) fn grant_in(&self, name: &str, file_id: &str, user_id: &str, reply_key: &str) -> Result<PathBuf> {
        self.granted(self.teemark("grant"), name, file_id, user_id, reply_key)
    }

    /// The same for so many seconds.
    pub(crate) fn grant_valid(&self, seconds: u64, file_id: &str, user_id: &str, reply_key: &str) -> Result<PathBuf> {
        let mut grant = self.teemark("grant");
        grant.args(["--valid", &seconds.to_string()]);
        self.granted(grant, "short", file_id, user_id, reply_key)
    }

    fn granted(
        &self,
        mut grant: Command,
        name: &str,
        file_id: &str,
        user_id: &str,
        reply_key: &str,
    ) -> Result<PathBuf> {
        let file = self.workshop.path(&format!("{name}.grant"));
        grant.args(["--file-id", file_id, "--user-id", user_id, "--audience", FLEET, "--reply-key", reply_key]);
        grant.arg("--content").arg(self.encrypted());
        fs::write(&file, run(grant.arg("--key").arg(self.workshop.grant_key()?))?)?;
        Ok(file)
    }

    /// The command with which the user asks for that file.
    pub(crate) fn decrypt(&self, file_id: &str, user_id: &str, grant: &Path, output: &Path) -> Command {
        let mut decrypt = self.decrypt_unverified(file_id, user_id, grant, output);
        decrypt.arg("--verify").args(&self.trust);
        decrypt
    }

    /// The same without having the enclave prove itself.
    pub(crate) fn decrypt_unverified(&self, file_id: &str, user_id: &str, grant: &Path, output: &Path) -> Command {
        let mut decrypt = self.teemark("decrypt");
        decrypt.arg(self.encrypted()).args(["--endpoint", &self.endpoint, "--file-id", file_id]);
        decrypt.args(["--user-id", user_id, "--seal"]);
        decrypt.arg("--grant").arg(grant).arg("--force").arg("--output").arg(output);
        decrypt
    }
}
