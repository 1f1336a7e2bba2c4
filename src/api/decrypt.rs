//! The two routes that give out files.

use std::time::Instant;

use formats::base64;
use formats::grants;
use formats::hpke::PublicKey;
use formats::json::{self, Text};
use formats::reply::{self, About};
use serde::{Deserialize, Serialize};

use super::Api;
use super::error::ApiError;
use super::permit::{Permit, Permitted};
use super::request::{Target, body, header, id};
use crate::memory::Reservation;
use crate::metrics::METRICS;
use crate::net::answer::Answer;
use crate::net::request::Request;
use crate::secrets::store::Ready;
use crate::watermark::{Caller, WatermarkRequest, call_watermark_service};

/// What a request holds whatever its size: buffers of its connections, a thread's stack, in bytes.
const FIXED_COST: usize = 256 << 10;

#[derive(Deserialize)]
struct DecryptRequest<'a> {
    #[serde(borrow)]
    file_id: Option<Text<'a>>,
    #[serde(borrow)]
    user_id: Option<Text<'a>>,
    #[serde(borrow)]
    encrypted_content: Option<Text<'a>>,
    #[serde(borrow)]
    key_id: Option<Text<'a>>,
    #[serde(borrow)]
    reply_key: Option<Text<'a>>,
}

#[derive(Serialize)]
struct DecryptAnswer<'a> {
    file_id: &'a str,
    user_id: &'a str,
    /// The marked file; or, sealed to the reply key, the answer of [`formats::reply`].
    #[serde(skip_serializing_if = "Option::is_none")]
    decrypted_data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sealed_data: Option<&'a str>,
    watermarked: bool,
    timestamp_ms: u64,
    signature: &'a str,
}

/// What a request of `n` bytes comes to hold: the file, its JSON for the service, the answer and the marked file, of
/// which never more than this is there at once. What turns out larger is reserved when that is known.
pub fn cost(n: usize) -> usize {
    n.saturating_mul(4).saturating_add(FIXED_COST)
}

/// The same for a JSON request whose body has so many bytes: body, text with its escapes undone, and file, which are
/// there together while it is parsed, are 2.75 times the body; and four times the file is three times its base64.
pub fn json_cost(body: usize) -> usize {
    body.saturating_mul(3).saturating_add(FIXED_COST)
}

/// Does what a permit allows, and settles the permit by what came of it.
fn with_permit<'a>(
    api: &'a Api,
    request: &mut Request<'_>,
    serve: impl FnOnce(&mut Request<'_>, &Permit<'a>, Reservation) -> Result<Answer, ApiError>,
) -> Result<Answer, ApiError> {
    let permit = api.permit(request)?;
    let mut memory = api.memory.open();
    let outcome = match permit.owner().map_or(Ok(()), |owner| memory.belongs_to(owner)) {
        Ok(()) => serve(request, &permit, memory),
        Err(e) => Err(e.into()),
    };
    permit.settle(&outcome);
    outcome
}

pub fn decrypt_json(api: &Api, request: &mut Request<'_>) -> Result<Answer, ApiError> {
    with_permit(api, request, |request, permit, memory| json_answer(api, request, permit, memory))
}

fn json_answer(
    api: &Api,
    request: &mut Request<'_>,
    permit: &Permit<'_>,
    mut memory: Reservation,
) -> Result<Answer, ApiError> {
    let body = body(request, api.limits.json_body(), &mut memory, json_cost)?;
    let Asked { file_id, user_id, key_id, reply_key, file } = parse(&body)?;
    drop(body);
    let about = About { file_id: &file_id, user_id: &user_id };
    let reply_key = permit.covers(about, reply_key)?;
    let Permitted { secrets, content_sha256 } = api.permit_content(permit, request, &file)?;
    let marked = decrypt_and_mark(api, &secrets, file, about, key_id.as_deref(), &mut memory)?;
    memory.cover(marked.data.len().saturating_mul(4).saturating_add(FIXED_COST))?;
    let given = api.give(marked, about, content_sha256, reply_key)?;
    let data = base64::encode(&given.data);
    drop(given.data);
    let answer = DecryptAnswer {
        file_id: &file_id,
        user_id: &user_id,
        decrypted_data: (!given.sealed).then_some(&data),
        sealed_data: given.sealed.then_some(&data),
        watermarked: given.watermarked,
        timestamp_ms: given.timestamp_ms,
        signature: &given.signature,
    };
    let mut body = Vec::with_capacity(data.len() + 2 * 6 * (file_id.len() + user_id.len()) + 256);
    serde_json::to_writer(&mut body, &answer).map_err(|_| ApiError::Internal)?;
    memory.answering(body.capacity() + FIXED_COST);
    let (content_type, headers, held) = ("application/json", Vec::new(), Some(memory));
    Ok(Answer { route: "decrypt", status: 200, content_type, headers, body, held })
}

/// What a JSON request asks.
#[derive(Debug)]
struct Asked {
    file_id: String,
    user_id: String,
    key_id: Option<String>,
    reply_key: Option<PublicKey>,
    file: Vec<u8>,
}

fn parse(body: &[u8]) -> Result<Asked, ApiError> {
    let request: DecryptRequest = json::object(body).map_err(|e| ApiError::Invalid(format!("the body {e}")))?;
    let file_id = id("file_id", request.file_id.as_deref())?.to_owned();
    let user_id = id("user_id", request.user_id.as_deref())?.to_owned();
    let key_id = request.key_id.as_deref().map(|k| id("key_id", Some(k))).transpose()?.map(str::to_owned);
    let reply_key = request.reply_key.as_deref().map(reply_key).transpose()?;
    let content = request.encrypted_content.as_deref();
    let content = content.ok_or_else(|| ApiError::Invalid("encrypted_content is missing".into()))?;
    let file = base64::decode(content).ok_or_else(|| ApiError::Invalid("encrypted_content is not base64".into()))?;
    Ok(Asked { file_id, user_id, key_id, reply_key, file })
}

fn reply_key(text: &str) -> Result<PublicKey, ApiError> {
    grants::reply_key(text)
        .ok_or_else(|| ApiError::Invalid("reply_key is not base64 of an X25519 key, 32 bytes".into()))
}

pub fn decrypt_raw(
    api: &Api,
    file_id: &str,
    target: &Target<'_>,
    request: &mut Request<'_>,
) -> Result<Answer, ApiError> {
    with_permit(api, request, |request, permit, memory| raw_answer(api, file_id, target, request, permit, memory))
}

fn raw_answer(
    api: &Api,
    file_id: &str,
    target: &Target<'_>,
    request: &mut Request<'_>,
    permit: &Permit<'_>,
    mut memory: Reservation,
) -> Result<Answer, ApiError> {
    let file_id = id("file_id", Some(file_id))?;
    let user_id = id("user_id", target.query("user_id")?)?;
    let key_id = target.query("key_id")?.map(|key_id| id("key_id", Some(key_id))).transpose()?;
    let about = About { file_id, user_id };
    let reply_key = permit.covers(about, header(request, reply::REPLY_KEY)?.map(reply_key).transpose()?)?;
    let file = body(request, api.limits.raw_body(), &mut memory, cost)?;
    let Permitted { secrets, content_sha256 } = api.permit_content(permit, request, &file)?;
    let marked = decrypt_and_mark(api, &secrets, file, about, key_id, &mut memory)?;
    memory.cover(marked.data.len().saturating_mul(3).saturating_add(FIXED_COST))?;
    let given = api.give(marked, about, content_sha256, reply_key)?;
    let headers = vec![
        (reply::WATERMARKED, given.watermarked.to_string()),
        (reply::SEALED, given.sealed.to_string()),
        (reply::TIMESTAMP, given.timestamp_ms.to_string()),
        (reply::SIGNATURE, given.signature),
    ];
    memory.answering(given.data.capacity() + FIXED_COST);
    let (content_type, held) = ("application/octet-stream", Some(memory));
    Ok(Answer { route: "decrypt_raw", status: 200, content_type, headers, body: given.data, held })
}

/// A file that has been through the watermark service.
pub struct Marked {
    pub data: Vec<u8>,
    pub watermarked: bool,
}

/// The daemon's work: opens the file and has it marked.
fn decrypt_and_mark(
    api: &Api,
    secrets: &Ready,
    file: Vec<u8>,
    About { file_id, user_id }: About<'_>,
    key_id: Option<&str>,
    memory: &mut Reservation,
) -> Result<Marked, ApiError> {
    if file.len() > api.limits.raw_body().bytes {
        return Err(ApiError::FileTooLarge(api.limits.past_file()));
    }
    METRICS.file_bytes_in.add(file.len() as u64);
    let start = Instant::now();
    let opened = secrets.keys.open(file, file_id, key_id);
    METRICS.decrypt_time.observe(start.elapsed());
    let plain = opened?;
    if plain.len() > api.limits.max_file {
        return Err(ApiError::FileTooLarge(api.limits.past_file()));
    }
    let caller = Caller { ready: secrets, store: &api.store, form: api.watermark_api };
    let response = call_watermark_service(caller, WatermarkRequest { file_id, user_id, data: &plain }, memory)?;
    let marked = match response.watermarked_data {
        Ok(data) => Marked { data, watermarked: true },
        Err(_) if api.allow_unwatermarked => Marked { data: plain, watermarked: false },
        Err(unmarked) => return Err(ApiError::WatermarkMissing(unmarked.to_string())),
    };
    METRICS.file_bytes_out.add(marked.data.len() as u64);
    Ok(marked)
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
            (r#"{"file_id":7}"#, "not the expected JSON at line 1 column 13"),
            (r#"["f"#, "not a JSON object"),
            ("{\"file_id\":\"\u{1}\"}", "not the expected JSON"),
        ] {
            match parse(body.as_bytes()) {
                Err(ApiError::Invalid(text)) => assert!(text.contains(message), "{body}: {text}"),
                other => panic!("{body}: {other:?}"),
            }
        }
    }

    #[test]
    fn base64_may_lack_its_padding_and_unknown_members_are_left_alone() {
        let body = br#"{"file_id":"f\u00e4","user_id":"u","encrypted_content":"AA","new":[{}]}"#;
        let asked = parse(body).unwrap();
        assert_eq!((asked.file_id.as_str(), asked.key_id, asked.file), ("fä", None, vec![0]));
    }

    #[test]
    fn deep_json_is_an_error_and_no_overflow() {
        let deep = format!("{{\"x\":{}", "[".repeat(1_000_000));
        assert!(matches!(parse(deep.as_bytes()), Err(ApiError::Invalid(_))));
    }
}
