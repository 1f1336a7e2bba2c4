//! `teemark log open`, `show`, `grep` and `follow`: read records, sealed ones with a log key.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use formats::hpke;
use formats::log::{Kind, Record, Segment};
use serde_json::{Value, json};

use super::files::{self, Lines};
use crate::failure::{Done, Failure};
use crate::private_key::{PrivateKey, Use};
use crate::terminal::printable;

/// Which records, and how they are opened.
#[derive(clap::Args)]
struct Source {
    /// A collector's folder, the folder of one boot, or files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The log key that sealed records are opened with (keygen --for log)
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// Print records as lines, sealed ones opened: NUMBER HASH KIND BODY.
///
/// A hash is that of the record as it was sent, sealed.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  teemark log open /var/lib/teemark-log --key log.key
  teemark log open 2026-11-30.log --key log.key | grep ' audit ' | cut -d' ' -f4- | jq -r .user_id")]
pub(crate) struct OpenArguments {
    #[command(flatten)]
    source: Source,
}

/// Print records as people read them.
#[derive(clap::Args)]
#[command(after_help = "Example: teemark log show /var/lib/teemark-log --key log.key")]
pub(crate) struct ShowArguments {
    #[command(flatten)]
    source: Source,
}

/// Print the records that contain a text.
#[derive(clap::Args)]
#[command(after_help = "Example: teemark log grep report-7 /var/lib/teemark-log --key log.key")]
pub(crate) struct GrepArguments {
    /// What the record has to contain
    text: String,
    #[command(flatten)]
    source: Source,
}

/// Print records as people read them, and go on with those that come, until a signal ends it.
#[derive(clap::Args)]
#[command(after_help = "Example: teemark log follow /var/lib/teemark-log --key log.key")]
pub(crate) struct FollowArguments {
    #[command(flatten)]
    source: Source,
}

pub(crate) fn open(arguments: &OpenArguments, json: bool) -> Result<Done> {
    arguments.source.print(json, |record, (kind, body)| {
        Some(format!("{} {} {} {body}", record.head.number, record.head.hash, kind.name()))
    })
}

pub(crate) fn show(arguments: &ShowArguments, json: bool) -> Result<Done> {
    arguments.source.print(json, |record, opened| Some(line(record, opened)))
}

pub(crate) fn grep(arguments: &GrepArguments, json: bool) -> Result<Done> {
    let GrepArguments { text, source } = arguments;
    source.print(json, |record, (kind, body)| body.contains(text).then(|| line(record, (kind, body))))
}

pub(crate) fn follow(arguments: &FollowArguments, json: bool) -> Result<Done> {
    if json {
        bail!(Failure::usage("follow never ends, so it has no object to print; teemark log show --json does"));
    }
    let mut reader = Reader::new(&arguments.source)?;
    loop {
        reader.read(&arguments.source, &mut |record, opened| to_stdout(&line(record, opened)))?;
        thread::sleep(Duration::from_millis(200));
    }
}

/// A record's kind and body; those of the record in it, if it is sealed and could be opened.
type Opened<'a> = (Kind, &'a str);

/// A record as people read it.
fn line(record: &Record<'_>, (kind, body): Opened<'_>) -> String {
    let body = if matches!(kind, Kind::Document | Kind::Sealed | Kind::Key) { "…" } else { body };
    format!("{:>8} {:10} {}", record.head.number, kind.name(), printable(body))
}

/// Prints a line; ends the command once nobody reads any more.
fn to_stdout(line: &str) -> Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        printed => Ok(printed?),
    }
}

/// Reads a log key.
///
/// # Errors
/// The file cannot be read, or its key is for another use.
pub(crate) fn log_key(path: &Path) -> Result<hpke::PrivateKey> {
    PrivateKey::read(path, Use::Log)?.log()
}

/// What is sealed in this record, which comes next in its log; `None` if it is not a sealed one, or not one that this key
/// opens. `segment` is the one that the records before have begun.
pub(crate) fn open_next(
    record: &Record<'_>,
    key: &hpke::PrivateKey,
    segment: &mut Option<Segment>,
) -> Option<(Kind, String)> {
    match record.kind {
        Kind::Key => *segment = Segment::open(record.body, record.head.number, key),
        Kind::Sealed => return segment.as_ref()?.open_record(record.head.number, record.body),
        _ => {}
    }
    None
}

type Each<'a> = &'a mut dyn FnMut(&Record<'_>, Opened<'_>) -> Result<()>;

impl Source {
    /// Prints what `form` makes of each record, or all of those records as one object.
    fn print(&self, json: bool, form: impl Fn(&Record<'_>, Opened<'_>) -> Option<String>) -> Result<Done> {
        let mut records = Vec::new();
        Reader::new(self)?.read(self, &mut |record, (kind, body)| {
            let Some(text) = form(record, (kind, body)) else { return Ok(()) };
            if !json {
                return to_stdout(&text);
            }
            let body = serde_json::from_str::<Value>(body).unwrap_or_else(|_| body.into());
            let head = record.head;
            records.push(json!({"number": head.number, "hash": head.hash, "kind": kind.name(), "body": body}));
            Ok(())
        })?;
        Ok(Done::new("", json!({"records": records})))
    }
}

/// Reads records from where it stopped the last time.
struct Reader {
    key: Option<hpke::PrivateKey>,
    /// The files that were read.
    seen: Vec<Place>,
    /// The last segment of each boot, by the first of its files.
    segments: HashMap<PathBuf, Segment>,
}

/// How far a file was read. It is opened again for what comes, since there may be more files than a process may have open.
struct Place {
    path: PathBuf,
    read: u64,
}

impl Reader {
    fn new(source: &Source) -> Result<Reader> {
        let key = source.key.as_deref().map(log_key).transpose()?;
        Ok(Reader { key, seen: Vec::new(), segments: HashMap::new() })
    }

    fn read(&mut self, source: &Source, each: Each<'_>) -> Result<()> {
        for boot in files::boots(&source.paths)? {
            let first = boot[0].clone();
            let mut segment = self.segments.remove(&first);
            for path in boot {
                let at = match self.seen.iter().position(|place| place.path == path) {
                    Some(at) => at,
                    None => {
                        self.seen.push(Place { path, read: 0 });
                        self.seen.len() - 1
                    }
                };
                self.read_file(at, &mut segment, each).with_context(|| self.seen[at].path.display().to_string())?;
            }
            if let Some(segment) = segment {
                self.segments.insert(first, segment);
            }
        }
        Ok(())
    }

    fn read_file(&mut self, at: usize, segment: &mut Option<Segment>, each: Each<'_>) -> Result<()> {
        let Reader { key, seen, .. } = self;
        let Place { path, read } = &mut seen[at];
        let mut file = File::open(path)?;
        if file.metadata()?.len() <= *read {
            return Ok(());
        }
        file.seek(SeekFrom::Start(*read))?;
        let mut lines = Lines::new(file);
        while let Some(line) = lines.next()? {
            *read += line.len() as u64 + 1;
            let Some(record) = Record::parse(line) else { continue };
            let opened = key.as_ref().and_then(|key| open_next(&record, key, segment));
            each(&record, opened.as_ref().map_or((record.kind, record.body), |(kind, body)| (*kind, body)))?;
        }
        Ok(())
    }
}
