//! The build, step by step.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use formats::certificates;
use formats::time::Utc;

use crate::eif::{EifError, Image, Metadata, assemble};
use crate::files::Files;
use crate::inputs::Inputs;
use crate::output::{self, Output, OutputError};
use crate::parts::Parts;
use crate::ramdisk::{Entry, Node, RamdiskError, newc};
use crate::read::InputError;
use crate::record::{PartRecord, Record};
use crate::{contents, paths};

/// Longest command line, in bytes: the kernel's COMMAND_LINE_SIZE, less a zero byte and 512 bytes for what a
/// virtual machine appends (a virtio_mmio.device= for each device).
const MAX_COMMAND_LINE: usize = 2048 - 1 - 512;

/// What to build.
pub struct Request<'a> {
    /// Where the input files are.
    pub files: &'a Files,
    /// The kernel's command line, if not [`contents::command_line`].
    pub command_line: Option<&'a str>,
    /// The image's name, and that of its files.
    pub name: &'a str,
    /// The folder of the results.
    pub output: &'a Path,
    /// The build time in the image's metadata.
    pub built: Utc,
    /// The time at which certificates have to be valid: now.
    pub now: Utc,
}

/// What was built.
pub struct Built {
    /// What is in NAME.json.
    pub record: Record,
    /// The paths of NAME.eif, NAME.pcrs and NAME.json.
    pub paths: Vec<PathBuf>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Nothing was built, and the files of an earlier build are as they were.
#[derive(Debug)]
pub enum BuildError {
    /// An input file cannot be used.
    Input(InputError),
    /// This name has other characters than letters, digits, `.`, `_` and `-`, or does not begin with a letter or digit.
    Name(String),
    /// The command line cannot be used, for this reason.
    CommandLine(String),
    /// The files cannot be put into a ramdisk.
    Ramdisk(RamdiskError),
    /// The parts cannot be put together.
    Eif(EifError),
    /// A result cannot be written.
    Output(OutputError),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(e) => write!(f, "{e}"),
            Self::Name(name) => {
                write!(
                    f,
                    "{name:?} is not a valid image name: use letters, digits, `.`, `_` and `-`, a letter or digit first"
                )
            }
            Self::CommandLine(reason) => write!(f, "command line: {reason}"),
            Self::Ramdisk(e) => write!(f, "{e}"),
            Self::Eif(e) => write!(f, "{e}"),
            Self::Output(e) => write!(f, "{e}"),
        }
    }
}

impl std::error::Error for BuildError {}

/// Builds an image and writes NAME.eif, NAME.pcrs and NAME.json.
///
/// # Errors
/// [`BuildError`].
pub fn build(request: &Request<'_>) -> Result<Built, BuildError> {
    check_name(request.name)?;
    let inputs = Inputs::read(request.files, request.now).map_err(BuildError::Input)?;
    let (first, second) = (contents::first(&inputs), contents::second(&inputs));
    let debug = inputs.debug.is_some();
    let command_line = request.command_line.map_or_else(|| contents::command_line(inputs.arch, debug), str::to_owned);
    check_command_line(&command_line, first.iter().chain(&second))?;

    let compression = request.files.compression;
    let ramdisk = |entries: &[Entry]| {
        newc(entries).map(|archive| compression.compress(&archive, inputs.arch)).map_err(BuildError::Ramdisk)
    };
    let parts = Parts {
        arch: inputs.arch,
        kernel: inputs.kernel.clone(),
        command_line,
        ramdisks: vec![ramdisk(&first)?, ramdisk(&second)?],
    };
    let metadata = Metadata {
        name: request.name,
        version: env!("CARGO_PKG_VERSION"),
        kernel_version: inputs.kernel_version.as_deref(),
        built: request.built,
        debug,
    };
    let image = assemble(&parts, &metadata, inputs.signer.as_ref()).map_err(BuildError::Eif)?;
    let record = record(&inputs, &metadata, &parts, &image);
    let paths = write(request, &inputs, &image, &record)?;
    let warnings = warnings(&inputs, &paths[0]);
    Ok(Built { record, paths, warnings })
}

fn check_name(name: &str) -> Result<(), BuildError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain) {
        true => Ok(()),
        false => Err(BuildError::Name(name.into())),
    }
}

/// Checks that the kernel takes the line whole, and that its target is in the image.
fn check_command_line<'a>(line: &str, mut entries: impl Iterator<Item = &'a Entry>) -> Result<(), BuildError> {
    let refuse = |reason: String| Err(BuildError::CommandLine(reason));
    if line.len() > MAX_COMMAND_LINE {
        return refuse(format!("has {} bytes, and at most {MAX_COMMAND_LINE} fit", line.len()));
    }
    if let Some(other) = line.chars().find(|c| !(' '..='~').contains(c)) {
        return refuse(format!("has the character {other:?}, which is not printable ASCII"));
    }
    // The last one counts, as in init.
    let target = line.split(' ').filter_map(|word| word.strip_prefix("teemark.target=")).next_back();
    let target = target.unwrap_or(paths::DAEMON);
    let starts = |entry: &Entry| entry.path == target && matches!(entry.node, Node::File(_)) && entry.mode & 0o111 != 0;
    match entries.any(starts) {
        true => Ok(()),
        false => refuse(format!("teemark.target={target} does not name a program in this image")),
    }
}

fn record(inputs: &Inputs, metadata: &Metadata<'_>, parts: &Parts, image: &Image) -> Record {
    let settings = &inputs.settings;
    let mut known = BTreeMap::from([
        ("kernel", PartRecord::of(&inputs.kernel)),
        ("init", PartRecord::of(&inputs.init)),
        ("teemarkd", PartRecord::of(&inputs.daemon)),
        ("endpoints", PartRecord::of(&settings.endpoints)),
        ("ramdisk-0", PartRecord::of(&parts.ramdisks[0])),
        ("ramdisk-1", PartRecord::of(&parts.ramdisks[1])),
        ("eif", PartRecord::of(&image.bytes)),
    ]);
    let environment = if settings.secrets.is_empty() { PartRecord::of } else { PartRecord::secret };
    known.insert("environment", environment(&settings.environment));
    if let Some(certificates) = &inputs.certificates {
        for (part, file) in certificates.files.iter() {
            let secret = part == certificates::Part::Key;
            known.insert(part.file(), if secret { PartRecord::secret(file) } else { PartRecord::of(file) });
        }
    }
    known.extend(inputs.module.iter().map(|module| ("nsm.ko", PartRecord::of(module))));
    if let Some(debug) = &inputs.debug {
        known.insert("launcher", PartRecord::of(&debug.launcher));
        known.insert("shell", PartRecord::of(&debug.shell));
    }
    Record {
        name: metadata.name.into(),
        version: metadata.version.into(),
        arch: inputs.arch,
        kernel_version: inputs.kernel_version.clone(),
        command_line: parts.command_line.clone(),
        debug: metadata.debug,
        signed: inputs.signer.is_some(),
        secrets: inputs.secrets().into_iter().map(str::to_owned).collect(),
        pcrs: image.pcrs.clone(),
        parts: known.into_iter().map(|(name, part)| (name.to_owned(), part)).collect(),
    }
}

fn write(request: &Request<'_>, inputs: &Inputs, image: &Image, record: &Record) -> Result<Vec<PathBuf>, BuildError> {
    let mode = if inputs.secrets().is_empty() { output::PUBLIC } else { output::PRIVATE };
    let (pcrs, json) = (image.pcrs.to_string(), record.to_json());
    let file = |extension, contents, mode| Output { name: format!("{}.{extension}", request.name), contents, mode };
    let files = [
        file("eif", &image.bytes, mode),
        file("pcrs", pcrs.as_bytes(), output::PUBLIC),
        file("json", json.as_bytes(), output::PUBLIC),
    ];
    output::write(request.output, &files).map_err(BuildError::Output)
}

fn warnings(inputs: &Inputs, eif: &Path) -> Vec<String> {
    let mut warnings = inputs.settings.warnings.clone();
    warnings.extend(inputs.certificates.iter().flat_map(|certificates| certificates.warnings.clone()));
    let secrets = inputs.secrets();
    if !secrets.is_empty() {
        warnings.push(format!(
            "THE IMAGE HOLDS SECRETS: {}. Everyone who can read {} (mode 600) has them. To keep them out of the image, \
             deliver them by the handshake.",
            secrets.join(", "),
            eif.display()
        ));
    }
    if inputs.debug.is_some() {
        warnings.push("this image has a shell: it is for debugging; put no secrets into it".into());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_out_of_the_folder_or_look_like_an_option() {
        for name in ["", ".", "..", "../x", "a/b", "-x", ".x", "a b", "ä"] {
            assert!(matches!(check_name(name), Err(BuildError::Name(_))), "{name}");
        }
        check_name("teemark-debug_1.0").unwrap();
    }

    #[test]
    fn a_command_line_names_a_program_of_the_image_and_fits_the_kernel() {
        let entries =
            [Entry::file("/teemarkd", 0o755, ""), Entry::file("/text", 0o644, ""), Entry::directory("/bin", 0o755)];
        let check = |line: &str| check_command_line(line, entries.iter()).map_err(|e| e.to_string());
        for line in ["", "panic=1", "teemark.target=/no teemark.target=/teemarkd", &"x".repeat(MAX_COMMAND_LINE)] {
            check(line).unwrap();
        }
        for target in ["/no", "/text", "/bin", "teemarkd", ""] {
            let refused = check(&format!("teemark.target=/teemarkd teemark.target={target}")).unwrap_err();
            assert_eq!(refused, format!("command line: teemark.target={target} does not name a program in this image"));
        }
        for (line, reason) in [("a\nb", "'\\n'"), ("a\0", "'\\0'"), ("ä", "'ä'"), (&"x".repeat(1536), "has 1536 bytes")]
        {
            assert!(check(line).unwrap_err().contains(reason), "{line:?}");
        }
    }
}
