//! Makes a ramdisk: an archive in the format newc (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst), the same bytes for the same entries.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;

use cpio::newc::{Builder, ModeFileType, trailer};

/// The name of an archive's last entry, which no file can have.
const TRAILER: &str = "TRAILER!!!";
/// The permission bits, with set-user-ID, set-group-ID and the sticky bit.
const PERMISSIONS: u32 = 0o7777;

/// One file of a ramdisk. It belongs to root, and its time is 1970-01-01.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The absolute path that it has once the kernel has unpacked it, such as `/etc/teemark.env`.
    pub path: String,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// Its kind and contents.
    pub node: Node,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A regular file with these contents, less than 4 GiB.
    File(Vec<u8>),
    /// A symbolic link to this target.
    Link(String),
}

impl Entry {
    /// A directory. Every folder of an entry needs one, except the root.
    pub fn directory(path: &str, mode: u32) -> Entry {
        Entry { path: path.into(), mode, node: Node::Directory }
    }

    /// A regular file.
    pub fn file(path: &str, mode: u32, contents: impl Into<Vec<u8>>) -> Entry {
        Entry { path: path.into(), mode, node: Node::File(contents.into()) }
    }

    /// A symbolic link. Its mode is not used; 777 is the usual one.
    pub fn link(path: &str, target: &str) -> Entry {
        Entry { path: path.into(), mode: 0o777, node: Node::Link(target.into()) }
    }

    /// The path as it is in the archive, without the leading slash.
    fn name(&self) -> &str {
        &self.path[1..]
    }
}

/// Why no ramdisk can be made of the entries, with the path of the one at fault.
#[derive(Debug, PartialEq, Eq)]
pub enum RamdiskError {
    /// The path is not absolute, or has an empty part, `.`, `..` or a zero byte.
    Path(String),
    /// The mode has more than the permission bits.
    Mode(String),
    /// Two entries have this path.
    Repeated(String),
    /// The folder of this entry is not among the entries. The kernel would silently leave the entry out.
    NoFolder(String),
    /// A file or a link target that newc's fields of 32 bits cannot hold.
    TooLarge(String),
}

impl fmt::Display for RamdiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, reason) = match self {
            Self::Path(path) => (path, "is not an absolute path without `.`, `..` and empty parts"),
            Self::Mode(path) => (path, "has a mode with more than permission bits"),
            Self::Repeated(path) => (path, "is listed twice"),
            Self::NoFolder(path) => (path, "lies in a folder that is not among the entries"),
            Self::TooLarge(path) => (path, "has 4 GiB or more"),
        };
        write!(f, "ramdisk: {path:?} {reason}")
    }
}

impl std::error::Error for RamdiskError {}

/// Makes an uncompressed archive. The order of the entries does not matter: they are sorted, so that a folder comes
/// before what is in it. The length is a multiple of 4, so that ramdisks can be concatenated.
///
/// # Errors
/// [`RamdiskError`].
pub fn newc(entries: &[Entry]) -> Result<Vec<u8>, RamdiskError> {
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by_key(|entry| &entry.path);
    check(&sorted)?;
    let mut archive = Vec::new();
    // Some readers take inode number 0 for an unused entry.
    for (inode, entry) in (1..).zip(sorted) {
        let (kind, contents) = match &entry.node {
            Node::Directory => (ModeFileType::Directory, &[][..]),
            Node::File(contents) => (ModeFileType::Regular, &contents[..]),
            Node::Link(target) => (ModeFileType::Symlink, target.as_bytes()),
        };
        let size = u32::try_from(contents.len()).map_err(|_| RamdiskError::TooLarge(entry.path.clone()))?;
        let header = Builder::new(entry.name()).ino(inode).mode(entry.mode).set_mode_file_type(kind);
        let mut writer = header.write(archive, size);
        archive = writer.write_all(contents).and_then(|()| writer.finish()).expect("memory takes every byte");
    }
    Ok(trailer(archive).expect("memory takes every byte"))
}

fn check(sorted: &[&Entry]) -> Result<(), RamdiskError> {
    let mut seen = BTreeSet::new();
    let mut folders = BTreeSet::from([""]);
    for entry in sorted {
        let path = entry.path.as_str();
        let part = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        if !path.strip_prefix('/').is_some_and(|name| name.split('/').all(part) && name != TRAILER) {
            return Err(RamdiskError::Path(path.into()));
        }
        if entry.mode & !PERMISSIONS != 0 {
            return Err(RamdiskError::Mode(path.into()));
        }
        if !seen.insert(path) {
            return Err(RamdiskError::Repeated(path.into()));
        }
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        if !folders.contains(folder) {
            return Err(RamdiskError::NoFolder(path.into()));
        }
        if entry.node == Node::Directory {
            folders.insert(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;

    #[test]
    fn the_order_of_the_entries_makes_no_difference_and_folders_come_first() {
        let entries = [
            Entry::file("/a/b/c", 0o600, "c"),
            Entry::file("/a-b", 0o644, "x"),
            Entry::directory("/a/b", 0o755),
            Entry::link("/a/sh", "b"),
            Entry::directory("/a", 0o1777),
        ];
        let archive = newc(&entries).unwrap();
        assert_eq!(archive.len() % 4, 0);
        let mut reversed = entries;
        reversed.reverse();
        assert_eq!(newc(&reversed).unwrap(), archive);

        let (mut rest, mut found) = (&archive[..], Vec::new());
        loop {
            let mut reader = Reader::new(rest).unwrap();
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                break;
            }
            let mut text = String::new();
            std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
            assert_eq!((entry.uid(), entry.gid(), entry.mtime(), entry.nlink()), (0, 0, 0, 1));
            found.push((entry.ino(), entry.name().to_owned(), entry.mode(), text));
            rest = reader.finish().unwrap();
        }
        let expected = [
            (1, "a", 0o041777, ""),
            (2, "a-b", 0o100644, "x"),
            (3, "a/b", 0o040755, ""),
            (4, "a/b/c", 0o100600, "c"),
            (5, "a/sh", 0o120777, "b"),
        ];
        assert_eq!(found, expected.map(|(i, name, mode, text)| (i, name.to_owned(), mode, text.to_owned())));
    }

    #[test]
    fn entries_that_the_kernel_would_drop_or_mistake_are_refused() {
        let file = |path| Entry::file(path, 0o644, "");
        for path in ["", "a", "/", "/a/", "//a", "/.", "/../a", "/a\0b", "/TRAILER!!!"] {
            assert_eq!(newc(&[file(path)]).unwrap_err(), RamdiskError::Path(path.into()));
        }
        assert_eq!(newc(&[file("/a/b")]).unwrap_err(), RamdiskError::NoFolder("/a/b".into()));
        assert_eq!(newc(&[file("/a"), file("/a/b")]).unwrap_err(), RamdiskError::NoFolder("/a/b".into()));
        assert_eq!(newc(&[file("/a"), file("/a")]).unwrap_err(), RamdiskError::Repeated("/a".into()));
        let device = Entry::file("/a", 0o020600, "");
        assert_eq!(newc(&[device]).unwrap_err(), RamdiskError::Mode("/a".into()));
    }
}
