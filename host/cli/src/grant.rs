//! `teemark grant`: signs a token that lets one user have one file decrypted, once.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::builder::NonEmptyStringValueParser;
use formats::digest::{Sha256, sha256};
use formats::grants::{self, MAX_LIFE, MAX_TOKEN, NewGrant};
use formats::hpke::PublicKey;
use formats::time::Utc;
use serde_json::json;

use crate::failure::Done;
use crate::keys::{NO_RANDOM, fill_random};
use crate::output;
use crate::private_key::{PrivateKey, Use};
use crate::terminal::say;

/// Sign a grant: a token that lets one user have one file decrypted, once.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  teemark grant --key grant.key --file-id report-7 --user-id alice --audience staging \\
    --content report-7.pdf.enc --reply-key \"$(teemark keygen --for reply --public alice.key)\" > report-7.grant")]
pub(crate) struct Arguments {
    /// The issuer's private key, as teemark keygen --for grants makes it; or a P-256 key of openssl genpkey
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The file's id
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    file_id: String,
    /// The user who may have it
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    user_id: String,
    /// Where it is valid: the fleet's name (TEEMARK_FLEET), or one enclave's identity key in hexadecimal
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    audience: String,
    /// The user's public key, to which the answer must be sealed, as teemark keygen --for reply prints it
    #[arg(long, value_name = "BASE64", value_parser = reply_key, allow_hyphen_values = true)]
    reply_key: Option<PublicKey>,
    /// The encrypted file that the grant is for; it is not valid for another one sent under the same file id
    #[arg(long, value_name = "FILE")]
    content: Option<PathBuf>,
    /// How long it is valid from now on, at most a day
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=MAX_LIFE))]
    valid: u64,
}

fn reply_key(text: &str) -> Result<PublicKey, String> {
    grants::reply_key(text).ok_or_else(|| "it is not base64 of an X25519 key, 32 bytes".to_owned())
}

/// Signs the grant and prints it.
///
/// # Errors
/// The key cannot be read, or is not one that signs grants; the encrypted file cannot be read.
pub(crate) fn run(arguments: &Arguments) -> Result<Done> {
    let in_file = || format!("--key {}", arguments.key.display());
    let issuer = PrivateKey::read(&arguments.key, Use::Grants).and_then(PrivateKey::issuer).with_context(in_file)?;
    let content = arguments.content.as_deref().map(hash).transpose()?;
    if arguments.reply_key.is_none() {
        say("warning: without --reply-key whoever holds the token chooses who can read the answer");
    }
    let mut jti = [0; 16];
    fill_random(&mut jti)?;
    let grant = NewGrant {
        user_id: &arguments.user_id,
        file_id: &arguments.file_id,
        audience: &arguments.audience,
        from: Utc::now(),
        valid: arguments.valid,
        jti,
        reply_key: arguments.reply_key,
        content_sha256: content,
    };
    let claims = grant.claims();
    let token = issuer.sign(&claims).map_err(|_| anyhow!(NO_RANDOM))?;
    let told = json!({"grant": token, "claims": claims});
    Ok(Done::new(format!("{token}\n"), told))
}

fn hash(path: &Path) -> Result<Sha256> {
    let in_file = || format!("--content {}", path.display());
    let (mut source, _) = output::open_input(path).with_context(in_file)?;
    let mut file = Vec::new();
    source.read_to_end(&mut file).with_context(in_file)?;
    Ok(sha256(&file))
}

/// A token as its user has it: it is sent on without checking it.
pub(crate) struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Reads a file that holds a token. `option` names it in errors.
    ///
    /// # Errors
    /// It cannot be read, or holds something else; no message repeats any of it.
    pub(crate) fn read(path: &Path, option: &str) -> Result<Token> {
        let in_file = || format!("{option} {}", path.display());
        let (source, _) = output::open_input(path).with_context(in_file)?;
        let mut text = Vec::new();
        source.take(MAX_TOKEN as u64 + 2).read_to_end(&mut text).with_context(in_file)?;
        Token::parse(&text).with_context(in_file)
    }

    fn parse(text: &[u8]) -> Result<Token> {
        match str::from_utf8(text.trim_ascii()) {
            Ok(text) if grants::is_token(text) => Ok(Token(text.to_owned())),
            _ => bail!("it has to hold one token of at most 4 KiB, as teemark grant prints it, and nothing else"),
        }
    }

    /// The value of the header field Authorization (RFC 6750, 2.1).
    pub(crate) fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether it names the key that the answer has to be sealed to.
    pub(crate) fn names_reply_key(&self) -> bool {
        grants::names_reply_key(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.AAAA", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_token_is_taken_without_what_surrounds_it() {
        let token = Token::parse(format!(" {}\r\n", token("{}")).as_bytes()).unwrap();
        assert_eq!(token.authorization(), "Bearer e30.e30.AAAA");
        assert_eq!(format!("{token:?}"), "Token(…)");
    }

    #[test]
    fn what_is_no_token_is_refused_without_a_word_of_it() {
        let long = token(&"x".repeat(4096));
        for text in ["", "secret", "a.secret.", "YQ.YQ.secret\nX: y", "YQ.YQ.YQ.YQ", "YQ.se+ret.YQ", &long] {
            let error = Token::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("4 KiB") && !error.contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn a_token_tells_whether_it_names_a_reply_key() {
        let names = |claims| Token::parse(token(claims).as_bytes()).unwrap().names_reply_key();
        assert!(names(r#"{"sub":"u","reply_key":"AAAA"}"#));
        assert!(!names(r#"{"sub":"u"}"#) && !names("no claims"));
    }
}
