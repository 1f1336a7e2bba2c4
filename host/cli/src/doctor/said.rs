//! Gathers the last lines of each place that tells how a start went, with their times.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use formats::time::Utc;
use serde_json::Value;

use super::facts::Said;
use super::parent::said_by;

/// How much is read of the end of a file, in bytes, and how many lines count.
const TAIL: u64 = 64 << 10;
const LINES: usize = 200;
/// How many files of a collector are read, the newest ones: enclaves that run write to theirs all the time.
const FILES: usize = 8;

/// What the journal, nitro-cli's own log and, if there is a folder of it, a collector have.
pub(super) fn gather(root: &Path, logs: Option<&Path>) -> Vec<Vec<Said>> {
    let mut files = newest(logs_in(&root.join("var/log/nitro_enclaves")), 1);
    let boots = logs.map(folders_in).into_iter().flatten();
    files.extend(newest(boots.flat_map(|folder| logs_in(&folder)), FILES));
    [journal()].into_iter().chain(files.iter().map(|file| tail(file))).collect()
}

/// The journal of the service that starts the enclave: what nitro-cli and, with a console attached, the enclave printed.
fn journal() -> Vec<Said> {
    let lines = LINES.to_string();
    let arguments = ["-u", "teemark-enclave", "-n", &lines, "-o", "json", "--no-pager"];
    let text = said_by("journalctl", &arguments).unwrap_or_default();
    text.lines().filter_map(entry).collect()
}

/// An entry of the journal as JSON (systemd.journal-fields(7)).
fn entry(line: &str) -> Option<Said> {
    let entry: Value = serde_json::from_str(line).ok()?;
    let microseconds: u64 = entry["__REALTIME_TIMESTAMP"].as_str()?.parse().ok()?;
    Some(Said { at: Utc(microseconds / 1_000_000), text: entry["MESSAGE"].as_str()?.to_owned() })
}

/// The last lines of a file. One that has no time in it has that of the line before; the first ones, the file's.
fn tail(path: &Path) -> Vec<Said> {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let mut at = written(path);
    let said = lines[lines.len().saturating_sub(LINES)..].iter().map(|line| {
        at = time_in(line).unwrap_or(at);
        Said { at, text: (*line).to_owned() }
    });
    said.collect()
}

/// The time in a line of nitro-cli's log, `[PROCESS][LEVEL][TIME][PLACE] TEXT`, or in a record, `NUMBER HASH log TIME …`.
fn time_in(line: &str) -> Option<Utc> {
    let of_nitro_cli = || line.strip_prefix('[')?.split("][").nth(2);
    let of_record = || line.split(' ').nth(3);
    let seconds = |time: &str| Some(format!("{}Z", time.get(.."2026-11-30T02:00:00".len())?));
    [of_nitro_cli(), of_record()].into_iter().flatten().find_map(|time| Utc::parse(&seconds(time)?))
}

/// When a file was last written.
fn written(path: &Path) -> Utc {
    let modified = fs::metadata(path).and_then(|about| about.modified()).ok();
    Utc(modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default().as_secs())
}

/// So many of these files, those that were written last.
fn newest(files: impl IntoIterator<Item = PathBuf>, most: usize) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = files.into_iter().collect();
    files.sort_by_cached_key(|path| Reverse(fs::metadata(path).and_then(|about| about.modified()).ok()));
    files.truncate(most);
    files
}

/// The files of a folder that are named *.log.
fn logs_in(folder: &Path) -> Vec<PathBuf> {
    in_folder(folder).filter(|path| path.extension().is_some_and(|end| end == "log")).collect()
}

fn folders_in(folder: &Path) -> Vec<PathBuf> {
    in_folder(folder).filter(|path| path.is_dir()).collect()
}

fn in_folder(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_own_time_or_that_of_the_line_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let of_nitro_cli = "[nitro-cli:7][ERROR][2026-11-30T02:00:01.123Z][src/main.rs:7] [ E29 ] Ioctl failure.";
        let record = format!("7 {} log 2026-11-30T02:00:05Z INFO  teemarkd::boot: ready", "0".repeat(64));
        fs::write(&path, format!("none\n{of_nitro_cli}\nmore of it\n{record}\n8 00 checkpoint {{}}\n")).unwrap();
        let [file, one, five] = [written(&path), Utc(1_796_004_001), Utc(1_796_004_005)];
        assert_eq!(one.to_string(), "2026-11-30T02:00:01Z");
        let times: Vec<_> = tail(&path).iter().map(|said| said.at).collect();
        assert_eq!(times, [file, one, one, five, five]);
    }

    #[test]
    fn an_entry_of_the_journal_is_its_message_and_its_time() {
        let said = entry(r#"{"__REALTIME_TIMESTAMP":"1796004001123456","MESSAGE":"[ E36 ] x","_PID":"7"}"#).unwrap();
        assert_eq!((said.at, said.text.as_str()), (Utc(1_796_004_001), "[ E36 ] x"));
        assert!(
            entry(r#"{"__REALTIME_TIMESTAMP":"1","MESSAGE":[1,2]}"#).is_none() && entry("-- No entries --").is_none()
        );
    }
}
