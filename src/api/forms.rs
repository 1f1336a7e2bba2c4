//! The two forms of a request for a file and of its answer: raw bytes, or JSON.

use formats::grants;
use formats::hpke::PublicKey;
use formats::json::{self, LargeText, Text};
use formats::reply;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::limits::{Limits, TooLarge};
use super::permit::{Asked, Covered};
use super::request::{Target, body, decode, header, id, nonce};
use crate::memory::{FIXED_COST, JSON_SLACK, Reservation, crowded};
use crate::net::answer::{Answer, Content};
use crate::net::request::Request;

/// How a file is requested, and so how it is returned.
pub(crate) enum Form<'t> {
    /// All of it in JSON.
    Json { target: &'t Target<'t> },
    /// The body is the file; the rest is in the path, the query and header fields.
    Raw { file_id: &'t str, target: &'t Target<'t> },
}

/// An answer's content: the file or its sealed form, with the enclave's signature over exactly these bytes.
pub(crate) struct Given {
    pub asked: Covered,
    pub data: Vec<u8>,
    pub sealed: bool,
    pub watermarked: bool,
    pub timestamp_ms: u64,
    /// Base64 of 64 bytes.
    pub signature: String,
    /// The key that signed, in hex.
    pub identity: String,
    /// The attestation document for the request's nonce.
    pub document: Option<Vec<u8>>,
    /// The memory that the answer holds until it is sent.
    pub memory: Reservation,
}

impl Form<'_> {
    /// Reads the parameters and the encrypted file. `covers` decides whether the request may have what it asks for; for
    /// a raw request, before its body is read.
    ///
    /// # Errors
    /// The request is malformed or not permitted, or its body does not arrive.
    pub(crate) fn read(
        &self,
        limits: &Limits,
        request: &mut Request<'_>,
        memory: &mut Reservation,
        covers: impl FnOnce(Asked) -> Result<Covered, ApiError>,
    ) -> Result<(Covered, Vec<u8>), ApiError> {
        match self {
            Form::Json { target } => {
                nothing_misplaced(target, request, true)?;
                let body = body(request, limits.json_body(), memory, |n| limits.json_cost(n));
                let body = body.map_err(|e| self.names_its_limit(limits, e))?;
                if json::beside_largest_value(&body) > JSON_SLACK {
                    memory.cover(limits.json_cost(body.len()).saturating_add(crowded(body.len())))?;
                }
                let (asked, file) = parse(body)?;
                Ok((covers(asked)?, file))
            }
            Form::Raw { file_id, target } => {
                nothing_misplaced(target, request, false)?;
                let covered = covers(raw(file_id, target, request)?)?;
                let body = body(request, limits.raw_body(), memory, |n| limits.raw_cost(n));
                Ok((covered, body.map_err(|e| self.names_its_limit(limits, e))?))
            }
        }
    }

    /// Where a body needs more memory than there is, the error with the largest file of this route.
    fn names_its_limit(&self, limits: &Limits, e: ApiError) -> ApiError {
        let ApiError::FileTooLarge(TooLarge::Memory(memory)) = e else { return e };
        let [raw, json] = limits.largest_files();
        let (route, largest) = match self {
            Form::Json { .. } => ("JSON", json),
            Form::Raw { .. } => ("raw", raw),
        };
        ApiError::FileTooLarge(TooLarge::Route { route, largest, memory })
    }

    /// The answer with the file.
    pub(crate) fn answer(&self, given: Given) -> Answer {
        match self {
            Form::Json { .. } => json_answer(given),
            Form::Raw { .. } => raw_answer(given),
        }
    }
}

#[derive(Deserialize)]
struct JsonRequest<'a> {
    #[serde(borrow)]
    file_id: Option<Text<'a>>,
    #[serde(borrow)]
    user_id: Option<Text<'a>>,
    #[serde(borrow)]
    encrypted_content: Option<LargeText<'a>>,
    #[serde(borrow)]
    key_id: Option<Text<'a>>,
    #[serde(borrow)]
    reply_key: Option<Text<'a>>,
    #[serde(borrow)]
    attest_nonce: Option<Text<'a>>,
}

/// A JSON answer up to its file.
#[derive(Serialize)]
struct BeforeFile<'a> {
    file_id: &'a str,
    user_id: &'a str,
}

/// A JSON answer from its file on.
#[derive(Serialize)]
struct AfterFile<'a> {
    watermarked: bool,
    timestamp_ms: u64,
    signature: &'a str,
    identity: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attestation: Option<String>,
}

/// Refuses a request that asks for a sealed answer or an attestation document where its form does not look for that: it
/// would get an answer without it, and its grant would be used up.
fn nothing_misplaced(target: &Target<'_>, request: &Request<'_>, is_json: bool) -> Result<(), ApiError> {
    for (field, member) in [(reply::REPLY_KEY, "reply_key"), (reply::ATTEST, "attest_nonce")] {
        if target.query(member)?.is_some() || (is_json && request.head.values(field).next().is_some()) {
            let message =
                format!("{member} goes into the JSON body, or on the raw route into the header field {field}");
            return Err(ApiError::Invalid(message));
        }
    }
    Ok(())
}

/// Takes a request apart; the file is decoded in the buffer of the body.
fn parse(body: Vec<u8>) -> Result<(Asked, Vec<u8>), ApiError> {
    let request: JsonRequest = json::object(&body).map_err(|e| ApiError::Invalid(format!("the body {e}")))?;
    let file_id = id("file_id", request.file_id.as_deref())?.to_owned();
    let user_id = id("user_id", request.user_id.as_deref())?.to_owned();
    let key_id = request.key_id.as_deref().map(|k| id("key_id", Some(k))).transpose()?.map(str::to_owned);
    let reply_key = request.reply_key.as_deref().map(reply_key).transpose()?;
    let nonce = request.attest_nonce.as_deref().map(|hex| nonce("attest_nonce", hex)).transpose()?;
    let content = request.encrypted_content;
    let content = content.ok_or_else(|| ApiError::Invalid("encrypted_content is missing".into()))?.place(&body);
    let file = json::into_bytes(body, content);
    let file = file.ok_or_else(|| ApiError::Invalid("encrypted_content is not base64".into()))?;
    Ok((Asked { file_id, user_id, key_id, reply_key, nonce }, file))
}

fn raw(file_id: &str, target: &Target<'_>, request: &Request<'_>) -> Result<Asked, ApiError> {
    let file_id = decode(file_id, "the path")?;
    let file_id = id("file_id", Some(&file_id))?.to_owned();
    let user_id = id("user_id", target.query("user_id")?)?.to_owned();
    let key_id = target.query("key_id")?.map(|key_id| id("key_id", Some(key_id))).transpose()?.map(str::to_owned);
    let reply_key = header(request, reply::REPLY_KEY)?.map(reply_key).transpose()?;
    let nonce = header(request, reply::ATTEST)?.map(|hex| nonce(reply::ATTEST, hex)).transpose()?;
    Ok(Asked { file_id, user_id, key_id, reply_key, nonce })
}

fn reply_key(text: &str) -> Result<PublicKey, ApiError> {
    grants::reply_key(text)
        .ok_or_else(|| ApiError::Invalid("reply_key is not base64 of an X25519 key, 32 bytes".into()))
}

fn json_answer(given: Given) -> Answer {
    let Given { asked, data, sealed, watermarked, timestamp_ms, signature, identity, document, mut memory } = given;
    let Asked { file_id, user_id, .. } = asked.asked();
    // The marked file; or, if it is sealed to the reply key, what it is sealed into ([`formats::reply`]).
    let member = if sealed { ",\"sealed_data\":\"" } else { ",\"decrypted_data\":\"" };
    let mut before = serde_json::to_vec(&BeforeFile { file_id, user_id }).expect("texts are JSON");
    before.pop(); // the closing brace
    before.extend_from_slice(member.as_bytes());
    let attestation = document.map(hex::encode);
    let after = AfterFile { watermarked, timestamp_ms, signature: &signature, identity: &identity, attestation };
    let after = serde_json::to_string(&after);
    let after = after.expect("texts and numbers are JSON").replacen('{', "\",", 1).into_bytes();
    memory.answering(data.capacity() + FIXED_COST);
    let body = Content::Base64 { before, data, after };
    Answer { route: "", status: 200, content_type: "application/json", headers: Vec::new(), body, held: Some(memory) }
}

fn raw_answer(given: Given) -> Answer {
    let Given { data, sealed, watermarked, timestamp_ms, signature, identity, document, mut memory, .. } = given;
    let mut headers = vec![
        (reply::WATERMARKED, watermarked.to_string()),
        (reply::SEALED, sealed.to_string()),
        (reply::TIMESTAMP, timestamp_ms.to_string()),
        (reply::SIGNATURE, signature),
        (reply::IDENTITY, identity),
    ];
    memory.answering(data.capacity() + FIXED_COST);
    let body = match document {
        None => Content::Bytes(data),
        Some(before) => {
            headers.push((reply::ATTESTATION_LENGTH, before.len().to_string()));
            Content::Behind { before, data }
        }
    };
    let (content_type, held) = ("application/octet-stream", Some(memory));
    Answer { route: "", status: 200, content_type, headers, body, held }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_what_is_missing_or_wrong_in_it() {
        for (body, message) in [
            (r#"{}"#, "file_id is missing"),
            (r#"{"file_id":"f"}"#, "user_id is missing"),
            (r#"{"file_id":"f","user_id":"u"}"#, "encrypted_content is missing"),
            (r#"{"file_id":"f","user_id":"u","encrypted_content":"?"}"#, "encrypted_content is not base64"),
            (r#"{"file_id":"f","user_id":"u","reply_key":"AAAA"}"#, "reply_key is not base64"),
            (r#"{"file_id":"f","user_id":"u","attest_nonce":""}"#, "attest_nonce is not hex of 1 to 64 bytes"),
            (r#"{"file_id":7}"#, "not the expected JSON at line 1 column 13"),
            (r#"["f"#, "not a JSON object"),
            ("{\"file_id\":\"\u{1}\"}", "not the expected JSON"),
        ] {
            match parse(body.as_bytes().to_vec()) {
                Err(ApiError::Invalid(text)) => assert!(text.contains(message), "{body}: {text}"),
                other => panic!("{body}: {other:?}"),
            }
        }
    }

    #[test]
    fn base64_may_lack_its_padding_and_unknown_members_are_left_alone() {
        let body = br#"{"file_id":"f\u00e4","user_id":"u","encrypted_content":"AA","new":[{}]}"#;
        let (asked, file) = parse(body.to_vec()).unwrap();
        assert_eq!((asked.file_id.as_str(), asked.key_id, file), ("fä", None, vec![0]));
    }

    #[test]
    fn deep_json_is_an_error_and_does_not_overflow_the_stack() {
        let deep = format!("{{\"x\":{}", "[".repeat(1_000_000));
        assert!(matches!(parse(deep.into_bytes()), Err(ApiError::Invalid(_))));
    }
}
