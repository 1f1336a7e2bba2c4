//! Writes files completely or not at all: each is written to a temporary file and synced to disk before the first gets
//! its name.

use std::fmt;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::Builder;

/// Mode of a file that everyone may read, as far as the umask allows.
pub const PUBLIC: u32 = 0o666;
/// Mode of a file that holds a secret.
pub const PRIVATE: u32 = 0o600;

/// A file to write.
pub struct Output<'a> {
    /// Its name in the folder.
    pub name: String,
    /// All of its bytes.
    pub contents: &'a [u8],
    /// Permission bits, before the umask is applied.
    pub mode: u32,
}

/// A file or folder that could not be written.
#[derive(Debug)]
pub struct OutputError {
    path: PathBuf,
    error: io::Error,
}

impl fmt::Display for OutputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be written: {}", self.path.display(), self.error)
    }
}

impl std::error::Error for OutputError {}

/// Writes the files into a folder, which is created if it is missing, and returns their paths. If one of them cannot be
/// written, the files there stay as they were.
///
/// # Errors
/// The file system's error, with the path.
pub fn write(folder: &Path, files: &[Output<'_>]) -> Result<Vec<PathBuf>, OutputError> {
    let cannot = |path: PathBuf| move |error| OutputError { path, error };
    fs::create_dir_all(folder).map_err(cannot(folder.to_owned()))?;
    let mut complete = Vec::new();
    for file in files {
        let path = folder.join(&file.name);
        // Nothing else could keep a complete file from getting its name.
        if path.is_dir() {
            return Err(OutputError { path, error: io::ErrorKind::IsADirectory.into() });
        }
        let temporary = || {
            let mut temporary = Builder::new()
                .prefix(".teemark-")
                .permissions(Permissions::from_mode(file.mode))
                .tempfile_in(folder)?;
            temporary.write_all(file.contents)?;
            temporary.as_file().sync_all()?;
            Ok(temporary)
        };
        complete.push((temporary().map_err(cannot(path.clone()))?, path));
    }
    let place = |(temporary, path): (tempfile::NamedTempFile, PathBuf)| match temporary.persist(&path) {
        Ok(_) => Ok(path),
        Err(e) => Err(OutputError { path, error: e.error }),
    };
    complete.into_iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_one_file_cannot_be_written_the_others_stay_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "old").unwrap();
        fs::create_dir(folder.path().join("b")).unwrap();
        let file = |name: &str| Output { name: name.into(), contents: b"new", mode: PUBLIC };
        let error = write(folder.path(), &[file("a"), file("b")]).unwrap_err();
        assert!(error.to_string().ends_with("/b cannot be written: is a directory"), "{error}");
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
