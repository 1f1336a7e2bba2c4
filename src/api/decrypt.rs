//! The daemon's job, in one pipeline for both routes.
//!
//! Each step can be made only from the one before. A request that is [`Admitted`] may send a file. A file that is
//! [`Received`] is the one that the grant is for, with the secrets in force once it has arrived. A file that is
//! [`Opened`] has been decrypted, and attested if the request asks for that. A file that is [`Marked`] came back from the
//! watermark service, and only that is [`Given`]. So no route can skip a step.

use std::cell::RefCell;
use std::time::Instant;

use formats::digest::{Sha256, sha256};
use formats::files::ChosenKey;
use formats::reply::{self, About, Statement};
use formats::time::now_ms;

use super::context::Api;
use super::error::ApiError;
use super::forms::{Form, Given};
use super::permit::{Asked, Covered, Permit, Valid};
use crate::audit::{self, Trail};
use crate::logging::{Log, log};
use crate::memory::{FIXED_COST, Reservation, while_growing};
use crate::metrics::METRICS;
use crate::net::answer::Answer;
use crate::net::request::Request;
use crate::secrets::store::Ready;
use crate::watermark::{Caller, WatermarkRequest, call_watermark_service};

/// Answers a request for a file, then settles its grant by the outcome.
///
/// # Errors
/// Why there is no file.
pub(crate) fn decrypt(api: &Api, form: &Form<'_>, request: &mut Request<'_>) -> Result<Answer, ApiError> {
    let trail = RefCell::new(Trail::of_request());
    let valid = Valid::check(&api.grants, &api.store, request)
        .inspect_err(|e| refuses(&mut trail.borrow_mut(), e, audit::refuses_stranger))?;
    // Before it is taken: a grant that was used already is recorded with its names, however often it comes.
    valid.tell(&api.grants, &mut trail.borrow_mut());
    let record: fn(&mut Trail) = |trail| _ = trail.record("refused");
    let permit = valid.take(&api.grants).inspect_err(|e| refuses(&mut trail.borrow_mut(), e, record))?;
    let outcome = Admitted::admit(api, &permit, &trail)
        .and_then(|admitted| admitted.receive(form, request))
        .and_then(Received::open)
        .and_then(Opened::mark)
        .and_then(Marked::give)
        .map(|given| form.answer(given));
    if let Err(e) = &outcome {
        refuses(&mut trail.borrow_mut(), e, record);
    }
    permit.settle(&outcome);
    outcome
}

fn refuses(trail: &mut Trail, e: &ApiError, record: fn(&mut Trail)) {
    let (status, code) = e.code();
    trail.number("status", status.into());
    trail.text("code", code);
    record(trail);
}

fn tell(asked: &Asked, trail: &mut Trail) {
    trail.text("file_id", &asked.file_id);
    trail.text("user_id", &asked.user_id);
}

/// A request that may send its file.
struct Admitted<'a> {
    api: &'a Api,
    permit: &'a Permit<'a>,
    trail: &'a RefCell<Trail>,
    memory: Reservation,
}

/// A file that has arrived and that the permit covers.
struct Received<'a> {
    api: &'a Api,
    permit: &'a Permit<'a>,
    trail: &'a RefCell<Trail>,
    asked: Covered,
    file: Vec<u8>,
    /// SHA-256 of the encrypted file.
    content_sha256: Sha256,
    /// The secrets in force once the file has arrived.
    secrets: Ready,
    memory: Reservation,
}

/// A file that has been decrypted.
struct Opened<'a> {
    api: &'a Api,
    trail: &'a RefCell<Trail>,
    asked: Covered,
    plain: Vec<u8>,
    /// What it was opened with.
    key: ChosenKey,
    /// The attestation document, if the request asked for one.
    document: Option<Vec<u8>>,
    content_sha256: Sha256,
    secrets: Ready,
    memory: Reservation,
}

/// A file that came back from the watermark service.
struct Marked<'a> {
    api: &'a Api,
    trail: &'a RefCell<Trail>,
    asked: Covered,
    data: Vec<u8>,
    watermarked: bool,
    document: Option<Vec<u8>>,
    content_sha256: Sha256,
    memory: Reservation,
}

impl<'a> Admitted<'a> {
    fn admit(api: &'a Api, permit: &'a Permit<'a>, trail: &'a RefCell<Trail>) -> Result<Admitted<'a>, ApiError> {
        // It would only hold a thread and its memory until the time for the acknowledgement is over.
        if log().and_then(Log::audit_fault).is_some() {
            return Err(ApiError::AuditUnavailable);
        }
        let mut memory = api.memory.open();
        permit.owner().map_or(Ok(()), |owner| memory.belongs_to(owner))?;
        Ok(Admitted { api, permit, trail, memory })
    }

    /// Reads the parameters and the file. The file may take long to arrive, so what was in force when it began does not
    /// count.
    fn receive(mut self, form: &Form<'_>, request: &mut Request<'_>) -> Result<Received<'a>, ApiError> {
        let Admitted { api, permit, trail, .. } = self;
        let covers = |asked: Asked| {
            tell(&asked, &mut trail.borrow_mut());
            permit.covers(asked)
        };
        let (asked, file) = form.read(&api.limits, request, &mut self.memory, covers)?;
        let content_sha256 = sha256(&file);
        trail.borrow_mut().hash("content_sha256", content_sha256);
        let secrets = permit.recheck(&api.grants, &api.store, request, content_sha256)?;
        Ok(Received { api, permit, trail, asked, file, content_sha256, secrets, memory: self.memory })
    }
}

impl<'a> Received<'a> {
    /// Decrypts the file, and has the module attest the enclave if the request asks for that: only for a file that opens,
    /// since the module's turns are few, and before the service is called, since a request that gets no turn is made again.
    fn open(self) -> Result<Opened<'a>, ApiError> {
        let Received { api, permit, trail, asked, file, content_sha256, secrets, memory } = self;
        let Asked { file_id, key_id, nonce, .. } = asked.asked();
        if file.len() > api.limits.raw_body().bytes {
            return Err(ApiError::FileTooLarge(api.limits.past_file()));
        }
        METRICS.file_bytes_in.add(file.len() as u64);
        let start = Instant::now();
        let chosen = secrets.keys.choose(&file, key_id.as_deref());
        if let Some(key_id) = chosen.as_ref().map_or(key_id.as_deref(), |key| Some(key.id())) {
            trail.borrow_mut().text("key_id", key_id);
        }
        let key = chosen?;
        let opened = key.open(file, file_id);
        METRICS.decrypt_time.observe(start.elapsed());
        let plain = opened?;
        if plain.len() > api.limits.max_file {
            return Err(ApiError::FileTooLarge(api.limits.past_file()));
        }
        let document = nonce.as_deref().map(|nonce| permit.document(&api.attestation, nonce)).transpose()?;
        Ok(Opened { api, trail, asked, plain, key, document, content_sha256, secrets, memory })
    }
}

impl<'a> Opened<'a> {
    /// Has the file marked.
    fn mark(self) -> Result<Marked<'a>, ApiError> {
        let Opened { api, trail, asked, plain, key, document, content_sha256, secrets, mut memory } = self;
        let Asked { file_id, user_id, .. } = asked.asked();
        let keep_file = api.allow_unwatermarked;
        let caller = Caller { ready: &secrets, key: &key, store: &api.store, form: api.watermark_api, keep_file };
        let request = WatermarkRequest { file_id, user_id, data: plain };
        let response = call_watermark_service(caller, request, &mut memory)?;
        let (data, watermarked) = match (response.watermarked_data, response.file) {
            (Ok(marked), _) => (marked, true),
            (Err(_), Some(file)) if api.allow_unwatermarked => (file, false),
            (Err(unmarked), _) => return Err(ApiError::WatermarkMissing(unmarked.to_string())),
        };
        METRICS.file_bytes_out.add(data.len() as u64);
        Ok(Marked { api, trail, asked, data, watermarked, document, content_sha256, memory })
    }
}

impl Marked<'_> {
    /// Seals the file, if requested, signs what is returned, and records that it is given.
    fn give(self) -> Result<Given, ApiError> {
        let Marked { api, trail, asked, data, watermarked, document, content_sha256, mut memory } = self;
        let Asked { file_id, user_id, .. } = asked.asked();
        let about = About { file_id, user_id };
        let reply_key = asked.reply_key();
        let data = match &reply_key {
            None => data,
            Some(key) => {
                let room = reply::sealed_len(data.len());
                if room > data.capacity() {
                    memory.cover(while_growing(data.capacity(), room).saturating_add(FIXED_COST))?;
                }
                reply::seal(data, about, key).map_err(|_| ApiError::Internal)?
            }
        };
        let (sealed, timestamp_ms) = (reply_key.is_some(), now_ms());
        let statement = Statement { about, content_sha256, watermarked, sealed, timestamp_ms };
        let given_sha256 = sha256(&data);
        let signature = formats::base64::encode(api.attestation.sign(&statement.to_bcs_of(given_sha256)));
        let identity = hex::encode(api.attestation.identity());
        let mut trail = trail.borrow_mut();
        trail.hash("given_sha256", given_sha256);
        trail.flag("watermarked", watermarked);
        trail.flag("sealed", sealed);
        trail.number("status", 200);
        if !audit::gives(&mut trail) {
            return Err(ApiError::AuditUnavailable);
        }
        Ok(Given { asked, data, sealed, watermarked, timestamp_ms, signature, identity, document, memory })
    }
}
