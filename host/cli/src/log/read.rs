//! `teemark log open`, `show`, `grep` and `follow`: read records, sealed ones with a log key.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use formats::hpke;
use formats::log::{Kind, Record, Segment};
use serde_json::json;

use super::files;
use crate::failure::Done;
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

pub(crate) fn open(arguments: &OpenArguments) -> Result<Done> {
    let mut out = io::stdout().lock();
    let printed = arguments.source.read(&mut |record: &Record<'_>, opened: Opened<'_>| {
        let (kind, body) = opened.unwrap_or((record.kind, record.body));
        writeln!(out, "{} {} {} {body}", record.head.number, record.head.hash, kind.name())
    })?;
    Ok(Done::new("", json!({"records": printed})))
}

pub(crate) fn show(arguments: &ShowArguments) -> Result<Done> {
    let mut out = io::stdout().lock();
    let printed = arguments.source.read(&mut |record, opened| writeln!(out, "{}", line(record, opened)))?;
    Ok(Done::new("", json!({"records": printed})))
}

pub(crate) fn grep(arguments: &GrepArguments) -> Result<Done> {
    let (mut out, mut found) = (io::stdout().lock(), 0);
    arguments.source.read(&mut |record, opened| {
        let (_, body) = opened.unwrap_or((record.kind, record.body));
        if !body.contains(&arguments.text) {
            return Ok(());
        }
        found += 1;
        writeln!(out, "{}", line(record, opened))
    })?;
    Ok(Done::new("", json!({"records": found})))
}

pub(crate) fn follow(arguments: &FollowArguments) -> Result<Done> {
    let mut out = io::stdout().lock();
    let mut reader = Reader::new(&arguments.source)?;
    loop {
        reader.read(&arguments.source, &mut |record, opened| {
            writeln!(out, "{}", line(record, opened))?;
            out.flush()
        })?;
        thread::sleep(Duration::from_millis(200));
    }
}

/// A sealed record's kind and body, if it could be opened.
type Opened<'a> = Option<(Kind, &'a str)>;

/// A record as people read it.
fn line(record: &Record<'_>, opened: Opened<'_>) -> String {
    let (kind, body) = opened.unwrap_or((record.kind, record.body));
    let body = if matches!(kind, Kind::Document | Kind::Sealed | Kind::Key) { "…" } else { body };
    format!("{:>8} {:10} {}", record.head.number, kind.name(), printable(body))
}

type Each<'a> = &'a mut dyn FnMut(&Record<'_>, Opened<'_>) -> io::Result<()>;

impl Source {
    fn read(&self, each: Each<'_>) -> Result<u64> {
        let mut reader = Reader::new(self)?;
        reader.read(self, each)?;
        Ok(reader.records)
    }
}

/// Reads records from where it stopped the last time.
struct Reader {
    key: Option<hpke::PrivateKey>,
    /// The files that were read.
    seen: Vec<Place>,
    /// The last segment of each boot, by the first of its files.
    segments: HashMap<PathBuf, Segment>,
    records: u64,
}

struct Place {
    path: PathBuf,
    file: BufReader<File>,
    /// A line that is not whole yet.
    partial: Vec<u8>,
}

impl Reader {
    fn new(source: &Source) -> Result<Reader> {
        let key = source.key.as_deref().map(|path| PrivateKey::read(path, Use::Log)?.log());
        Ok(Reader { key: key.transpose()?, seen: Vec::new(), segments: HashMap::new(), records: 0 })
    }

    fn read(&mut self, source: &Source, each: Each<'_>) -> Result<()> {
        for boot in files::boots(&source.paths)? {
            let first = boot[0].clone();
            let mut segment = self.segments.remove(&first);
            for path in boot {
                let at = match self.seen.iter().position(|place| place.path == path) {
                    Some(at) => at,
                    None => {
                        let file = File::open(&path).with_context(|| path.display().to_string())?;
                        self.seen.push(Place { path, file: BufReader::new(file), partial: Vec::new() });
                        self.seen.len() - 1
                    }
                };
                self.read_file(at, &mut segment, each)?;
            }
            if let Some(segment) = segment {
                self.segments.insert(first, segment);
            }
        }
        Ok(())
    }

    fn read_file(&mut self, at: usize, segment: &mut Option<Segment>, each: Each<'_>) -> Result<()> {
        let Reader { key, seen, records, .. } = self;
        let Place { file, partial, .. } = &mut seen[at];
        while file.read_until(b'\n', partial)? > 0 {
            if partial.last() != Some(&b'\n') {
                return Ok(());
            }
            let line = std::mem::take(partial);
            let Some(record) = Record::parse(&line[..line.len() - 1]) else { continue };
            let mut opened = None;
            match (&key, record.kind) {
                (Some(key), Kind::Key) => *segment = Segment::open(record.body, record.head.number, key),
                (Some(_), Kind::Sealed) => {
                    opened = segment.as_ref().and_then(|segment| segment.open_record(record.head.number, record.body));
                }
                _ => {}
            }
            *records += 1;
            let printed = each(&record, opened.as_ref().map(|(kind, body)| (*kind, body.as_str())));
            match printed {
                // Whoever reads has had enough.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
                printed => printed?,
            }
        }
        Ok(())
    }
}
