//! Compresses ramdisks: xz as the kernel's decoder takes it (lib/decompress_unxz.c, Documentation/staging/
//! xz.rst), which knows CRC32 as the only check.

use std::io::Write;

use liblzma::stream::{Check, Filters, LzmaOptions, PRESET_EXTREME, Stream};
use liblzma::write::XzEncoder;

use crate::arch::Arch;

/// Largest dictionary, in bytes. The kernel allocates the whole of it while it unpacks, in an enclave that may have
/// 64 MiB.
const MAX_DICTIONARY: u32 = 4 << 20;
/// Smallest dictionary of the format, in bytes.
const MIN_DICTIONARY: u32 = 4 << 10;

/// Compresses in one block. The length is a multiple of 4, so that ramdisks can be concatenated.
///
/// The architecture's BCJ filter, which makes the targets of jumps absolute, makes machine code smaller and other contents larger, so
/// both ways are tried and the smaller result is taken.
pub fn compress(contents: &[u8], arch: Arch) -> Vec<u8> {
    let mut options = LzmaOptions::new_preset(9 | PRESET_EXTREME).expect("the preset exists");
    options.dict_size(dictionary(contents.len()));
    let plain = encode(contents, Filters::new().lzma2(&options));
    let mut filters = Filters::new();
    match arch {
        Arch::X86_64 => filters.x86(),
        Arch::Aarch64 => filters.arm64(),
    };
    let filtered = encode(contents, filters.lzma2(&options));
    if filtered.len() < plain.len() { filtered } else { plain }
}

fn encode(contents: &[u8], filters: &Filters) -> Vec<u8> {
    let stream = Stream::new_stream_encoder(filters, Check::Crc32).expect("the filters fit together");
    let mut encoder = XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(contents).and_then(|()| encoder.finish()).expect("memory takes every byte")
}

/// The smallest size that covers the contents: 2^n or 2^n + 2^(n-1) bytes, which are what the format can express.
fn dictionary(contents: usize) -> u32 {
    let sizes = (0..).flat_map(|n| [MIN_DICTIONARY << n, (MIN_DICTIONARY << n) / 2 * 3]);
    sizes.take_while(|size| *size < MAX_DICTIONARY).find(|size| *size as usize >= contents).unwrap_or(MAX_DICTIONARY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_covers_the_contents_and_is_no_larger_than_needed() {
        for (contents, size) in [
            (0, 4 << 10),
            (4 << 10, 4 << 10),
            ((4 << 10) + 1, 6 << 10),
            ((6 << 10) + 1, 8 << 10),
            (2_198_016, 3 << 20),
            ((3 << 20) + 1, 4 << 20),
            (1 << 30, 4 << 20),
        ] {
            assert_eq!(dictionary(contents), size, "{contents}");
        }
    }

    #[test]
    fn what_was_compressed_comes_back() {
        let noise: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
        for contents in [&b""[..], b"a", &[0; 70_000], &noise] {
            for arch in [Arch::X86_64, Arch::Aarch64] {
                let packed = compress(contents, arch);
                assert_eq!(packed.len() % 4, 0);
                let mut unpacked = Vec::new();
                std::io::Read::read_to_end(&mut liblzma::read::XzDecoder::new(&packed[..]), &mut unpacked).unwrap();
                assert!(unpacked == contents);
            }
        }
    }
}
