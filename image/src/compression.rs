//! How ramdisks are compressed. The kernel has to be able to unpack it: image/kernel/build.sh --compression.

use std::io::Write;

use flate2::GzBuilder;

use crate::arch::Arch;
use crate::xz;

/// The ways that image/kernel has a configuration for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Compression {
    /// The smallest.
    #[default]
    Xz,
    /// What AWS' own images have, to find out whether an image stays mute because of xz.
    Gzip,
}

impl Compression {
    /// Compresses in one piece. The length is a multiple of 4, so that ramdisks can be concatenated.
    pub fn compress(self, contents: &[u8], arch: Arch) -> Vec<u8> {
        match self {
            Self::Xz => xz::compress(contents, arch),
            Self::Gzip => gzip(contents),
        }
    }
}

/// Without a time or a file's name in the header. The kernel skips zeros between ramdisks.
fn gzip(contents: &[u8]) -> Vec<u8> {
    let mut encoder = GzBuilder::new().write(Vec::new(), flate2::Compression::best());
    let packed = encoder.write_all(contents).and_then(|()| encoder.finish());
    let mut packed = packed.expect("memory takes every byte");
    packed.resize(packed.len().next_multiple_of(4), 0);
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_the_same_each_time_and_comes_back() {
        let noise: Vec<u8> = (0..100_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
        for contents in [&b""[..], b"a", &[0; 70_000], &noise] {
            let packed = Compression::Gzip.compress(contents, Arch::X86_64);
            assert_eq!(packed, Compression::Gzip.compress(contents, Arch::X86_64));
            assert_eq!(packed.len() % 4, 0);
            // RFC 1952, section 2.3: no flags, no time.
            assert_eq!(packed[..8], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0]);
            let mut unpacked = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut unpacked).unwrap();
            assert!(unpacked == contents);
        }
    }
}
