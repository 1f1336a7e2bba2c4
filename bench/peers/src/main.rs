//! teemark's two decrypt routes as people would write them today: axum, tokio, reqwest, and AWS-LC for the cryptography.
//!
//! ```text
//! async-peer pooled        one client of the watermark service for all requests
//! async-peer as-deployed   a client made from the certificates' files for each call, and one lock around a request
//! ```
//!
//! Environment: CERTS (folder of client.crt, client.key, ecs-ca.crt), WATERMARK_URL, FILE_KEY (base64).

mod answer;
mod cryptography;
mod watermark;

use std::env;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use crate::cryptography::{Identity, Opener};
use crate::watermark::Service;

/// The largest request body: a file of 64 MiB as base64, and more.
const MAX_BODY: usize = 128 << 20;

/// What all requests share.
struct App {
    opener: Opener,
    identity: Identity,
    service: Service,
    /// Held around a request, as deployed.
    lock: Option<Mutex<()>>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let (certs, url) = (PathBuf::from(variable("CERTS")?), variable("WATERMARK_URL")?);
    let key = STANDARD.decode(variable("FILE_KEY")?).context("FILE_KEY")?;
    let (service, lock) = match env::args().nth(1).as_deref() {
        Some("pooled") => (Service::pooled(&certs, url)?, None),
        Some("as-deployed") => (Service::fresh(certs, url), Some(Mutex::new(()))),
        _ => bail!("give pooled or as-deployed"),
    };
    let identity = Identity::generate()?;
    eprintln!("identity key {}", identity.public_hex());

    let app = App { opener: Opener::new(&key)?, identity, service, lock };
    let router = Router::new()
        .route("/health", get(async || "Pong!"))
        .route("/files/decrypt", post(answer::json))
        .route("/files/{file_id}/decrypt", post(answer::raw))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Arc::new(app));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    eprintln!("public: listening on tcp:{}", listener.local_addr()?);
    let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
    axum::serve(listener, router).await?;
    Ok(())
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| name.to_owned())
}
