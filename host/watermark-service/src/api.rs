//! The routes, their JSON, and where a fault takes the place of an answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, EXPECT, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::answer::{Answer, Cut};
use crate::content::{Content, ContentError};
use crate::fault::{Early, Faults, Instead, Met, WrongFile};
use crate::form::Members;
use crate::mark::picture::PictureError;
use crate::mark::{Mark, text};
use crate::serve::log;
use crate::twice::Again;

/// Files of two kinds, each as small as its format allows: `other-kind` answers one of them.
const PDF: &[u8] = b"%PDF-1.7\n%%EOF\n";
const EMPTY_ZIP: &[u8] = b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// What all connections share.
pub struct Api {
    faults: Faults,
    max_body: usize,
    /// Pictures take several times their file's memory: only as many at once as there are processors.
    work: tokio::sync::Semaphore,
}

/// A status and the reason that goes with it.
#[derive(Debug)]
pub struct Refusal(pub StatusCode, pub String);

type Outcome = Result<Value, Refusal>;

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

/// One log line a request, also where the client goes away before the answer.
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
    pub fn new(faults: Faults, max_body: usize) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        Api { faults, max_body, work: tokio::sync::Semaphore::new(processors) }
    }

    /// Answers one request; `Cut` ends the connection instead. `again` has the connection write the answer twice.
    pub async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        serial: Arc<str>,
        again: Again,
    ) -> Result<Response<Answer>, Cut> {
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
                "no such path; there are POST /api/watermark, POST /api/extract and GET /health",
            )),
        };
        line.status = Some(response.status());
        Ok(response)
    }

    fn health(&self) -> Outcome {
        if self.faults.unhealthy() {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "unhealthy, as --fault asks for");
        }
        Ok(json!({"status": "healthy"}))
    }

    async fn watermark(
        &self,
        request: Request<Incoming>,
        bytes: &mut usize,
        again: &Again,
    ) -> Result<Response<Answer>, Cut> {
        let met = self.faults.meet();
        let response = if let Some(early) = met.early {
            Ok(answer_early(early, request))
        } else {
            let read = self.read(request, bytes).await;
            match (met.instead, read) {
                (Some(instead), _) => faulty(instead),
                (None, Err(refusal)) => Ok(respond(Err(refusal))),
                (None, Ok(read)) => Ok(respond(self.work(move || mark(&read, met.file, met.base64_lines)).await)),
            }
        };
        if let Some(wait) = met.slow {
            tokio::time::sleep(wait).await;
        }
        let mut response = response?;
        add_fields(&mut response, &met);
        if met.twice {
            again.store(response.body().size_hint().lower(), Ordering::Relaxed);
        }
        Ok(if met.cut { response.map(Answer::cut) } else { response })
    }

    async fn extract(&self, request: Request<Incoming>, bytes: &mut usize) -> Outcome {
        let read = self.read(request, bytes).await?;
        self.work(move || read_mark(&read)).await
    }

    /// The whole body, counted into `bytes`.
    async fn read(&self, request: Request<Incoming>, bytes: &mut usize) -> Result<Vec<u8>, Refusal> {
        let waits = request.headers().contains_key(EXPECT);
        let mut body = request.into_body();
        let too_large = || Refusal(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is over {} bytes", self.max_body));
        let announced = body.size_hint().lower();
        if announced > self.max_body as u64 && waits {
            return Err(too_large());
        }
        let mut read = Vec::with_capacity(announced.min(self.max_body as u64) as usize);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| Refusal(StatusCode::BAD_REQUEST, format!("the body cannot be read: {e}")))?;
            let data = frame.into_data().unwrap_or_default();
            *bytes += data.len();
            // Who sends without waiting reads no answer while sending: the rest is taken and thrown away.
            if *bytes <= self.max_body {
                read.extend_from_slice(&data);
            }
        }
        if *bytes > self.max_body { Err(too_large()) } else { Ok(read) }
    }

    /// Does heavy work away from the threads that serve connections.
    async fn work(&self, work: impl FnOnce() -> Outcome + Send + 'static) -> Outcome {
        let _turn = self.work.acquire().await;
        let failed = |_| Refusal(StatusCode::INTERNAL_SERVER_ERROR, "marking failed; see the service's log".to_owned());
        tokio::task::spawn_blocking(work).await.map_err(failed)?
    }
}

fn mark(body: &[u8], wrong: Option<WrongFile>, lines: bool) -> Outcome {
    let request: WatermarkRequest = parse(body)?;
    let mark =
        Mark::new(request.file_id, request.user_id).map_err(|e| Refusal(StatusCode::BAD_REQUEST, e.to_string()))?;
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

fn parse<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|e| Refusal(StatusCode::BAD_REQUEST, format!("the request's JSON: {e}")))
}

impl From<ContentError> for Refusal {
    fn from(error: ContentError) -> Self {
        let status = match &error {
            ContentError::Picture(PictureError::TooSmall { .. }) => StatusCode::UNPROCESSABLE_ENTITY,
            ContentError::Picture(PictureError::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        };
        Refusal(status, error.to_string())
    }
}

fn refuse(status: StatusCode, message: &str) -> Outcome {
    Err(Refusal(status, message.to_owned()))
}

fn respond(outcome: Outcome) -> Response<Answer> {
    let (status, body) = match outcome {
        Ok(body) => (StatusCode::OK, body),
        Err(Refusal(status, message)) => (status, json!({"status": "error", "message": message})),
    };
    response(status, "application/json", Answer::whole(body.to_string()))
}

fn response(status: StatusCode, kind: &'static str, body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind.parse().expect("a constant"));
    response
}

fn not_allowed(methods: &'static str) -> Response<Answer> {
    let message = format!("this path takes {methods} only");
    let mut response = respond(refuse(StatusCode::METHOD_NOT_ALLOWED, &message));
    response.headers_mut().insert(ALLOW, methods.parse().expect("a constant"));
    response
}

/// The answer to a request's head alone.
fn answer_early(early: Early, request: Request<Incoming>) -> Response<Answer> {
    let outcome = if early.status.is_success() {
        // Text as it stands, and base64 of a text: a file in either form.
        Ok(json!({"status": "success", "watermarked_data": "bWFya2VkIGJlZm9yZSB0aGUgZmlsZSBjYW1l"}))
    } else {
        refuse(early.status, "refused before the body was read, as --fault asks for")
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

/// Adds the header fields that faults ask for.
fn add_fields(response: &mut Response<Answer>, met: &Met) {
    let headers = response.headers_mut();
    if let Some(seconds) = met.retry_after {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if let Some(bytes) = met.big_head {
        let value = HeaderValue::try_from("a".repeat(bytes)).expect("letters");
        headers.insert(HeaderName::from_static("x-big"), value);
    }
    // hyper adds Content-Length and Date.
    for i in headers.len()..met.fields.unwrap_or(0).saturating_sub(2) {
        let name = HeaderName::try_from(format!("x-field-{i}")).expect("letters and digits");
        headers.insert(name, HeaderValue::from_static("1"));
    }
}

/// The answer of a service at fault.
fn faulty(instead: Instead) -> Result<Response<Answer>, Cut> {
    Ok(match instead {
        Instead::Nothing => return Err(Cut),
        Instead::Status(status) => {
            let mut response = respond(refuse(status, "failing, as --fault asks for"));
            if status.is_redirection() {
                // A client that follows it is wrong; it would find a success here.
                response.headers_mut().insert(LOCATION, "/health".parse().expect("a constant"));
            }
            response
        }
        Instead::NoData => respond(Ok(json!({"status": "success"}))),
        Instead::StatusError => respond(Ok(json!({"status": "error", "message": "failing, as --fault asks for"}))),
        Instead::Html => {
            response(StatusCode::OK, "text/html", Answer::whole("<!doctype html><title>Bad gateway</title>\n"))
        }
        Instead::Huge(letters) => {
            let body =
                Answer::huge(r#"{"status":"success","watermarked_data":""#, letters, r#"","encoding":"base64"}"#);
            response(StatusCode::OK, "application/json", body)
        }
    })
}
