//! The keeper's own HTTP: /ready and /metrics.

use std::sync::Arc;
use std::thread;

use anyhow::{Result, anyhow};
use serde_json::json;
use tiny_http::{Header, Method, Request, Response, Server};

use super::report::Report;

/// Serves in a thread of its own. Returns the address.
///
/// # Errors
/// The address cannot be listened on.
pub(crate) fn start(listen: &str, report: Arc<Report>) -> Result<String> {
    let server = Server::http(listen).map_err(|error| anyhow!("listen: {listen}: {error}"))?;
    let address = server.server_addr().to_string();
    thread::Builder::new().name("serve".into()).spawn(move || {
        for request in server.incoming_requests() {
            answer(request, &report);
        }
    })?;
    Ok(address)
}

fn answer(request: Request, report: &Report) {
    let path = request.url().split('?').next().unwrap_or_default().to_owned();
    let (status, kind, body) = match (request.method(), path.as_str()) {
        (Method::Get | Method::Head, "/metrics") => (200, "text/plain; version=0.0.4", report.metrics()),
        (Method::Get | Method::Head, "/ready") => {
            let missing = report.missing();
            let status = if missing.is_empty() { 200 } else { 503 };
            (status, "application/json", json!({"ready": missing.is_empty(), "missing": missing}).to_string())
        }
        _ => (404, "application/json", json!({"error": "there are /ready and /metrics"}).to_string()),
    };
    let mut response = Response::from_string(body).with_status_code(status);
    if let Ok(kind) = Header::from_bytes("Content-Type", kind) {
        response.add_header(kind);
    }
    // Whoever asked may have gone.
    let _ = request.respond(response);
}
