//! `teemark keygen`: makes keys of every kind, and prints the public halves of key pairs.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use formats::file_keys::MAX_KEY_ID;
use ring::signature::KeyPair;
use serde_json::{Value, json};

use crate::failure::{Done, Failure};
use crate::keys::{KeyFile, fill_random, fresh_file_key};
use crate::output::{self, Existing, Output, Readers};
use crate::private_key::{self, PrivateKey};
use crate::terminal::say;

/// Make a new key and write it to a file (mode 600), or print it; for a key pair, print the public half.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  teemark keygen --output keys.json
  teemark keygen --output keys.json --add --aad --id contracts-2026
  teemark keygen --for operator --output operator.key --public-output operator.pub
  teemark keygen --for operator --public operator.key
  teemark keygen --for grants --output grants.key --public-output grants.json")]
pub(crate) struct Arguments {
    /// What the key is for
    #[arg(long = "for", value_name = "USE", value_enum, default_value_t = KeyKind::File)]
    purpose: KeyKind,
    /// A file key's id [default: a random number, as in Tink]
    #[arg(long, value_parser = key_id)]
    id: Option<String>,
    /// Bind each file under this file key to its file id (the file id is the associated data)
    #[arg(long)]
    aad: bool,
    /// The key file to make, never overwritten; without it a file key is printed
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write the public half to this new file rather than to standard output; neither file is ever overwritten
    #[arg(long, value_name = "FILE")]
    public_output: Option<PathBuf>,
    /// Add the file key to a key file that exists
    #[arg(long, requires = "output")]
    add: bool,
    /// Make no key, but print the public half of the one in this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "add", "id", "aad"])]
    public: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KeyKind {
    /// AES-256, to encrypt files under
    File,
    /// Ed25519, to sign bundles with: TEEMARK_OPERATOR_KEYS takes the public half
    Operator,
    /// Ed25519, to sign grants with: GRANT_KEYS takes the public half, a JWK set
    Grants,
    /// X25519, to have answers sealed to: the public half is a reply_key
    Reply,
    /// X25519, to have the log sealed to: TEEMARK_LOG_KEYS takes the public half
    Log,
    /// Ed25519, to sign acknowledgements of the log with: TEEMARK_AUDIT_KEYS takes the public half
    Collector,
}

fn key_id(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_KEY_ID || text.chars().any(char::is_control) {
        return Err(format!("a key id is text of 1 to {MAX_KEY_ID} bytes without control characters"));
    }
    Ok(text.to_owned())
}

/// Makes a key, or reads one to print its public half.
///
/// # Errors
/// The file exists (or, with `--add` and `--public`, does not), cannot be written, has the id already, or holds another
/// kind of key; an option makes no sense for this use.
pub(crate) fn run(arguments: &Arguments) -> Result<Done> {
    let Some(purpose) = arguments.purpose.of_pair() else {
        if arguments.public.is_some() || arguments.public_output.is_some() {
            bail!(Failure::usage(
                "a file key has no public half; for another kind of key say which: --for operator, grants, reply, log or collector"
            ));
        }
        return file_key(arguments);
    };
    if arguments.add || arguments.aad || arguments.id.is_some() {
        bail!(Failure::usage("--id, --aad and --add are for file keys only; a file holds one key pair"));
    }
    match (&arguments.public, &arguments.output) {
        (Some(path), _) => {
            let public = PrivateKey::read(path, purpose).and_then(|key| public_half(purpose, key));
            let public = public.with_context(|| format!("--public {}", path.display()))?;
            let out = arguments.public_output.as_deref().map(open_public).transpose()?;
            publish(purpose, &public, out, json!({}))
        }
        (None, Some(path)) if path != Path::new("-") => key_pair(purpose, path, arguments.public_output.as_deref()),
        _ => bail!(Failure::usage(
            "name a file for the private key with --output; standard output is for the public half"
        )),
    }
}

/// Makes a key pair: the private half goes to the file, the public half to its own or to standard output. Neither file is
/// made unless both can be.
fn key_pair(purpose: private_key::Use, path: &Path, public_path: Option<&Path>) -> Result<Done> {
    let (key, text) = PrivateKey::generate(purpose)?;
    let public = public_half(purpose, key)?;
    let remedy = "choose another name, or print its public half with --public";
    let mut private_out = Output::open(path, Existing::Keep, Readers::Owner, remedy)?;
    let public_out = public_path.map(open_public).transpose()?;
    if public_path == Some(path) {
        bail!(Failure::usage("--output and --public-output name the same file; each half needs its own"));
    }
    private_out.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    private_out.commit(remedy)?;
    say(format_args!("the private key is in {}", path.display()));
    publish(purpose, &public, public_out, json!({"private_key_file": path.to_string_lossy()}))
        .with_context(|| format!("{} has the private key; print its public half with --public", path.display()))
}

/// The output for the public half, and its path.
type PublicOutput<'a> = (&'a Path, Output);

const PUBLIC_REMEDY: &str = "choose another --public-output";

fn open_public(path: &Path) -> Result<PublicOutput<'_>> {
    Ok((path, Output::open(path, Existing::Keep, Readers::Umask, PUBLIC_REMEDY)?))
}

/// Writes the public half to its file, or has it printed.
fn publish(purpose: private_key::Use, public: &str, out: Option<PublicOutput<'_>>, mut told: Value) -> Result<Done> {
    told["use"] = json!(purpose.name());
    told["public_key"] = match purpose {
        private_key::Use::Grants => serde_json::from_str(public)?,
        _ => json!(public),
    };
    let line = format!("{public}\n");
    match out {
        Some((path, mut out)) if path != Path::new("-") => {
            out.write_all(line.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
            out.commit(PUBLIC_REMEDY)?;
            say(format_args!("the public half is in {}", path.display()));
            told["public_key_file"] = json!(path.to_string_lossy());
            Ok(Done::new("", told))
        }
        _ => Ok(Done::new(line, told)),
    }
}

/// A key's public half, in the form that this use needs.
fn public_half(purpose: private_key::Use, key: PrivateKey) -> Result<String> {
    match purpose {
        private_key::Use::Operator => Ok(STANDARD.encode(key.operators()?.public_key())),
        private_key::Use::Grants => Ok(key.issuer()?.public().to_jwk_set()),
        private_key::Use::Reply => Ok(STANDARD.encode(key.reply()?.public())),
        private_key::Use::Log => Ok(STANDARD.encode(key.log()?.public())),
        private_key::Use::Collector => Ok(STANDARD.encode(key.collectors()?.public_key())),
    }
}

impl KeyKind {
    /// What a key pair of this kind is for; none for a file key.
    fn of_pair(self) -> Option<private_key::Use> {
        match self {
            KeyKind::File => None,
            KeyKind::Operator => Some(private_key::Use::Operator),
            KeyKind::Grants => Some(private_key::Use::Grants),
            KeyKind::Reply => Some(private_key::Use::Reply),
            KeyKind::Log => Some(private_key::Use::Log),
            KeyKind::Collector => Some(private_key::Use::Collector),
        }
    }
}

/// Makes a file key and reports on stderr where it is, without the key itself.
fn file_key(arguments: &Arguments) -> Result<Done> {
    let mut keys = match (&arguments.output, arguments.add) {
        (Some(path), true) => KeyFile::read(path).context("--add needs a key file that exists")?,
        _ => KeyFile::default(),
    };
    let id = match &arguments.id {
        Some(id) => id.clone(),
        None => random_id()?.to_string(),
    };
    keys.add(id.clone(), fresh_file_key(arguments.aad)?)?;

    let mut text = serde_json::to_vec_pretty(&keys)?;
    text.push(b'\n');
    match &arguments.output {
        Some(path) if path != Path::new("-") => {
            let existing = if arguments.add { Existing::Replace } else { Existing::Keep };
            let remedy = "add a key to it with --add, or choose another name";
            output::write(path, &text, existing, Readers::Owner, remedy)?;
            say(format_args!("key {id} is in {} ({} in all)", path.display(), keys.len()));
            Ok(Done::new(
                "",
                json!({"use": "file", "key_id": id, "key_file": path.to_string_lossy(), "keys": keys.len()}),
            ))
        }
        _ => {
            let told = json!({"use": "file", "key_id": id, "keys": serde_json::to_value(&keys)?});
            Ok(Done::new(text, told))
        }
    }
}

/// A random key id, as Tink makes them: any u32 but 0.
fn random_id() -> Result<u32> {
    loop {
        let mut bytes = [0; 4];
        fill_random(&mut bytes)?;
        match u32::from_be_bytes(bytes) {
            0 => {}
            id => return Ok(id),
        }
    }
}
