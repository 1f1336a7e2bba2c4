//! The call of the watermark service.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Certificate, Client, Identity};
use serde::{Deserialize, Serialize};

const TIMEOUT: Duration = Duration::from_secs(30);

/// The watermark service, and how it is reached.
pub(crate) struct Service {
    url: String,
    client: Source,
}

enum Source {
    Pooled(Client),
    /// The folder that each call reads the certificates from.
    Fresh(PathBuf),
}

#[derive(Serialize)]
struct Request<'a> {
    file_id: &'a str,
    user_id: &'a str,
    data: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
}

#[derive(Deserialize)]
struct Response {
    status: String,
    watermarked_data: Option<String>,
    encoding: Option<String>,
}

impl Service {
    pub(crate) fn pooled(certs: &Path, url: String) -> Result<Service> {
        Ok(Service { url, client: Source::Pooled(client(certs)?) })
    }

    pub(crate) fn fresh(certs: PathBuf, url: String) -> Service {
        Service { url, client: Source::Fresh(certs) }
    }

    /// The marked file.
    pub(crate) async fn mark(&self, (file_id, user_id): (&str, &str), plain: Vec<u8>) -> Result<Vec<u8>> {
        let (data, encoding) = match String::from_utf8(plain) {
            Ok(text) => (text, None),
            Err(binary) => (STANDARD.encode(binary.as_bytes()), Some("base64")),
        };
        let client = match &self.client {
            Source::Pooled(client) => client.clone(),
            Source::Fresh(certs) => client(certs)?,
        };
        let request = client.post(&self.url).json(&Request { file_id, user_id, data, encoding });
        let response: Response = request.send().await?.error_for_status()?.json().await?;
        match (response.status.as_str(), response.watermarked_data, response.encoding.as_deref()) {
            ("success", Some(text), Some("base64")) => Ok(STANDARD.decode(text)?),
            ("success", Some(text), None) => Ok(text.into_bytes()),
            _ => bail!("the watermark service did not mark the file"),
        }
    }
}

fn client(certs: &Path) -> Result<Client> {
    let read = |name: &str| fs::read(certs.join(name)).with_context(|| name.to_owned());
    let identity = [read("client.crt")?, read("client.key")?].concat();
    Ok(Client::builder()
        .identity(Identity::from_pem(&identity)?)
        .tls_certs_only([Certificate::from_pem(&read("ecs-ca.crt")?)?])
        .timeout(TIMEOUT)
        .build()?)
}
