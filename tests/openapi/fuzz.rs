//! docs/openapi.yaml against what a daemon answers: schemathesis (PyPI) makes requests from the description, good ones and
//! bad ones, and holds each answer against it.
//!
//! Number of requests and seed are fixed; `make fuzz-api` sets others.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tempfile::TempDir;

use crate::support::issuer::{Issuer, claims};
use crate::support::*;

/// A Python that has schemathesis.
static PYTHON: LazyLock<Result<PathBuf, String>> =
    LazyLock::new(|| packages::pinned("schemathesis", &folder().join("requirements.txt")));

fn folder() -> PathBuf {
    repository().join("tests/openapi")
}

/// Schemathesis.
struct Fuzzer {
    python: &'static Path,
    /// Its working directory.
    scratch: TempDir,
}

impl Fuzzer {
    /// `None` after a report that the test is not run.
    fn find(test: &str) -> Option<Fuzzer> {
        match &*PYTHON {
            Ok(python) => Some(Fuzzer { python, scratch: TempDir::new().unwrap() }),
            Err(reason) => {
                not_run(test, &format!("the Python package schemathesis cannot be had here: {reason}"));
                None
            }
        }
    }

    /// Whether a listener's answers are as this description has them, and what schemathesis says.
    fn run(&self, description: &Path, to: SocketAddr, grants: &str, arguments: &[&str]) -> (bool, String) {
        let setting = |name, default: &str| env::var(name).unwrap_or_else(|_| default.into());
        let mut command = Command::new(self.python.with_file_name("schemathesis"));
        command.arg("--config-file").arg(folder().join("schemathesis.toml")).arg("run").arg(description);
        command.args(["--url", &format!("http://{to}"), "--no-color", "--checks", "all"]);
        command.args(["--seed", &setting("API_SEED", "1"), "--max-examples", &setting("API_EXAMPLES", "40")]);
        // However busy the machine is.
        command.args(["--request-timeout", &SOON.as_secs().to_string(), "--suppress-health-check", "all"]);
        command.args(arguments).current_dir(self.scratch.path());
        command.env("SCHEMATHESIS_HOOKS", "hooks").env("PYTHONPATH", folder()).env("PYTHONDONTWRITEBYTECODE", "1");
        command.env("FILE", STANDARD.encode(encrypt(&KEY, b"All of a text, long enough to be marked.")));
        command.env("GRANTS", grants);
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.success(), said)
    }

    fn expect_good(&self, to: SocketAddr, grants: &str, arguments: &[&str]) {
        let (good, said) = self.run(&repository().join("docs/openapi.yaml"), to, grants, arguments);
        println!("{said}");
        assert!(good, "an answer is not as docs/openapi.yaml describes it: see above");
    }
}

#[test]
fn every_answer_is_as_the_description_has_it() {
    let Some(fuzzer) = Fuzzer::find("every_answer_is_as_the_description_has_it") else { return };
    let certs = Certs::make();
    let service = Service::start(&certs, &[]);
    // However busy the machine is.
    let daemon = Daemon::ready_with(Setup::new(service.port).env("TEEMARK_TIMEOUT", "120s"), service.port, &certs);
    fuzzer.expect_good(daemon.public, "off", &["--exclude-tag", "admin"]);
    for route in ["decrypt", "decrypt_raw"] {
        let given = daemon.metric(&format!("teemark_requests_total{{route=\"{route}\",code=\"200\"}}"));
        assert!(given > 5.0, "{route}: {given}");
    }
    // The last, since bundles and drains are among its requests.
    fuzzer.expect_good(daemon.admin, "off", &["--include-tag", "admin"]);
    assert!(daemon.metric("teemark_requests_total{route=\"drain\",code=\"200\"}") > 5.0);
}

#[test]
fn where_grants_are_required_every_answer_is_as_the_description_has_it() {
    let Some(fuzzer) = Fuzzer::find("where_grants_are_required_every_answer_is_as_the_description_has_it") else {
        return;
    };
    let (certs, issuer) = (Certs::make(), Issuer::new());
    let service = Service::start(&certs, &[]);
    let setup = Setup::new(service.port).env("TEEMARK_GRANTS", "required").env("TEEMARK_FLEET", "fleet");
    let setup = setup.env("TEEMARK_TIMEOUT", "120s");
    let daemon = setup.start();
    let mut bundle = certs.full_bundle(service.port);
    bundle["GRANT_KEYS"] = issuer.jwks();
    assert_eq!(daemon.handshake(bundle.to_string().as_bytes())["missing"], json!([]));
    let grant = format!("Authorization: Bearer {}", issuer.token(&claims("1")));
    fuzzer.expect_good(daemon.public, "required", &["--include-tag", "files", "--header", &grant]);
    for code in [401, 403] {
        assert!(daemon.metric(&format!("teemark_requests_total{{route=\"decrypt_raw\",code=\"{code}\"}}")) > 0.0);
    }
}

#[test]
fn a_description_that_is_wrong_in_a_status_a_member_or_a_field_is_noticed() {
    let Some(fuzzer) = Fuzzer::find("a_description_that_is_wrong_in_a_status_a_member_or_a_field_is_noticed") else {
        return;
    };
    let daemon = Setup::new(1).start();
    let right = fs::read_to_string(repository().join("docs/openapi.yaml")).unwrap();
    for (operation, from, to, complaint) in [
        ("getAttestation", "\"400\"", "\"410\"", "ST103"),
        ("health", "const: alive", "const: dead", "ST108"),
        ("getAttestation", "test_root:", "another:", "ST108"),
        ("attestation", "max-age=60", "max-age=61", "ST108"),
        ("state", "application/json", "text/json", "ST105"),
    ] {
        let wrong = right.replace(from, to);
        assert_ne!(wrong, right);
        let file = fuzzer.scratch.path().join("openapi.yaml");
        fs::write(&file, wrong).unwrap();
        let (good, said) = fuzzer.run(&file, daemon.public, "off", &["--include-operation-id", operation]);
        assert!(!good && said.contains(complaint), "{operation} with {to}: {said}");
    }
}
