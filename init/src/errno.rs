//! Names of the kernel's errors, which people can search for, and their meanings.

use core::fmt;

use rustix::io::Errno;

/// Prints an error as `ENOENT (no such file or folder)`, or as `errno 133` if it has no name here.
pub struct Named(pub Errno);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match NAMES.iter().find(|(errno, ..)| *errno == self.0) {
            Some((_, name, meaning)) => write!(f, "{name} ({meaning})"),
            None => write!(f, "errno {}", self.0.raw_os_error()),
        }
    }
}

/// The documented errors of mount(2), open(2), read(2), finit_module(2), execve(2), setrlimit(2) and the calls of sockets.
#[rustfmt::skip]
const NAMES: [(Errno, &str, &str); 36] = [
    (Errno::PERM, "EPERM", "not permitted"),
    (Errno::NOENT, "ENOENT", "no such file or folder"),
    (Errno::INTR, "EINTR", "interrupted"),
    (Errno::IO, "EIO", "input or output error"),
    (Errno::NXIO, "ENXIO", "no such device or address"),
    (Errno::TOOBIG, "E2BIG", "arguments and environment too long"),
    (Errno::NOEXEC, "ENOEXEC", "not in a format that this kernel knows"),
    (Errno::BADF, "EBADF", "bad descriptor"),
    (Errno::CHILD, "ECHILD", "no child process"),
    (Errno::AGAIN, "EAGAIN", "try again"),
    (Errno::NOMEM, "ENOMEM", "out of memory"),
    (Errno::ACCESS, "EACCES", "permission denied"),
    (Errno::BUSY, "EBUSY", "busy"),
    (Errno::EXIST, "EEXIST", "exists already"),
    (Errno::NODEV, "ENODEV", "no such device"),
    (Errno::NOTDIR, "ENOTDIR", "not a folder"),
    (Errno::ISDIR, "EISDIR", "a folder"),
    (Errno::INVAL, "EINVAL", "invalid argument"),
    (Errno::MFILE, "EMFILE", "too many open files"),
    (Errno::TXTBSY, "ETXTBSY", "open for writing"),
    (Errno::NOSPC, "ENOSPC", "no space left"),
    (Errno::ROFS, "EROFS", "read-only file system"),
    (Errno::PIPE, "EPIPE", "closed by the other side"),
    (Errno::NAMETOOLONG, "ENAMETOOLONG", "name too long"),
    (Errno::NOSYS, "ENOSYS", "not built into this kernel"),
    (Errno::LOOP, "ELOOP", "too many symbolic links"),
    (Errno::NOKEY, "ENOKEY", "signed by no known key"),
    (Errno::KEYREJECTED, "EKEYREJECTED", "signature refused"),
    (Errno::AFNOSUPPORT, "EAFNOSUPPORT", "address family not built into this kernel"),
    (Errno::NETUNREACH, "ENETUNREACH", "network unreachable"),
    (Errno::CONNRESET, "ECONNRESET", "reset by the other side"),
    (Errno::NOTCONN, "ENOTCONN", "not connected"),
    (Errno::TIMEDOUT, "ETIMEDOUT", "timed out"),
    (Errno::CONNREFUSED, "ECONNREFUSED", "refused"),
    (Errno::HOSTUNREACH, "EHOSTUNREACH", "host unreachable"),
    (Errno::LIBBAD, "ELIBBAD", "damaged interpreter"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn an_error_has_its_name_and_its_meaning() {
        assert_eq!(format!("{}", Named(Errno::NODEV)), "ENODEV (no such device)");
        assert_eq!(format!("{}", Named(Errno::TOOBIG)), "E2BIG (arguments and environment too long)");
    }

    #[test]
    fn an_error_without_a_name_has_its_number() {
        assert_eq!(format!("{}", Named(Errno::from_raw_os_error(133))), "errno 133");
    }

    #[test]
    fn no_error_is_listed_twice() {
        for (i, (errno, name, _)) in NAMES.iter().enumerate() {
            assert!(NAMES[..i].iter().all(|(e, n, _)| e != errno && n != name), "{name}");
        }
    }
}
