//! Mutual TLS with the watermark service, and what the daemon does when something is wrong with it.

#[path = "../support/mod.rs"]
mod support;

mod answers;
mod certificates;
mod early;
mod egress;
mod forward;
mod largest;
mod pool;
mod scripted;
mod slow;

use std::sync::LazyLock;

use serde_json::json;
use support::openssl::{FOR_SERVER, P_256, VALID};
use support::*;

/// A CA, and a service and a client with certificates from it.
static CERTS: LazyLock<Certs> = LazyLock::new(certs);

/// The same from a CA that nobody else knows.
static OTHERS: LazyLock<Certs> = LazyLock::new(certs);

fn certs() -> Certs {
    let certs = Certs::with_root();
    certs.client("client");
    certs
}

/// [`CERTS`] with another certificate for the service.
fn with_server(extensions: &str, validity: (&str, &str)) -> Certs {
    let certs = Certs(tempfile::TempDir::new().unwrap());
    certs.shell(&format!("cp {}/*.crt {}/*.key .", CERTS.0.path().display(), CERTS.0.path().display()));
    certs.issue("server", P_256, "ca", extensions, validity);
    certs
}

/// The file's content, which no answer or log line may contain.
const CONTENT: &str = "the zebra crosses at dawn\n";

/// Asks for a file with [`CONTENT`].
fn call(daemon: &Daemon) -> Answer {
    daemon.decrypt(&encrypt(&KEY, CONTENT.as_bytes()), "f", "u")
}

/// The daemon returns the marked file.
fn assert_works(daemon: &Daemon) {
    assert_marked(daemon, &call(daemon));
}

/// The answer is the marked file.
fn assert_marked(daemon: &Daemon, answer: &Answer) {
    assert_eq!(answer.status, 200, "{answer:?}\n{}", daemon.process.log());
    assert_eq!(extract(&answer.body), json!({"file_id": "f", "user_id": "u"}));
}

/// The answer is an error with this status and code, and tells nothing about the file.
fn assert_refused(daemon: &Daemon, answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{answer:?}");
    for told in [answer.text(), daemon.process.log()] {
        assert!(!told.contains("zebra") && !told.contains("dawn"), "the file shows in: {told}");
    }
}

/// A call of the service that fails, and its message.
fn assert_fails(daemon: &Daemon) -> String {
    let answer = call(daemon);
    assert_refused(daemon, &answer, 502, "watermark_failed");
    answer.json()["error"].as_str().unwrap().to_owned()
}

/// A daemon that may reach all of these ports and uses the first.
fn daemon_for(ports: &[u16]) -> Daemon {
    let mut setup = Setup::new(ports[0]);
    setup.allowed = ports.iter().fold("endpoints:\n".to_owned(), |list, port| format!("{list}  - localhost:{port}\n"));
    Daemon::ready_with(setup, ports[0], &CERTS)
}

/// Makes the daemon use the service at another port.
fn turn_to(daemon: &Daemon, port: u16) {
    let bundle = json!({"ECS_WATERMARK_ENDPOINT": format!("https://localhost:{port}")});
    let answer = daemon.handshake(bundle.to_string().as_bytes());
    assert_eq!(answer["ok"], true, "{answer}");
}
