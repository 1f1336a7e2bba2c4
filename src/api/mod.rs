//! Requests and answers.
//!
//! A request comes from tiny_http, is handled in a thread of its own, and gets exactly one [`Answer`].

mod admin;
mod decrypt;
mod error;
mod health;
pub mod limits;
mod permit;
mod public;
mod request;

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{Level, debug, error, log};
use serde_json::Value;
use tiny_http::{Header, Request, Response, Server};

use crate::attest::Attestation;
use crate::memory::{Budget, Reservation};
use crate::metrics::METRICS;
use crate::net::egress::Route;
use crate::net::endpoints::AllowList;
use crate::secrets::store::Store;
use crate::settings::{Settings, WatermarkApi};
use crate::threads;
use error::ApiError;
use health::Health;
use limits::Limits;
use permit::Grants;
use request::Target;

/// What every request may use.
pub struct Api {
    pub store: Arc<Store>,
    pub attestation: Arc<Attestation>,
    pub grants: Grants,
    pub allowed: Arc<AllowList>,
    pub route: Route,
    pub memory: Budget,
    pub limits: Limits,
    pub allow_unwatermarked: bool,
    /// The form of a call of the watermark service.
    pub watermark_api: WatermarkApi,
    /// Whether /metrics is on the public listener too.
    pub public_metrics: bool,
    pub started: Instant,
    health: Health,
}

/// Which of the two listeners a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Public,
    Admin,
}

/// An answer before it is sent.
pub struct Answer {
    status: u16,
    content_type: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// What the body holds of the budget, until it is sent.
    held: Option<Reservation>,
}

impl Answer {
    fn json(status: u16, value: &Value) -> Answer {
        let body = value.to_string().into_bytes();
        Answer { status, content_type: "application/json", headers: Vec::new(), body, held: None }
    }

    fn text(text: &str) -> Answer {
        Answer { status: 200, content_type: "text/plain", headers: Vec::new(), body: text.into(), held: None }
    }
}

impl Api {
    pub fn new(
        store: Arc<Store>,
        allowed: Arc<AllowList>,
        attestation: Arc<Attestation>,
        settings: &Settings,
        limits: Limits,
    ) -> Api {
        Api {
            store,
            health: Health::new(allowed.iter().count()),
            allowed,
            grants: Grants::new(settings, attestation.identity()),
            attestation,
            route: settings.egress,
            memory: Budget::new(limits.memory),
            limits,
            allow_unwatermarked: settings.allow_unwatermarked,
            watermark_api: settings.watermark_api,
            public_metrics: settings.public_metrics,
            started: Instant::now(),
        }
    }
}

/// A route's name, as the metrics show it, and what came of the request.
type Routed = (&'static str, Result<Answer, ApiError>);

/// Serves what comes to one side, for as long as the process lives.
///
/// `received` is called for each request as it comes.
pub fn serve(server: &Server, api: Arc<Api>, side: Side, received: impl Fn()) {
    serve_with(server, api.limits.connections, received, move |request| route(&api, side, request));
}

/// A thread for each request, `most` at once. Clients that went away while their request was under way would
/// otherwise leave threads behind without bound.
fn serve_with(
    server: &Server,
    most: usize,
    received: impl Fn(),
    route: impl Fn(&mut Request) -> Routed + Clone + Send + 'static,
) {
    let under_way = Arc::new(());
    let mut dead = false;
    while let Some(request) = next(server, &mut dead) {
        received();
        // Each request's thread holds a reference, and this loop another.
        if Arc::strong_count(&under_way) > most {
            reply(request, "refused", ApiError::Overloaded.into());
            continue;
        }
        let (route, place) = (route.clone(), under_way.clone());
        let started = threads::start("request", move || {
            handle(request, route);
            drop(place);
        });
        if let Err(e) = started {
            // The request went with the closure; tiny_http answers 500 for it.
            error!("cannot start a thread for a request: {e}");
        }
    }
}

/// The next request; `None` when the server has died and nothing more can come. It dies by its first error, and what
/// it had accepted before still comes after that.
fn next(server: &Server, dead: &mut bool) -> Option<Request> {
    const STILL_COMING: Duration = Duration::from_secs(10);
    loop {
        let request = if *dead { server.recv_timeout(STILL_COMING) } else { server.recv().map(Some) };
        match request {
            Ok(request) => return request,
            Err(_) => *dead = true,
        }
    }
}

fn handle(mut request: Request, route: impl Fn(&mut Request) -> Routed) {
    let start = Instant::now();
    let (name, result) = catch_unwind(AssertUnwindSafe(|| route(&mut request))).unwrap_or_else(|_| {
        METRICS.panics.add(1);
        ("panicked", Err(ApiError::Internal))
    });
    let answer = result.unwrap_or_else(Answer::from);
    // Probes come every few seconds and say nothing new.
    let level = match name {
        "decrypt" | "decrypt_raw" | "update_secrets" | "panicked" => Level::Info,
        _ => Level::Debug,
    };
    log!(level, "{name} {} {} bytes in {} ms", answer.status, answer.body.len(), start.elapsed().as_millis());
    reply(request, name, answer);
}

fn route(api: &Api, side: Side, request: &mut Request) -> Routed {
    match Target::parse(request.url()) {
        Ok(target) if side == Side::Public => public::route(api, &target, request),
        Ok(target) => admin::route(api, &target, request),
        Err(e) => ("unknown", Err(e)),
    }
}

fn reply(request: Request, name: &'static str, answer: Answer) {
    METRICS.answered(name, answer.status);
    let length = answer.body.len();
    let headers = [("Server", "teemarkd".to_owned()), ("Content-Type", answer.content_type.to_owned())];
    let headers = headers.into_iter().chain(answer.headers);
    let headers = headers.filter_map(|(name, value)| Header::from_bytes(name, value).ok()).collect();
    let response = Response::new(answer.status.into(), headers, Cursor::new(answer.body), Some(length), None)
        .with_chunked_threshold(usize::MAX);
    if let Err(e) = request.respond(response) {
        debug!("an answer was not taken: {e}");
    }
    drop(answer.held);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    use std::thread;

    #[test]
    fn a_panic_in_one_request_answers_500_and_harms_no_other() {
        let address = SocketAddr::from_abstract_name(format!("teemark-panic-{}", std::process::id())).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let server: &'static Server = Box::leak(Box::new(Server::from_listener(listener, None).unwrap()));
        let route = |request: &mut Request| match request.url() {
            "/panic" => panic!("as asked"),
            _ => {
                thread::sleep(Duration::from_millis(100));
                ("root", Ok(Answer::text("Pong!")))
            }
        };
        thread::spawn(move || serve_with(server, 10, || {}, route));
        let send = |path: &str| {
            let mut stream = UnixStream::connect_addr(&address).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
            stream
        };
        let receive = |mut stream: UnixStream| {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        let before = METRICS.panics.get();
        let [other, panicked] = [send("/"), send("/panic")].map(receive);
        assert!(other.starts_with("HTTP/1.1 200 ") && other.ends_with("Pong!"), "{other}");
        assert!(panicked.starts_with("HTTP/1.1 500 ") && panicked.contains("\"internal\""), "{panicked}");
        assert!(receive(send("/")).starts_with("HTTP/1.1 200 "));
        assert_eq!(METRICS.panics.get(), before + 1);
    }
}
