//! Loads the kernel modules of the image: /nsm.ko, then /lib/modules/*.ko in the order of their names, such as
//! `10-first.ko`, `20-second.ko`. teemark's own kernel has no modules; the one that AWS ships needs its nsm.ko.

use core::ffi::CStr;
use core::fmt;
use core::mem::MaybeUninit;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, RawDir, SeekFrom, openat, seek};
use rustix::io::Errno;
use rustix::system::finit_module;

use crate::errno::Named;
use crate::text::{Short, Text};

const NSM: &CStr = c"/nsm.ko";
const FOLDER: &CStr = c"/lib/modules";
/// NAME_MAX of linux/limits.h, and a zero byte.
const NAME_BYTES: usize = 256;

/// Why a module of the image was not loaded.
#[derive(Debug)]
pub enum Error {
    /// /lib/modules cannot be listed.
    Folder(Errno),
    /// The kernel does not accept the file with this name.
    Module(Short, Errno),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Folder(errno) => write!(f, "listing {}: {}", Text(FOLDER), Named(*errno)),
            Self::Module(name, errno) => {
                write!(f, "loading the module {name}: {}", Named(*errno))?;
                match *errno {
                    Errno::NOSYS => write!(f, "; this kernel supports no modules, so the image must not have any"),
                    Errno::NOEXEC => write!(f, "; the module was built for another kernel"),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// Loads all modules of the image, and prints their names.
///
/// # Errors
/// The first that could not be loaded.
pub fn load() -> Result<(), Error> {
    match load_one(CWD, NSM) {
        Err(Error::Module(_, Errno::NOENT)) => {}
        other => other?,
    }
    let folder = match openat(CWD, FOLDER, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.map_err(Error::Folder)?,
    };
    let mut name = Name::new(c"");
    while let Some(next) = next_module(&folder, &name).map_err(Error::Folder)? {
        name = next;
        load_one(&folder, name.as_c_str())?;
    }
    Ok(())
}

fn load_one(folder: impl AsFd, path: &CStr) -> Result<(), Error> {
    let error = |errno| Error::Module(Short::new(path.to_bytes()), errno);
    let file = openat(folder, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(error)?;
    match finit_module(&file, c"", 0) {
        // The kernel has it already.
        Err(Errno::EXIST) => {}
        other => other.map_err(error)?,
    }
    say!("loaded the module {}", Text(path));
    Ok(())
}

/// The name that follows the given one among those that end with `.ko`. Reading the folder again for each needs no list,
/// so their number is not limited.
fn next_module(folder: &OwnedFd, after: &Name) -> Result<Option<Name>, Errno> {
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut next: Option<Name> = None;
    seek(folder, SeekFrom::Start(0))?;
    let mut entries = RawDir::new(folder, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes().ends_with(b".ko")
            && name > after.as_c_str()
            && next.as_ref().is_none_or(|next| name < next.as_c_str())
        {
            next = Some(Name::new(name));
        }
    }
    Ok(next)
}

/// The name of a file, at most 255 bytes.
struct Name([u8; NAME_BYTES]);

impl Name {
    /// A longer name than the kernel allows is cut.
    fn new(name: &CStr) -> Self {
        let mut bytes = [0; NAME_BYTES];
        for (to, from) in bytes[..NAME_BYTES - 1].iter_mut().zip(name.to_bytes()) {
            *to = *from;
        }
        Self(bytes)
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};
    use std::vec::Vec;
    use std::{format, fs};

    #[test]
    fn modules_come_in_the_order_of_their_names_and_nothing_else_comes() {
        let path = std::env::temp_dir().join(format!("teemark-init-modules-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        // Enough for several reads of the folder.
        let mut expected: Vec<String> = (10..99).map(|i| format!("{i}-a-module-with-a-long-name.ko")).collect();
        for name in expected.iter().rev().map(String::as_str).chain(["README", "a.ko.xz", "05.txt", "10ko"]) {
            fs::write(path.join(name), "").unwrap();
        }
        fs::write(path.join("9.ko"), "").unwrap();
        expected.push("9.ko".into());
        expected.sort();

        let folder = rustix::fs::open(path.to_str().unwrap(), OFlags::RDONLY, Mode::empty()).unwrap();
        let (mut found, mut name) = (Vec::new(), Name::new(c""));
        while let Some(next) = next_module(&folder, &name).unwrap() {
            found.push(next.as_c_str().to_str().unwrap().to_string());
            name = next;
        }
        assert_eq!(found, expected);
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_module_that_cannot_be_loaded_is_named() {
        let error = Error::Module(Short::new(NSM.to_bytes()), Errno::NOSYS);
        let text = "loading the module /nsm.ko: ENOSYS (not built into this kernel); this kernel supports no modules, so \
                    the image must not have any";
        assert_eq!(format!("{error}"), text);
    }

    #[test]
    fn a_name_holds_the_longest_that_the_kernel_allows() {
        let long = std::ffi::CString::new("x".repeat(255)).unwrap();
        assert_eq!(Name::new(&long).as_c_str(), long.as_c_str());
    }
}
