//! `teemark keygen`: new keys of every kind, and the public halves of those that have one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use ring::signature::KeyPair;

use crate::Outcome;
use crate::issuer::Issuer;
use crate::keys::{FileKey, KeyFile, LONGEST_ID, fill_random};
use crate::output::{self, Existing, Readers};
use crate::private_key::{Kind, PrivateKey};

/// Make a new key and write it to a file (mode 600), or print it; of a key pair, print the public half.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  teemark keygen --output keys.json
  teemark keygen --output keys.json --add --aad --id contracts-2026
  teemark keygen --for operator --output operator.key
  teemark keygen --for operator --public operator.key
  teemark keygen --for grants --output grant.key > grant-keys.json")]
pub struct Arguments {
    /// What the key is for
    #[arg(long = "for", value_name = "USE", value_enum, default_value_t = Use::File)]
    purpose: Use,
    /// A file key's id [default: a random number, as Tink gives]
    #[arg(long, value_parser = key_id)]
    id: Option<String>,
    /// Bind each file under this file key to its file id (the file id is the associated data)
    #[arg(long)]
    aad: bool,
    /// The key file to make, never overwritten; a file key is printed where it is left out
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Add the file key to the key file that is there
    #[arg(long, requires = "output")]
    add: bool,
    /// Make no key: print the public half of the one in this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "add", "id", "aad"])]
    public: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Use {
    /// AES-256, to encrypt files under
    File,
    /// Ed25519, to sign bundles with: TEEMARK_OPERATOR_KEYS takes the public half
    Operator,
    /// Ed25519, to sign grants with: GRANT_KEYS takes the public half, a JWK set
    Grants,
    /// X25519, to have answers sealed to: the public half is a reply_key
    Reply,
}

fn key_id(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > LONGEST_ID || text.chars().any(char::is_control) {
        return Err(format!("a key id is text of 1 to {LONGEST_ID} bytes without control characters"));
    }
    Ok(text.to_owned())
}

/// Makes a key, or reads one to print its public half.
///
/// # Errors
/// The file is there already (or, with `--add` and `--public`, is not), cannot be written, has the id already, or holds
/// another kind of key; an option makes no sense for this use.
pub fn run(arguments: &Arguments) -> Result<Outcome> {
    let purpose = arguments.purpose;
    if purpose == Use::File {
        if arguments.public.is_some() {
            bail!("a file key has no public half; for another kind of key say which: --for operator, grants or reply");
        }
        return file_key(arguments);
    }
    if arguments.add || arguments.aad || arguments.id.is_some() {
        bail!("--id, --aad and --add are for file keys only; a file holds one key pair");
    }
    match (&arguments.public, &arguments.output) {
        (Some(path), _) => {
            let public = PrivateKey::read(path).and_then(|key| purpose.public_half(key));
            print(&public.with_context(|| format!("--public {}", path.display()))?)
        }
        (None, Some(path)) if path != Path::new("-") => key_pair(purpose, path),
        _ => bail!("name a file for the private key with --output; standard output is for the public half"),
    }
}

/// Makes a key pair: the private half goes to the file, the public half to standard output.
fn key_pair(purpose: Use, path: &Path) -> Result<Outcome> {
    let kind = if purpose == Use::Reply { Kind::X25519 } else { Kind::Ed25519 };
    let (key, text) = PrivateKey::generate(kind)?;
    let public = purpose.public_half(key)?;
    let remedy = "choose another name, or print its public half with --public";
    output::write(path, text.as_bytes(), Existing::Keep, Readers::Owner, remedy)?;
    eprintln!("the private key is in {}", path.display());
    print(&public)
}

fn print(public: &str) -> Result<Outcome> {
    output::to_stdout(format!("{public}\n").as_bytes())?;
    Ok(Outcome::Done)
}

impl Use {
    /// A key's public half, in the form in which others take it for this use.
    fn public_half(self, key: PrivateKey) -> Result<String> {
        match self {
            Use::File => bail!("a file key has no public half"),
            Use::Operator => Ok(STANDARD.encode(key.operators()?.public_key())),
            Use::Grants => Issuer::new(key)?.jwk_set(),
            Use::Reply => Ok(STANDARD.encode(key.reply()?.public())),
        }
    }
}

/// Makes a file key and says on stderr, never with the key itself, where it went.
fn file_key(arguments: &Arguments) -> Result<Outcome> {
    let mut keys = match (&arguments.output, arguments.add) {
        (Some(path), true) => KeyFile::read(path).context("--add adds to a key file that is there")?,
        _ => KeyFile::default(),
    };
    let id = match &arguments.id {
        Some(id) => id.clone(),
        None => random_id()?.to_string(),
    };
    keys.add(id.clone(), FileKey::random(arguments.aad)?)?;

    let mut text = serde_json::to_vec_pretty(&keys)?;
    text.push(b'\n');
    match &arguments.output {
        Some(path) if path != Path::new("-") => {
            let existing = if arguments.add { Existing::Replace } else { Existing::Keep };
            let remedy = "add a key to it with --add, or choose another name";
            output::write(path, &text, existing, Readers::Owner, remedy)?;
            eprintln!("key {id} is in {} ({} in all)", path.display(), keys.len());
        }
        _ => output::to_stdout(&text)?,
    }
    Ok(Outcome::Done)
}

/// A key id as Tink makes them: any u32 but 0.
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
