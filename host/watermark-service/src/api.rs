//! The routes and their JSON, and the faults that replace or change an answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, EXPECT, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::body::{AnswerBody, Cut};
use crate::content::Content;
use crate::error::ApiError;
use crate::fault::{ActiveFaults, Early, Faults, Instead, WrongFile};
use crate::form::{Form, Members};
use crate::log::log;
use crate::mark::{Mark, text};
use crate::twice::Again;

/// The smallest files of two kinds; the fault `other-kind` returns one of them.
const PDF: &[u8] = b"%PDF-1.7\n%%EOF\n";
const EMPTY_ZIP: &[u8] = b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// What all connections share.
pub(crate) struct Api {
    faults: Faults,
    max_body: usize,
    /// Bounds how many files are worked on at once to the number of processors: a picture takes several times the size
    /// of its file in memory.
    work: tokio::sync::Semaphore,
}

type Outcome = Result<Value, ApiError>;

#[derive(Deserialize)]
struct WatermarkRequest {
    file_id: String,
    user_id: String,
    #[serde(flatten)]
    members: Members,
}

#[derive(Deserialize)]
struct ExtractRequest {
    #[serde(flatten)]
    members: Members,
}

/// Logs one line per request when it is dropped, so also if the client disconnects before the answer.
struct RequestLine {
    request: String,
    serial: Arc<str>,
    bytes: usize,
    status: Option<StatusCode>,
}

impl Drop for RequestLine {
    fn drop(&mut self) {
        let status = self.status.as_ref().map_or("-", StatusCode::as_str);
        log(&format!("{} {status}, {} bytes in, client serial={}", self.request, self.bytes, self.serial));
    }
}

impl Api {
    pub(crate) fn new(faults: Faults, max_body: usize) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        Api { faults, max_body, work: tokio::sync::Semaphore::new(processors) }
    }

    /// Answers one request. [`Cut`] closes the connection without an answer; `again` makes it write the answer twice.
    pub(crate) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        serial: Arc<str>,
        again: Again,
    ) -> Result<Response<AnswerBody>, Cut> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let mut line = RequestLine { request: format!("{method} {path}"), serial, bytes: 0, status: None };
        let response = match (&method, path.as_str()) {
            (&Method::POST, "/api/watermark") => self.watermark(request, &mut line.bytes, &again).await?,
            (&Method::POST, "/api/extract") => respond(self.extract(request, &mut line.bytes).await),
            (&Method::GET | &Method::HEAD, "/health") => respond(self.health()),
            (_, "/api/watermark" | "/api/extract") => not_allowed("POST"),
            (_, "/health") => not_allowed("GET, HEAD"),
            _ => respond(refuse(
                StatusCode::NOT_FOUND,
                "no such path; the service has POST /api/watermark, POST /api/extract and GET /health",
            )),
        };
        line.status = Some(response.status());
        Ok(response)
    }

    fn health(&self) -> Outcome {
        if self.faults.unhealthy() {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "unhealthy because of --fault");
        }
        Ok(json!({"status": "healthy"}))
    }

    async fn watermark(
        &self,
        request: Request<Incoming>,
        bytes: &mut usize,
        again: &Again,
    ) -> Result<Response<AnswerBody>, Cut> {
        let active = self.faults.for_watermark();
        let response = if let Some(early) = active.early {
            Ok(answer_early(early, request))
        } else {
            let read = self.read(request, bytes).await;
            match (active.instead, read) {
                (Some(instead), read) => faulty(instead, read.is_ok_and(|read| is_in_base64(&read))),
                (None, Err(error)) => Ok(respond(Err(error))),
                (None, Ok(read)) => Ok(respond(self.work(move || mark(&read, active.file, active.base64_lines)).await)),
            }
        };
        if let Some(wait) = active.slow {
            tokio::time::sleep(wait).await;
        }
        let mut response = response?;
        add_fields(&mut response, &active);
        if active.twice {
            again.store(response.body().size_hint().lower(), Ordering::Relaxed);
        }
        Ok(if active.cut { response.map(AnswerBody::cut) } else { response })
    }

    async fn extract(&self, request: Request<Incoming>, bytes: &mut usize) -> Outcome {
        let read = self.read(request, bytes).await?;
        self.work(move || read_mark(&read)).await
    }

    /// The whole body, counted into `bytes`.
    async fn read(&self, request: Request<Incoming>, bytes: &mut usize) -> Result<Vec<u8>, ApiError> {
        let waits = request.headers().contains_key(EXPECT);
        let mut body = request.into_body();
        let too_large = || ApiError(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is over {} bytes", self.max_body));
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if announced > self.max_body && waits {
            return Err(too_large());
        }
        let mut read = Vec::with_capacity(announced.min(self.max_body));
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|e| ApiError(StatusCode::BAD_REQUEST, format!("the body cannot be read: {e}")))?;
            let data = frame.into_data().unwrap_or_default();
            *bytes += data.len();
            // A client that does not wait for 100 Continue reads no answer while it sends: the rest is read and dropped.
            if *bytes <= self.max_body {
                read.extend_from_slice(&data);
            }
        }
        if *bytes > self.max_body { Err(too_large()) } else { Ok(read) }
    }

    /// Does heavy work away from the threads that serve connections.
    async fn work(&self, work: impl FnOnce() -> Outcome + Send + 'static) -> Outcome {
        let _turn = self.work.acquire().await;
        let failed =
            |_| ApiError(StatusCode::INTERNAL_SERVER_ERROR, "marking failed; see the service's log".to_owned());
        tokio::task::spawn_blocking(work).await.map_err(failed)?
    }
}

fn mark(body: &[u8], wrong: Option<WrongFile>, lines: bool) -> Outcome {
    let request: WatermarkRequest = parse(body)?;
    let mark =
        Mark::new(request.file_id, request.user_id).map_err(|e| ApiError(StatusCode::BAD_REQUEST, e.to_string()))?;
    let (form, sent) = request.members.file()?;
    let given = match wrong {
        None => Content::recognize(form.decode(sent)?)?.marked(&mark)?.into_bytes(),
        Some(WrongFile::Unmarked) => form.decode(sent)?,
        Some(WrongFile::Empty) => Vec::new(),
        Some(WrongFile::NoEncoding) => {
            return Ok(json!({"status": "success", "watermarked_data": text::embed(&sent, &mark)}));
        }
        Some(WrongFile::OtherKind) if form.decode(sent)?.starts_with(b"%PDF-") => EMPTY_ZIP.to_vec(),
        Some(WrongFile::OtherKind) => PDF.to_vec(),
        Some(WrongFile::NotUtf8) => b"marked \xff\xfe".to_vec(),
    };
    Ok(form.answer(given, lines))
}

fn read_mark(body: &[u8]) -> Outcome {
    let request: ExtractRequest = parse(body)?;
    let (form, sent) = request.members.file()?;
    let Some(mark) = Content::recognize(form.decode(sent)?)?.mark()? else {
        return refuse(StatusCode::NOT_FOUND, "no mark found");
    };
    let mut answer = json!(mark);
    answer["status"] = "success".into();
    Ok(answer)
}

fn parse<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|e| ApiError(StatusCode::BAD_REQUEST, format!("the request's JSON: {e}")))
}

fn refuse(status: StatusCode, message: &str) -> Outcome {
    Err(ApiError(status, message.to_owned()))
}

fn respond(outcome: Outcome) -> Response<AnswerBody> {
    let (status, body) = match outcome {
        Ok(body) => (StatusCode::OK, body),
        Err(ApiError(status, message)) => (status, json!({"status": "error", "message": message})),
    };
    response(status, "application/json", AnswerBody::whole(body.to_string()))
}

fn response(status: StatusCode, kind: &'static str, body: AnswerBody) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind.parse().expect("a constant"));
    response
}

fn not_allowed(methods: &'static str) -> Response<AnswerBody> {
    let message = format!("this path takes {methods} only");
    let mut response = respond(refuse(StatusCode::METHOD_NOT_ALLOWED, &message));
    response.headers_mut().insert(ALLOW, methods.parse().expect("a constant"));
    response
}

/// Answers as soon as the head is there, without the body.
fn answer_early(early: Early, request: Request<Incoming>) -> Response<AnswerBody> {
    let outcome = if early.status.is_success() {
        // Valid as text and as base64, so a file in either form.
        Ok(json!({"status": "success", "watermarked_data": "bWFya2VkIGJlZm9yZSB0aGUgZmlsZSBjYW1l"}))
    } else {
        refuse(early.status, "refused before the body was read, because of --fault")
    };
    let mut response = respond(outcome);
    *response.status_mut() = early.status;
    if early.keep {
        let mut body = request.into_body();
        tokio::spawn(async move { while let Some(Ok(_)) = body.frame().await {} });
    } else {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Adds the header fields that the faults ask for.
fn add_fields(response: &mut Response<AnswerBody>, active: &ActiveFaults) {
    let headers = response.headers_mut();
    if let Some(seconds) = active.retry_after {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if let Some(bytes) = active.big_head {
        let value = HeaderValue::try_from("a".repeat(bytes)).expect("letters");
        headers.insert(HeaderName::from_static("x-big"), value);
    }
    // hyper adds Content-Length and Date.
    for i in headers.len()..active.fields.unwrap_or(0).saturating_sub(2) {
        let name = HeaderName::try_from(format!("x-field-{i}")).expect("letters and digits");
        headers.insert(name, HeaderValue::from_static("1"));
    }
}

/// Whether the request has its file in base64 in `data`, so that the answer needs `encoding`.
fn is_in_base64(request: &[u8]) -> bool {
    serde_json::from_slice::<Members>(request).is_ok_and(|members| matches!(members.file(), Ok((Form::Base64, _))))
}

/// The answer in place of the real one. `base64` is [`is_in_base64`] of the request.
fn faulty(instead: Instead, base64: bool) -> Result<Response<AnswerBody>, Cut> {
    Ok(match instead {
        Instead::Nothing => return Err(Cut),
        Instead::Status(status) => {
            let mut response = respond(refuse(status, "failing because of --fault"));
            if status.is_redirection() {
                // A client must not follow it; one that does finds a success.
                response.headers_mut().insert(LOCATION, "/health".parse().expect("a constant"));
            }
            response
        }
        Instead::NoData => respond(Ok(json!({"status": "success"}))),
        Instead::StatusError => respond(Ok(json!({"status": "error", "message": "failing because of --fault"}))),
        Instead::Html => {
            response(StatusCode::OK, "text/html", AnswerBody::whole("<!doctype html><title>Bad gateway</title>\n"))
        }
        Instead::Huge(letters) => {
            let end = if base64 { r#"","encoding":"base64"}"# } else { r#""}"# };
            let body = AnswerBody::huge(r#"{"status":"success","watermarked_data":""#, letters, end);
            response(StatusCode::OK, "application/json", body)
        }
    })
}
