//! `teemark encrypt`: encrypts files in the format that the enclave opens.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use formats::file_keys::DeliveredKey;
use formats::files::{FileKey, NONCE_LEN, PREFIX_LEN, TAG_LEN, head, tink_prefix};
use serde_json::{Value, json};

use crate::batch::{self, Files, Job, REMEDY};
use crate::failure::Done;
use crate::keys::{KeyFile, fill_random};
use crate::output::{self, Output, Readers};
use crate::progress::{Counts, Progress};
use crate::terminal::say;

/// The daemon's default of TEEMARK_MAX_FILE, in bytes of plaintext.
const DAEMON_DEFAULT_LIMIT: usize = 64 << 20;

/// Encrypt files with AES-256-GCM, each under a new random IV.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  teemark encrypt picture.png --keys keys.json
  teemark encrypt *.png --keys keys.json --output-dir encrypted
  teemark encrypt report.txt --keys keys.json --key-id 7 --file-id report-2026 --output - > report.enc")]
pub(crate) struct Arguments {
    #[command(flatten)]
    files: Files,
    /// The key file, as teemark keygen makes it
    #[arg(long, value_name = "FILE")]
    keys: PathBuf,
    /// The key's id; needed if the key file holds several keys
    #[arg(long, value_name = "ID")]
    key_id: Option<String>,
    /// Put Tink's prefix (0x01 and the key id) in front
    #[arg(long)]
    tink: bool,
}

/// Encrypts the files, and writes a complete output file or none for each.
///
/// # Errors
/// A file cannot be read or written, no key is chosen, or the key needs a file id or Tink a number, and there is none.
pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<Done> {
    let keys = KeyFile::read(&arguments.keys)?;
    let (id, key) = keys.find(arguments.key_id.as_deref())?;
    let prefix = arguments.tink.then(|| prefix(id)).transpose()?;
    let jobs = arguments.files.jobs(json, |input| Ok(default_output(input)))?;
    batch::run(&jobs, |job, progress| arguments.encrypt(job, (id, key), prefix, progress))
}

impl Arguments {
    fn encrypt(
        &self,
        job: &Job,
        (id, key): (&str, &DeliveredKey),
        prefix: Option<Prefix>,
        progress: &Progress,
    ) -> Result<Value> {
        let file_id = bound_to(id, key, job.file_id.as_deref())?;
        let path = &job.output;
        // Opened before the work, so that a file that exists is reported at once.
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
        let head = head(prefix, seal(key, file_id, &mut data, progress)?);

        let length = head.len() + data.len();
        let bar = progress.step(Some(length as u64), "writing", Counts::No);
        let mut sink = bar.wrap_write(&mut out);
        // In pieces, since one write of everything would take the bar from nothing to the end.
        for piece in [&head[..]].into_iter().chain(data.chunks(1 << 20)) {
            sink.write_all(piece).with_context(|| format!("cannot write {}", path.display()))?;
        }
        drop(sink);
        out.commit(REMEDY)?;
        Ok(json!({
            "input": job.input.to_string_lossy(),
            "output": path.to_string_lossy(),
            "key_id": id,
            "file_id": key.binds_file_id.then_some(file_id),
            "bytes": length,
        }))
    }
}

type Prefix = [u8; PREFIX_LEN];

fn prefix(id: &str) -> Result<Prefix> {
    tink_prefix(id).with_context(|| {
        format!("--tink writes the key id as a number, and {id:?} is not one (0 to 4294967295, without leading zeros)")
    })
}

/// The file id that the key binds the file to; empty if it binds none.
fn bound_to<'a>(id: &str, key: &DeliveredKey, file_id: Option<&'a str>) -> Result<&'a str> {
    match (key.binds_file_id, file_id) {
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
    // Only a hint; a length that memory cannot hold fails while reading.
    let expected = length.and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let mut data = Vec::with_capacity(expected + TAG_LEN);
    bar.wrap_read(source).read_to_end(&mut data).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(data)
}

/// Encrypts in place, appends the tag, and returns the IV.
fn seal(key: &DeliveredKey, file_id: &str, data: &mut Vec<u8>, progress: &Progress) -> Result<[u8; NONCE_LEN]> {
    let bar = progress.step(Some(data.len() as u64), "sealing", Counts::No);
    bar.tick();
    let mut iv = [0; NONCE_LEN];
    fill_random(&mut iv)?;
    FileKey::from(key).seal(data, file_id, iv)?;
    Ok(iv)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_stands_beside_the_input_and_standard_input_goes_to_standard_output() {
        assert_eq!(default_output(Path::new("a/b.png")), Path::new("a/b.png.enc"));
        assert_eq!(default_output(Path::new("-")), Path::new("-"));
    }
}
