//! What `teemark log collect --keep-days` removes, and what it keeps of it.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use formats::log::{Kind, Record};

use super::files::{KEYS, Lines, day_of, of_boot};
use super::kept::sync_folder;

/// Bytes that are looked through for the first checkpoint of a log.
const BEGINNING: u64 = 1 << 20;
/// Most `key` records that are kept of the days that were removed, and their bytes. The last one would do if nobody could
/// make up another after it.
const MOST_KEYS: usize = 64;
const MOST_KEY_BYTES: usize = 1 << 20;

/// Removes the files of days before this one, and the folder if none is left and no stream goes on with it. Of a log
/// that goes on, its beginning stays, up to the first checkpoint, which says whose log it is.
///
/// # Errors
/// The system's.
pub(super) fn remove_days(folder: &Path, before: &str, goes_on: bool) -> Result<()> {
    let files = of_boot(folder)?;
    let old = files.iter().take_while(|path| day_of(path).as_str() < before).count();
    if old == files.len() && !goes_on {
        return Ok(fs::remove_dir_all(folder)?);
    }
    // The last file is the one that is written to.
    let old = old.min(files.len().saturating_sub(1));
    if old == 0 {
        return Ok(());
    }
    for path in &files[1..old] {
        fs::remove_file(path)?;
    }
    let file = OpenOptions::new().read(true).write(true).open(&files[0])?;
    file.set_len(beginning(&file)?)?;
    file.sync_all()?;
    sync_folder(folder)
}

/// Writes down the last `key` records of the days before this one, before [`remove_days`] is called for them.
///
/// # Errors
/// The system's.
pub(super) fn keep_keys(folder: &Path, before: &str) -> Result<()> {
    let mut keys = Keys::default();
    let mut old = of_boot(folder)?;
    old.retain(|path| day_of(path).as_str() < before);
    // What is left of the first day is from before the days that were removed earlier.
    let kept: Vec<PathBuf> = Some(folder.join(KEYS)).filter(|path| path.exists()).into_iter().collect();
    let first = old.len().min(1);
    for path in [&old[..first], &kept, &old[first..]].concat() {
        let mut lines = Lines::new(File::open(path)?);
        while let Some(line) = lines.next()? {
            keys.take(line);
        }
    }
    let text = keys.lines.make_contiguous().concat();
    if text == fs::read(folder.join(KEYS)).unwrap_or_default() {
        return Ok(());
    }
    let path = folder.join(format!("{KEYS}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(path, folder.join(KEYS))?;
    sync_folder(folder)
}

/// The lines of the last `key` records.
#[derive(Default)]
struct Keys {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Keys {
    fn take(&mut self, line: &[u8]) {
        let line = [line, b"\n"].concat();
        let is_key = Record::parse(&line[..line.len() - 1]).is_some_and(|record| record.kind == Kind::Key);
        if !is_key || self.lines.contains(&line) {
            return;
        }
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > MOST_KEYS || self.bytes > MOST_KEY_BYTES {
            self.bytes -= self.lines.pop_front().map_or(0, |line| line.len());
        }
    }
}

/// How long a log's beginning is.
fn beginning(file: &File) -> Result<u64> {
    let mut lines = Lines::new(file);
    while let Some(line) = lines.next()? {
        let is_checkpoint = Record::parse(line).is_some_and(|record| record.kind == Kind::Checkpoint);
        if is_checkpoint {
            return Ok(lines.whole());
        }
        if lines.whole() > BEGINNING {
            break;
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use formats::attestation::BootNonce;
    use formats::log::Head;
    use formats::time::Utc;

    use super::*;
    use crate::log::chains::Took;
    use crate::log::files::days;
    use crate::log::kept::{Kept, Room};

    const BOOT: BootNonce = BootNonce::from_bytes([3; 32]);

    fn open(root: &Path) -> Kept {
        Kept::open(root, BOOT, Arc::new(Room::count(root, u64::MAX).unwrap())).unwrap()
    }

    /// 2025-11-30, and so many days.
    fn day(n: u64) -> Utc {
        Utc(1_764_460_800 + n * 86_400)
    }

    /// Takes a line; the number up to which may be acknowledged.
    fn take(kept: &mut Kept, line: &[u8], now: Utc) -> (Took, Option<u64>) {
        let (took, end) = kept.take(line, &Record::parse(line).unwrap(), false, now).unwrap();
        (took, end.map(|end| end.number))
    }

    fn numbers(path: &Path) -> Vec<u64> {
        let number = |line: &str| Record::parse(line.as_bytes()).unwrap().head.number;
        fs::read_to_string(path).unwrap().lines().map(number).collect()
    }

    /// A log's next record of this kind.
    fn next(head: &mut Head, kind: Kind) -> Vec<u8> {
        let mut line = Vec::new();
        head.write(kind, b"x", &mut line);
        line.pop();
        line
    }

    #[test]
    fn old_days_go_and_what_is_acknowledged_goes_on_from_what_they_held() {
        let root = tempfile::tempdir().unwrap();
        let mut head = Head::default();
        let mut kept = open(root.path());
        // Three records a day, for five days.
        for n in 0..15 {
            let kind = if n % 3 == 1 { Kind::Checkpoint } else { Kind::Log };
            assert_eq!(take(&mut kept, &next(&mut head, kind), day(n / 3)), (Took::Next, Some(n + 1)));
        }
        let folder = root.path().join(BOOT.to_string());
        let ends: Vec<_> = days(&folder).into_iter().map(|end| end.head.number).collect();
        assert_eq!(ends, [3, 6, 9, 12], "each day ends with its own last record");
        for goes_on in [true, false] {
            remove_days(&folder, "2025-11-30", goes_on).unwrap();
            assert_eq!(of_boot(&folder).unwrap().len(), 5, "none is old");
        }
        remove_days(&folder, "2025-12-03", true).unwrap();
        let files = of_boot(&folder).unwrap();
        let left: Vec<_> = files.iter().map(|path| (day_of(path), numbers(path))).collect();
        let expected = [("2025-11-30", vec![1, 2]), ("2025-12-03", vec![10, 11, 12]), ("2025-12-04", vec![13, 14, 15])];
        assert_eq!(left, expected.map(|(day, numbers)| (day.to_owned(), numbers)));
        let mut kept = open(root.path());
        assert_eq!(take(&mut kept, &next(&mut head, Kind::Log), day(4)), (Took::Next, Some(16)));
        // All but the beginning and the last one, which is written to, also if that is old.
        remove_days(&folder, "2026-01-01", true).unwrap();
        assert_eq!(of_boot(&folder).unwrap().len(), 2);
        let mut kept = open(root.path());
        assert_eq!(take(&mut kept, &next(&mut head, Kind::Log), day(40)), (Took::Next, Some(17)));
        remove_days(&folder, "2027-01-01", false).unwrap();
        assert!(!folder.exists());
        // A stream that has brought nothing yet.
        fs::create_dir(&folder).unwrap();
        remove_days(&folder, "2027-01-01", true).unwrap();
        assert!(folder.exists());
    }

    #[test]
    fn the_last_keys_before_the_first_kept_day_stay_and_no_more_than_some() {
        let root = tempfile::tempdir().unwrap();
        let (mut head, mut kept) = (Head::default(), open(root.path()));
        let keys = |folder: &Path| numbers(&folder.join(KEYS));
        let kinds = [Kind::Key, Kind::Sealed, Kind::Checkpoint, Kind::Key, Kind::Sealed];
        for n in 0..4 {
            for kind in kinds {
                take(&mut kept, &next(&mut head, kind), day(n));
            }
        }
        let folder = root.path().join(BOOT.to_string());
        let remove = |before: &str| {
            keep_keys(&folder, before).unwrap();
            remove_days(&folder, before, true).unwrap();
        };
        remove("2025-12-01");
        assert_eq!(keys(&folder), [1, 4]);
        remove("2025-12-03");
        assert_eq!(keys(&folder), [1, 4, 6, 9, 11, 14]);
        assert_eq!(of_boot(&folder).unwrap().iter().map(|path| numbers(path).len()).sum::<usize>(), 3 + 5);
        // Nothing new.
        remove("2025-12-03");
        assert_eq!(keys(&folder), [1, 4, 6, 9, 11, 14]);
        for _ in 0..1000 {
            take(&mut kept, &next(&mut head, Kind::Key), day(4));
        }
        take(&mut kept, &next(&mut head, Kind::Sealed), day(5));
        remove("2025-12-05");
        assert_eq!(keys(&folder), (1020 - 63..=1020).collect::<Vec<u64>>());
    }
}
