//! The commands that start the machines.

use std::path::{Path, PathBuf};
use std::process::Command;

use formats::time::Utc;

use crate::process::Process;
use crate::shape::Shape;

/// The last words of the kernel's command line. The first overrides its `reboot=k`, which resets by the keyboard
/// controller, which a Nitro enclave has and neither machine here. Without one the kernel tries the BIOS next, which
/// sometimes boots the machine again, unnoticed by QEMU and in spite of -no-reboot. QEMU always notices a triple fault.
///
/// The second is the kernel's own choice on KVM and so on Nitro: on a busy machine TCG may deliver no timer interrupt for so
/// long that the kernel takes its timer for broken and panics.
const APPENDED: &str = "reboot=t no_timer_check";

/// What to boot, and on which machine.
pub enum Machine<'a> {
    /// QEMU's machine `microvm`, with kernel and ramdisk.
    Microvm {
        /// The file with the bzImage.
        kernel: &'a Path,
        /// The file with all ramdisks, concatenated.
        ramdisk: &'a Path,
        /// The kernel's command line.
        command_line: &'a str,
    },
    /// QEMU's machine `virt` for aarch64, with processors of the kind that Graviton2 has.
    Virt {
        /// The file with the Image.
        kernel: &'a Path,
        /// The file with all ramdisks, concatenated.
        ramdisk: &'a Path,
        /// The kernel's command line.
        command_line: &'a str,
    },
    /// The machine `nitro-enclave` (QEMU 9.2 and newer), which boots an EIF and has a Nitro Secure Module.
    Nitro {
        /// The QEMU program that has this machine.
        qemu: &'a Path,
        /// The file of the image.
        eif: &'a Path,
    },
}

/// The QEMU that the variable QEMU_NITRO names, with the machine `nitro-enclave`.
pub fn nitro() -> Option<PathBuf> {
    std::env::var_os("QEMU_NITRO").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The command for a QEMU of this shape, its serial line on standard input and output, and the vsock device that listens on
/// the socket `device`.
pub fn command(machine: &Machine, shape: Shape, device: &Path) -> Command {
    let Shape { memory, processors, ahead } = shape;
    let program = match machine {
        Machine::Microvm { .. } => "qemu-system-x86_64".to_owned(),
        Machine::Virt { .. } => "qemu-system-aarch64".to_owned(),
        Machine::Nitro { qemu, .. } => qemu.display().to_string(),
    };
    let mut command = Process::command(&program);
    // TCG everywhere, so that machines differ less. Without -no-reboot a failed boot would repeat for ever.
    command.args(["-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-serial", "stdio", "-no-reboot", "-m", &format!("{memory}M")]);
    command.args(["-smp", &processors.to_string()]);
    // Without a module that knows the right time, the guest's clock starts ahead of this machine's: it loses time under
    // TCG, and the certificates were made here just before. `teemark` takes no document from more than 60 s ahead.
    let ahead = match machine {
        Machine::Microvm { .. } | Machine::Virt { .. } => 50,
        Machine::Nitro { .. } => ahead,
    };
    let begin = Utc(Utc::now().0.saturating_add_signed(ahead)).to_string();
    command.args(["-rtc", &format!("base={}", begin.trim_end_matches('Z'))]);
    command.args(["-chardev", &format!("socket,id=vsock,path={}", device.display())]);
    match machine {
        Machine::Microvm { kernel, ramdisk, command_line } => {
            // The device maps the machine's memory, so it has to be shared.
            command.args(["-M", "microvm,acpi=off,rtc=on,memory-backend=memory", "-cpu", "max"]);
            command.args(["-object", &format!("memory-backend-memfd,id=memory,size={memory}M,share=on")]);
            command.args(["-device", "vhost-user-vsock-device,chardev=vsock"]);
            command.arg("-kernel").arg(kernel).arg("-initrd").arg(ramdisk).arg("-append");
            command.arg(format!("{command_line} {APPENDED}"));
        }
        Machine::Virt { kernel, ramdisk, command_line } => {
            command.args(["-M", "virt,gic-version=3,memory-backend=memory", "-cpu", "neoverse-n1"]);
            command.args(["-object", &format!("memory-backend-memfd,id=memory,size={memory}M,share=on")]);
            // The driver of today's virtio does not take what this machine has by default.
            command.args(["-global", "virtio-mmio.force-legacy=false"]);
            command.args(["-device", "vhost-user-vsock-device,chardev=vsock"]);
            command.arg("-kernel").arg(kernel).arg("-initrd").arg(ramdisk).arg("-append");
            // Its serial line is a PL011, where Nitro's is an 8250. The last console is /dev/console.
            command.arg(format!("{command_line} console=ttyAMA0"));
        }
        Machine::Nitro { eif, .. } => {
            command
                .args(["-cpu", "max", "-M", "nitro-enclave,vsock=vsock,id=enclave", "-kernel"])
                .arg(eif)
                .args(["-append", APPENDED]);
            for folder in ["/usr/share/qemu", "/usr/share/seabios"] {
                command.args(["-L", folder]);
            }
        }
    }
    command
}
