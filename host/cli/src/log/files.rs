//! The files of a log: a folder for each boot, by its nonce in hex, with a file for each day, `2026-11-30.log`, and a line
//! for each record.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use formats::attestation::BootNonce;
use formats::log::{Head, Record};
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
    chains: Chains,
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

/// Runs of records without a gap: the number of the first, and the last. Nobody can tell whether the first record after a
/// gap is genuine. So each run goes on, and a record with a made-up number keeps no genuine one out.
#[derive(Default)]
struct Chains {
    runs: Vec<(u64, Head)>,
    /// The run that the last record is in.
    last: usize,
}

/// Most runs that go on.
const RUNS: usize = 8;

impl Chains {
    /// Takes the next record; `None` if it fits nowhere.
    fn take(&mut self, record: &Record<'_>) -> Option<Took> {
        let (number, head) = (record.head.number, record.head);
        if let Some(at) = self.runs.iter().position(|(_, last)| record.follows(last)) {
            (self.runs[at].1, self.last) = (head, at);
            return Some(Took::Written);
        }
        if self.runs.iter().any(|(first, last)| (*first..=last.number).contains(&number)) {
            return Some(Took::Known);
        }
        let before = self.runs.iter().map(|(_, last)| last.number).filter(|last| *last < number).max();
        let missing = number - before.unwrap_or(0) - 1;
        // The next record of a run that does not fit it, or the first of all that is not one.
        if missing == 0 && (before.is_some() || !record.follows(&Head::default())) {
            return None;
        }
        if self.runs.len() == RUNS {
            self.runs.remove(1);
        }
        self.runs.push((number, head));
        self.last = self.runs.len() - 1;
        Some(if missing == 0 { Took::Written } else { Took::After(missing) })
    }

    fn head(&self) -> Head {
        self.runs.get(self.last).map_or_else(Head::default, |(_, head)| *head)
    }
}

impl Kept {
    /// Goes on with the boot's files, if there are any. A line that was not written whole is removed.
    ///
    /// # Errors
    /// The system's; a line of the last file is not a record.
    pub(super) fn open(root: &Path, boot: BootNonce) -> Result<Kept> {
        let folder = root.join(boot.to_string());
        let mut chains = Chains::default();
        if folder.is_dir() {
            for path in of_boot(&folder)?.iter().rev() {
                read_chains(path, &mut chains).with_context(|| path.display().to_string())?;
                if !chains.runs.is_empty() {
                    break;
                }
            }
        }
        Ok(Kept { folder, chains, open: None, unsynced: false })
    }

    /// The last record that was taken, or that was there.
    pub(super) fn head(&self) -> Head {
        self.chains.head()
    }

    /// Takes the next line, without its end.
    ///
    /// # Errors
    /// It is not a record, or not as it was written; the system's error.
    pub(super) fn take(&mut self, line: &[u8], now: Utc) -> Result<Took> {
        let Some(record) = Record::parse(line) else { bail!("not a record of a log") };
        let Some(took) = self.chains.take(&record) else {
            let number = record.head.number;
            bail!("record {number} does not follow the one before it: it was changed on its way");
        };
        if took != Took::Known {
            let day = now.to_string()[..10].to_owned();
            self.of_day(day)?.write_all(&[line, b"\n"].concat())?;
            self.unsynced = true;
        }
        Ok(took)
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

/// Reads what runs a file has, after the part of a line that may stand at its end was removed.
fn read_chains(path: &Path, chains: &mut Chains) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let (mut reader, mut line, mut whole) = (BufReader::new(&file), Vec::new(), 0);
    while reader.read_until(b'\n', &mut line)? > 0 {
        if line.pop_if(|last| *last == b'\n').is_none() {
            file.set_len(whole)?;
            file.sync_all()?;
            break;
        }
        whole += line.len() as u64 + 1;
        let record = Record::parse(&line).context("a line of it is not a record; move the file away")?;
        if chains.runs.is_empty() {
            chains.runs.push((record.head.number, record.head));
        } else {
            chains.take(&record);
        }
        line.clear();
    }
    Ok(())
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
        // What came after a gap may be made up; what is missing is still taken.
        assert_eq!(kept.take(&lines[3], day(1)).unwrap(), Took::Written);
        assert_eq!(kept.head(), Record::parse(&lines[3]).unwrap().head);
        assert_eq!(kept.take(&lines[5], day(1)).unwrap(), Took::Known);
        drop(kept);
        let mut kept = Kept::open(root.path(), BOOT).unwrap();
        assert_eq!(kept.take(&lines[4], day(1)).unwrap(), Took::Written);
        let text = fs::read_to_string(&files[1]).unwrap();
        assert_eq!(text.lines().map(str::as_bytes).collect::<Vec<_>>(), [1, 2, 5, 3, 4].map(|i| &lines[i][..]));
        assert_eq!(boots(&[root.path().to_owned()]).unwrap(), [files]);
    }
}
