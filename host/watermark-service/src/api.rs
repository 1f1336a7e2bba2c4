//! The routes, their JSON, and where a fault takes the place of an answer.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, EXPECT, LOCATION};
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::answer::{Answer, Cut};
use crate::content::{Content, ContentError};
use crate::fault::{Faults, Instead, Met};
use crate::mark::Mark;
use crate::mark::picture::PictureError;
use crate::serve::log;

/// What all connections share.
pub struct Api {
    faults: Faults,
    max_body: usize,
    /// Pictures take several times their file's memory: only as many at once as there are processors.
    work: tokio::sync::Semaphore,
}

/// A status and the reason that goes with it.
#[derive(Debug)]
struct Refusal(StatusCode, String);

type Outcome = Result<Value, Refusal>;

#[derive(Deserialize)]
struct WatermarkRequest {
    file_id: String,
    user_id: String,
    data: String,
    encoding: Option<String>,
}

#[derive(Deserialize)]
struct ExtractRequest {
    data: String,
    encoding: Option<String>,
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

    /// Answers one request; `Cut` ends the connection instead.
    pub async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        serial: Arc<str>,
    ) -> Result<Response<Answer>, Cut> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let mut line = RequestLine { request: format!("{method} {path}"), serial, bytes: 0, status: None };
        let response = match (&method, path.as_str()) {
            (&Method::POST, "/api/watermark") => self.watermark(request, &mut line.bytes).await?,
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

    async fn watermark(&self, request: Request<Incoming>, bytes: &mut usize) -> Result<Response<Answer>, Cut> {
        let read = self.read(request, bytes).await;
        let Met { slow, instead, cut } = self.faults.meet();
        let response = match instead {
            None => Ok(respond(match read {
                Ok(read) => self.work(move || mark(&read)).await,
                Err(refusal) => Err(refusal),
            })),
            Some(instead) => faulty(instead),
        };
        if let Some(wait) = slow {
            tokio::time::sleep(wait).await;
        }
        let response = response?;
        Ok(if cut { response.map(Answer::cut) } else { response })
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

fn mark(body: &[u8]) -> Outcome {
    let request: WatermarkRequest = parse(body)?;
    let mark =
        Mark::new(request.file_id, request.user_id).map_err(|e| Refusal(StatusCode::BAD_REQUEST, e.to_string()))?;
    Ok(match content(request.data, request.encoding)?.marked(&mark)? {
        Content::Png(bytes) => {
            json!({"status": "success", "watermarked_data": BASE64_STANDARD.encode(bytes), "encoding": "base64"})
        }
        Content::Text(text) => json!({"status": "success", "watermarked_data": text}),
    })
}

fn read_mark(body: &[u8]) -> Outcome {
    let request: ExtractRequest = parse(body)?;
    let Some(mark) = content(request.data, request.encoding)?.mark()? else {
        return refuse(StatusCode::NOT_FOUND, "no mark found");
    };
    let mut answer = json!(mark);
    answer["status"] = "success".into();
    Ok(answer)
}

fn parse<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|e| Refusal(StatusCode::BAD_REQUEST, format!("the request's JSON: {e}")))
}

/// The file in `data`: text as it is, anything in base64.
fn content(data: String, encoding: Option<String>) -> Result<Content, Refusal> {
    let bad = |message: String| Refusal(StatusCode::BAD_REQUEST, message);
    match encoding.as_deref() {
        None => Ok(Content::Text(data)),
        Some("base64") => {
            let bytes = BASE64_STANDARD.decode(data).map_err(|e| bad(format!("data is not base64: {e}")))?;
            Ok(Content::recognize(bytes)?)
        }
        Some(_) => Err(bad("encoding can only be \"base64\", or left out for text".to_owned())),
    }
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
            let body = Answer::huge(r#"{"status":"success","watermarked_data":""#, letters, r#""}"#);
            response(StatusCode::OK, "application/json", body)
        }
    })
}
