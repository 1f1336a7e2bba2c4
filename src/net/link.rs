//! The enclave's own network: a loopback interface and a hosts file. An enclave has nothing else.

use std::fmt::Write;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use formats::allow_list::AllowList;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

/// rtnetlink(7): a message that changes a link, its flags, and the type of an answer.
const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;
/// The loopback interface is the first of every network namespace (LOOPBACK_IFINDEX in net/flow.h).
const LOOPBACK: i32 = 1;
const IFF_UP: u32 = 1;

/// Whether this process is a child of the enclave's PID 1, which is its initial ramdisk's /init.
pub fn in_enclave() -> bool {
    nix::unistd::getppid().as_raw() == 1 && fs::read_link("/proc/1/exe").is_ok_and(|exe| exe == Path::new("/init"))
}

/// Brings up the loopback interface. The kernel then gives it 127.0.0.1/8.
///
/// # Errors
/// The kernel's error.
pub fn bring_loopback_up() -> io::Result<()> {
    let link = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    let mut request = Vec::with_capacity(32);
    // struct nlmsghdr: length, type, flags, sequence, port
    request.extend_from_slice(&32u32.to_ne_bytes());
    request.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    request.extend_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    // struct ifinfomsg: family, padding, type; index, flags, which flags to change
    request.extend_from_slice(&[0; 4]);
    request.extend_from_slice(&LOOPBACK.to_ne_bytes());
    request.extend_from_slice(&IFF_UP.to_ne_bytes());
    request.extend_from_slice(&IFF_UP.to_ne_bytes());
    sendto(link.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;

    let mut answer = [0; 128];
    let length = recv(link.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    match (&answer[..length], &answer[4..6]) {
        // nlmsghdr, then struct nlmsgerr, which begins with 0 or a negative errno
        ([_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, a, b, c, d, ..], kind)
            if kind == NLMSG_ERROR.to_ne_bytes() =>
        {
            match i32::from_ne_bytes([*a, *b, *c, *d]) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(-errno)),
            }
        }
        _ => Err(io::Error::other("rtnetlink gave no acknowledgement")),
    }
}

/// Writes the hosts file: localhost, and a loopback address for each allowed host.
///
/// # Errors
/// The file system's error.
pub fn write_hosts(file: &Path, allowed: &AllowList) -> io::Result<()> {
    let mut text = String::from("127.0.0.1 localhost\n");
    for endpoint in allowed.iter() {
        let _ = writeln!(text, "{} {}", endpoint.loopback(), endpoint.host());
    }
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(file, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_names_localhost_and_every_allowed_host_in_order() {
        let folder = std::env::temp_dir().join(format!("teemark-hosts-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let list = AllowList::parse("list", b"endpoints:\n- a.example:8080\n- b.example\n").unwrap();
        write_hosts(&folder.join("etc/hosts"), &list).unwrap();
        let text = fs::read_to_string(folder.join("etc/hosts")).unwrap();
        assert_eq!(text, "127.0.0.1 localhost\n127.0.0.64 a.example\n127.0.0.65 b.example\n");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn this_machine_is_not_an_enclave() {
        assert!(!in_enclave());
    }

    /// Loopback is up here already, and bringing it up again takes the same message; it needs CAP_NET_ADMIN.
    #[test]
    fn the_kernel_understands_the_message() {
        match bring_loopback_up() {
            Ok(()) => {}
            Err(e) => assert_eq!(e.raw_os_error(), Some(nix::libc::EPERM), "{e}"),
        }
    }
}
