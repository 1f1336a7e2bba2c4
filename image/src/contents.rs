//! What the two ramdisks hold.

use formats::certificates::Part;

use crate::arch::Arch;
use crate::inputs::Inputs;
use crate::paths::{CERTS, DAEMON, ENDPOINTS, ENVIRONMENT, INIT, LAUNCHER, MODULE, SHELL};
use crate::ramdisk::Entry;

/// The applets of busybox that have a name of their own in a debug image: those for looking around in a system.
const APPLETS: [&str; 44] = [
    "awk",
    "base64",
    "cat",
    "chmod",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "dmesg",
    "du",
    "env",
    "find",
    "free",
    "grep",
    "head",
    "hexdump",
    "hostname",
    "id",
    "ifconfig",
    "ip",
    "kill",
    "less",
    "ln",
    "ls",
    "mkdir",
    "mount",
    "mv",
    "nc",
    "netstat",
    "ps",
    "rm",
    "sed",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "tail",
    "top",
    "uname",
    "vi",
    "wc",
    "wget",
];

/// The first ramdisk, which PCR1 measures: PID 1, the folders that it mounts on, and the kernel's module if it needs one.
pub fn first(inputs: &Inputs) -> Vec<Entry> {
    let mut entries = vec![Entry::file(INIT, 0o755, inputs.init.clone()), Entry::directory("/tmp", 0o1777)];
    entries.extend(["/dev", "/etc", "/proc", "/run", "/sys"].map(|path| Entry::directory(path, 0o755)));
    entries.extend(inputs.module.iter().map(|module| Entry::file(MODULE, 0o644, module.clone())));
    entries
}

/// The second ramdisk, which PCR2 measures: the daemon with its allow list, settings and certificates if any, and what
/// only a debug image has. The kernel unpacks it over the first.
pub fn second(inputs: &Inputs) -> Vec<Entry> {
    let mut entries = vec![
        Entry::file(DAEMON, 0o755, inputs.daemon.clone()),
        Entry::file(ENDPOINTS, 0o644, inputs.settings.endpoints.clone()),
        Entry::directory("/etc", 0o755),
        Entry::file(ENVIRONMENT, 0o644, inputs.settings.environment.clone()),
    ];
    entries.extend(["/opt", "/opt/enclave", CERTS].map(|path| Entry::directory(path, 0o755)));
    if let Some(certificates) = &inputs.certificates {
        let entry = |(part, file): (Part, &Vec<u8>)| {
            Entry::file(&format!("{CERTS}/{}", part.file()), part.mode(), file.clone())
        };
        entries.extend(certificates.files.iter().map(entry));
    }
    if let Some(debug) = &inputs.debug {
        entries.push(Entry::file(LAUNCHER, 0o755, debug.launcher.clone()));
        entries.push(Entry::directory("/bin", 0o755));
        entries.push(Entry::file(SHELL, 0o755, debug.shell.clone()));
        entries.extend(APPLETS.map(|applet| Entry::link(&format!("/bin/{applet}"), "busybox")));
    }
    entries
}

/// The default command line of the kernel. The kernel restarts the machine when it panics, which ends the enclave;
/// nitro-cli shows the console of an enclave in debug mode. A debug image prints from the kernel's first steps on, and
/// leaves half a minute to read why it panicked.
///
/// On x86-64 it restarts by the keyboard controller (`reboot=k`), on aarch64 by PSCI, which it does anyway.
pub fn command_line(arch: Arch, debug: bool) -> String {
    let (restart, early) = match arch {
        Arch::X86_64 => ("reboot=k ", "earlyprintk=serial,ttyS0,115200"),
        // The device tree names the serial line.
        Arch::Aarch64 => ("", "earlycon"),
    };
    match debug {
        false => format!("{restart}panic=1 console=ttyS0 teemark.target={DAEMON}"),
        true => format!("{restart}panic=30 console=ttyS0 {early} ignore_loglevel teemark.target={LAUNCHER}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_busybox_has_every_applet() {
        let list = std::process::Command::new("/bin/busybox").arg("--list").output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        for applet in APPLETS {
            assert!(list.lines().any(|line| line == applet), "{applet}");
        }
    }
}
