//! The files of a log: a folder for each boot, by its nonce in hex, with a file for each day, `2026-11-30.log`, and a line
//! for each record. [`super::kept`] writes them.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use formats::attestation::BootNonce;
use formats::digest::Sha256;
use formats::log::{Head, MAX_LINE};

/// A boot's files, the oldest first.
pub(super) fn of_boot(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("log")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The folders of boots in a collector's folder.
pub(super) fn boot_folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?.path();
        let name = entry.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if entry.is_dir() && BootNonce::from_hex(name).is_some() {
            folders.push(entry);
        }
    }
    folders.sort();
    Ok(folders)
}

/// The files of each boot in these paths: of a collector's folder, a boot's folder, or files of one boot.
///
/// # Errors
/// A path cannot be read, or there is neither a file nor a folder of a boot in it.
pub(super) fn boots(paths: &[PathBuf]) -> Result<Vec<Vec<PathBuf>>> {
    Ok(boots_and_empty(paths)?.0)
}

/// The files of each boot in these paths, as [`boots`] gives them, and the folders of boots that have none.
///
/// # Errors
/// Those of [`boots`].
pub(super) fn boots_and_empty(paths: &[PathBuf]) -> Result<(Vec<Vec<PathBuf>>, Vec<PathBuf>)> {
    let (mut boots, mut single, mut empty) = (Vec::new(), Vec::new(), Vec::new());
    for path in paths {
        if !path.is_dir() {
            single.push(path.clone());
            continue;
        }
        let (own, folders) = (of_boot(path)?, boot_folders(path)?);
        if own.is_empty() && folders.is_empty() {
            bail!("{} holds no log: neither *.log nor a folder of a boot", path.display());
        }
        boots.extend((!own.is_empty()).then_some(own));
        for folder in folders {
            let files = of_boot(&folder)?;
            if files.is_empty() {
                empty.push(folder);
            } else {
                boots.push(files);
            }
        }
    }
    boots.extend((!single.is_empty()).then_some(single));
    Ok((boots, empty))
}

/// What the collector knows of a boot's days: a line `DAY NUMBER HASH` for each chain from record 1 on, with the record that
/// it ended with when the day did. So the chain goes on after that day's file was removed.
pub(super) const DAYS: &str = "days";

/// The last `key` records, as lines, of the days that were removed: the records of a segment that began before midnight are
/// opened with one of them.
pub(super) const KEYS: &str = "keys";

/// How a chain ended when a day did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DayEnd {
    pub(super) day: String,
    pub(super) head: Head,
}

impl fmt::Display for DayEnd {
    /// A line with its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {} {}", self.day, self.head.number, self.head.hash)
    }
}

/// The ends of the days of the boot in this folder; none if the collector wrote none. A line without a date is not one that
/// the collector wrote.
pub(super) fn days(folder: &Path) -> Vec<DayEnd> {
    let text = fs::read_to_string(folder.join(DAYS)).unwrap_or_default();
    let parse = |line: &str| {
        let mut words = line.strip_suffix('\n')?.split(' ');
        let day = words.next().filter(|word| is_day(word))?.to_owned();
        let head = Head { number: words.next()?.parse().ok()?, hash: Sha256::from_hex(words.next()?)? };
        words.next().is_none().then_some(DayEnd { day, head })
    };
    text.split_inclusive('\n').filter_map(parse).collect()
}

/// Whether this is a date as files are named by, `2026-11-30`.
pub(super) fn is_day(text: &str) -> bool {
    let fits = |(at, byte): (usize, u8)| if matches!(at, 4 | 7) { byte == b'-' } else { byte.is_ascii_digit() };
    text.len() == 10 && text.bytes().enumerate().all(fits)
}

/// The day of a file.
pub(super) fn day_of(path: &Path) -> String {
    path.file_stem().and_then(OsStr::to_str).unwrap_or_default().to_owned()
}

/// The lines of a file, each without its end, and none longer than a record's.
pub(super) struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    whole: u64,
}

impl<R: BufRead> Lines<R> {
    /// The next line; `None` at the end, where part of one may stand that is still being written.
    ///
    /// # Errors
    /// The system's; the line is too long to be a record's.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>> {
        if self.line.last() == Some(&b'\n') {
            self.line.clear();
        }
        let room = (MAX_LINE - self.line.len()) as u64;
        self.reader.by_ref().take(room).read_until(b'\n', &mut self.line)?;
        if self.line.last() != Some(&b'\n') {
            if self.line.len() == MAX_LINE {
                bail!("a line is longer than {MAX_LINE} bytes, and so not a record's");
            }
            return Ok(None);
        }
        self.whole += self.line.len() as u64;
        Ok(Some(&self.line[..self.line.len() - 1]))
    }

    /// Bytes of the lines so far.
    pub(super) fn whole(&self) -> u64 {
        self.whole
    }

    /// Whether the last line has no end.
    pub(super) fn has_partial(&self) -> bool {
        self.line.last().is_some_and(|last| *last != b'\n')
    }
}

impl<F: Read> Lines<BufReader<F>> {
    /// From where the file is read next.
    pub(super) fn new(file: F) -> Lines<BufReader<F>> {
        Lines { reader: BufReader::with_capacity(MAX_LINE, file), line: Vec::new(), whole: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_days_counts_only_with_a_date() {
        let folder = tempfile::tempdir().unwrap();
        let hash = "ab".repeat(32);
        let days = ["2025-11-30", "\x1b[2J", "2025-11-3\u{660}", "2025-11-300", "2025/11/30", ""];
        let lines: String = days.iter().map(|day| format!("{day} 7 {hash}\n")).collect();
        fs::write(folder.path().join(DAYS), lines).unwrap();
        let ends = super::days(folder.path());
        assert_eq!(ends.iter().map(|end| end.day.as_str()).collect::<Vec<_>>(), ["2025-11-30"]);
    }

    #[test]
    fn the_folder_of_a_boot_without_files_is_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let [empty, full] = ["03", "04"].map(|byte| root.path().join(byte.repeat(32)));
        for folder in [&empty, &full] {
            fs::create_dir(folder).unwrap();
        }
        let file = full.join("2025-11-30.log");
        fs::write(&file, "").unwrap();
        let paths = [root.path().to_owned()];
        assert_eq!(boots_and_empty(&paths).unwrap(), (vec![vec![file.clone()]], vec![empty]));
        assert_eq!(boots(&paths).unwrap(), [[file]]);
    }
}
