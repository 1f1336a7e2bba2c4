//! Keeping a boot's records: in the files of its days, within the room that there is, and on the disk before anything is
//! acknowledged.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use formats::attestation::BootNonce;
use formats::log::{Head, Record};
use formats::time::Utc;

use super::chains::{Chains, Took};
use super::files::{DAYS, DayEnd, KEYS, Lines, boot_folders, day_of, days, of_boot};

/// Bytes that a boot's folder counts, besides those of its files.
const FOLDER: u64 = 8 << 10;

/// Opens a file to append to it, for nobody else to read.
fn append_to(path: &Path) -> Result<File> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    let file = file.with_context(|| path.display().to_string())?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Makes a folder, for nobody else to read.
pub(super) fn make_folder(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| path.display().to_string())
}

pub(super) fn sync_folder(path: &Path) -> Result<()> {
    Ok(File::open(path)?.sync_all()?)
}

/// Bytes that all files of a collector take, and may take.
pub(super) struct Room {
    used: AtomicU64,
    most: u64,
}

impl Room {
    /// Counts what is there.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn count(root: &Path, most: u64) -> Result<Room> {
        let room = Room { used: AtomicU64::new(0), most };
        room.count_again(root)?;
        Ok(room)
    }

    /// Counts again, after files were removed.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn count_again(&self, root: &Path) -> Result<()> {
        let mut used = 0;
        for folder in boot_folders(root)? {
            used += FOLDER;
            for path in of_boot(&folder)? {
                used += path.metadata()?.len();
            }
            used += fs::metadata(folder.join(KEYS)).map_or(0, |keys| keys.len());
        }
        self.used.store(used, Ordering::Release);
        Ok(())
    }

    fn take(&self, bytes: u64) -> Result<()> {
        if self.used.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes) > self.most {
            self.used.fetch_sub(bytes, Ordering::AcqRel);
            bail!("--max-bytes {} is reached, so nothing more is kept: move files away, or raise it", self.most);
        }
        Ok(())
    }
}

/// A boot's records that are being kept.
pub(super) struct Kept {
    folder: PathBuf,
    chains: Chains,
    room: Arc<Room>,
    /// The last file's day.
    day: String,
    open: Option<Open>,
}

/// The day's file.
struct Open {
    path: PathBuf,
    file: File,
    /// How long it is, and how much of it is on the disk.
    length: u64,
    synced: u64,
}

impl Kept {
    /// Goes on with the boot's files, if there are any, once they are on the disk. A line that was not written whole is
    /// removed.
    ///
    /// # Errors
    /// The system's; a line of the last files is not a record.
    pub(super) fn open(root: &Path, boot: BootNonce, room: Arc<Room>) -> Result<Kept> {
        let folder = root.join(boot.to_string());
        let mut kept = Kept { folder, chains: Chains::default(), room, day: String::new(), open: None };
        if !kept.folder.is_dir() {
            return Ok(kept);
        }
        fs::set_permissions(&kept.folder, Permissions::from_mode(0o700))?;
        let (files, ends) = (of_boot(&kept.folder)?, days(&kept.folder));
        let ends_before = |path: &Path| -> Vec<Head> {
            let day = day_of(path);
            let last = ends.iter().map(|end| &end.day).filter(|end| **end < day).max();
            ends.iter().filter(|end| Some(&end.day) == last).map(|end| end.head).collect()
        };
        // What the enclave may send again is in the last two, if it is known how the one before them ended.
        let mut first = files.len().saturating_sub(2);
        if files.get(first).is_some_and(|path| ends_before(path).is_empty()) {
            first = 0;
        }
        for path in &files[first..] {
            kept.chains.set_ends(&ends_before(path));
            kept.read(path, false).with_context(|| path.display().to_string())?;
            // Lines after a gap that was filled later.
            let mut ends: Option<Vec<Head>> = None;
            while kept.chains.has_others()
                && ends.as_ref().is_none_or(|ends| kept.chains.ends().ne(ends.iter().copied()))
            {
                ends = Some(kept.chains.ends().collect());
                kept.read(path, true)?;
            }
            kept.day = day_of(path);
        }
        sync_folder(&kept.folder)?;
        sync_folder(root)?;
        Ok(kept)
    }

    /// Reads a file, after the part of a line that may stand at its end was removed.
    fn read(&mut self, path: &Path, known: bool) -> Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut lines = Lines::new(&file);
        while let Some(line) = lines.next()? {
            let record = Record::parse(line).context("a line of it is not a record; move the file away")?;
            self.chains.take(line, &record, false);
        }
        if !known {
            if lines.has_partial() {
                file.set_len(lines.whole())?;
            }
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.sync_all()?;
        }
        Ok(())
    }

    /// Takes the next line, without its end; `again` as for [`Chains::take`]. What it gives may be acknowledged after
    /// [`Kept::sync`].
    ///
    /// # Errors
    /// There is no room for it; the system's error. After one this is not used any more, but for [`Kept::cut`] and then
    /// [`Kept::sync`], which keep the lines before it, or for [`Kept::undo`].
    pub(super) fn take(
        &mut self,
        line: &[u8],
        record: &Record<'_>,
        again: bool,
        now: Utc,
    ) -> Result<(Took, Option<Head>)> {
        let day = &now.to_string()[..10];
        // This record is of the next day already.
        let ends: Vec<Head> = if self.day.as_str() < day { self.chains.ends().collect() } else { Vec::new() };
        let (took, end) = self.chains.take(line, record, again);
        if took.is_new() {
            self.room.take(line.len() as u64 + 1)?;
            let open = self.of_day(day, &ends)?;
            open.file.write_all(&[line, b"\n"].concat())?;
            open.length += line.len() as u64 + 1;
        }
        Ok((took, end))
    }

    /// The file of this day, or of the last one if the clock went back. If that day is over, it ended with these.
    fn of_day(&mut self, day: &str, ends: &[Head]) -> Result<&mut Open> {
        let is_new = self.day.as_str() < day;
        if is_new && !self.day.is_empty() {
            self.end_day(ends)?;
        }
        if is_new {
            self.open = None;
            day.clone_into(&mut self.day);
        }
        if !self.folder.is_dir() {
            self.room.take(FOLDER)?;
            make_folder(&self.folder)?;
            self.folder.parent().map_or(Ok(()), sync_folder)?;
        }
        if self.open.is_none() {
            let path = self.folder.join(format!("{}.log", self.day));
            let file = append_to(&path)?;
            // A file that is not in its folder after a crash is lost, whatever is in it.
            sync_folder(&self.folder)?;
            let length = file.metadata()?.len();
            self.open = Some(Open { path, file, length, synced: length });
        }
        self.open.as_mut().context("no file")
    }

    /// Writes down how the chains ended on a day that is over.
    fn end_day(&mut self, ends: &[Head]) -> Result<()> {
        self.sync()?;
        let lines: String = ends.iter().map(|&head| DayEnd { day: self.day.clone(), head }.to_string()).collect();
        let mut file = append_to(&self.folder.join(DAYS))?;
        file.write_all(lines.as_bytes())?;
        file.sync_all()?;
        sync_folder(&self.folder)
    }

    /// Removes the part of a line that was written before an error.
    ///
    /// # Errors
    /// The system's. After one [`Kept::undo`] is called.
    pub(super) fn cut(&mut self) -> Result<()> {
        if let Some(open) = &self.open
            && open.file.metadata()?.len() > open.length
        {
            open.file.set_len(open.length)?;
        }
        Ok(())
    }

    /// Waits until all lines are on the disk.
    ///
    /// # Errors
    /// The system's. After one [`Kept::undo`] is called.
    pub(super) fn sync(&mut self) -> Result<()> {
        if let Some(open) = self.open.as_mut().filter(|open| open.synced < open.length) {
            open.file.sync_data()?;
            open.synced = open.length;
        }
        Ok(())
    }

    /// Closes the file, until there is another line.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// What has to be removed after an error: what may not be on the disk, though it is read from the system's cache.
    pub(super) fn undo(self) -> Option<Undo> {
        self.open.map(|open| Undo { path: open.path, length: open.synced })
    }
}

/// A file whose end may not be on the disk.
pub(super) struct Undo {
    path: PathBuf,
    length: u64,
}

impl Undo {
    /// Removes that end.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn run(&self) -> Result<()> {
        let run = || {
            let file = OpenOptions::new().write(true).open(&self.path)?;
            file.set_len(self.length.min(file.metadata()?.len()))?;
            file.sync_all()
        };
        run().with_context(|| format!("{} cannot be cut to {} bytes", self.path.display(), self.length))
    }
}

#[cfg(test)]
mod tests {
    use formats::log::Kind;

    use super::*;
    use crate::log::files::boots;

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

    const DAY: u64 = 86_400;

    fn day(n: u64) -> Utc {
        Utc(1_764_460_800 + n * DAY)
    }

    fn room(most: u64) -> Arc<Room> {
        Arc::new(Room { used: AtomicU64::new(0), most })
    }

    fn open(root: &Path) -> Kept {
        Kept::open(root, BOOT, room(u64::MAX)).unwrap()
    }

    fn head(line: &[u8]) -> Head {
        Record::parse(line).unwrap().head
    }

    /// Takes a line; the number up to which may be acknowledged.
    fn take(kept: &mut Kept, line: &[u8], now: Utc) -> (Took, Option<u64>) {
        let (took, end) = kept.take(line, &Record::parse(line).unwrap(), false, now).unwrap();
        (took, end.map(|end| end.number))
    }

    fn numbers(path: &Path) -> Vec<u64> {
        fs::read_to_string(path).unwrap().lines().map(|line| head(line.as_bytes()).number).collect()
    }

    #[test]
    fn a_boot_is_kept_by_day_and_goes_on_after_a_crash() {
        let root = tempfile::tempdir().unwrap();
        let lines = lines(6);
        let mut kept = open(root.path());
        assert_eq!(take(&mut kept, &lines[0], day(0)), (Took::Next, Some(1)));
        assert_eq!(take(&mut kept, &lines[1], day(1)), (Took::Next, Some(2)));
        kept.sync().unwrap();
        drop(kept);
        let folder = root.path().join(BOOT.to_string());
        let files = of_boot(&folder).unwrap();
        let names: Vec<_> = files.iter().map(|path| day_of(path)).collect();
        assert_eq!(names, ["2025-11-30", "2025-12-01"]);
        for (path, mode) in [(&folder, 0o700), (&files[0], 0o600), (&folder.join(DAYS), 0o600)] {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
        }
        // Half a line.
        OpenOptions::new().append(true).open(&files[1]).unwrap().write_all(&lines[2][..20]).unwrap();
        let mut kept = open(root.path());
        assert_eq!(take(&mut kept, &lines[1], day(1)), (Took::Known, Some(2)));
        // The clock went back by a day: lines stay in their order.
        assert_eq!(take(&mut kept, &lines[2], day(0)), (Took::Next, Some(3)));
        assert_eq!((numbers(&files[0]), numbers(&files[1])), (vec![1], vec![2, 3]));
        assert_eq!(boots(&[root.path().to_owned()]).unwrap(), [files]);
    }

    #[test]
    fn only_what_is_there_from_the_first_record_on_is_acknowledged() {
        let root = tempfile::tempdir().unwrap();
        let (lines, now) = (lines(8), day(0));
        let mut kept = open(root.path());
        assert_eq!(take(&mut kept, &lines[0], now), (Took::Next, Some(1)));
        assert_eq!(take(&mut kept, &lines[3], now), (Took::After(2), None));
        assert_eq!(take(&mut kept, &lines[4], now), (Took::Next, None));
        // The gap is filled; what was taken after it counts as soon as it comes again, and is not written twice.
        assert_eq!(take(&mut kept, &lines[1], now), (Took::Next, Some(2)));
        assert_eq!(take(&mut kept, &lines[2], now), (Took::Next, Some(3)));
        assert_eq!(take(&mut kept, &lines[3], now), (Took::Known, Some(4)));
        assert_eq!(take(&mut kept, &lines[4], now), (Took::Known, Some(5)));
        assert_eq!(take(&mut kept, &lines[5], now), (Took::Next, Some(6)));
        // So it is for whoever reads the files anew.
        let mut kept = open(root.path());
        assert_eq!(take(&mut kept, &lines[6], now), (Took::Next, Some(7)));
        let file = &of_boot(&root.path().join(BOOT.to_string())).unwrap()[0];
        assert_eq!(numbers(file), [1, 4, 5, 2, 3, 6, 7]);
    }

    #[test]
    fn a_made_up_record_keeps_no_genuine_one_out_wherever_it_stands() {
        let root = tempfile::tempdir().unwrap();
        let (lines, now) = (lines(6), day(0));
        let mut kept = open(root.path());
        let mut made_up = Vec::new();
        Head::default().write(Kind::Log, b"made up", &mut made_up);
        made_up.pop();
        assert_eq!(take(&mut kept, &made_up, now), (Took::Next, Some(1)));
        assert_eq!(take(&mut kept, &lines[0], now), (Took::Other, Some(1)));
        assert_eq!(take(&mut kept, &lines[1], now), (Took::Next, Some(2)));
        // One that fits, in the place of the genuine one: what goes on from the same record counts too.
        let mut put_in = Vec::new();
        head(&lines[1]).write(Kind::Log, b"made up", &mut put_in);
        put_in.pop();
        assert_eq!(take(&mut kept, &put_in, now), (Took::Next, Some(3)));
        let mut kept = open(root.path());
        // With the hash of the genuine one, and another body.
        let same_hash = String::from_utf8(lines[2].clone()).unwrap().replace("line 2", "LINE 2");
        assert_eq!(take(&mut kept, same_hash.as_bytes(), now), (Took::Other, None));
        assert_eq!(take(&mut kept, &lines[2], now), (Took::Other, Some(3)));
        // More of them than are followed.
        for number in 100..120 {
            let line = format!("{number} {} log x", "cd".repeat(32));
            assert_eq!(take(&mut kept, line.as_bytes(), now).1, None);
        }
        assert_eq!(take(&mut kept, &lines[3], now), (Took::Next, Some(4)));
        let mut kept = open(root.path());
        assert_eq!(take(&mut kept, &lines[4], now), (Took::Next, Some(5)));
    }

    #[test]
    fn no_more_is_taken_than_there_is_room_for() {
        let root = tempfile::tempdir().unwrap();
        let (lines, now) = (lines(3), day(0));
        let size = lines[0].len() as u64 + 1;
        let mut kept = Kept::open(root.path(), BOOT, room(FOLDER + 2 * size)).unwrap();
        assert_eq!(take(&mut kept, &lines[0], now), (Took::Next, Some(1)));
        assert_eq!(take(&mut kept, &lines[1], now), (Took::Next, Some(2)));
        let error = kept.take(&lines[2], &Record::parse(&lines[2]).unwrap(), false, now).unwrap_err();
        assert!(error.to_string().contains("--max-bytes"), "{error}");
        let counted = Room::count(root.path(), 0).unwrap().used.into_inner();
        assert_eq!(counted, FOLDER + 2 * size);
    }
}
