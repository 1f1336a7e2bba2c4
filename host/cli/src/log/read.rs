//! `teemark log open`, `show`, `grep` and `follow`: print records, sealed ones opened with a log key.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use formats::hpke;
use formats::log::{Kind, Record};
use serde_json::{Value, json};

use super::reader::{Next, Opened, Reader};
use crate::failure::{Done, Failure};
use crate::private_key::{PrivateKey, Use};
use crate::terminal::{json_line, printable, say};

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
/// A hash is that of the record as it was sent, sealed. Control characters in a body are escaped.
///
/// It verifies nothing: whoever holds the files can change them, and whoever has the public log key can make up sealed records
/// that open. `teemark log verify` says up to which record everything is proven.
///
/// Exit status 1: there are records that could not be opened, or lines that are not records; standard error says how
/// many.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  teemark log open /var/lib/teemark-log --key log.key
  teemark log open 2026-11-30.log --key log.key | grep ' audit ' | cut -d' ' -f4- | jq -r .user_id")]
pub(crate) struct OpenArguments {
    #[command(flatten)]
    source: Source,
}

/// Print records as people read them.
///
/// It verifies nothing: whoever holds the files can change them, and whoever has the public log key can make up sealed records
/// that open. `teemark log verify` says up to which record everything is proven.
///
/// Exit status 1: there are records that could not be opened, or lines that are not records; standard error says how
/// many.
#[derive(clap::Args)]
#[command(after_help = "Example: teemark log show /var/lib/teemark-log --key log.key")]
pub(crate) struct ShowArguments {
    #[command(flatten)]
    source: Source,
}

/// Print the records that contain a text.
///
/// It verifies nothing: whoever holds the files can change them, and whoever has the public log key can make up sealed records
/// that open. `teemark log verify` says up to which record everything is proven.
///
/// Exit status 1: there are records that could not be opened, and so not searched, or lines that are not records; standard
/// error says how many.
#[derive(clap::Args)]
#[command(after_help = "Example: teemark log grep report-7 /var/lib/teemark-log --key log.key")]
pub(crate) struct GrepArguments {
    /// What the record has to contain
    text: String,
    #[command(flatten)]
    source: Source,
}

/// Print records as people read them, and go on with those that come, until a signal ends it.
///
/// It verifies nothing: whoever holds the files can change them, and whoever has the public log key can make up sealed records
/// that open. `teemark log verify` says up to which record everything is proven.
///
/// Standard error says how many records could not be opened.
#[derive(clap::Args)]
#[command(after_help = "Example: teemark log follow /var/lib/teemark-log --key log.key")]
pub(crate) struct FollowArguments {
    #[command(flatten)]
    source: Source,
}

pub(crate) fn open(arguments: &OpenArguments, json: bool) -> Result<Done> {
    arguments.source.print(json, |record, (kind, body)| {
        Some(format!("{} {} {} {}", record.head.number, record.head.hash, kind.name(), in_line(body)))
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
    let mut reader = arguments.source.reader()?;
    let mut told = 0;
    loop {
        let flow = reader.read(&arguments.source.paths, &mut |record, opened| to_stdout(&line(record, opened)))?;
        let missed = reader.missed();
        if missed.count() > told {
            say(format_args!("log: {missed}"));
            told = missed.count();
        }
        if flow.is_break() {
            return missed.done(json!({}));
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// A body as it is, but for what would end the line or act on a terminal. JSON stays JSON, for the programs that read it.
fn in_line(body: &str) -> String {
    let shown = printable(body);
    if shown == body {
        return shown;
    }
    serde_json::from_str(body).map_or(shown, |value: Value| json_line(&value).trim_end().to_owned())
}

/// A record as people read it.
fn line(record: &Record<'_>, (kind, body): Opened<'_>) -> String {
    let body = if matches!(kind, Kind::Document | Kind::Sealed | Kind::Key) { "…" } else { body };
    format!("{:>8} {:10} {}", record.head.number, kind.name(), printable(body))
}

/// Prints a line, as long as somebody reads.
fn to_stdout(line: &str) -> Next {
    match writeln!(io::stdout(), "{line}") {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        printed => Ok(ControlFlow::Continue(printed?)),
    }
}

/// Reads a log key.
///
/// # Errors
/// The file cannot be read, or its key is for another use.
pub(crate) fn log_key(path: &Path) -> Result<hpke::PrivateKey> {
    PrivateKey::read(path, Use::Log)?.log()
}

impl Source {
    fn reader(&self) -> Result<Reader> {
        Ok(Reader::new(self.key.as_deref().map(log_key).transpose()?))
    }

    /// Prints what `form` makes of each record, or all of those records as one object.
    ///
    /// # Errors
    /// Some records could not be opened; what could was printed.
    fn print(&self, json: bool, form: impl Fn(&Record<'_>, Opened<'_>) -> Option<String>) -> Result<Done> {
        let mut records = Vec::new();
        let mut reader = self.reader()?;
        let _ = reader.read(&self.paths, &mut |record, (kind, body)| {
            let Some(text) = form(record, (kind, body)) else { return Ok(ControlFlow::Continue(())) };
            if !json {
                return to_stdout(&text);
            }
            let body = serde_json::from_str::<Value>(body).unwrap_or_else(|_| body.into());
            let head = record.head;
            records.push(json!({"number": head.number, "hash": head.hash, "kind": kind.name(), "body": body}));
            Ok(ControlFlow::Continue(()))
        })?;
        reader.missed().done(json!({"records": records}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_stays_in_its_line_and_does_nothing_to_a_terminal() {
        for ordinary in ["x", "GET /a\\b \"水印\"", r#"{"z":1.50, "a":"\u001b"}"#] {
            assert_eq!(in_line(ordinary), ordinary);
        }
        assert_eq!(in_line("a\x1b[2J\n3 00 audit {}"), "a\\u{1b}[2J\\n3 00 audit {}");
        let json = "{\"user_id\":\"a\u{202e}b\"}\n";
        assert_eq!(in_line(json), "{\"user_id\":\"a\\u202eb\"}");
    }
}
