//! Mounts the kernel's file systems; an enclave has no disk.
//!
//! Except for /dev, which has the kernel's devices, none of them can hold a device, and none a program to execute. There
//! is no /dev/pts: the kernel has no pseudo-terminals, since nobody logs in.

use core::ffi::CStr;
use core::fmt;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount};

use crate::errno::Named;
use crate::text::Text;

/// A file system, its mount point and its options (mount(2)).
struct Mount {
    kind: &'static CStr,
    path: &'static CStr,
    flags: MountFlags,
    options: &'static CStr,
}

const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

const DEV: Mount = Mount {
    kind: c"devtmpfs",
    path: c"/dev",
    flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
    options: c"mode=755",
};

const OTHERS: [Mount; 4] = [
    Mount { kind: c"proc", path: c"/proc", flags: PLAIN, options: c"" },
    // Read-only: settings of the kernel belong on its command line, which is measured.
    Mount { kind: c"sysfs", path: c"/sys", flags: PLAIN.union(MountFlags::RDONLY), options: c"" },
    Mount { kind: c"tmpfs", path: c"/tmp", flags: PLAIN, options: c"mode=1777" },
    Mount { kind: c"tmpfs", path: c"/run", flags: PLAIN, options: c"mode=755" },
];

/// Why a file system is not mounted.
#[derive(Debug)]
pub enum Error {
    /// The mount point was missing and could not be made.
    Folder {
        /// The mount point.
        path: &'static CStr,
        /// What mkdir(2) returned.
        errno: Errno,
    },
    /// mount(2) failed.
    Mount {
        /// The file system's type, as in /proc/filesystems.
        kind: &'static CStr,
        /// The mount point.
        path: &'static CStr,
        /// What mount(2) returned.
        errno: Errno,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Folder { path, errno } => write!(f, "making the folder {}: {}", Text(path), Named(*errno)),
            Self::Mount { kind, path, errno } => {
                write!(f, "mounting {}: {}", Text(path), Named(*errno))?;
                match *errno {
                    Errno::NODEV => write!(f, "; the kernel is built without {}", Text(kind)),
                    Errno::NOTDIR => write!(f, "; the image has a file in its place"),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// Mounts /dev, which has to come first because the console is in it.
///
/// # Errors
/// [`Error`], with the path in it.
pub fn mount_dev() -> Result<(), Error> {
    mount_one(&DEV)
}

/// Mounts /proc, /sys, /tmp and /run.
///
/// # Errors
/// [`Error`], with the path in it.
pub fn mount_others() -> Result<(), Error> {
    OTHERS.iter().try_for_each(mount_one)
}

fn mount_one(&Mount { kind, path, flags, options }: &Mount) -> Result<(), Error> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(Error::Folder { path, errno }),
    }
    match mount(kind, path, kind, flags, options) {
        // The kernel has mounted it itself, as with CONFIG_DEVTMPFS_MOUNT; only our options are missing.
        Err(Errno::BUSY) => mount_remount(path, flags, options),
        done => done,
    }
    .map_err(|errno| Error::Mount { kind, path, errno })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    fn error(path: &'static CStr, kind: &'static CStr) -> std::string::String {
        let mount = Mount { kind, path, flags: PLAIN, options: c"" };
        format!("{}", mount_one(&mount).unwrap_err())
    }

    #[test]
    fn a_mount_point_that_cannot_be_made_is_named() {
        assert_eq!(
            error(c"/proc/teemark", c"tmpfs"),
            "making the folder /proc/teemark: ENOENT (no such file or folder)"
        );
    }

    #[test]
    fn a_file_system_that_the_kernel_lacks_is_named() {
        let error = Error::Mount { kind: c"proc", path: c"/proc", errno: Errno::NODEV };
        assert_eq!(format!("{error}"), "mounting /proc: ENODEV (no such device); the kernel is built without proc");
    }

    /// Root or not, the kernel knows no file system of this name.
    #[test]
    fn a_mount_that_fails_is_named() {
        let error = error(c"/tmp", c"no-such-file-system");
        assert!(error.starts_with("mounting /tmp: E"), "{error}");
    }
}
