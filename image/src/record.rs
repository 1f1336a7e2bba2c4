//! NAME.json, the record of what an image is made of: the size and hash of every part, and its limits.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::arch::Arch;
use crate::eif::Pcrs;

/// The parts in the order of the table: the name, and the limit in bytes in an ordinary image and in a debug image, for
/// x86-64. [`limits`] has what differs for aarch64.
const PARTS: [(&str, Option<u64>, Option<u64>); 15] = [
    ("kernel", Some(2_000_000), Some(2_000_000)),
    ("init", Some(65_536), Some(65_536)),
    ("nsm.ko", None, None),
    ("teemarkd", Some(2_900_000), Some(2_900_000)),
    ("endpoints", None, None),
    ("environment", None, None),
    ("client.crt", None, None),
    ("client.key", None, None),
    ("ecs-ca.crt", None, None),
    ("launcher", None, None),
    ("shell", None, None),
    ("ramdisk-0", None, None),
    ("ramdisk-1", None, None),
    (RAMDISKS, Some(1_250_000), None),
    ("eif", Some(3_000_000), None),
];
/// Both ramdisks together, which are not a part of their own.
const RAMDISKS: &str = "ramdisks";

/// On aarch64 the kernel is not compressed, since the EIF specification asks for an Image. nitro-cli starts an image with
/// four times its size in memory at least, so both still start with 64 MiB, the least that an enclave can have.
const AARCH64_KERNEL: u64 = 6_500_000;
const AARCH64_EIF: u64 = 12_000_000;
const _: () = assert!(4 * AARCH64_EIF <= 64 << 20);

/// The limits in an image for this architecture, in place of those for x86-64.
fn limits(arch: Arch, name: &str, ordinary: Option<u64>, debug: Option<u64>) -> (Option<u64>, Option<u64>) {
    match (arch, name) {
        (Arch::Aarch64, "kernel") => (Some(AARCH64_KERNEL), Some(AARCH64_KERNEL)),
        (Arch::Aarch64, "eif") => (Some(AARCH64_EIF), debug),
        _ => (ordinary, debug),
    }
}

/// What is known about an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The image's name.
    pub name: String,
    /// The version of teemark that it was built from.
    pub version: String,
    /// What it is for.
    pub arch: Arch,
    /// The kernel's version, if the kernel tells it.
    pub kernel_version: Option<String>,
    /// The kernel's command line.
    pub command_line: String,
    /// Whether it has a shell.
    pub debug: bool,
    /// Whether it is signed, and so has a PCR8.
    pub signed: bool,
    /// The names of the secrets in it, which everyone with the image can read.
    pub secrets: Vec<String>,
    /// Its measurements.
    pub pcrs: Pcrs,
    /// The parts by their names in the table of sizes.
    pub parts: BTreeMap<String, PartRecord>,
}

/// What is recorded of one part of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRecord {
    /// Its size.
    pub bytes: u64,
    /// In hexadecimal. Left out for a secret: the hash would let anyone with this file check whether a key is this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl PartRecord {
    /// A part with these contents.
    pub fn of(contents: &[u8]) -> PartRecord {
        let hash = Sha256::digest(contents);
        let sha256 = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        PartRecord { bytes: contents.len() as u64, sha256: Some(sha256) }
    }

    /// A part with a secret in it, whose hash is left out.
    pub fn secret(contents: &[u8]) -> PartRecord {
        PartRecord { sha256: None, ..PartRecord::of(contents) }
    }
}

/// A record that cannot be read.
#[derive(Debug)]
pub enum RecordError {
    /// The file cannot be read.
    Read(io::Error),
    /// It is not the JSON that [`Record::to_json`] writes.
    Json(serde_json::Error),
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(e) => write!(f, "cannot be read: {e}"),
            Self::Json(e) => write!(f, "is not an image's record as teemark-image build writes it: {e}"),
        }
    }
}

impl std::error::Error for RecordError {}

/// A line of the table of sizes.
struct Line {
    name: &'static str,
    bytes: u64,
    limit: Option<u64>,
}

impl Record {
    /// Reads a NAME.json.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn read(file: &Path) -> Result<Record, RecordError> {
        let text = fs::read(file).map_err(RecordError::Read)?;
        serde_json::from_slice(&text).map_err(RecordError::Json)
    }

    /// The text of NAME.json.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("it is all text and numbers") + "\n"
    }

    fn lines(&self) -> impl Iterator<Item = Line> {
        let size = |name: &str| self.parts.get(name).map(|part| part.bytes);
        PARTS.into_iter().filter_map(move |(name, ordinary, debug)| {
            let bytes = match name {
                RAMDISKS => size("ramdisk-0")? + size("ramdisk-1")?,
                _ => size(name)?,
            };
            let (ordinary, debug) = limits(self.arch, name, ordinary, debug);
            Some(Line { name, bytes, limit: if self.debug { debug } else { ordinary } })
        })
    }

    /// One sentence for each limit that is exceeded.
    pub fn excesses(&self) -> Vec<String> {
        let past = self.lines().filter_map(|line| Some((line.name, line.bytes, line.limit?)));
        past.filter(|(_, bytes, limit)| bytes > limit)
            .map(|(name, bytes, limit)| {
                format!(
                    "{name}: {} bytes are {} past the limit of {}",
                    digits(bytes),
                    digits(bytes - limit),
                    digits(limit)
                )
            })
            .collect()
    }

    /// The table of sizes, in bytes.
    pub fn table(&self) -> String {
        let row = |name: &str, bytes: &str, limit: &str, left: &str| {
            format!("{name:<11} {bytes:>10} {limit:>10} {left:>10}").trim_end().to_owned() + "\n"
        };
        let mut table = row("part", "bytes", "limit", "left");
        for Line { name, bytes, limit } in self.lines() {
            let left = limit.map(|limit| match limit.checked_sub(bytes) {
                Some(left) => digits(left),
                None => format!("-{}", digits(bytes - limit)),
            });
            table += &row(name, &digits(bytes), &limit.map(digits).unwrap_or_default(), &left.unwrap_or_default());
        }
        if self.debug {
            table += "A debug image: no limits for its ramdisks and for the whole.\n";
        }
        table
    }
}

/// A number with a comma after each thousand.
fn digits(n: u64) -> String {
    let digits = n.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image at its limits.
    fn record(debug: bool) -> Record {
        let parts = [
            ("kernel", 2_000_000),
            ("init", 65_536),
            ("teemarkd", 2_900_000),
            ("environment", 7),
            ("ramdisk-0", 30_000),
            ("ramdisk-1", 1_220_000),
            ("eif", 3_000_000),
        ];
        Record {
            name: "x".into(),
            version: "1".into(),
            arch: Arch::X86_64,
            kernel_version: None,
            command_line: String::new(),
            debug,
            signed: false,
            secrets: vec![],
            pcrs: Pcrs(BTreeMap::new()),
            parts: parts.into_iter().map(|(name, bytes)| (name.into(), PartRecord { bytes, sha256: None })).collect(),
        }
    }

    #[test]
    fn at_its_limits_an_image_passes_and_one_byte_more_is_named() {
        assert_eq!(record(false).excesses(), [""; 0]);
        for (part, limit) in [
            ("kernel", "kernel: 2,000,001 bytes are 1 past the limit of 2,000,000"),
            ("init", "init: 65,537 bytes are 1 past the limit of 65,536"),
            ("teemarkd", "teemarkd: 2,900,001 bytes are 1 past the limit of 2,900,000"),
            ("ramdisk-0", "ramdisks: 1,250,001 bytes are 1 past the limit of 1,250,000"),
            ("ramdisk-1", "ramdisks: 1,250,001 bytes are 1 past the limit of 1,250,000"),
            ("eif", "eif: 3,000,001 bytes are 1 past the limit of 3,000,000"),
        ] {
            let mut record = record(false);
            record.parts.get_mut(part).unwrap().bytes += 1;
            assert_eq!(record.excesses(), [limit]);
        }
    }

    #[test]
    fn an_image_for_aarch64_has_room_for_a_kernel_that_is_not_compressed() {
        let mut record = Record { arch: Arch::Aarch64, ..record(false) };
        record.parts.get_mut("kernel").unwrap().bytes = AARCH64_KERNEL;
        record.parts.get_mut("eif").unwrap().bytes = AARCH64_EIF;
        assert_eq!(record.excesses(), [""; 0]);
        for part in record.parts.values_mut() {
            part.bytes += 1;
        }
        let names: Vec<_> = record.excesses().iter().map(|e| e.split(':').next().unwrap().to_owned()).collect();
        assert_eq!(names, ["kernel", "init", "teemarkd", "ramdisks", "eif"]);
    }

    #[test]
    fn a_debug_image_has_limits_for_what_it_shares_with_the_ordinary_one() {
        let mut record = record(true);
        for part in record.parts.values_mut() {
            part.bytes += 1;
        }
        let names: Vec<_> = record.excesses().iter().map(|e| e.split(':').next().unwrap().to_owned()).collect();
        assert_eq!(names, ["kernel", "init", "teemarkd"]);
        assert!(record.table().ends_with("A debug image: no limits for its ramdisks and for the whole.\n"));
    }

    #[test]
    fn the_table_has_one_line_per_part() {
        let mut record = record(false);
        record.parts.get_mut("init").unwrap().bytes = 66_000;
        let expected = "\
part             bytes      limit       left
kernel       2,000,000  2,000,000          0
init            66,000     65,536       -464
teemarkd     2,900,000  2,900,000          0
environment          7
ramdisk-0       30,000
ramdisk-1    1,220,000
ramdisks     1,250,000  1,250,000          0
eif          3,000,000  3,000,000          0
";
        assert_eq!(record.table(), expected);
    }
}
