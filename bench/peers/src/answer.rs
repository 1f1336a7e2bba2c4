//! The two routes.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::App;
use crate::cryptography::sha256;

/// Any error: this program is measured where there is none.
pub(crate) struct Failure(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (StatusCode::BAD_GATEWAY, Json(serde_json::json!({ "error": self.0.to_string() }))).into_response()
    }
}

#[derive(Deserialize)]
pub(crate) struct JsonRequest {
    file_id: String,
    user_id: String,
    encrypted_content: String,
}

#[derive(Serialize)]
pub(crate) struct JsonAnswer {
    file_id: String,
    user_id: String,
    decrypted_data: String,
    watermarked: bool,
    timestamp_ms: u64,
    signature: String,
}

/// `POST /files/decrypt`
pub(crate) async fn json(
    State(app): State<Arc<App>>,
    Json(request): Json<JsonRequest>,
) -> Result<Json<JsonAnswer>, Failure> {
    let JsonRequest { file_id, user_id, encrypted_content } = request;
    let file = STANDARD.decode(encrypted_content)?;
    let (marked, timestamp_ms, signature) = mark(&app, file, (&file_id, &user_id)).await?;
    let decrypted_data = STANDARD.encode(&marked);
    Ok(Json(JsonAnswer { file_id, user_id, decrypted_data, watermarked: true, timestamp_ms, signature }))
}

#[derive(Deserialize)]
pub(crate) struct RawQuery {
    user_id: String,
}

/// `POST /files/{file_id}/decrypt?user_id=…`
pub(crate) async fn raw(
    State(app): State<Arc<App>>,
    Path(file_id): Path<String>,
    Query(RawQuery { user_id }): Query<RawQuery>,
    file: Bytes,
) -> Result<impl IntoResponse, Failure> {
    let (marked, timestamp_ms, signature) = mark(&app, Vec::from(file), (&file_id, &user_id)).await?;
    let headers = [
        ("Teemark-Watermarked", "true".to_owned()),
        ("Teemark-Timestamp", timestamp_ms.to_string()),
        ("Teemark-Signature", signature),
    ];
    Ok((headers, marked))
}

/// The marked file, the time and the signature.
async fn mark(app: &App, file: Vec<u8>, about: (&str, &str)) -> anyhow::Result<(Vec<u8>, u64, String)> {
    let _one_at_a_time = match &app.lock {
        Some(lock) => Some(lock.lock().await),
        None => None,
    };
    let content = sha256(&file);
    let plain = app.opener.open(file)?;
    let marked = app.service.mark(about, plain).await?;
    let (timestamp_ms, signature) = app.identity.sign(&marked, &content, about)?;
    Ok((marked, timestamp_ms, signature))
}
