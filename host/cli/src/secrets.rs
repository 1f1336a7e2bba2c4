//! `teemark secrets`: the bundle that tells the enclave its certificate, its service and its file keys.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use teemarkd::net::addr::Address;
use ureq::http::Uri;

use crate::certificate::{self, Content};
use crate::keys::KeyFile;
use crate::output::{self, Existing, Readers};
use crate::{Outcome, handshake};

/// Largest bundle that the daemon takes, in bytes.
const LARGEST: u64 = 1 << 20;

/// Build the bundle of certificates, endpoint and file keys; write it, or send it to the enclave (the handshake).
#[derive(clap::Args)]
#[command(after_help = "Examples:
  teemark secrets --client-cert client.crt --client-key client.key --ca ecs-ca.crt \\
    --endpoint https://watermark.internal.staging.zing.you:8080 --keys keys.json --send vsock:16:7777
  teemark secrets --bundle mtls_certs.json --send vsock:16:7777")]
pub struct Arguments {
    /// The client certificate, with its chain if it has one (PEM or DER)
    #[arg(long, value_name = "FILE", requires_all = ["client_key", "ca"])]
    client_cert: Option<PathBuf>,
    /// The client certificate's private key (PEM or DER: PKCS#8, PKCS#1 or SEC1)
    #[arg(long, value_name = "FILE", requires_all = ["client_cert", "ca"])]
    client_key: Option<PathBuf>,
    /// The CA of the watermark service (PEM or DER)
    #[arg(long, value_name = "FILE", requires_all = ["client_cert", "client_key"])]
    ca: Option<PathBuf>,
    /// The watermark service, https://HOST:PORT
    #[arg(long, value_name = "URL", value_parser = endpoint)]
    endpoint: Option<String>,
    /// The key file, as teemark keygen makes it
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// A bundle that is made already, sent as it is; - for standard input
    #[arg(long, value_name = "FILE",
          conflicts_with_all = ["client_cert", "client_key", "ca", "endpoint", "keys"])]
    bundle: Option<PathBuf>,
    /// Write the bundle to a new file (mode 600) [default: standard output]
    #[arg(long, value_name = "FILE", conflicts_with = "send")]
    output: Option<PathBuf>,
    /// Send the bundle: vsock:CID:PORT, tcp:HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS", value_parser = destination)]
    send: Option<Address>,
    /// How many seconds to go on trying while the enclave does not listen yet
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "send")]
    wait: u64,
}

fn destination(text: &str) -> Result<Address, String> {
    match text.parse::<Address>() {
        Ok(Address::Vsock { cid: None, port }) => Err(format!("which enclave? write vsock:CID:{port}")),
        Ok(address) => Ok(address),
        Err(e) => Err(e.to_string()),
    }
}

/// The daemon's rules for the endpoint, except for its allow list.
fn endpoint(text: &str) -> Result<String, String> {
    const FORM: &str = "write https://HOST:PORT";
    let url: Uri = text.parse().map_err(|_| format!("it is not a URL; {FORM}"))?;
    let (Some("https"), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return Err(format!("it is not an https URL, and the service is reached by TLS only; {FORM}"));
    };
    if authority.as_str().contains('@') {
        return Err(format!("it has a user name; {FORM}"));
    }
    if url.query().is_some() || text.contains('#') {
        return Err(format!("it has a query or a fragment; {FORM}"));
    }
    Ok(text.to_owned())
}

/// The bundle as the daemon takes it; an item left out stays as it is there.
#[derive(Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
struct Bundle {
    /// JSON of [`Certificates`], as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    mtls_client_cert_json: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ecs_watermark_endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_keys: Option<KeyFile>,
}

/// Base64 of each file's bytes.
#[derive(Serialize)]
struct Certificates {
    client_cert: String,
    client_key: String,
    ca_cert: String,
}

/// Builds or reads the bundle, and prints, writes or sends it.
///
/// # Errors
/// A file is missing or is not what it should be; the output is there already; the enclave cannot be reached in time.
pub fn run(arguments: &Arguments) -> Result<Outcome> {
    let bundle = match &arguments.bundle {
        Some(path) => read_bundle(path)?,
        None => build(arguments)?,
    };
    if bundle.len() as u64 > LARGEST {
        bail!(
            "the bundle has {} bytes, and the daemon takes at most 1 MiB; are all of these keys needed?",
            bundle.len()
        );
    }
    if let Some(address) = &arguments.send {
        return handshake::send(address, &bundle, arguments.wait);
    }
    match &arguments.output {
        Some(path) if path != Path::new("-") => {
            let remedy = "remove it first, or choose another --output";
            output::write(path, &bundle, Existing::Keep, Readers::Owner, remedy)?;
            eprintln!("the bundle is in {}; delete it once it is sent", path.display());
        }
        _ if std::io::stdout().is_terminal() && arguments.is_secret() => {
            bail!("the bundle holds a key, which a terminal should not show; use --send, --output FILE or a pipe");
        }
        _ => output::to_stdout(&bundle)?,
    }
    Ok(Outcome::Done)
}

impl Arguments {
    fn is_secret(&self) -> bool {
        self.bundle.is_some() || self.client_key.is_some() || self.keys.is_some()
    }
}

fn read_bundle(path: &Path) -> Result<Vec<u8>> {
    let (source, _) = output::open_input(path)?;
    let mut bytes = Vec::new();
    source.take(LARGEST + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

/// The bundle in the bytes that the `cat > mtls_certs.json <<EOF` of certs/README.md gives for the same files.
fn build(arguments: &Arguments) -> Result<Vec<u8>> {
    let certificates = match (&arguments.client_cert, &arguments.client_key, &arguments.ca) {
        (Some(cert), Some(key), Some(ca)) => Some(Certificates {
            client_cert: STANDARD.encode(certificate::read(cert, "--client-cert", Content::Certificates)?),
            client_key: STANDARD.encode(certificate::read(key, "--client-key", Content::PrivateKey)?),
            ca_cert: STANDARD.encode(certificate::read(ca, "--ca", Content::Certificates)?),
        }),
        _ => None,
    };
    let bundle = Bundle {
        mtls_client_cert_json: certificates.map(|c| serde_json::to_string(&c)).transpose()?,
        ecs_watermark_endpoint: arguments.endpoint.clone(),
        file_keys: arguments.keys.as_deref().map(KeyFile::read).transpose()?,
    };
    if bundle.mtls_client_cert_json.is_none() && bundle.ecs_watermark_endpoint.is_none() && bundle.file_keys.is_none() {
        bail!(
            "there is nothing to put in the bundle; give --client-cert, --client-key and --ca, or --endpoint, \
             or --keys, or a finished one with --bundle"
        );
    }
    let mut bytes = serde_json::to_vec_pretty(&bundle)?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_https_url_with_a_host_and_nothing_secret() {
        for good in ["https://watermark.internal.staging.zing.you:8080", "https://localhost", "https://[::1]:8/x/"] {
            assert_eq!(endpoint(good).as_deref(), Ok(good));
        }
        for bad in ["", "watermark:8080", "http://h:1", "https://", "https://u@h:1", "https://h:1/?q", "https://h#f"] {
            assert!(endpoint(bad).unwrap_err().contains("https://HOST:PORT"), "{bad}");
        }
    }

    #[test]
    fn a_vsock_destination_needs_the_enclaves_cid() {
        assert!(destination("vsock:7777").unwrap_err().contains("vsock:CID:7777"));
        assert!(destination("vsock:16:7777").is_ok());
        assert!(destination("7777").unwrap_err().contains("unix:PATH"));
    }
}
