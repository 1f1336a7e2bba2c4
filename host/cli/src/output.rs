//! Output that is there whole or not at all: written aside, then renamed into place.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::{Builder, NamedTempFile};

/// Who may read a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Only its owner (mode 600): it holds a key.
    Owner,
    /// Whom the umask lets.
    Umask,
}

/// What to do with a file that stands where the output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    Keep,
    Replace,
}

/// Where a command's output goes. Nothing appears at its place before [`Output::commit`].
#[derive(Debug)]
pub enum Output {
    Stdout(io::Stdout),
    /// A pipe or a device, which a rename would replace.
    Special(fs::File),
    File(Aside),
}

/// A file that is written beside its target. It comes to be with the first byte, so that a command that is
/// interrupted while it reads or waits leaves nothing behind.
#[derive(Debug)]
pub struct Aside {
    target: PathBuf,
    existing: Existing,
    mode: u32,
    file: Option<NamedTempFile>,
}

impl Aside {
    fn file(&mut self) -> io::Result<&mut NamedTempFile> {
        let file = match self.file.take() {
            Some(file) => file,
            None => Builder::new()
                .prefix(".teemark-")
                .permissions(Permissions::from_mode(self.mode))
                .tempfile_in(folder_of(&self.target))?,
        };
        Ok(self.file.insert(file))
    }
}

impl Output {
    /// Opens the output; `-` is standard output. `remedy` tells the operator what to do where the name is taken.
    ///
    /// # Errors
    /// A file is there already and `existing` says to keep it; the folder is missing or cannot be written.
    pub fn open(path: &Path, existing: Existing, readers: Readers, remedy: &str) -> Result<Output> {
        if path == Path::new("-") {
            return Ok(Output::Stdout(io::stdout()));
        }
        let mut target = path.to_owned();
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => bail!("{} is a folder; name a file in it", path.display()),
            Ok(found) if !found.is_file() => {
                let file = OpenOptions::new().write(true).open(path);
                return Ok(Output::Special(file.with_context(|| format!("cannot write to {}", path.display()))?));
            }
            Ok(_) if existing == Existing::Keep => bail!(already_there(path, remedy)),
            // Through a symbolic link the file it names is replaced, not the link.
            Ok(_) => target = fs::canonicalize(path).with_context(|| format!("cannot write to {}", path.display()))?,
            Err(_) => {}
        }
        // A file without a name shows at once whether the folder can be written, and leaves no trace.
        let folder = folder_of(&target);
        tempfile::tempfile_in(folder).with_context(|| format!("cannot write in the folder {}", folder.display()))?;
        let mode = if readers == Readers::Owner { 0o600 } else { 0o666 };
        Ok(Output::File(Aside { target, existing, mode, file: None }))
    }

    /// Puts what was written in its place, on the disk.
    ///
    /// # Errors
    /// The disk is full, or another program made the file meanwhile; then nothing changed at the output's place.
    pub fn commit(mut self, remedy: &str) -> Result<()> {
        self.flush().context("cannot write the output")?;
        let Output::File(Aside { target, existing, file: Some(file), .. }) = self else { return Ok(()) };
        let cannot = || format!("cannot write {}", target.display());
        file.as_file().sync_all().with_context(cannot)?;
        let placed = match existing {
            Existing::Keep => file.persist_noclobber(&target),
            Existing::Replace => file.persist(&target),
        };
        match placed {
            Ok(_) => Ok(()),
            Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => bail!(already_there(&target, remedy)),
            Err(e) => Err(e.error).with_context(cannot),
        }
    }
}

fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn already_there(path: &Path, remedy: &str) -> String {
    format!("{} is there already and was left alone; {remedy}", path.display())
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Output::Stdout(out) => out.write(buf),
            Output::Special(file) => file.write(buf),
            Output::File(aside) => aside.file()?.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Stdout(out) => out.flush(),
            Output::Special(file) => file.flush(),
            // Also makes an empty file where nothing was written.
            Output::File(aside) => aside.file()?.flush(),
        }
    }
}

/// Writes a whole small output.
///
/// # Errors
/// As [`Output::open`] and [`Output::commit`].
pub fn write(path: &Path, bytes: &[u8], existing: Existing, readers: Readers, remedy: &str) -> Result<()> {
    let mut output = Output::open(path, existing, readers, remedy)?;
    output.write_all(bytes).with_context(|| format!("cannot write {}", path.display()))?;
    output.commit(remedy)
}

/// Writes to standard output, without the panic of `print!` where the reader has gone.
pub fn to_stdout(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout();
    out.write_all(bytes).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// An input of known length, where it is a file: `-` is standard input.
///
/// # Errors
/// It is not there, cannot be read, or is a folder.
pub fn open_input(path: &Path) -> Result<(Box<dyn Read>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let found = file.metadata().with_context(|| format!("cannot read {}", path.display()))?;
    if found.is_dir() {
        bail!("{} is a folder; name a file", path.display());
    }
    let length = found.is_file().then_some(found.len());
    Ok((Box::new(file), length))
}

/// Opens a file that holds a key, and warns on stderr where others can read it too.
///
/// # Errors
/// It is not there, or cannot be read.
pub fn open_key(path: &Path) -> Result<fs::File> {
    let key_file = || format!("the key file {}", path.display());
    let file = fs::File::open(path).with_context(|| format!("cannot open {}; teemark keygen makes one", key_file()))?;
    let mode = file.metadata().with_context(key_file)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        eprintln!("warning: {} is open to other users (mode {mode:o}); run chmod 600 on it", key_file());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_the_first_byte_not_even_a_temporary_file_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let output = Output::open(&folder.path().join("out"), Existing::Keep, Readers::Umask, "").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        output.commit("").unwrap();
        assert_eq!(fs::read(folder.path().join("out")).unwrap(), b"");
    }

    #[test]
    fn nothing_is_there_before_the_commit_and_nothing_is_left_without_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut output = Output::open(&path, Existing::Keep, Readers::Umask, "").unwrap();
        output.write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(output);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let output = Output::open(&path, Existing::Keep, Readers::Umask, "").unwrap();
        fs::write(&path, "theirs").unwrap();
        assert!(output.commit("use --force").unwrap_err().to_string().contains("use --force"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
    }

    #[test]
    fn a_device_is_written_to_and_a_link_followed_rather_than_replaced() {
        use std::os::unix::fs::FileTypeExt;
        write(Path::new("/dev/null"), b"x", Existing::Replace, Readers::Umask, "").unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());

        let folder = tempfile::tempdir().unwrap();
        let (link, file) = (folder.path().join("link"), folder.path().join("file"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, b"new", Existing::Replace, Readers::Umask, "").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    }
}
