//! Files that are there whole or not at all: all of them are written aside, complete and on the disk, before the first
//! takes its name.

use std::fmt;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::Builder;

/// The mode of a file that everyone may read whom the umask lets.
pub const PUBLIC: u32 = 0o666;
/// The mode of a file that holds a secret.
pub const PRIVATE: u32 = 0o600;

/// A file to write.
pub struct Output<'a> {
    pub name: String,
    pub contents: &'a [u8],
    /// Permission bits, less the umask.
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

/// Writes the files into a folder, which is made where it is missing, and tells their paths. What stood there before
/// stays as it was if one of them cannot be written.
///
/// # Errors
/// What the file system says.
pub fn write(folder: &Path, files: &[Output<'_>]) -> Result<Vec<PathBuf>, OutputError> {
    let cannot = |path: PathBuf| move |error| OutputError { path, error };
    fs::create_dir_all(folder).map_err(cannot(folder.to_owned()))?;
    let mut complete = Vec::new();
    for file in files {
        let path = folder.join(&file.name);
        // The one thing that would keep a complete file from taking its name.
        if path.is_dir() {
            return Err(OutputError { path, error: io::ErrorKind::IsADirectory.into() });
        }
        let aside = || {
            let mut aside = Builder::new()
                .prefix(".teemark-")
                .permissions(Permissions::from_mode(file.mode))
                .tempfile_in(folder)?;
            aside.write_all(file.contents)?;
            aside.as_file().sync_all()?;
            Ok(aside)
        };
        complete.push((aside().map_err(cannot(path.clone()))?, path));
    }
    let place = |(aside, path): (tempfile::NamedTempFile, PathBuf)| match aside.persist(&path) {
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
