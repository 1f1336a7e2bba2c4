//! The kernel: a bzImage for x86 (the kernel's Documentation/arch/x86/boot.rst).

/// Offsets and values of the two magic numbers: of a boot sector, and of the setup header.
const BOOT_FLAG: (usize, &[u8]) = (0x1fe, &[0x55, 0xaa]);
const HEADER: (usize, &[u8]) = (0x202, b"HdrS");
/// Offset of two bytes that say where the version's text begins, counted from 0x200; since protocol 2.00.
const VERSION: usize = 0x20e;
const VERSION_FROM: usize = 0x200;
/// Smallest end of the header in protocol 2.00 and later.
const MIN_LENGTH: usize = 0x230;
/// Longest version that is read, in bytes.
const MAX_VERSION: usize = 64;

/// Checks that this is a kernel and returns its version, such as `6.12.90`, if it has one.
///
/// # Errors
/// It is not a kernel; the text completes a sentence that begins with the file's name.
pub fn version(kernel: &[u8]) -> Result<Option<String>, &'static str> {
    let has = |(at, bytes): (usize, &[u8])| kernel[at..].starts_with(bytes);
    if kernel.len() < MIN_LENGTH || !has(BOOT_FLAG) || !has(HEADER) {
        return Err("is not a kernel for x86-64 (bzImage)");
    }
    let at = usize::from(u16::from_le_bytes([kernel[VERSION], kernel[VERSION + 1]]));
    let text = kernel.get(at + VERSION_FROM..).filter(|_| at != 0).unwrap_or_default();
    let word = text.iter().take(MAX_VERSION).take_while(|b| b.is_ascii_graphic()).map(|b| *b as char);
    Ok(Some(word.collect::<String>()).filter(|word| !word.is_empty()))
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

    #[test]
    fn a_kernel_tells_its_version() {
        assert_eq!(version(&kernel(b"6.12.90 (root@host) #1\0")), Ok(Some("6.12.90".into())));
        assert_eq!(version(&kernel(b"")), Ok(None));
        let mut without = kernel(b"6.12.90");
        without[0x20e..0x210].fill(0);
        assert_eq!(version(&without), Ok(None));
        without[0x20e..0x210].fill(0xff);
        assert_eq!(version(&without), Ok(None));
    }

    #[test]
    fn what_is_not_a_kernel_is_refused() {
        let whole = kernel(b"6.12.90");
        let mut elf = whole.clone();
        elf[0x202] = b'h';
        for other in [b"", &whole[..0x22f], &elf, &[0; 4096]] {
            assert!(version(other).is_err());
        }
    }
}
