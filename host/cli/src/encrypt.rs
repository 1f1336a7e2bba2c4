//! `teemark encrypt`: a file to the format that the enclave opens.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde_json::{Value, json};

use crate::batch::{self, Files, Job, REMEDY};
use crate::failure::Done;
use crate::keys::{FileKey, KeyFile, fill_random};
use crate::output::{self, Output, Readers};
use crate::progress::{Counts, Progress};
use crate::terminal::say;

/// The daemon's default of TEEMARK_MAX_FILE, in bytes of plaintext.
const DAEMON_DEFAULT_LIMIT: usize = 64 << 20;

/// Tink's prefix of a ciphertext: this byte, then the key id as u32, big endian
/// (<https://developers.google.com/tink/wire-format>).
const TINK_VERSION: u8 = 1;

/// Encrypt files with AES-256-GCM, each under a new random IV.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  teemark encrypt picture.png --keys keys.json
  teemark encrypt *.png --keys keys.json --output-dir encrypted
  teemark encrypt report.txt --keys keys.json --key-id 7 --file-id report-2026 --output - > report.enc")]
pub struct Arguments {
    #[command(flatten)]
    files: Files,
    /// The key file, as teemark keygen makes it
    #[arg(long, value_name = "FILE")]
    keys: PathBuf,
    /// Which key; needed where the key file holds several
    #[arg(long, value_name = "ID")]
    key_id: Option<String>,
    /// Put Tink's prefix (0x01 and the key id) in front
    #[arg(long)]
    tink: bool,
}

/// Encrypts, and leaves a whole output file or none.
///
/// # Errors
/// A file cannot be read or written, the key cannot be told, or what it needs (file id, a number for Tink) is missing.
pub fn run(arguments: &Arguments, json: bool) -> Result<Done> {
    let keys = KeyFile::read(&arguments.keys)?;
    let (id, key) = keys.find(arguments.key_id.as_deref())?;
    let prefix = if arguments.tink { tink_prefix(id)?.to_vec() } else { Vec::new() };
    let jobs = arguments.files.jobs(json, |input| Ok(default_output(input)))?;
    batch::run(&jobs, |job, progress| arguments.encrypt(job, (id, key), &prefix, progress))
}

impl Arguments {
    fn encrypt(&self, job: &Job, (id, key): (&str, &FileKey), prefix: &[u8], progress: &Progress) -> Result<Value> {
        let aad = associated_data(id, key, job.file_id.as_deref())?;
        let path = &job.output;
        // Opened before the work, so that a name that is taken is told at once.
        let mut out = Output::open(path, self.files.existing(), Readers::Umask, REMEDY)?;

        let mut data = read(&job.input, progress)?;
        if data.len() > DAEMON_DEFAULT_LIMIT {
            let length = data.len();
            progress.aside(|| {
                say(format_args!(
                    "warning: {}: {length} bytes are more than the 64 MiB that a daemon takes by default; raise its \
                     TEEMARK_MAX_FILE",
                    job.input.display()
                ));
            });
        }
        let iv = seal(key, aad, &mut data, progress)?;

        let length = prefix.len() + iv.len() + data.len();
        let bar = progress.step(Some(length as u64), "writing", Counts::No);
        let mut sink = bar.wrap_write(&mut out);
        // In pieces, since one write of everything would take the bar from nothing to the end.
        for piece in [prefix, &iv].into_iter().chain(data.chunks(1 << 20)) {
            sink.write_all(piece).with_context(|| format!("cannot write {}", path.display()))?;
        }
        drop(sink);
        out.commit(REMEDY)?;
        Ok(json!({
            "input": job.input.to_string_lossy(),
            "output": path.to_string_lossy(),
            "key_id": id,
            "file_id": key.bound_to_file_id.then_some(aad),
            "bytes": length,
        }))
    }
}

fn tink_prefix(id: &str) -> Result<[u8; 5]> {
    let number = id.parse::<u32>().ok().filter(|number| number.to_string() == id);
    let Some(number) = number else {
        bail!("--tink writes the key id as a number, and {id:?} is not one (0 to 4294967295, without leading zeros)");
    };
    let [a, b, c, d] = number.to_be_bytes();
    Ok([TINK_VERSION, a, b, c, d])
}

fn associated_data<'a>(id: &str, key: &FileKey, file_id: Option<&'a str>) -> Result<&'a str> {
    match (key.bound_to_file_id, file_id) {
        (false, _) => Ok(""),
        (true, Some(file_id)) => Ok(file_id),
        (true, None) => {
            bail!("the key {id} binds each file to its file id, and there is no name to take; give --file-id")
        }
    }
}

fn default_output(input: &Path) -> PathBuf {
    if input == Path::new("-") {
        return "-".into();
    }
    let mut name = OsString::from(input);
    name.push(".enc");
    name.into()
}

/// Reads the whole input: AES-GCM in one piece needs it in memory.
fn read(path: &Path, progress: &Progress) -> Result<Vec<u8>> {
    let (source, length) = output::open_input(path)?;
    let bar = progress.step(length, "reading", Counts::Yes);
    let mut data = Vec::with_capacity(length.unwrap_or(0) as usize + AES_256_GCM.tag_len());
    bar.wrap_read(source).read_to_end(&mut data).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(data)
}

/// Encrypts in place, appends the tag, and returns the IV.
fn seal(key: &FileKey, aad: &str, data: &mut Vec<u8>, progress: &Progress) -> Result<[u8; NONCE_LEN]> {
    let bar = progress.step(Some(data.len() as u64), "sealing", Counts::No);
    bar.tick();
    let mut iv = [0; NONCE_LEN];
    fill_random(&mut iv)?;
    let sealed = UnboundKey::new(&AES_256_GCM, &key.bytes).and_then(|key| {
        LessSafeKey::new(key).seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::from(aad), data)
    });
    sealed.ok().context("the file is too long for AES-GCM in one piece (64 GiB)")?;
    Ok(iv)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tinks_prefix_is_one_byte_of_version_and_the_key_id_big_endian() {
        assert_eq!(tink_prefix("16909060").unwrap(), [1, 1, 2, 3, 4]);
        for bad in ["", "007", "+7", "-1", "4294967296", "contracts"] {
            assert!(tink_prefix(bad).unwrap_err().to_string().contains("as a number"), "{bad}");
        }
    }

    #[test]
    fn the_output_stands_beside_the_input_and_standard_input_goes_to_standard_output() {
        assert_eq!(default_output(Path::new("a/b.png")), Path::new("a/b.png.enc"));
        assert_eq!(default_output(Path::new("-")), Path::new("-"));
    }
}
