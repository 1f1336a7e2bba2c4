//! Routes of the public listener, for users.

use std::time::{Duration, Instant};

use formats::base64;
use serde_json::json;

use super::context::Api;
use super::cors;
use super::decrypt::decrypt;
use super::error::{ApiError, Routed};
use super::forms::Form;
use super::health::health_check;
use super::request::{CHECK_EVERY, Target, allow, nonce};
use super::shared::{metrics, readiness, refused};
use crate::attest::{Asker, DocumentError, RENEWAL};
use crate::logging::{self, Log};
use crate::memory::Reservation;
use crate::net::answer::{Answer, Content};
use crate::net::request::{Progress, Request};
use crate::secrets::listener::{Failed, Sender};

pub(crate) fn route(api: &Api, target: &Target<'_>, request: &mut Request<'_>) -> Routed {
    match serve(api, target, request) {
        (route, Err(ApiError::MethodNotAllowed(method))) if request.head.method == "OPTIONS" => {
            (route, Ok(cors::options(method)))
        }
        routed => routed,
    }
}

fn serve(api: &Api, target: &Target<'_>, request: &mut Request<'_>) -> Routed {
    let get = |request: &Request<'_>| allow(request, "GET");
    // For what is work, not a look.
    let admit = |request: &Request<'_>, method| allow(request, method).and_then(|()| api.drain.admit());
    match *target.path() {
        [""] => ("root", get(request).map(|()| Answer::text("Pong!"))),
        ["health"] => ("health", get(request).map(|()| Answer::json(200, &json!({"status": "alive"})))),
        ["ready"] => ("ready", get(request).map(|()| ready(api))),
        ["health_check"] => ("health_check", get(request).and_then(|()| check_health(api, target))),
        ["get_attestation"] => ("get_attestation", admit(request, "GET").and_then(|()| get_attestation(api, target))),
        ["attestation"] => ("attestation", admit(request, "GET").and_then(|()| attestation(api))),
        ["state"] => ("state", get(request).map(|()| state(api))),
        // Also while the enclave is drained, since it may be taken back.
        ["sealed-bundle"] => ("sealed_bundle", allow(request, "POST").and_then(|()| sealed_bundle(api, request))),
        ["log", "checkpoint"] => (
            "log_checkpoint",
            get(request)
                .and_then(|()| logging::log().and_then(Log::live).ok_or(ApiError::NotFound))
                .map(|live| Answer::json(200, &json!(live))),
        ),
        ["metrics"] if api.public_metrics => ("metrics", get(request).map(|()| metrics(api))),
        ["files", "decrypt"] => {
            ("decrypt", admit(request, "POST").and_then(|()| decrypt(api, &Form::Json { target }, request)))
        }
        ["files", file_id, "decrypt"] => {
            ("decrypt_raw", admit(request, "POST").and_then(|()| decrypt(api, &Form::Raw { file_id, target }, request)))
        }
        _ => ("unknown", Err(ApiError::NotFound)),
    }
}

fn ready(api: &Api) -> Answer {
    let (ready, why) = readiness(api);
    Answer::json(if ready { 200 } else { 503 }, &why)
}

/// What the daemon depends on. The status is about the daemon itself, as at Nautilus: whoever replaces what is unhealthy
/// would otherwise end an enclave, and its secrets with it, when the service is down. Only a strict caller is told by it
/// whether a file would be served.
fn check_health(api: &Api, target: &Target<'_>) -> Result<Answer, ApiError> {
    let strict = match target.query("strict")? {
        None | Some("0") => false,
        Some("1") => true,
        Some(_) => return Err(ApiError::Invalid("strict is neither 1 nor 0".into())),
    };
    let (healthy, mut answer) = health_check(&api.health, &api.allowed, api.route, &api.store);
    let (ready, _) = readiness(api);
    answer["ready"] = ready.into();
    answer["pk"] = hex::encode(api.attestation.identity()).into();
    Ok(Answer::json(if strict && !(healthy && ready) { 503 } else { 200 }, &answer))
}

/// The attestation document in hex, as Nautilus serves it; if a test root signs it, with that root.
fn get_attestation(api: &Api, target: &Target<'_>) -> Result<Answer, ApiError> {
    let nonce = target.query("nonce")?.map(|hex| nonce("nonce", hex)).transpose()?;
    let document = api.attestation.document(nonce.as_deref(), Asker::Anyone)?;
    let mut answer = json!({"attestation": hex::encode(document)});
    if let Some(root) = api.attestation.test_root().map_err(DocumentError::Nsm)? {
        answer["test_root"] = base64::encode(root).into();
    }
    Ok(Answer::json(200, &answer))
}

/// The attestation document without a nonce, in bytes: for clients that ask too often for one of their own each.
fn attestation(api: &Api) -> Result<Answer, ApiError> {
    let body = Content::Bytes(api.attestation.standing()?);
    let headers = vec![("Cache-Control", format!("max-age={}", RENEWAL.as_secs()))];
    Ok(Answer { route: "", status: 200, content_type: COSE_SIGN1, headers, body, held: None })
}

/// What is in force, without a secret: the bytes whose SHA-256 attestation documents have.
fn state(api: &Api) -> Answer {
    let body = Content::Bytes(api.store.now().state_json().as_bytes().to_vec());
    Answer { route: "", status: 200, content_type: "application/json", headers: Vec::new(), body, held: None }
}

/// The handshake by the public listener, for sealed bundles.
fn sealed_bundle(api: &Api, request: &mut Request<'_>) -> Result<Answer, ApiError> {
    let mut memory = api.memory.open();
    memory.receiving(Instant::now());
    match api.handshakes.receive(&mut Body { request, memory }) {
        Ok(accepted) => Ok(Answer::json(200, &accepted.to_json())),
        Err(Failed::Refused(refusal)) => Ok(refused(&refusal)),
        Err(Failed::Busy) => Err(ApiError::TooManyBundles),
        Err(Failed::NoMemory(e)) => Err(e.into()),
        Err(Failed::Lost(e)) => Err(e),
    }
}

/// A bundle that comes as the body of a request.
struct Body<'a, 'r> {
    request: &'a mut Request<'r>,
    /// Nothing is reserved in it. By it the request gives way to others while it is silent.
    memory: Reservation,
}

impl Sender for Body<'_, '_> {
    type Error = ApiError;

    fn more(&mut self, into: &mut Vec<u8>, room: usize) -> Result<bool, ApiError> {
        loop {
            match self.request.read(into, room, CHECK_EVERY)? {
                Progress::Content => {
                    self.memory.receiving(Instant::now());
                    return Ok(true);
                }
                Progress::End => return Ok(false),
                Progress::Nothing => {}
            }
            if self.memory.gives_way(Instant::now()) {
                return Err(ApiError::Overloaded);
            }
        }
    }

    fn goes_on(&mut self, waited: Duration) {
        self.request.pause(waited);
        self.memory.receiving(Instant::now());
    }
}

/// The media type of an untagged COSE_Sign1 (RFC 9052, 11.3.1).
const COSE_SIGN1: &str = "application/cose; cose-type=\"cose-sign1\"";
