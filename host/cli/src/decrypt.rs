//! `teemark decrypt`: has a running daemon decrypt and mark a file.

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::builder::NonEmptyStringValueParser;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::http::{Response, Uri, header};
use ureq::{Agent, Body, SendBody};

use crate::output::{self, Existing, Output, Readers};
use crate::{Outcome, printable, progress};

/// All but the unreserved characters (RFC 3986, 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Longest pause before another attempt, whatever Retry-After asks for.
const LONGEST_PAUSE: u64 = 60;
/// Largest error answer, in bytes.
const LARGEST_ERROR: u64 = 64 << 10;
/// From this many bytes on the daemon is asked before they are sent, as curl does it: otherwise a refusal of a large
/// file could be lost with the connection.
const ASK_FIRST: usize = 1 << 20;

const REMEDY: &str = "replace it with --force, or choose another --output";

/// Ask a running daemon for the decrypted, marked file.
#[derive(clap::Args)]
#[command(after_help = "Example:
  teemark decrypt picture.png.enc --endpoint http://127.0.0.1:3000 --file-id pic-1 --user-id alice")]
pub struct Arguments {
    /// The encrypted file; - for standard input
    input: PathBuf,
    /// The daemon's public address, http://HOST:PORT
    #[arg(long, value_name = "URL", value_parser = endpoint)]
    endpoint: String,
    /// The file's id
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    file_id: String,
    /// Who asks: the mark names this user
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    user_id: String,
    /// Which key; may be left out where the daemon has only one
    #[arg(long, value_name = "ID")]
    key_id: Option<String>,
    /// Where to write; - for standard output [default: INPUT without .enc, - for -]
    #[arg(long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// Replace the output file if there is one
    #[arg(long)]
    force: bool,
    /// How often to try again while the daemon has no room (503 with Retry-After)
    #[arg(long, value_name = "TIMES", default_value_t = 3)]
    retries: u32,
    /// Give up on one attempt after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

/// The base of the daemon's addresses, without a slash at its end.
fn endpoint(text: &str) -> Result<String, String> {
    let parsed = text.parse::<Uri>().ok().filter(|url| url.query().is_none() && url.host().is_some());
    match parsed.as_ref().and_then(Uri::scheme_str) {
        Some("http") => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err("write http://HOST:PORT, where the enclave's public port is carried to".to_owned()),
    }
}

/// The error answer, as the daemon gives it.
#[derive(Deserialize)]
struct ErrorAnswer {
    error: String,
    code: String,
}

/// Sends the file, waits its turn where the daemon has no room, and leaves a whole output file or none.
///
/// # Errors
/// A file cannot be read or written; the daemon cannot be reached, or what answers is not the daemon.
pub fn run(arguments: &Arguments) -> Result<Outcome> {
    let existing = if arguments.force { Existing::Replace } else { Existing::Keep };
    let path = match &arguments.output {
        Some(path) => path.clone(),
        None => default_output(&arguments.input)?,
    };
    let out = Output::open(&path, existing, Readers::Umask, REMEDY)?;
    let sealed = read(&arguments.input)?;
    let url = arguments.url();
    let agent = agent(Duration::from_secs(arguments.timeout));

    let mut tried = 0;
    let mut answer = loop {
        let answer = post(&agent, &url, &sealed)
            .with_context(|| format!("the daemon at {} gave no answer", arguments.endpoint))?;
        match pause(&answer) {
            Some(pause) if tried < arguments.retries => {
                tried += 1;
                eprintln!("the daemon has no room; again in {} s ({tried} of {})", pause.as_secs(), arguments.retries);
                sleep(pause);
            }
            _ => break answer,
        }
    };
    if answer.status() != 200 {
        return refused(&arguments.endpoint, &mut answer);
    }
    receive(answer, out, &path)?;
    Ok(Outcome::Done)
}

impl Arguments {
    fn url(&self) -> String {
        let escape = |text| utf8_percent_encode(text, ESCAPED);
        let (file, user) = (escape(&self.file_id), escape(&self.user_id));
        let mut url = format!("{}/files/{file}/decrypt?user_id={user}", self.endpoint);
        if let Some(key) = &self.key_id {
            url.push_str(&format!("&key_id={}", escape(key)));
        }
        url
    }
}

fn default_output(input: &Path) -> Result<PathBuf> {
    if input == Path::new("-") {
        return Ok("-".into());
    }
    match input.extension() {
        Some(ending) if ending == "enc" => Ok(input.with_extension("")),
        _ => bail!("{} does not end in .enc; name the output with --output", input.display()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let (mut source, _) = output::open_input(path)?;
    let mut sealed = Vec::new();
    source.read_to_end(&mut sealed).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(sealed)
}

/// Plain HTTP to the named daemon and nowhere else: no proxy, no redirect. Every status is an answer.
fn agent(limit: Duration) -> Agent {
    Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_LIMIT))
        .timeout_global(Some(limit))
        .user_agent(concat!("teemark/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent()
}

fn post(agent: &Agent, url: &str, sealed: &[u8]) -> Result<Response<Body>, ureq::Error> {
    let bar = progress::bar(Some(sealed.len() as u64), "sending");
    let mut request = agent
        .post(url)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, sealed.len());
    if sealed.len() >= ASK_FIRST {
        request = request.header(header::EXPECT, "100-continue");
    }
    let answer = request.send(SendBody::from_reader(&mut bar.wrap_read(Cursor::new(sealed))));
    bar.finish_and_clear();
    answer
}

/// How long a daemon without room asks to wait. A date, which it never sends, counts as a second.
fn pause(answer: &Response<Body>) -> Option<Duration> {
    let after = answer.headers().get(header::RETRY_AFTER).filter(|_| answer.status() == 503)?;
    let seconds = after.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    Some(Duration::from_secs(seconds.min(LONGEST_PAUSE)))
}

/// Prints the daemon's error.
fn refused(endpoint: &str, answer: &mut Response<Body>) -> Result<Outcome> {
    let status = answer.status().as_u16();
    let mut body = Vec::new();
    // An error answer that is cut off is told by its status.
    let _ = answer.body_mut().as_reader().take(LARGEST_ERROR).read_to_end(&mut body);
    let Ok(told) = serde_json::from_slice::<ErrorAnswer>(&body) else {
        bail!("{endpoint} answered with HTTP status {status}, but not as teemarkd does; is this its public port?");
    };
    eprintln!("refused: {} ({}, HTTP {status})", printable(&told.error), printable(&told.code));
    Ok(Outcome::Refused)
}

fn receive(answer: Response<Body>, mut out: Output, path: &Path) -> Result<()> {
    let expected = answer.body().content_length();
    let bar = progress::bar(expected, "receiving");
    let mut body = bar.wrap_read(answer.into_body().into_reader());
    let received = std::io::copy(&mut body, &mut out)
        .with_context(|| format!("the marked file did not arrive whole, so {} was not written", path.display()))?;
    bar.finish_and_clear();
    if expected.is_some_and(|expected| expected != received) {
        bail!("the marked file did not arrive whole ({received} bytes), so {} was not written", path.display());
    }
    out.commit(REMEDY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_is_plain_http_without_a_query() {
        assert_eq!(endpoint("http://127.0.0.1:3000/").as_deref(), Ok("http://127.0.0.1:3000"));
        assert_eq!(endpoint("http://[::1]:3000/base").as_deref(), Ok("http://[::1]:3000/base"));
        for bad in ["", "127.0.0.1:3000", "https://h:1", "http://h/?q", "tcp:h:1", "http://"] {
            assert!(endpoint(bad).unwrap_err().contains("http://HOST:PORT"), "{bad}");
        }
    }

    #[test]
    fn the_output_is_named_after_the_input() {
        assert_eq!(default_output(Path::new("a/b.png.enc")).unwrap(), Path::new("a/b.png"));
        assert_eq!(default_output(Path::new("-")).unwrap(), Path::new("-"));
        assert!(default_output(Path::new("a/b.bin")).unwrap_err().to_string().contains("--output"));
    }
}
