//! What users may ask.

use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tiny_http::{Method, Request};

use super::error::ApiError;
use super::request::{Target, allow, body, id};
use super::{Answer, Api, Routed};
use crate::files;
use crate::json::Text;
use crate::memory::Reservation;
use crate::metrics::METRICS;
use crate::secrets::store::Ready;
use crate::watermark::{WatermarkRequest, call_watermark_service, check_watermark_health};

/// How long the result of a health check is kept.
const HEALTH_KEPT: Duration = Duration::from_secs(5);
/// Time to reach an endpoint in a health check.
const REACH_LIMIT: Duration = Duration::from_secs(2);
/// Room in a JSON request beside the file, in bytes.
const JSON_SLACK: usize = 64 << 10;
/// What a request holds whatever its size: buffers of its connections, two threads' stacks, in bytes.
const FIXED_COST: usize = 256 << 10;

/// Base64 of RFC 4648, section 4, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

pub fn route(api: &Api, target: &Target, request: &mut Request) -> Routed {
    let get = |request: &Request| allow(request, Method::Get, "GET");
    let post = |request: &Request| allow(request, Method::Post, "POST");
    match target.path()[..] {
        [""] => ("root", get(request).map(|()| Answer::text("Pong!"))),
        ["health"] => ("health", get(request).map(|()| Answer::json(200, &json!({"status": "alive"})))),
        ["ready"] => ("ready", get(request).map(|()| ready(api))),
        ["health_check"] => ("health_check", get(request).map(|()| health_check(api))),
        ["metrics"] => ("metrics", get(request).map(|()| Answer::text(&METRICS.print(api.memory.left())))),
        ["files", "decrypt"] => ("decrypt", post(request).and_then(|()| decrypt_json(api, request))),
        ["files", file_id, "decrypt"] => {
            ("decrypt_raw", post(request).and_then(|()| decrypt_raw(api, file_id, target, request)))
        }
        _ => ("unknown", Err(ApiError::NotFound)),
    }
}

fn ready(api: &Api) -> Answer {
    let missing = api.store.now().missing();
    let status = if missing.is_empty() { 200 } else { 503 };
    Answer::json(status, &json!({"ready": missing.is_empty(), "missing": missing}))
}

/// The last health check. Only one is made at a time.
#[derive(Default)]
pub struct Health {
    last: Mutex<Option<Checked>>,
    checking: Mutex<()>,
}

/// A health check's result and when it was made.
#[derive(Clone)]
struct Checked {
    at: Instant,
    status: u16,
    result: Value,
}

/// Tries every endpoint and asks the watermark service. Who comes while that goes on gets the last result; where there
/// is none yet, the new one.
fn health_check(api: &Api) -> Answer {
    let Health { last, checking } = &api.health;
    let last_result = || last.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let fresh = |checked: &Checked| checked.at.elapsed() < HEALTH_KEPT;
    let (one_at_a_time, checked) = (checking.try_lock(), last_result());
    let checked = match (one_at_a_time, checked) {
        (_, Some(checked)) if fresh(&checked) => checked,
        (Err(TryLockError::WouldBlock), Some(checked)) => checked,
        (one_at_a_time, _) => {
            // A check that panicked leaves nothing half done.
            let _one_at_a_time = match one_at_a_time {
                Ok(guard) => guard,
                Err(TryLockError::Poisoned(e)) => e.into_inner(),
                Err(TryLockError::WouldBlock) => checking.lock().unwrap_or_else(PoisonError::into_inner),
            };
            last_result().filter(fresh).unwrap_or_else(|| {
                let checked = check(api);
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(checked.clone());
                checked
            })
        }
    };
    Answer::json(checked.status, &checked.result)
}

fn check(api: &Api) -> Checked {
    let mut endpoints = Map::new();
    for endpoint in api.allowed.iter() {
        endpoints.insert(endpoint.to_string(), json!(api.route.dial(endpoint, REACH_LIMIT).is_ok()));
    }
    let watermark = match api.store.now().ready() {
        Ok(ready) => check_watermark_health(&ready).map_err(|e| e.to_string()),
        Err(missing) => Err(format!("not asked; missing: {}", missing.join(", "))),
    };
    let healthy = watermark == Ok(true) && endpoints.values().all(|reached| reached == true);
    let watermark = match watermark {
        Ok(healthy) => json!({"healthy": healthy}),
        Err(reason) => json!({"healthy": false, "error": reason}),
    };
    let result = json!({
        "status": if healthy { "healthy" } else { "unhealthy" },
        "endpoints_status": endpoints,
        "watermark": watermark,
    });
    Checked { at: Instant::now(), status: if healthy { 200 } else { 503 }, result }
}

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
}

#[derive(Serialize)]
struct DecryptAnswer<'a> {
    file_id: &'a str,
    user_id: &'a str,
    decrypted_data: String,
    watermarked: bool,
}

/// What a request of `n` bytes comes to hold: the file, its JSON for the service, the answer and the marked file, of
/// which never more than this is there at once. What turns out larger is reserved when that is known.
pub fn cost(n: usize) -> usize {
    n.saturating_mul(4).saturating_add(FIXED_COST)
}

fn decrypt_json(api: &Api, request: &mut Request) -> Result<Answer, ApiError> {
    let secrets = api.store.now().ready().map_err(ApiError::NotReady)?;
    let mut memory = api.memory.reserve(0)?;
    let limit = (api.max_file + files::OVERHEAD).div_ceil(3) * 4 + JSON_SLACK;
    let body = body(request, limit, &mut memory, cost)?;
    let (file_id, user_id, key_id, file) = parse(&body)?;
    drop(body);
    let marked = decrypt_and_mark(api, &secrets, file, [&file_id, &user_id], key_id.as_deref(), &mut memory)?;
    memory.cover(marked.data.len().saturating_mul(4))?;
    let decrypted_data = BASE64.encode(&marked.data);
    drop(marked.data);
    let answer =
        DecryptAnswer { file_id: &file_id, user_id: &user_id, decrypted_data, watermarked: marked.watermarked };
    let mut body = Vec::with_capacity(answer.decrypted_data.len() + 2 * 6 * (file_id.len() + user_id.len()) + 128);
    serde_json::to_writer(&mut body, &answer).map_err(|_| ApiError::Panicked)?;
    memory.shrink(body.capacity() + FIXED_COST);
    Ok(Answer { status: 200, content_type: "application/json", headers: Vec::new(), body, held: Some(memory) })
}

type Parsed = (String, String, Option<String>, Vec<u8>);

fn parse(body: &[u8]) -> Result<Parsed, ApiError> {
    let request: DecryptRequest = serde_json::from_slice(body).map_err(|e| {
        ApiError::Invalid(format!("the body is not the expected JSON at line {} column {}", e.line(), e.column()))
    })?;
    let file_id = id("file_id", request.file_id.as_deref())?;
    let user_id = id("user_id", request.user_id.as_deref())?;
    let key_id = request.key_id.as_deref().map(|k| id("key_id", Some(k))).transpose()?;
    let content = request.encrypted_content.as_deref();
    let content = content.ok_or_else(|| ApiError::Invalid("encrypted_content is missing".into()))?;
    let file = BASE64.decode(content).map_err(|_| ApiError::Invalid("encrypted_content is not base64".into()))?;
    Ok((file_id.to_owned(), user_id.to_owned(), key_id.map(str::to_owned), file))
}

fn decrypt_raw(api: &Api, file_id: &str, target: &Target, request: &mut Request) -> Result<Answer, ApiError> {
    let secrets = api.store.now().ready().map_err(ApiError::NotReady)?;
    let file_id = id("file_id", Some(file_id))?;
    let user_id = id("user_id", target.query("user_id")?)?;
    let key_id = target.query("key_id")?.map(|key_id| id("key_id", Some(key_id))).transpose()?;
    let limit = api.max_file + files::OVERHEAD;
    let mut memory = api.memory.reserve(0)?;
    let file = body(request, limit, &mut memory, cost)?;
    let marked = decrypt_and_mark(api, &secrets, file, [file_id, user_id], key_id, &mut memory)?;
    let headers = vec![("Teemark-Watermarked", marked.watermarked.to_string())];
    memory.shrink(marked.data.capacity() + FIXED_COST);
    let (content_type, held) = ("application/octet-stream", Some(memory));
    Ok(Answer { status: 200, content_type, headers, body: marked.data, held })
}

struct Marked {
    data: Vec<u8>,
    watermarked: bool,
}

/// The daemon's work: opens the file and has it marked.
fn decrypt_and_mark(
    api: &Api,
    secrets: &Ready,
    file: Vec<u8>,
    [file_id, user_id]: [&str; 2],
    key_id: Option<&str>,
    memory: &mut Reservation,
) -> Result<Marked, ApiError> {
    if file.len() > api.max_file + files::OVERHEAD {
        return Err(ApiError::FileTooLarge);
    }
    METRICS.file_bytes_in.add(file.len() as u64);
    let start = Instant::now();
    let opened = secrets.keys.open(file, file_id, key_id);
    METRICS.decrypt_time.observe(start.elapsed());
    let plain = opened?;
    if plain.len() > api.max_file {
        return Err(ApiError::FileTooLarge);
    }
    let response = call_watermark_service(secrets, WatermarkRequest { file_id, user_id, data: &plain }, memory)?;
    let marked = match response.watermarked_data {
        Some(data) => Marked { data, watermarked: true },
        None if api.allow_unwatermarked => Marked { data: plain, watermarked: false },
        None => return Err(ApiError::WatermarkMissing),
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
            (r#"{"file_id":7}"#, "not the expected JSON at line 1 column 12"),
            (r#"["f"#, "not the expected JSON at line 1"),
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
        let (file_id, _, key_id, file) = parse(body).unwrap();
        assert_eq!((file_id.as_str(), key_id, file), ("fä", None, vec![0]));
    }

    #[test]
    fn deep_json_is_an_error_and_no_overflow() {
        let deep = format!("{{\"x\":{}", "[".repeat(1_000_000));
        assert!(matches!(parse(deep.as_bytes()), Err(ApiError::Invalid(_))));
    }
}
