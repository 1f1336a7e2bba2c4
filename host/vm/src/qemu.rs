//! The commands that start the machines.

use std::path::{Path, PathBuf};
use std::process::Command;

use formats::time::Utc;

use crate::process::Process;

/// Stands last on the kernel's command line and wins over its `reboot=k`. That names the keyboard controller, which
/// resets a Nitro enclave and which neither machine here has. Without one the kernel calls the BIOS next, and that now
/// and then boots the machine anew, behind QEMU's back and in spite of -no-reboot. A triple fault always reaches QEMU.
const RESET: &str = "reboot=t";

/// What is booted, and on which machine.
pub enum Machine<'a> {
    /// QEMU's machine `microvm`, with kernel and ramdisk.
    Microvm { kernel: &'a Path, ramdisk: &'a Path, command_line: &'a str },
    /// The machine `nitro-enclave` (QEMU 9.2 and newer, of the program given): an EIF, with a Nitro Secure Module.
    Nitro { qemu: &'a Path, eif: &'a Path },
}

/// The QEMU that the variable QEMU_NITRO names, with the machine `nitro-enclave`.
pub fn nitro() -> Option<PathBuf> {
    std::env::var_os("QEMU_NITRO").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// A QEMU with so many MiB of memory, its serial line on standard input and output, and vsock by the device that
/// listens on this socket.
pub fn command(machine: &Machine, memory: u32, device: &Path) -> Command {
    let program = match machine {
        Machine::Microvm { .. } => "qemu-system-x86_64".to_owned(),
        Machine::Nitro { qemu, .. } => qemu.display().to_string(),
    };
    let mut command = Process::command(&program);
    // TCG, wherever this runs: machines differ enough as it is. Without -no-reboot a failed start would go on for ever.
    command.args(["-accel", "tcg", "-cpu", "max", "-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-serial", "stdio", "-no-reboot", "-m", &format!("{memory}M")]);
    // Ahead of this machine: guests' clocks lose time under TCG, and certificates are made here just before. Where there
    // is a module with the right time to compare with, by so much that the daemon has to warn of it.
    let seconds = match machine {
        Machine::Microvm { .. } => 100,
        Machine::Nitro { .. } => 200,
    };
    let ahead = Utc(Utc::now().0 + seconds).to_string();
    command.args(["-rtc", &format!("base={}", ahead.trim_end_matches('Z'))]);
    command.args(["-chardev", &format!("socket,id=vsock,path={}", device.display())]);
    match machine {
        Machine::Microvm { kernel, ramdisk, command_line } => {
            // The device maps the machine's memory, hence memory that can be shared.
            command.args(["-M", "microvm,acpi=off,rtc=on,memory-backend=memory"]);
            command.args(["-object", &format!("memory-backend-memfd,id=memory,size={memory}M,share=on")]);
            command.args(["-device", "vhost-user-vsock-device,chardev=vsock"]);
            command.arg("-kernel").arg(kernel).arg("-initrd").arg(ramdisk).arg("-append");
            command.arg(format!("{command_line} {RESET}"));
        }
        Machine::Nitro { eif, .. } => {
            command.args(["-M", "nitro-enclave,vsock=vsock,id=enclave", "-kernel"]).arg(eif).args(["-append", RESET]);
            for folder in ["/usr/share/qemu", "/usr/share/seabios"] {
                command.args(["-L", folder]);
            }
        }
    }
    command
}
