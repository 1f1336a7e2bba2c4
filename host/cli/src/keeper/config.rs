//! keeper.toml: which enclaves, which image, which secrets. docs/REFERENCE.md describes each member.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use formats::base64;
use formats::signature::VerifyingKey;
use serde::Deserialize;

use crate::daemon;

/// Largest file, in bytes.
const LARGEST: u64 = 64 << 10;
/// Longest `interval`, in seconds: a keeper that looks less often is not one.
const LONGEST_INTERVAL: u64 = 3600;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Seconds between two looks at an enclave.
    #[serde(default = "five")]
    pub(crate) interval: u64,
    /// Where the keeper serves /ready and /metrics.
    #[serde(default = "loopback")]
    pub(crate) listen: String,
    /// Where the keeper remembers what it has seen [default: $STATE_DIRECTORY, or nowhere].
    pub(crate) folder: Option<PathBuf>,
    /// The operator's private key.
    pub(crate) operator_key: KeySource,
    /// How many operators have to sign a bundle: TEEMARK_OPERATOR_THRESHOLD of the image.
    #[serde(default = "one")]
    pub(crate) signatures: usize,
    /// With several, the operators' public keys, base64: a bundle that another keeper passes on has to be signed by one of
    /// them. This keeper's own may be among them.
    #[serde(default)]
    pub(crate) operators: Vec<OperatorKey>,
    /// With several, the keepers that sign next: the first that does is enough.
    #[serde(default)]
    pub(crate) next: Vec<String>,
    /// Where this keeper takes bundles that others pass on.
    pub(crate) bundles: Option<String>,
    pub(crate) enclaves: Enclaves,
    pub(crate) items: Items,
}

/// An operator's public key, as `teemark keygen --for operator` prints it.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct OperatorKey(pub(crate) VerifyingKey);

impl TryFrom<String> for OperatorKey {
    type Error = String;

    fn try_from(text: String) -> Result<OperatorKey, String> {
        let key = base64::decode(&text).and_then(|bytes| VerifyingKey::from_slice(&bytes));
        key.map(OperatorKey).ok_or_else(|| format!("{text} is not an operator's public key: base64 of 32 bytes"))
    }
}

/// Which enclaves are given secrets.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Enclaves {
    /// Public addresses; one whose name resolves to several leads to an enclave at each.
    #[serde(default)]
    pub(crate) urls: Vec<String>,
    /// A file with more of them, one a line, which is read again when it changes.
    pub(crate) file: Option<PathBuf>,
    /// The measurements of the images that may run there, each with PCR3 or PCR4 of the instances.
    #[serde(default)]
    pub(crate) pcrs: Vec<PathBuf>,
    /// The IAM roles of the parent instances, of which PCR3 is a hash.
    #[serde(default)]
    pub(crate) roles: Vec<String>,
    /// The ids of the parent instances, of which PCR4 is a hash.
    #[serde(default)]
    pub(crate) instances: Vec<String>,
    /// Whether an enclave with the right image on anybody's instance is given the secrets.
    #[serde(default)]
    pub(crate) any_instance: bool,
    /// Most addresses whose enclaves are given secrets.
    #[serde(default = "sixteen")]
    pub(crate) max_enclaves: usize,
    /// For https: the CA certificates to trust instead of the system's.
    pub(crate) cacert: Option<PathBuf>,
    /// The root certificate to trust instead of AWS'.
    pub(crate) root: Option<PathBuf>,
    /// Accept enclaves in debug mode.
    #[serde(default)]
    pub(crate) debug_mode: bool,
    /// Check neither certificates nor signature: for QEMU's emulated NSM, as the hidden option of `teemark attest`.
    #[serde(default)]
    pub(crate) unsigned: bool,
    /// Trust daemons without a Nitro Secure Module, each by the root that it made itself.
    #[serde(default)]
    pub(crate) development: bool,
}

/// Where the items of the bundle come from.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Items {
    pub(crate) certificate: Option<Certificate>,
    /// The watermark service's URL.
    pub(crate) endpoint: Option<String>,
    pub(crate) file_keys: Option<Source>,
    pub(crate) grant_keys: Option<Source>,
}

/// The three parts of MTLS_CLIENT_CERT_JSON.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Certificate {
    pub(crate) cert: Source,
    pub(crate) key: Source,
    pub(crate) ca: Source,
}

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Source {
    File(FileSource),
    Credential(CredentialSource),
    Exec(ExecSource),
}

/// A file, which is read again when it changes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileSource {
    pub(crate) file: PathBuf,
}

/// One of systemd's credentials, by its name (systemd.exec(5), LoadCredential=).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CredentialSource {
    pub(crate) credential: String,
}

/// A command, whose standard output is the secret.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExecSource {
    /// The program's absolute path, and its arguments.
    pub(crate) exec: Vec<String>,
    /// The names of the environment variables that it is given; it gets no others.
    #[serde(default)]
    pub(crate) environment: Vec<String>,
    /// Seconds that it may take.
    #[serde(default = "thirty")]
    pub(crate) timeout: u64,
    /// Seconds between the end of one run and the next.
    #[serde(default = "three_hundred")]
    pub(crate) every: u64,
}

/// Where the operator's key comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum KeySource {
    File(FileSource),
    Credential(CredentialSource),
}

fn one() -> usize {
    1
}

fn five() -> u64 {
    5
}

fn sixteen() -> usize {
    16
}

fn thirty() -> u64 {
    30
}

fn three_hundred() -> u64 {
    300
}

fn loopback() -> String {
    "127.0.0.1:9464".to_owned()
}

impl Config {
    /// Reads the file. Paths in it are relative to its folder.
    ///
    /// # Errors
    /// It cannot be read, or is not what it should be; the message has the place.
    pub(crate) fn read(path: &Path) -> Result<Config> {
        let in_file = || format!("--config {}", path.display());
        let found = std::fs::metadata(path).with_context(in_file)?;
        if found.len() > LARGEST {
            bail!("{} is larger than 64 KiB", in_file());
        }
        let text = std::fs::read_to_string(path).with_context(in_file)?;
        let mut config = Config::parse(&text).with_context(in_file)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        config.paths().into_iter().for_each(|path| *path = folder.join(&*path));
        Ok(config)
    }

    fn parse(text: &str) -> Result<Config> {
        // The parser's message shows the line: there is nothing secret in this file.
        let config: Config = toml::from_str(text).map_err(|e| anyhow!("{}", e.to_string().trim_end()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let Enclaves { urls, file, pcrs, development, .. } = &self.enclaves;
        if urls.is_empty() && file.is_none() {
            bail!("enclaves: name some, with urls or file");
        }
        for url in urls {
            daemon::endpoint(url).map_err(|why| anyhow!("enclaves.urls: {url}: {why}"))?;
        }
        if pcrs.is_empty() && !development {
            bail!("enclaves.pcrs: which image is expected? name the .pcrs file that its build wrote");
        }
        if *development && self.enclaves.root.is_some() {
            bail!("enclaves.root: with development each daemon's own root is trusted; leave one of the two out");
        }
        if !(1..=LONGEST_INTERVAL).contains(&self.interval) {
            bail!("interval: seconds, from 1 to {LONGEST_INTERVAL}");
        }
        if self.enclaves.max_enclaves == 0 {
            bail!("enclaves.max_enclaves has to be at least 1");
        }
        for next in &self.next {
            daemon::endpoint(next).map_err(|why| anyhow!("next: {next}: {why}"))?;
        }
        if self.signatures == 0 || (self.signatures > 1) == self.next.is_empty() {
            bail!(
                "signatures and next belong together: with more than one signature, next names the keepers that sign too"
            );
        }
        if (self.signatures > 1 || self.bundles.is_some()) && self.operators.is_empty() {
            bail!(
                "operators: a keeper signs only what another operator has signed; name the operators' public keys, as in \
                 TEEMARK_OPERATOR_KEYS of the image"
            );
        }
        let items = &self.items;
        if items.certificate.is_none() && items.endpoint.is_none() && items.sources().next().is_none() {
            bail!("items: name at least one of certificate, endpoint, file_keys and grant_keys");
        }
        for source in items.sources() {
            if let Source::Exec(ExecSource { exec, timeout, every, .. }) = source {
                match exec.first() {
                    Some(program) if program.starts_with('/') => {}
                    _ => bail!("exec: the program has to be an absolute path: it is given no PATH"),
                }
                if *timeout == 0 || *every == 0 {
                    bail!("exec: timeout and every are seconds, at least 1");
                }
            }
        }
        Ok(())
    }

    /// The time between two looks.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_secs(self.interval)
    }

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let Enclaves { file, pcrs, cacert, root, .. } = &mut self.enclaves;
        let mut paths: Vec<_> = pcrs.iter_mut().chain(file).chain(cacert).chain(root).chain(&mut self.folder).collect();
        if let KeySource::File(FileSource { file }) = &mut self.operator_key {
            paths.push(file);
        }
        let Items { certificate, file_keys, grant_keys, .. } = &mut self.items;
        let parts = certificate.iter_mut().flat_map(|Certificate { cert, key, ca }| [cert, key, ca]);
        for source in parts.chain(file_keys).chain(grant_keys) {
            if let Source::File(FileSource { file }) = source {
                paths.push(file);
            }
        }
        paths
    }
}

impl Items {
    /// Every source.
    fn sources(&self) -> impl Iterator<Item = &Source> {
        let parts = self.certificate.iter().flat_map(|Certificate { cert, key, ca }| [cert, key, ca]);
        parts.chain(&self.file_keys).chain(&self.grant_keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
        interval = 2
        operator_key = { credential = "operator.key" }
        [enclaves]
        urls = ["https://enclaves.internal:3000"]
        file = "enclaves"
        pcrs = ["teemark.pcrs"]
        roles = ["arn:aws:iam::123456789012:role/parent"]
        [items]
        endpoint = "https://watermark.internal:8080"
        file_keys = { exec = ["/usr/bin/aws", "secretsmanager"], environment = ["AWS_REGION"], every = 60 }
        grant_keys = { file = "/etc/teemark/grants.json" }
        [items.certificate]
        cert = { file = "client.crt" }
        key = { credential = "client.key" }
        ca = { file = "ecs-ca.crt" }
    "#;

    #[test]
    fn a_whole_file_is_read_and_its_paths_are_relative_to_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keeper.toml");
        std::fs::write(&path, WHOLE).unwrap();
        let config = Config::read(&path).unwrap();
        assert_eq!((config.interval, config.listen.as_str(), config.enclaves.max_enclaves), (2, "127.0.0.1:9464", 16));
        assert_eq!(config.enclaves.pcrs, [folder.path().join("teemark.pcrs")]);
        let Some(Source::Exec(exec)) = &config.items.file_keys else { panic!("{config:?}") };
        assert_eq!((exec.timeout, exec.every), (30, 60));
        assert_eq!(config.items.grant_keys, Some(Source::File(FileSource { file: "/etc/teemark/grants.json".into() })));
        let certificate = config.items.certificate.unwrap();
        assert_eq!(certificate.cert, Source::File(FileSource { file: folder.path().join("client.crt") }));
    }

    #[test]
    fn the_example_is_a_configuration() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/keeper.toml");
        let config = Config::read(&path).unwrap();
        // What is commented out is right too.
        let text =
            std::fs::read_to_string(&path).unwrap().replace("file_keys = { credential", "# file_keys = { credential");
        let shown = text.replace("# file_keys = { exec", "file_keys = { exec").replace("#   \"--query", "  \"--query");
        let with_command = Config::parse(&shown).unwrap();
        assert!(matches!(config.items.file_keys, Some(Source::Credential(_))));
        assert!(matches!(with_command.items.file_keys, Some(Source::Exec(_))));
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_name() {
        for (from, to, words) in [
            ("urls = [\"https://enclaves.internal:3000\"]\n        file = \"enclaves\"\n", "", "urls or file"),
            ("https://enclaves", "enclaves", "http://HOST:PORT"),
            ("pcrs = [\"teemark.pcrs\"]", "", "which image"),
            ("interval = 2", "interval = 0", "from 1 to 3600"),
            ("interval = 2", "interval = 3601", "from 1 to 3600"),
            ("interval = 2", "interval = 18446744073709551615", "interval"),
            ("interval = 2", "intervall = 2", "intervall"),
            ("/usr/bin/aws", "aws", "absolute path"),
            ("every = 60", "every = 0", "at least 1"),
            ("interval = 2", "signatures = 2", "next names"),
            ("interval = 2", "next = ['http://h:1']", "belong together"),
            ("interval = 2", "signatures = 2\nnext = ['h:1']", "http://HOST:PORT"),
            ("interval = 2", "signatures = 2\nnext = ['http://h:1']", "operators: a keeper signs only what another"),
            ("interval = 2", "bundles = '127.0.0.1:0'", "operators: a keeper signs only what another"),
            ("interval = 2", "operators = ['AAAA']", "AAAA is not an operator's public key"),
            ("every = 60", "often = 60", "file_keys"),
        ] {
            assert!(WHOLE.contains(from), "{from}");
            let told = format!("{:#}", Config::parse(&WHOLE.replace(from, to)).unwrap_err());
            assert!(told.contains(words), "{words} in {told}");
        }
    }
}
