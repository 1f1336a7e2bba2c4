//! The kernel: a bzImage for x86-64 (the kernel's Documentation/arch/x86/boot.rst), or an uncompressed Image for aarch64
//! (Documentation/arch/arm64/booting.rst), as the EIF specification asks for.

use crate::arch::Arch;

/// Offsets and values of a bzImage's two magic numbers: of a boot sector, and of the setup header.
const BOOT_FLAG: (usize, &[u8]) = (0x1fe, &[0x55, 0xaa]);
const HEADER: (usize, &[u8]) = (0x202, b"HdrS");
/// Offset of two bytes that say where the version's text begins, counted from 0x200; since protocol 2.00.
const VERSION: usize = 0x20e;
const VERSION_FROM: usize = 0x200;
/// Smallest end of the header in protocol 2.00 and later.
const MIN_LENGTH: usize = 0x230;
/// Longest version that is read, in bytes.
const MAX_VERSION: usize = 64;

/// Offset and value of an Image's magic number, and the length of its header.
const IMAGE_MAGIC: (usize, &[u8]) = (56, b"ARM\x64");
const IMAGE_HEADER: usize = 64;
/// What it begins with if it can be started by EFI, too. Loaders of an EIF know an Image by both.
const EFI_MAGIC: (usize, &[u8]) = (0, b"MZ");
/// text_offset: how far into memory Nitro loads the kernel. It has to be set, since the kernel cannot run at 0
/// (kernel/kernel.nix of aws-nitro-enclaves-sdk-bootstrap); 2 MiB is what AWS sets.
const TEXT_OFFSET: (usize, &[u8]) = (8, &(2u64 << 20).to_le_bytes());
/// What the version follows in a kernel for any architecture (linux_banner, init/version.c).
const BANNER: &[u8] = b"Linux version ";

/// What a kernel says about itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The architecture that it is for.
    pub arch: Arch,
    /// Its version, such as `6.12.90`, if it tells.
    pub version: Option<String>,
}

impl Kernel {
    /// Checks that this is a kernel that an enclave boots from.
    ///
    /// # Errors
    /// It is not; the text completes a sentence that begins with the file's name.
    pub fn read(kernel: &[u8]) -> Result<Kernel, &'static str> {
        let has = |(at, bytes): (usize, &[u8])| kernel.get(at..).is_some_and(|rest| rest.starts_with(bytes));
        if kernel.len() >= IMAGE_HEADER && has(IMAGE_MAGIC) {
            return match (has(EFI_MAGIC), has(TEXT_OFFSET)) {
                (true, true) => Ok(Kernel { arch: Arch::Aarch64, version: version(banner(kernel)) }),
                (false, _) => Err("does not begin with MZ, as an EIF's kernel for aarch64 does: set CONFIG_EFI_STUB=y"),
                (_, false) => Err("has not the text_offset 2 MiB: set it, as image/kernel/recipe.sh does"),
            };
        }
        if kernel.len() >= MIN_LENGTH && has(BOOT_FLAG) && has(HEADER) {
            let at = usize::from(u16::from_le_bytes([kernel[VERSION], kernel[VERSION + 1]]));
            let text = kernel.get(at + VERSION_FROM..).filter(|_| at != 0).unwrap_or_default();
            return Ok(Kernel { arch: Arch::X86_64, version: version(text) });
        }
        Err("is not a kernel: a bzImage for x86-64, or an uncompressed Image for aarch64")
    }
}

/// What follows the banner's first words; nothing if there is none.
fn banner(kernel: &[u8]) -> &[u8] {
    memchr::memmem::find(kernel, BANNER).map(|at| &kernel[at + BANNER.len()..]).unwrap_or_default()
}

/// The first word.
fn version(text: &[u8]) -> Option<String> {
    let word = text.iter().take(MAX_VERSION).take_while(|b| b.is_ascii_graphic()).map(|b| *b as char);
    Some(word.collect::<String>()).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(version: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 0x300];
        bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x80u16.to_le_bytes());
        bytes[0x280..0x280 + version.len()].copy_from_slice(version);
        bytes
    }

    fn image(banner: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[8..16].copy_from_slice(&0x20_0000u64.to_le_bytes());
        bytes[56..60].copy_from_slice(b"ARMd");
        bytes.extend(b"%s version %s (teemark@teemark)\0");
        bytes.extend(banner);
        bytes
    }

    fn read(bytes: &[u8], arch: Arch) -> Option<String> {
        let kernel = Kernel::read(bytes).unwrap();
        assert_eq!(kernel.arch, arch);
        kernel.version
    }

    #[test]
    fn a_kernel_tells_its_version() {
        assert_eq!(read(&kernel(b"6.12.90 (root@host) #1\0"), Arch::X86_64), Some("6.12.90".into()));
        assert_eq!(read(&kernel(b""), Arch::X86_64), None);
        let mut without = kernel(b"6.12.90");
        without[0x20e..0x210].fill(0);
        assert_eq!(read(&without, Arch::X86_64), None);
        without[0x20e..0x210].fill(0xff);
        assert_eq!(read(&without, Arch::X86_64), None);
        assert_eq!(read(&image(b"Linux version 6.12.90-x (a@b) #1\0"), Arch::Aarch64), Some("6.12.90-x".into()));
        assert_eq!(read(&image(b""), Arch::Aarch64), None);
    }

    #[test]
    fn what_is_not_a_kernel_is_refused() {
        let whole = kernel(b"6.12.90");
        let mut elf = whole.clone();
        elf[0x202] = b'h';
        for other in [b"", &whole[..0x22f], &elf, &[0; 4096], &image(b"")[..63]] {
            assert!(Kernel::read(other).is_err());
        }
    }

    #[test]
    fn an_image_that_nitro_cannot_start_is_refused() {
        let at = |at: usize, byte| {
            let mut altered = image(b"");
            altered[at] = byte;
            Kernel::read(&altered).unwrap_err()
        };
        assert!(at(0, 0x1f).contains("MZ"));
        assert!(at(10, 0).contains("text_offset"));
        assert!(at(56, 0).contains("uncompressed Image"));
    }
}
