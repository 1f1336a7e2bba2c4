//! What an image is made of, NAME.json: the size and hash of every part, and the limits that they keep.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::eif::Pcrs;

/// A part: its name, and the most bytes that it may have, in an ordinary image and in one for debugging. Those without
/// a limit come where they are read best.
const PARTS: [(&str, Option<u64>, Option<u64>); 14] = [
    ("kernel", Some(2_500_000), Some(2_500_000)),
    ("init", Some(65_536), Some(65_536)),
    ("teemarkd", Some(2_400_000), Some(2_400_000)),
    ("endpoints", None, None),
    ("environment", None, None),
    ("client.crt", None, None),
    ("client.key", None, None),
    ("ecs-ca.crt", None, None),
    ("launcher", None, None),
    ("shell", None, None),
    ("ramdisk-0", None, None),
    ("ramdisk-1", None, None),
    (RAMDISKS, Some(1_200_000), None),
    ("eif", Some(4_000_000), None),
];
/// Both ramdisks together; it is no part of its own.
const RAMDISKS: &str = "ramdisks";

/// What is known about an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub name: String,
    /// Of teemark.
    pub version: String,
    pub kernel_version: Option<String>,
    pub command_line: String,
    /// Whether it has a shell.
    pub debug: bool,
    pub signed: bool,
    /// What is secret in the image, and so known to everyone who has it.
    pub secrets: Vec<String>,
    pub pcrs: Pcrs,
    /// By the names in the table of sizes.
    pub parts: BTreeMap<String, Part>,
}

/// One part of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub bytes: u64,
    /// In hexadecimal. Left out for what is secret: with it, everyone who has this file could tell whether a key that
    /// he found is the one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl Part {
    pub fn of(contents: &[u8]) -> Part {
        let hash = Sha256::digest(contents);
        let sha256 = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Part { bytes: contents.len() as u64, sha256: Some(sha256) }
    }

    /// A part with a secret in it.
    pub fn secret(contents: &[u8]) -> Part {
        Part { sha256: None, ..Part::of(contents) }
    }
}

/// A record that cannot be read.
#[derive(Debug)]
pub enum RecordError {
    Read(io::Error),
    Json(serde_json::Error),
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(e) => write!(f, "cannot be read: {e}"),
            Self::Json(e) => write!(f, "is no record of an image, as teemark-image build writes it: {e}"),
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
            Some(Line { name, bytes, limit: if self.debug { debug } else { ordinary } })
        })
    }

    /// Every limit that is passed, as a sentence.
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
            ("kernel", 2_500_000),
            ("init", 65_536),
            ("teemarkd", 2_400_000),
            ("environment", 7),
            ("ramdisk-0", 30_000),
            ("ramdisk-1", 1_170_000),
            ("eif", 4_000_000),
        ];
        Record {
            name: "x".into(),
            version: "1".into(),
            kernel_version: None,
            command_line: String::new(),
            debug,
            signed: false,
            secrets: vec![],
            pcrs: Pcrs(BTreeMap::new()),
            parts: parts.into_iter().map(|(name, bytes)| (name.into(), Part { bytes, sha256: None })).collect(),
        }
    }

    #[test]
    fn at_its_limits_an_image_passes_and_one_byte_more_is_named() {
        assert_eq!(record(false).excesses(), [""; 0]);
        for (part, limit) in [
            ("kernel", "kernel: 2,500,001 bytes are 1 past the limit of 2,500,000"),
            ("init", "init: 65,537 bytes are 1 past the limit of 65,536"),
            ("teemarkd", "teemarkd: 2,400,001 bytes are 1 past the limit of 2,400,000"),
            ("ramdisk-0", "ramdisks: 1,200,001 bytes are 1 past the limit of 1,200,000"),
            ("ramdisk-1", "ramdisks: 1,200,001 bytes are 1 past the limit of 1,200,000"),
            ("eif", "eif: 4,000,001 bytes are 1 past the limit of 4,000,000"),
        ] {
            let mut record = record(false);
            record.parts.get_mut(part).unwrap().bytes += 1;
            assert_eq!(record.excesses(), [limit]);
        }
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
    fn the_table_has_a_line_a_part() {
        let mut record = record(false);
        record.parts.get_mut("init").unwrap().bytes = 66_000;
        let expected = "\
part             bytes      limit       left
kernel       2,500,000  2,500,000          0
init            66,000     65,536       -464
teemarkd     2,400,000  2,400,000          0
environment          7
ramdisk-0       30,000
ramdisk-1    1,170,000
ramdisks     1,200,000  1,200,000          0
eif          4,000,000  4,000,000          0
";
        assert_eq!(record.table(), expected);
    }
}
