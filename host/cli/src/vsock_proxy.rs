//! `teemark vsock-proxy`: prints the parent's side of the allow list.
//!
//! The enclave dials endpoint i at the parent's vsock port 8101 + i. AWS's vsock-proxy listens there, one process per
//! endpoint, and dials only what its own list has. All of that is printed from the file that is built into the
//! image, with the enclave's own parser, so the two sides cannot differ.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use formats::allow_list::{AllowList, Endpoint};
use serde_json::{Value, json};

use crate::failure::Done;

/// Print what the parent's vsock-proxy needs: its own allow list, and the vsock port of each endpoint.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  teemark vsock-proxy | sudo tee /etc/teemark/vsock-proxy.yaml
  teemark vsock-proxy --format environment | sudo tee /etc/teemark/vsock-proxy.env
  sudo systemctl enable --now $(teemark vsock-proxy --format units)
  teemark vsock-proxy --format list | while read -r port host remote; do
    vsock-proxy --config /etc/teemark/vsock-proxy.yaml \"$port\" \"$host\" \"$remote\" & done

AWS' own /etc/nitro_enclaves/vsock-proxy.yaml stays as it is: other services of the instance may need it.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    proxied: Proxied,
    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Yaml)]
    format: Format,
}

/// The options that say which endpoints are proxied, and at which ports.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Proxied {
    /// The allow list that is built into the image
    #[arg(long, value_name = "FILE", default_value = "allowed_endpoints.yaml")]
    pub(crate) endpoints: PathBuf,
    /// The vsock port of the first endpoint, as in the image's TEEMARK_EGRESS
    #[arg(long, value_name = "PORT", default_value_t = 8101, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) base_port: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// /etc/teemark/vsock-proxy.yaml, what vsock-proxy --config reads
    Yaml,
    /// One line per endpoint: its vsock port, the host, the host's port
    List,
    /// /etc/teemark/vsock-proxy.env, which teemark-vsock-proxy@.service reads
    Environment,
    /// The names of that service's instances, one a line
    Units,
}

/// Prints the list in the form asked for.
///
/// # Errors
/// The file cannot be read, a line of it is wrong, it lists no endpoint, or there are not enough ports.
pub(crate) fn run(arguments: &Arguments) -> Result<Done> {
    let Proxied { endpoints: path, base_port } = &arguments.proxied;
    let file = path.display();
    let text = fs::read(path).with_context(|| format!("{file}: cannot be read"))?;
    let allowed = AllowList::parse(&file.to_string(), &text)?;
    let mut text = String::from(arguments.format.head());
    let mut endpoints: Vec<Value> = Vec::new();
    for endpoint in allowed.iter() {
        let port = vsock_port(endpoint, *base_port)
            .with_context(|| format!("{file}: no vsock port is left for {endpoint}; take a lower --base-port"))?;
        arguments.format.line(&mut text, endpoint, port);
        endpoints.push(json!({
            "vsock_port": port,
            "host": endpoint.host(),
            "port": endpoint.port(),
            "unit": unit(port),
        }));
    }
    if endpoints.is_empty() {
        bail!("{file} lists no endpoint, so there is nothing to proxy");
    }
    Ok(Done::new(text, json!({"endpoints": endpoints})))
}

/// The service that proxies one endpoint.
fn unit(port: u32) -> String {
    format!("teemark-vsock-proxy@{port}.service")
}

/// The vsock port at which the enclave dials this endpoint. The highest number means any port (VMADDR_PORT_ANY, vsock(7)).
fn vsock_port(endpoint: &Endpoint, first: u32) -> Option<u32> {
    first.checked_add(u32::try_from(endpoint.index()).ok()?).filter(|&port| port != u32::MAX)
}

impl Format {
    fn head(self) -> &'static str {
        match self {
            Format::Yaml => "# Printed by teemark vsock-proxy from the image's allow list.\nallowlist:\n",
            Format::Environment => {
                "# Printed by teemark vsock-proxy --format environment from the image's allow list.\n"
            }
            Format::List | Format::Units => "",
        }
    }

    fn line(self, text: &mut String, endpoint: &Endpoint, port: u32) {
        let (host, remote) = (endpoint.host(), endpoint.port());
        let _ = match self {
            Format::Yaml => {
                writeln!(text, "- {{address: {}, port: {remote}}} # vsock port {port}", yaml_string(host))
            }
            Format::List => writeln!(text, "{port} {host} {remote}"),
            Format::Environment => writeln!(text, "ENDPOINT_{port}={host} {remote}"),
            Format::Units => writeln!(text, "{}", unit(port)),
        };
    }
}

/// A host name as a YAML string, which vsock-proxy requires: `true`, `1.5` or `0x1f` are valid hosts too.
fn yaml_string(host: &str) -> String {
    let plain = host.starts_with(|c: char| c.is_ascii_alphabetic()) && host.contains('.');
    if plain { host.to_owned() } else { format!("\"{host}\"") }
}
