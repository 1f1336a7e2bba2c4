//! `teemark decrypt`: has a running daemon decrypt and mark a file.

use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::builder::NonEmptyStringValueParser;
use formats::digest::sha256;
use formats::hpke;
use formats::reply::{ATTEST, About, REPLY_KEY, sealed_len};
use formats::service::{ANSWER_SLACK, ANSWER_TIMES};
use formats::signature::VerifyingKey;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use ureq::http::{Response, header};
use ureq::{Agent, Body, SendBody};

use crate::answer::{self, Asked, BehindDocument};
use crate::attest::{Nonce, Trust};
use crate::batch::{self, Files, Job, REMEDY};
use crate::daemon::{self, Cacert, Daemon};
use crate::failure::{Done, Failure};
use crate::grant::Token;
use crate::keys::fresh_private_key;
use crate::output::{self, Output, Readers};
use crate::private_key::{PrivateKey, Use};
use crate::progress::{Counts, Progress};
use crate::proof::Proof;
use crate::terminal::say;

/// All but the unreserved characters (RFC 3986, 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A file of at least this many bytes is sent only after 100 Continue, as curl does it: otherwise a refusal of a large
/// file could be lost with the connection.
const ASK_FIRST: usize = 1 << 20;

/// Ask a running daemon for decrypted, marked files; they are written for their owner only (mode 600).
#[derive(clap::Args)]
#[command(
    mut_arg("pcrs", |pcrs| pcrs.requires("verify")),
    mut_arg("development", |development| development.requires("verify")),
    after_help = "Examples:
  teemark decrypt picture.png.enc --endpoint http://127.0.0.1:3000 --file-id pic-1 --user-id alice \\
    --grant pic-1.grant --seal --reply-key alice.key --verify --pcrs out/teemark.pcrs
  teemark decrypt *.enc --endpoint http://127.0.0.1:3000 --user-id alice --grants grants \\
    --output-dir marked --seal --reply-key alice.key --verify --pcrs out/teemark.pcrs
  teemark decrypt picture.png.enc --endpoint http://127.0.0.1:3000 --file-id pic-1 --user-id alice

Only --grant, --seal, --reply-key and --verify together, with a grant that names that key (teemark grant --reply-key),
keep the file from everyone but its user, whoever relays it."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    files: Files,
    /// The daemon's public address, http://HOST:PORT or https://HOST; several enclaves may be behind it
    #[arg(long, value_name = "URL", value_parser = daemon::endpoint)]
    endpoint: String,
    #[command(flatten)]
    cacert: Cacert,
    /// The user who asks, and whom the mark names
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    user_id: String,
    /// The file key's id; may be left out if the daemon has only one key
    #[arg(long, value_name = "ID")]
    key_id: Option<String>,
    /// A file with the grant, as teemark grant prints it
    #[arg(long, value_name = "FILE")]
    grant: Option<PathBuf>,
    /// A folder of grants, one for each file: FILE-ID.grant
    #[arg(long, value_name = "DIR", conflicts_with = "grant")]
    grants: Option<PathBuf>,
    /// Have the answer sealed: nobody who relays it can read it, if the grant names the key of --reply-key
    #[arg(long)]
    seal: bool,
    /// Seal it to this key, as teemark keygen --for reply makes it [default: a new one for this request]
    #[arg(long, value_name = "FILE", requires = "seal")]
    reply_key: Option<PathBuf>,
    /// Have each answer bring the attestation document of its enclave, and accept only what that enclave signed
    #[arg(long, requires = "pcrs")]
    verify: bool,
    /// Verify by this document instead, which teemark attest --output wrote
    #[arg(long, value_name = "FILE", requires_all = ["verify", "max_age"])]
    attested: Option<PathBuf>,
    /// Verify by the document of --attested or, without it, by one that the daemon makes each minute for all clients, if it
    /// is at most this old; the counter and the bundle in it may be as old
    #[arg(long, value_name = "SECONDS", requires = "verify", value_parser = clap::value_parser!(u64).range(1..))]
    max_age: Option<u64>,
    #[command(flatten)]
    trust: Option<Trust>,
    /// How often to try again while the daemon has no room (503 or 429 with Retry-After)
    #[arg(long, value_name = "TIMES", default_value_t = 3)]
    retries: u32,
    /// Give up on one attempt after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

/// A request, which is sent again if the daemon asks to wait.
struct Request {
    url: String,
    authorization: Option<String>,
    reply_key: Option<hpke::PublicKey>,
    /// Asks for the attestation document for this nonce.
    nonce: Option<Nonce>,
    file: Vec<u8>,
}

/// What is the same for every file of a command.
struct Session {
    daemon: Daemon,
    agent: Agent,
    reply_key: Option<hpke::PrivateKey>,
    proof: Option<Proof>,
}

/// Sends each file, tries again while the daemon is busy, and writes a complete output file or none.
///
/// # Errors
/// A file cannot be read or written; the daemon refuses, cannot be reached, or what answers is not the daemon; the
/// enclave is not attested; the answer is not sealed, or not signed, as was asked, or is larger than any can be.
pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<Done> {
    let jobs = arguments.files.jobs(json, default_output)?;
    if arguments.grant.is_some() && arguments.files.are_several() {
        bail!(Failure::usage("--grant is for one file; --grants names a folder with a grant for each, FILE-ID.grant"));
    }
    let mut work = Vec::new();
    for job in &jobs {
        // A missing grant is reported before anything is sent.
        let id = job.file_id.as_deref().context("there is no name to take the file's id from; give --file-id")?;
        work.push((id, arguments.token(id)?));
    }
    let tokens = || work.iter().filter_map(|(_, token)| token.as_ref());
    // Without the key the answer could not be opened, and the grant would be used up.
    if tokens().any(Token::names_reply_key) && arguments.reply_key.is_none() {
        bail!("the grant names the key that the answer is sealed to; give that key with --seal --reply-key FILE");
    }
    arguments.tell_what_is_left_open(tokens().any(|token| !token.names_reply_key()));
    let daemon = arguments.cacert.daemon(&arguments.endpoint)?;
    let session = Session {
        agent: daemon.agent(Duration::from_secs(arguments.timeout)),
        daemon,
        reply_key: arguments.reply_key()?,
        proof: arguments.proof()?,
    };
    let mut work = work.into_iter();
    batch::run(&jobs, |job, progress| {
        let (id, token) = work.next().context("there are more jobs than files")?;
        arguments.decrypt(job, id, token.as_ref(), &session, progress)
    })
}

/// Checks that the answer is sealed if, and only if, that was asked for.
fn check_form(answer: &Response<Body>, asked: bool) -> Result<()> {
    match (asked, answer::is_sealed(answer.headers())) {
        (true, false) => bail!(
            "the answer is not sealed, although that was asked for: somebody on the way removed that from the request, \
             or the daemon is too old to know it"
        ),
        (false, true) => bail!(
            "the answer is sealed to a key that was not given here; if the grant names it, give it with \
             --seal --reply-key FILE"
        ),
        _ => Ok(()),
    }
}

/// An answer's file, and the key that was proven to have signed it.
struct Given {
    bytes: u64,
    signer: Option<VerifyingKey>,
}

impl Session {
    /// Receives an answer, checks that it is signed and opens it, as far as that was asked for, and writes the file.
    fn receive(
        &self,
        answer: Response<Body>,
        limit: u64,
        (asked, nonce): (Asked<'_>, Option<Nonce>),
        out: &mut Output,
        progress: &Progress,
    ) -> Result<Given> {
        let headers = answer.headers().clone();
        let length = answer::document_length(&headers)?;
        let limit = limit + length as u64;
        if self.proof.is_none() && self.reply_key.is_none() {
            let mut body = BehindDocument::new(length, out);
            let received = receive(answer, limit, &mut body, progress)?;
            let document = body.document()?;
            return Ok(Given { bytes: received - document.len() as u64, signer: None });
        }
        let mut given = Vec::new();
        let mut body = BehindDocument::new(length, &mut given);
        receive(answer, limit, &mut body, progress)?;
        let document = body.document()?;
        let check = |proof: &Proof| proof.check(&self.daemon, (nonce, &document), (&headers, &given), asked);
        let signer = self.proof.as_ref().map(check).transpose()?;
        let file = match &self.reply_key {
            Some(key) => answer::open(given, asked.about, key)?,
            None => given,
        };
        out.write_all(&file).context("the marked file cannot be written")?;
        Ok(Given { bytes: file.len() as u64, signer })
    }
}

impl Arguments {
    fn decrypt(
        &self,
        job: &Job,
        file_id: &str,
        grant: Option<&Token>,
        session: &Session,
        progress: &Progress,
    ) -> Result<Value> {
        let path = &job.output;
        let mut out = Output::open(path, self.files.existing(), Readers::Owner, REMEDY)?;
        let about = About { file_id, user_id: &self.user_id };
        let (file, nonce) =
            (read(&job.input)?, session.proof.as_ref().map_or(Ok(None), |proof| proof.prepare(&session.daemon))?);
        let request = Request {
            url: self.url(about),
            authorization: grant.map(Token::authorization),
            reply_key: session.reply_key.as_ref().map(hpke::PrivateKey::public),
            nonce,
            file,
        };
        let answer = session.daemon.ask(self.retries, || request.post(&session.agent, progress))?;
        let limit = largest_answer(request.file.len());
        let asked = Asked { about, content_sha256: sha256(&request.file), sealed: session.reply_key.is_some() };
        drop(request);
        let unmarked = answer::is_unmarked(answer.headers());
        let not_written = || format!("{} was not written", path.display());
        check_form(&answer, asked.sealed).with_context(not_written)?;
        let given = session.receive(answer, limit, (asked, nonce), &mut out, progress).with_context(not_written)?;
        out.commit(REMEDY)?;
        if unmarked {
            progress.aside(|| {
                say(format_args!(
                    "warning: {}: the file is not marked; the daemon's settings let it give out unmarked files",
                    path.display()
                ));
            });
        }
        Ok(json!({
            "input": job.input.to_string_lossy(),
            "output": path.to_string_lossy(),
            "file_id": file_id,
            "bytes": given.bytes,
            "watermarked": !unmarked,
            "sealed": asked.sealed,
            "verified": given.signer.is_some(),
            "identity": given.signer.map(hex::encode),
        }))
    }

    /// The grant for the file with this id, if grants are given.
    fn token(&self, file_id: &str) -> Result<Option<Token>> {
        let path = match (&self.grant, &self.grants) {
            (Some(file), _) => Token::read(file, "--grant"),
            (None, Some(_)) if file_id.contains('/') => bail!(Failure::usage(format!(
                "no file in --grants can be named after the file id {file_id:?}; give the grant with --grant"
            ))),
            (None, Some(folder)) => Token::read(&folder.join(format!("{file_id}.grant")), "--grants"),
            (None, None) => return Ok(None),
        };
        path.map(Some)
    }

    /// Warns of who can read or forge the answer. `open` is whether a grant names no reply key.
    fn tell_what_is_left_open(&self, open: bool) {
        if !self.seal {
            say("warning: without --seal whoever relays the answer, as the parent does, can read the marked file");
        } else if open {
            say(
                "warning: the grant names no reply key, so whoever relays the request can put its own key in place of \
                 yours; have the grant made with teemark grant --reply-key",
            );
        }
        if !self.verify {
            say("warning: without --verify nobody vouches for the answer: anybody who relays it could have made it");
        }
        if let Some(most) = self.max_age {
            say(format_args!(
                "note: the attestation document may be {most} s old, and so may the counter and the bundle in it"
            ));
        }
    }

    /// The key to have the answer sealed to, if it is to be sealed.
    fn reply_key(&self) -> Result<Option<hpke::PrivateKey>> {
        let Some(path) = &self.reply_key else {
            return self.seal.then(fresh_private_key).transpose();
        };
        let key = PrivateKey::read(path, Use::Reply).and_then(PrivateKey::reply);
        key.map(Some).with_context(|| format!("--reply-key {}", path.display()))
    }

    /// How the answers' signer is to be known, if their signatures are to be checked. What that takes is read before
    /// anything is sent.
    fn proof(&self) -> Result<Option<Proof>> {
        if !self.verify {
            return Ok(None);
        }
        let expected = self.trust.as_ref().context("--verify needs --pcrs")?.expected()?;
        let most = self.max_age.map(Duration::from_secs);
        Ok(Some(match (&self.attested, most) {
            (Some(file), Some(most)) => Proof::saved(expected, file, most)?,
            (None, Some(most)) => Proof::standing(expected, most),
            _ => Proof::Fresh(expected),
        }))
    }

    fn url(&self, about: About<'_>) -> String {
        let escape = |text| utf8_percent_encode(text, ESCAPED);
        let (file, user) = (escape(about.file_id), escape(about.user_id));
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
    fn post(&self, agent: &Agent, progress: &Progress) -> Result<Response<Body>, ureq::Error> {
        let bar = progress.step(Some(self.file.len() as u64), "sending", Counts::Yes);
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
        if let Some(nonce) = &self.nonce {
            request = request.header(ATTEST, hex::encode(nonce));
        }
        request.send(SendBody::from_reader(&mut bar.wrap_read(Cursor::new(&self.file))))
    }
}

/// Largest answer to a request of `n` bytes. The daemon accepts from the watermark service three times what it sends, and
/// in JSON a byte takes at most six; the second slack is for the ids.
fn largest_answer(n: usize) -> u64 {
    sealed_len(n.saturating_mul(ANSWER_TIMES * 6).saturating_add(2 * ANSWER_SLACK)) as u64
}

/// Copies the whole body of an answer to `sink`, if it has at most `limit` bytes; returns its length.
fn receive(answer: Response<Body>, limit: u64, sink: &mut impl Write, progress: &Progress) -> Result<u64> {
    let expected = answer.body().content_length();
    if expected.is_some_and(|expected| expected > limit) {
        bail!(too_large(limit));
    }
    let bar = progress.step(expected, "receiving", Counts::No);
    let mut body = bar.wrap_read(answer.into_body().into_reader()).take(limit);
    let cut = |received: u64| {
        let message = format!("the marked file did not arrive whole ({received} bytes)");
        Failure::try_again("answer_cut_off", message)
    };
    let (mut received, mut chunk) = (0, vec![0; 64 << 10]);
    loop {
        let read = match body.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) => return Err(e).context(cut(received)),
        };
        sink.write_all(&chunk[..read]).context("the marked file cannot be written")?;
        received += read as u64;
    }
    let mut body = body.into_inner();
    if received == limit && body.read(&mut [0]).map_err(|e| anyhow::Error::new(e).context(cut(received)))? > 0 {
        bail!(too_large(limit));
    }
    if expected.is_some_and(|expected| expected != received) {
        bail!(cut(received));
    }
    Ok(received)
}

fn too_large(limit: u64) -> String {
    format!("the answer has more than {limit} bytes, and the daemon's answer for this file cannot be that large")
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
