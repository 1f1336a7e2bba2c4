//! `teemark decrypt`: has a running daemon decrypt and mark a file.

use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::builder::NonEmptyStringValueParser;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use teemarkd::digest::sha256;
use teemarkd::hpke;
use teemarkd::reply::{About, REPLY_KEY, sealed_len};
use teemarkd::watermark::{ANSWER_SLACK, ANSWER_TIMES};
use ureq::http::{Response, header};
use ureq::{Agent, Body, SendBody};

use crate::answer::{self, Asked, Signer, WINDOW};
use crate::attest::{Purpose, Trust};
use crate::grant::Token;
use crate::keys::fresh_private_key;
use crate::output::{self, Existing, Output, Readers};
use crate::private_key::PrivateKey;
use crate::{Outcome, daemon, progress};

/// All but the unreserved characters (RFC 3986, 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// From this many bytes on the daemon is asked before they are sent, as curl does it: otherwise a refusal of a large
/// file could be lost with the connection.
const ASK_FIRST: usize = 1 << 20;

const REMEDY: &str = "replace it with --force, or choose another --output";

/// Ask a running daemon for the decrypted, marked file.
#[derive(clap::Args)]
#[command(
    mut_arg("pcrs", |pcrs| pcrs.requires("verify")),
    mut_arg("development", |development| development.requires("verify")),
    after_help = "Examples:
  teemark decrypt picture.png.enc --endpoint http://127.0.0.1:3000 --file-id pic-1 --user-id alice \\
    --grant pic-1.grant --seal --reply-key alice.key --verify --pcrs out/teemark.pcrs
  teemark decrypt picture.png.enc --endpoint http://127.0.0.1:3000 --file-id pic-1 --user-id alice

Only with all of --grant, --seal, --reply-key and --verify, and a grant that names that key (teemark grant --reply-key),
is the file for its user alone, whoever relays it."
)]
pub struct Arguments {
    /// The encrypted file; - for standard input
    input: PathBuf,
    /// The daemon's public address, http://HOST:PORT
    #[arg(long, value_name = "URL", value_parser = daemon::endpoint)]
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
    /// A file with the grant, as teemark grant prints it
    #[arg(long, value_name = "FILE")]
    grant: Option<PathBuf>,
    /// Have the answer sealed: whoever relays it cannot read it, if the grant names the key of --reply-key
    #[arg(long)]
    seal: bool,
    /// Seal it to this key, as teemark keygen --for reply makes it [default: a new one for this request]
    #[arg(long, value_name = "FILE", requires = "seal")]
    reply_key: Option<PathBuf>,
    /// Attest the enclave first, and take no answer but one that it signed
    #[arg(long, requires = "pcrs")]
    verify: bool,
    #[command(flatten)]
    trust: Option<Trust>,
    /// Where to write; - for standard output [default: INPUT without .enc, - for -]
    #[arg(long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// Replace the output file if there is one
    #[arg(long)]
    force: bool,
    /// How often to try again while the daemon has no room (503 or 429 with Retry-After)
    #[arg(long, value_name = "TIMES", default_value_t = 3)]
    retries: u32,
    /// Give up on one attempt after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

/// A request, as it is sent once more where the daemon asks to wait.
struct Request {
    url: String,
    authorization: Option<String>,
    reply_key: Option<hpke::PublicKey>,
    file: Vec<u8>,
}

/// Sends the file, waits its turn where the daemon has no room, and leaves a whole output file or none.
///
/// # Errors
/// A file cannot be read or written; the daemon refuses, cannot be reached, or what answers is not the daemon; the
/// enclave is not attested; the answer is not sealed, or not signed, as was asked, or is larger than any can be.
pub fn run(arguments: &Arguments) -> Result<Outcome> {
    let existing = if arguments.force { Existing::Replace } else { Existing::Keep };
    let path = match &arguments.output {
        Some(path) => path.clone(),
        None => default_output(&arguments.input)?,
    };
    let mut out = Output::open(&path, existing, Readers::Umask, REMEDY)?;
    let grant = arguments.grant.as_deref().map(Token::read).transpose()?;
    // Asked for otherwise, the answer could not be opened, and the grant would be used up.
    if grant.as_ref().is_some_and(Token::names_reply_key) && arguments.reply_key.is_none() {
        bail!("the grant has the answer sealed to a key that it names: give that with --seal --reply-key FILE");
    }
    if arguments.seal {
        arguments.tell_what_sealing_leaves_open(grant.as_ref());
    }
    let reply_key = arguments.reply_key()?;
    let request = Request {
        url: arguments.url(),
        authorization: grant.as_ref().map(Token::authorization),
        reply_key: reply_key.as_ref().map(hpke::PrivateKey::public),
        file: read(&arguments.input)?,
    };
    let signer = arguments.signer()?;

    let agent = daemon::agent(Duration::from_secs(arguments.timeout));
    let answer = daemon::ask(&arguments.endpoint, arguments.retries, || request.post(&agent))?;
    let limit = largest_answer(request.file.len());
    let asked = Asked { about: arguments.about(), content_sha256: sha256(&request.file), sealed: reply_key.is_some() };
    drop(request);
    let unmarked = answer::is_unmarked(answer.headers());
    let not_written = || format!("{} was not written", path.display());
    check_form(&answer, asked.sealed).with_context(not_written)?;
    match (signer, reply_key) {
        (None, None) => receive(answer, limit, &mut out).with_context(not_written)?,
        (signer, reply_key) => {
            let file = check_and_open(answer, limit, asked, signer, reply_key.as_ref()).with_context(not_written)?;
            out.write_all(&file).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    out.commit(REMEDY)?;
    if unmarked {
        eprintln!("warning: the file is not marked; the daemon is set to give such files out");
    }
    Ok(Outcome::Done)
}

/// The answer has to be sealed if, and only if, that was asked for.
fn check_form(answer: &Response<Body>, asked: bool) -> Result<()> {
    match (asked, answer::is_sealed(answer.headers())) {
        (true, false) => bail!(
            "the answer is not sealed, though that was asked for: somebody on the way took the wish out, or the daemon \
             is too old to know it"
        ),
        (false, true) => bail!(
            "the answer is sealed to a key that was not asked for here, as a grant may name one; \
             ask with --seal --reply-key FILE"
        ),
        _ => Ok(()),
    }
}

/// The file in an answer that is signed, sealed or both.
fn check_and_open(
    answer: Response<Body>,
    limit: u64,
    asked: Asked<'_>,
    signer: Option<Signer>,
    reply_key: Option<&hpke::PrivateKey>,
) -> Result<Vec<u8>> {
    let headers = answer.headers().clone();
    let mut given = Vec::new();
    receive(answer, limit, &mut given)?;
    if let Some(signer) = signer {
        signer.check(&headers, &given, asked, SystemTime::now())?;
    }
    match reply_key {
        Some(key) => answer::open(given, asked.about, key),
        None => Ok(given),
    }
}

impl Arguments {
    fn about(&self) -> About<'_> {
        About { file_id: &self.file_id, user_id: &self.user_id }
    }

    /// Says who can still read or make an answer that is sealed.
    fn tell_what_sealing_leaves_open(&self, grant: Option<&Token>) {
        if grant.is_some_and(|grant| !grant.names_reply_key()) {
            eprintln!(
                "warning: the grant names no reply key, so whoever relays the request can put its own key in place of \
                 yours; have the grant made with teemark grant --reply-key"
            );
        }
        if !self.verify {
            eprintln!("warning: without --verify anybody could have made this answer, whoever relays it for one");
        }
    }

    /// The key that the answer is to be sealed to, if it is to be.
    fn reply_key(&self) -> Result<Option<hpke::PrivateKey>> {
        let Some(path) = &self.reply_key else {
            return self.seal.then(fresh_private_key).transpose();
        };
        let key = PrivateKey::read(path).and_then(PrivateKey::reply);
        key.map(Some).with_context(|| format!("--reply-key {}", path.display()))
    }

    /// Attests the enclave, if its signature is asked for.
    fn signer(&self) -> Result<Option<Signer>> {
        if !self.verify {
            return Ok(None);
        }
        let trust = self.trust.as_ref().context("--verify needs --pcrs")?;
        let attested = trust.attest(&self.endpoint, Purpose::Look)?;
        // The answer's signature would be refused for its time, and the grant be used up.
        let made = Duration::from_millis(attested.timestamp_ms);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let apart = now.abs_diff(made);
        if apart > WINDOW {
            bail!(
                "this machine's clock and the enclave's are {} s apart, and at most {} s are allowed; nothing was sent",
                apart.as_secs(),
                WINDOW.as_secs()
            );
        }
        Ok(Some(Signer(attested.identity)))
    }

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

impl Request {
    fn post(&self, agent: &Agent) -> Result<Response<Body>, ureq::Error> {
        let bar = progress::bar(Some(self.file.len() as u64), "sending");
        let mut request = agent
            .post(&self.url)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, self.file.len());
        if self.file.len() >= ASK_FIRST {
            request = request.header(header::EXPECT, "100-continue");
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if let Some(key) = &self.reply_key {
            request = request.header(REPLY_KEY, STANDARD.encode(key));
        }
        let answer = request.send(SendBody::from_reader(&mut bar.wrap_read(Cursor::new(&self.file))));
        bar.finish_and_clear();
        answer
    }
}

/// Most bytes of the answer to a request of `n`: the daemon takes an answer of three times what it sends to the watermark
/// service, and JSON makes six bytes of one in it, at most; the slack once more is for the ids.
fn largest_answer(n: usize) -> u64 {
    sealed_len(n.saturating_mul(ANSWER_TIMES * 6).saturating_add(2 * ANSWER_SLACK)) as u64
}

/// Carries the whole body of an answer to `sink`, if it has at most `limit` bytes.
fn receive(answer: Response<Body>, limit: u64, sink: &mut impl Write) -> Result<()> {
    let expected = answer.body().content_length();
    if expected.is_some_and(|expected| expected > limit) {
        bail!(too_large(limit));
    }
    let bar = progress::bar(expected, "receiving");
    let mut body = bar.wrap_read(answer.into_body().into_reader());
    let part = "the marked file did not arrive whole";
    let received = std::io::copy(&mut body.by_ref().take(limit), sink).context(part)?;
    if received == limit && body.read(&mut [0]).context(part)? > 0 {
        bail!(too_large(limit));
    }
    bar.finish_and_clear();
    if expected.is_some_and(|expected| expected != received) {
        bail!("the marked file did not arrive whole ({received} bytes)");
    }
    Ok(())
}

fn too_large(limit: u64) -> String {
    format!("the answer has more than {limit} bytes, and the daemon gives none so large for this file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_is_named_after_the_input() {
        assert_eq!(default_output(Path::new("a/b.png.enc")).unwrap(), Path::new("a/b.png"));
        assert_eq!(default_output(Path::new("-")).unwrap(), Path::new("-"));
        assert!(default_output(Path::new("a/b.bin")).unwrap_err().to_string().contains("--output"));
    }
}
