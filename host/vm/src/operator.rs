//! What an operator runs on the parent beside the enclave, with the same commands as on an instance.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use teemark_image::ramdisk::Entry;

use crate::bus::ENCLAVE_CID;
use crate::image::Image;
use crate::parent::{Output, Parent};
use crate::process::run;
use crate::qemu;
use crate::workspace::repository;

/// The watermark service's URL, by its name in the image's allow list.
pub const ENDPOINT: &str = "https://watermark.internal.staging.zing.you:8080";
/// The parent's folder of certificates.
pub const CERTS: &str = "/root/certs";
/// The parent's folder of scripts, from host/deploy.
const DEPLOY: &str = "/opt/teemark";

/// Makes CA, server and client certificate in a folder of this machine, with certs/make-certs.sh.
///
/// # Errors
/// The script's.
pub fn make_certs(folder: &Path, options: &[&str]) -> Result<()> {
    let script = repository().join("certs/make-certs.sh");
    run(Command::new(script).args(options).arg(folder)).map(drop)
}

/// The certificates for the watermark service, which runs on the parent here.
pub const OF_SERVICE: [&str; 3] = ["ca.crt", "server.crt", "server.key"];
/// All certificates, for an operator who prepares the handshake on the parent.
pub const OF_OPERATOR: [&str; 6] = ["ca.crt", "server.crt", "server.key", "client.crt", "client.key", "ecs-ca.crt"];

/// Prepares the parent for an enclave: these certificates, what answers its heartbeat, the service behind a proxy, the
/// scripts of host/deploy, and the enclave's ports on the loopback interface.
///
/// # Errors
/// Those of its steps.
pub fn set_up(parent: &Parent, certs: &Path, names: &[&str]) -> Result<()> {
    bring_certs(parent, certs, names)?;
    answer_heartbeat(parent)?;
    start_service(parent)?;
    start_proxy(parent)?;
    install_deployment(parent)?;
    expose(parent)
}

/// Copies these certificates of a folder of this machine to [`CERTS`].
///
/// # Errors
/// As [`Parent::unpack`]; one of them is missing.
pub fn bring_certs(parent: &Parent, folder: &Path, names: &[&str]) -> Result<()> {
    let mut entries = vec![Entry::directory("/root", 0o755), Entry::directory(CERTS, 0o755)];
    for name in names {
        entries.push(Entry::file(&format!("{CERTS}/{name}"), 0o600, read(&folder.join(name))?));
    }
    parent.unpack(&entries)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| file.display().to_string())
}

/// Installs the scripts of host/deploy in /opt/teemark, and a stand-in for nitro-cli that tells them of the one enclave.
///
/// # Errors
/// As [`Parent::unpack`].
pub fn install_deployment(parent: &Parent) -> Result<()> {
    let mut entries: Vec<_> =
        ["/opt", DEPLOY, "/usr", "/usr/bin"].iter().map(|folder| Entry::directory(folder, 0o755)).collect();
    for name in ["enclave.sh", "expose.sh", "send-secrets.sh"] {
        let script = read(&repository().join("host/deploy").join(name))?;
        entries.push(Entry::file(&format!("{DEPLOY}/{name}"), 0o755, script));
    }
    let enclaves = json!([{"EnclaveName": "teemark", "EnclaveCID": ENCLAVE_CID, "State": "RUNNING"}]);
    let nitro_cli = format!("#!/bin/sh\n[ \"$1\" = describe-enclaves ] && echo '{enclaves}'\n");
    entries.push(Entry::file("/usr/bin/nitro-cli", 0o755, nitro_cli));
    parent.unpack(&entries)
}

/// Answers the heartbeat as nitro-cli does, on vsock port 9000; the byte is kept in /tmp/heartbeat.
///
/// # Errors
/// As [`Parent::start`].
pub fn answer_heartbeat(parent: &Parent) -> Result<()> {
    parent.start("heartbeat", &format!("{HEARTBEAT} SYSTEM:'{ECHO}'"), "listening on")
}

/// The same as a starved nitro-cli does it: it listens only after 20 s, and takes 10 s more to read and answer.
///
/// # Errors
/// As [`Parent::start`].
pub fn answer_heartbeat_late(parent: &Parent) -> Result<()> {
    let late = format!("echo is late; sleep 20; exec {HEARTBEAT} SYSTEM:'sleep 10; {ECHO}'");
    parent.put("/tmp/late", late.as_bytes())?;
    parent.start("heartbeat", "sh /tmp/late", "is late")
}

const HEARTBEAT: &str = "socat -d -d VSOCK-LISTEN:9000,reuseaddr";
const ECHO: &str = "dd bs=1 count=1 2>/dev/null | tee /tmp/heartbeat";

/// Starts the development watermark service on 127.0.0.1:8080, in place of the real one.
///
/// # Errors
/// As [`Parent::start`].
pub fn start_service(parent: &Parent) -> Result<()> {
    let serve = "watermark-service serve --listen 127.0.0.1:8080";
    let files = format!("--cert {CERTS}/server.crt --key {CERTS}/server.key --client-ca {CERTS}/ca.crt");
    parent.start("service", &format!("{serve} {files}"), "listening on")
}

/// Starts the proxy from the enclave to the service, like AWS' vsock-proxy: endpoint 0 of the allow list is port 8101.
///
/// # Errors
/// As [`Parent::start`].
pub fn start_proxy(parent: &Parent) -> Result<()> {
    start_proxy_to(parent, "TCP:127.0.0.1:8080")
}

/// The same to a service elsewhere, which is a socat address on the parent.
///
/// # Errors
/// As [`Parent::start`].
pub fn start_proxy_to(parent: &Parent, service: &str) -> Result<()> {
    parent.start(
        "proxy",
        &format!("socat -d -d VSOCK-LISTEN:8101,fork,reuseaddr,backlog=256 {service}"),
        "listening on",
    )
}

/// Ends the proxy and every connection through it.
///
/// # Errors
/// As [`Parent::stop`].
pub fn stop_proxy(parent: &Parent) -> Result<()> {
    parent.stop("proxy")
}

/// Forwards the enclave's public and admin port to TCP on the parent's loopback interface, with expose.sh.
///
/// # Errors
/// As [`Parent::start`].
pub fn expose(parent: &Parent) -> Result<()> {
    parent.start("expose", &format!("env EXPOSE_PUBLIC=127.0.0.1:3000 {DEPLOY}/expose.sh"), "^admin:")?;
    // It says so before its listeners are there.
    parent.wait_until("netstat -lnt | grep -c -E ':300[01] ' | grep -q 2", Duration::from_secs(60))
}

/// The options with which `teemark` trusts an enclave of this image, as far as that is possible here: with QEMU's module,
/// whose signature is a dummy, by its PCRs; without one it vouches for itself.
pub fn trust(image: &Image) -> Vec<String> {
    match (qemu::nitro(), image.path()) {
        (Some(_), Some(eif)) => {
            vec!["--unsigned".into(), "--pcrs".into(), eif.with_extension("pcrs").display().to_string()]
        }
        _ => vec!["--development".into()],
    }
}

/// Forwards a vsock port of the parent to `target`, a socat address there; [`crate::forward`] makes it a TCP port of this
/// machine.
///
/// # Errors
/// As [`Parent::start`].
pub fn forward(parent: &Parent, port: u32, target: &str) -> Result<()> {
    let socat = format!("socat -d -d -t 60 VSOCK-LISTEN:{port},fork,reuseaddr,backlog=256 {target}");
    parent.start(&format!("forward-{port}"), &socat, "listening on")
}

/// Sends a bundle to the enclave with send-secrets.sh, which prints the enclave's answer to standard output.
///
/// # Errors
/// As [`Parent::run`]. A refusal is not an error here: look at the status.
pub fn send_secrets(parent: &Parent, bundle: &[u8]) -> Result<Output> {
    parent.run_with(&format!("{DEPLOY}/send-secrets.sh -"), bundle)
}
