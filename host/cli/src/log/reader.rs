//! The records of files one after the other, sealed ones opened.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use formats::hpke;
use formats::log::{Kind, Record, Segment};
use serde_json::Value;

use super::files::{self, KEYS, Lines};
use crate::failure::{Done, Failure};
use crate::terminal::counted;

/// So many of the last segments' keys are tried. The last one would do if nobody could make up another after it.
const SEGMENTS: usize = 16;

/// A record's kind and body; those of the record in it, if it is sealed and could be opened.
pub(super) type Opened<'a> = (Kind, &'a str);

/// Whether to go on.
pub(super) type Next = Result<ControlFlow<()>>;

/// What is done with each record.
pub(super) type Each<'a> = &'a mut dyn FnMut(&Record<'_>, Opened<'_>) -> Next;

/// Reads records from where it stopped the last time.
pub(super) struct Reader {
    key: Option<hpke::PrivateKey>,
    /// The files that were read.
    seen: Vec<Place>,
    /// The last segments of each boot, by the first of its files.
    segments: HashMap<PathBuf, Segments>,
    missed: Missed,
}

/// How far a file was read. It is opened again for what comes, since there may be more files than a process may have open.
struct Place {
    path: PathBuf,
    read: u64,
    /// Whether keys were looked for in the files before it.
    looked_back: bool,
}

/// The last segments of a log, as far as a log key opens theirs.
#[derive(Default)]
pub(crate) struct Segments {
    /// The one that opened the last record.
    current: Option<Segment>,
    /// Others, the last one at the end.
    others: VecDeque<Segment>,
}

impl Segments {
    /// What is sealed in this record, which comes next in its log; `None` if it is not a sealed one, or not one that the key
    /// opens.
    pub(crate) fn open_next(&mut self, record: &Record<'_>, key: &hpke::PrivateKey) -> Option<(Kind, String)> {
        match record.kind {
            Kind::Key => self.take(record, key),
            Kind::Sealed => return self.open(record),
            _ => {}
        }
        None
    }

    /// A segment begins with this record, if the key opens it. One that does not may be made up, and ends no segment.
    fn take(&mut self, record: &Record<'_>, key: &hpke::PrivateKey) {
        if let Some(segment) = Segment::open(record.body, record.head.number, key) {
            self.others.push_back(segment);
            if self.others.len() > SEGMENTS {
                self.others.pop_front();
            }
        }
    }

    /// Takes the `key` records of a file. Gives whether there are any.
    fn read_keys(&mut self, path: &Path, key: &hpke::PrivateKey) -> Result<bool> {
        let mut lines = Lines::new(File::open(path).with_context(|| path.display().to_string())?);
        let mut any = false;
        while let Some(line) = lines.next().with_context(|| path.display().to_string())? {
            if let Some(record) = Record::parse(line).filter(|record| record.kind == Kind::Key) {
                self.take(&record, key);
                any = true;
            }
        }
        Ok(any)
    }

    fn open(&mut self, record: &Record<'_>) -> Option<(Kind, String)> {
        let open = |segment: &Segment| segment.open_record(record.head.number, record.body);
        if let Some(opened) = self.current.as_ref().and_then(open) {
            return Some(opened);
        }
        let found = self.others.iter().enumerate().rev().find_map(|(at, segment)| Some((at, open(segment)?)));
        let (at, opened) = found?;
        let before = std::mem::replace(&mut self.current, self.others.remove(at));
        self.others.extend(before);
        Some(opened)
    }
}

/// What could not be read.
#[derive(Clone, Copy, Default)]
pub(super) struct Missed {
    /// Sealed records that no key opens.
    unopened: u64,
    /// Lines that are not records.
    lines: u64,
    has_key: bool,
}

impl Missed {
    pub(super) fn count(self) -> u64 {
        self.unopened + self.lines
    }

    /// How a command ends that has read these records, and missed this.
    ///
    /// # Errors
    /// Something was missed.
    pub(super) fn done(self, mut object: Value) -> Result<Done> {
        if self.count() == 0 {
            return Ok(Done::new("", object));
        }
        let mut failure = Failure::refused("log_unopened", self);
        for (name, value) in object.as_object_mut().into_iter().flat_map(std::mem::take) {
            failure = failure.with(&name, value);
        }
        Err(failure.with("unopened", self.unopened.into()).with("not_records", self.lines.into()).into())
    }
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Missed { unopened, lines, has_key } = *self;
        if unopened > 0 {
            write!(f, "{} could not be opened", counted(unopened, "sealed record"))?;
            f.write_str(if has_key {
                ": sealed for another log key, changed or made up, or the file of the day before is not in the same folder"
            } else {
                " without the log key (--key FILE)"
            })?;
        }
        if lines > 0 {
            let and = if unopened > 0 { "; " } else { "" };
            write!(f, "{and}{} that cannot be read as a record", counted(lines, "line"))?;
        }
        Ok(())
    }
}

impl Reader {
    pub(super) fn new(key: Option<hpke::PrivateKey>) -> Reader {
        let missed = Missed { has_key: key.is_some(), ..Missed::default() };
        Reader { key, seen: Vec::new(), segments: HashMap::new(), missed }
    }

    /// What could not be read so far.
    pub(super) fn missed(&self) -> Missed {
        self.missed
    }

    /// Reads what these paths have by now.
    ///
    /// # Errors
    /// A file cannot be read; what `each` returns.
    pub(super) fn read(&mut self, paths: &[PathBuf], each: Each<'_>) -> Next {
        for boot in files::boots(paths)? {
            let first = boot[0].clone();
            let mut segments = self.segments.remove(&first).unwrap_or_default();
            for path in boot {
                let at = match self.seen.iter().position(|place| place.path == path) {
                    Some(at) => at,
                    None => {
                        self.seen.push(Place { path, read: 0, looked_back: false });
                        self.seen.len() - 1
                    }
                };
                let flow = self.read_file(at, &mut segments, each);
                if flow.with_context(|| self.seen[at].path.display().to_string())?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            self.segments.insert(first, segments);
        }
        Ok(ControlFlow::Continue(()))
    }

    fn read_file(&mut self, at: usize, segments: &mut Segments, each: Each<'_>) -> Next {
        let Reader { key, seen, missed, .. } = self;
        let Place { path, read, looked_back } = &mut seen[at];
        let mut file = File::open(&*path)?;
        if file.metadata()?.len() <= *read {
            return Ok(ControlFlow::Continue(()));
        }
        file.seek(SeekFrom::Start(*read))?;
        let mut lines = Lines::new(file);
        while let Some(line) = lines.next()? {
            *read += line.len() as u64 + 1;
            let Some(record) = Record::parse(line) else {
                missed.lines += 1;
                continue;
            };
            let mut opened = None;
            match (&key, record.kind) {
                (Some(key), Kind::Key) => segments.take(&record, key),
                (Some(key), Kind::Sealed) => {
                    opened = segments.open(&record);
                    // Its segment may have begun on the day before, whose file was not among those to read.
                    if opened.is_none() && !std::mem::replace(looked_back, true) {
                        look_back(path, segments, key)?;
                        opened = segments.open(&record);
                    }
                }
                _ => {}
            }
            missed.unopened += u64::from(record.kind == Kind::Sealed && opened.is_none());
            if each(&record, opened.as_ref().map_or((record.kind, record.body), |(kind, body)| (*kind, body)))?
                .is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Looks for the keys of the segments before this file: in the last file before it that has any, and in what the collector
/// kept of the days that it removed.
fn look_back(path: &Path, segments: &mut Segments, key: &hpke::PrivateKey) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut before = files::of_boot(folder)?;
    before.retain(|other| other.file_name() < path.file_name());
    let kept = folder.join(KEYS);
    let mut found = Segments::default();
    if kept.exists() {
        found.read_keys(&kept, key)?;
    }
    for path in before.iter().rev() {
        if found.read_keys(path, key)? {
            break;
        }
    }
    found.others.append(&mut segments.others);
    segments.others = found.others;
    Ok(())
}
