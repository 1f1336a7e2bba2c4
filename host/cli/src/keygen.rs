//! `teemark keygen`: a new file key.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::Outcome;
use crate::keys::{FileKey, KeyFile, LONGEST_ID, fill_random};
use crate::output::{self, Existing, Readers};

/// Make a new random AES-256 key and print it, or write it to a key file (mode 600).
#[derive(clap::Args)]
#[command(after_help = "Examples:
  teemark keygen --output keys.json
  teemark keygen --output keys.json --add --aad --id contracts-2026")]
pub struct Arguments {
    /// The key's id [default: a random number, as Tink gives]
    #[arg(long, value_parser = key_id)]
    id: Option<String>,
    /// Bind each file under this key to its file id (the file id is the associated data)
    #[arg(long)]
    aad: bool,
    /// The key file to make; never overwritten
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Add the key to the key file that is there
    #[arg(long, requires = "output")]
    add: bool,
}

fn key_id(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > LONGEST_ID || text.chars().any(char::is_control) {
        return Err(format!("a key id is text of 1 to {LONGEST_ID} bytes without control characters"));
    }
    Ok(text.to_owned())
}

/// Makes the key and says on stderr, never with the key itself, where it went.
///
/// # Errors
/// The file is there already (or, with `--add`, is not), cannot be written, or has the id already.
pub fn run(arguments: &Arguments) -> Result<Outcome> {
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
