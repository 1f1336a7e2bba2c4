//! A request for a file, ready to be sent again and again, and how its answer is checked.

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use memchr::memmem;
use serde::Deserialize;

use crate::cell::{Cell, Route};
use crate::client::Answer;
use crate::material::{FILE_ID, Sample, USER_ID, random};
use crate::statement::is_signed;

/// What stands before the marked file in a JSON answer.
const DATA: &[u8] = b"\"decrypted_data\":\"";

/// The head but for its last line, the body, and what has to come back.
pub(crate) struct Request {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    expected: Expected,
}

struct Expected {
    route: Route,
    sealed: bool,
    content_sha256: Vec<u8>,
    marked: Vec<u8>,
    /// The same as the JSON route has it.
    marked_base64: String,
}

#[derive(Deserialize)]
struct JsonAnswer {
    file_id: String,
    user_id: String,
    decrypted_data: String,
    watermarked: bool,
    timestamp_ms: u64,
    signature: String,
}

impl Request {
    pub(crate) fn new(cell: &Cell, sample: Sample) -> Result<Request> {
        let Sample { encrypted, content_sha256, marked } = sample;
        let (path, kind, body) = match cell.route {
            Route::Raw => {
                (format!("/files/{FILE_ID}/decrypt?user_id={USER_ID}"), "application/octet-stream", encrypted)
            }
            Route::Json => {
                let content = STANDARD.encode(&encrypted);
                let body = serde_json::json!({"file_id": FILE_ID, "user_id": USER_ID, "encrypted_content": content});
                ("/files/decrypt".to_owned(), "application/json", serde_json::to_vec(&body)?)
            }
        };
        let mut head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n",
            body.len()
        );
        if !cell.keep_alive {
            head += "Connection: close\r\n";
        }
        if cell.sealed {
            // Any 32 bytes are an X25519 public key, and nobody opens the answer here.
            head += &format!("Teemark-Reply-Key: {}\r\n", STANDARD.encode(random(32)?));
        }
        let marked_base64 = STANDARD.encode(&marked);
        let expected = Expected { route: cell.route, sealed: cell.sealed, content_sha256, marked, marked_base64 };
        Ok(Request { head, body, expected })
    }

    /// Checks what every answer shows at little cost: that the marked file is in it.
    pub(crate) fn check(&self, answer: &Answer<'_>) -> Result<()> {
        let Expected { route, sealed, marked, marked_base64, .. } = &self.expected;
        ensure!(answer.status() == 200, "{}", answer.show());
        let right = match route {
            Route::Raw if *sealed => answer.body.len() == sealed_length(marked.len()),
            Route::Raw => answer.body == marked,
            Route::Json => memmem::find(answer.body, DATA).is_some_and(|at| {
                let data = &answer.body[at + DATA.len()..];
                data.strip_prefix(marked_base64.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'"'))
            }),
        };
        ensure!(right, "not the marked file: {}", answer.show());
        Ok(())
    }

    /// Checks all of an answer, and its signature by `identity`.
    pub(crate) fn check_signature(&self, answer: &Answer<'_>, identity: &[u8]) -> Result<()> {
        let Expected { route, sealed, content_sha256, .. } = &self.expected;
        let (given, timestamp_ms, signature) = match route {
            Route::Raw => {
                let field = |name: &str| answer.field(name).with_context(|| name.to_owned());
                ensure!(field("Teemark-Watermarked")? == "true");
                (answer.body.to_vec(), field("Teemark-Timestamp")?.parse()?, field("Teemark-Signature")?.to_owned())
            }
            Route::Json => {
                let json: JsonAnswer = serde_json::from_slice(answer.body)?;
                ensure!(json.watermarked && json.file_id == FILE_ID && json.user_id == USER_ID);
                (STANDARD.decode(json.decrypted_data)?, json.timestamp_ms, json.signature)
            }
        };
        let signature = STANDARD.decode(signature)?;
        if !is_signed(identity, &signature, timestamp_ms, &given, content_sha256, *sealed) {
            bail!("the signature does not verify: {}", answer.show());
        }
        Ok(())
    }
}

/// docs/FORMATS.md, "Sealed answers".
fn sealed_length(file: usize) -> usize {
    32 + file + file.div_ceil(64 << 10).max(1) * 16
}
