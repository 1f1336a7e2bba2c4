//! The files of a log: a folder for each boot, by its nonce in hex, with a file for each day, `2026-11-30.log`, and a line
//! for each record.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use formats::attestation::BootNonce;
use formats::log::{Head, MAX_LINE, Record};
use formats::time::Utc;

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

/// The files of each boot in these paths: of a collector's folder, a boot's folder, or files of one boot.
///
/// # Errors
/// A path cannot be read, or there are no files in it.
pub(super) fn boots(paths: &[PathBuf]) -> Result<Vec<Vec<PathBuf>>> {
    let (mut boots, mut single) = (Vec::new(), Vec::new());
    for path in paths {
        if !path.is_dir() {
            single.push(path.clone());
            continue;
        }
        let own = of_boot(path)?;
        let mut folders = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?.path();
            let name = entry.file_name().and_then(OsStr::to_str).unwrap_or_default();
            if entry.is_dir() && BootNonce::from_hex(name).is_some() {
                folders.push(entry);
            }
        }
        folders.sort();
        if own.is_empty() && folders.is_empty() {
            bail!("{} holds no log: neither *.log nor a folder of a boot", path.display());
        }
        boots.extend((!own.is_empty()).then_some(own));
        for folder in folders {
            boots.extend(Some(of_boot(&folder)?).filter(|files| !files.is_empty()));
        }
    }
    boots.extend((!single.is_empty()).then_some(single));
    Ok(boots)
}

/// A boot's records that are being kept.
pub(super) struct Kept {
    folder: PathBuf,
    head: Head,
    /// The day's file, and its day.
    open: Option<(String, File)>,
    unsynced: bool,
}

/// What became of a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Took {
    /// It was written.
    Written,
    /// It was there before.
    Known,
    /// It was written, and records before it are missing.
    After(u64),
}

impl Kept {
    /// Goes on with the boot's files, if there are any. A line that was not written whole is removed.
    ///
    /// # Errors
    /// The system's; the last line is not a record.
    pub(super) fn open(root: &Path, boot: BootNonce) -> Result<Kept> {
        let folder = root.join(boot.to_string());
        let mut head = Head::default();
        if folder.is_dir() {
            for path in of_boot(&folder)?.iter().rev() {
                if let Some(last) = last_record(path).with_context(|| path.display().to_string())? {
                    head = last;
                    break;
                }
            }
        }
        Ok(Kept { folder, head, open: None, unsynced: false })
    }

    /// The last record.
    pub(super) fn head(&self) -> Head {
        self.head
    }

    /// Takes the next line, without its end.
    ///
    /// # Errors
    /// It is not a record, or not as it was written; the system's error.
    pub(super) fn take(&mut self, line: &[u8], now: Utc) -> Result<Took> {
        let Some(record) = Record::parse(line) else { bail!("not a record of a log") };
        let number = record.head.number;
        if number <= self.head.number {
            return Ok(Took::Known);
        }
        let missing = number - self.head.number - 1;
        if missing == 0 && !record.follows(&self.head) {
            bail!("record {number} does not follow record {}: it was changed on its way", self.head.number);
        }
        let day = now.to_string()[..10].to_owned();
        let file = self.of_day(day)?;
        file.write_all(&[line, b"\n"].concat())?;
        (self.head, self.unsynced) = (record.head, true);
        Ok(if missing == 0 { Took::Written } else { Took::After(missing) })
    }

    fn of_day(&mut self, day: String) -> Result<&mut File> {
        if self.open.as_ref().is_none_or(|(of, _)| *of != day) {
            self.sync()?;
            let is_new = !self.folder.is_dir();
            fs::create_dir_all(&self.folder)?;
            let path = self.folder.join(format!("{day}.log"));
            let file = OpenOptions::new().append(true).create(true).open(&path);
            self.open = Some((day, file.with_context(|| path.display().to_string())?));
            // A file that is not in its folder after a crash is lost, whatever is in it.
            File::open(&self.folder)?.sync_all()?;
            if let (true, Some(root)) = (is_new, self.folder.parent()) {
                File::open(root)?.sync_all()?;
            }
        }
        self.open.as_mut().map(|(_, file)| file).context("no file")
    }

    /// Waits until all lines are on the disk.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn sync(&mut self) -> Result<()> {
        if let (true, Some((_, file))) = (self.unsynced, &self.open) {
            file.sync_data()?;
        }
        self.unsynced = false;
        Ok(())
    }
}

/// A file's last record, after the part of a line that may come behind it was removed; `None` if there is none.
fn last_record(path: &Path) -> Result<Option<Head>> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let start = length.saturating_sub(2 * MAX_LINE as u64);
    file.seek(SeekFrom::Start(start))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let whole = end.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    if whole < end.len() {
        file.set_len(start + whole as u64)?;
        file.sync_all()?;
    }
    let Some(lines) = end[..whole].strip_suffix(b"\n") else { return Ok(None) };
    let line = lines.rsplit(|&b| b == b'\n').next().unwrap_or_default();
    let record = Record::parse(line).context("its last line is not a record; move the file away")?;
    Ok(Some(record.head))
}

#[cfg(test)]
mod tests {
    use formats::log::Kind;

    use super::*;

    const BOOT: BootNonce = BootNonce::from_bytes([3; 32]);

    fn lines(n: usize) -> Vec<Vec<u8>> {
        let mut head = Head::default();
        (0..n)
            .map(|i| {
                let mut line = Vec::new();
                head.write(Kind::Log, format!("line {i}").as_bytes(), &mut line);
                line.pop();
                line
            })
            .collect()
    }

    #[test]
    fn a_boot_is_kept_by_day_and_goes_on_after_a_crash() {
        let root = tempfile::tempdir().unwrap();
        let (lines, day) = (lines(6), |n: u64| Utc(1_764_460_800 + n * 86_400));
        let mut kept = Kept::open(root.path(), BOOT).unwrap();
        assert_eq!(kept.take(&lines[0], day(0)).unwrap(), Took::Written);
        assert_eq!(kept.take(&lines[1], day(1)).unwrap(), Took::Written);
        kept.sync().unwrap();
        drop(kept);
        let files = of_boot(&root.path().join(BOOT.to_string())).unwrap();
        let names: Vec<_> = files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["2025-11-30.log", "2025-12-01.log"]);
        // Half a line.
        OpenOptions::new().append(true).open(&files[1]).unwrap().write_all(&lines[2][..20]).unwrap();
        let mut kept = Kept::open(root.path(), BOOT).unwrap();
        assert_eq!(kept.head(), Record::parse(&lines[1]).unwrap().head);
        assert_eq!(kept.take(&lines[1], day(1)).unwrap(), Took::Known);
        assert_eq!(kept.take(&lines[2], day(1)).unwrap(), Took::Written);
        let mut changed = lines[3].clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(kept.take(&changed, day(1)).unwrap_err().to_string().contains("changed on its way"));
        assert_eq!(kept.take(&lines[5], day(1)).unwrap(), Took::After(2));
        let text = fs::read_to_string(&files[1]).unwrap();
        assert_eq!(text.lines().map(str::as_bytes).collect::<Vec<_>>(), [&lines[1], &lines[2], &lines[5]]);
        assert_eq!(boots(&[root.path().to_owned()]).unwrap(), [files]);
    }
}
