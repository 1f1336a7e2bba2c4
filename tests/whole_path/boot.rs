//! What keeps the daemon from starting, and what it does to itself when it starts.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::Stdio;

use crate::support::*;

/// Starts a daemon that must not start, and returns its log.
fn refused(setup: &Setup) -> String {
    let mut child = setup.command().stderr(Stdio::piped()).spawn().unwrap();
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    let last = log.lines().last().unwrap_or_default().to_owned();
    assert!(last.contains("ERROR") && last.contains("cannot go on: "), "the last line tells the reason: {log}");
    last
}

#[test]
fn an_invalid_setting_stops_the_start_and_is_named() {
    for (name, value) in [
        ("TEEMARK_PUBLIC", "3000"),
        ("TEEMARK_SECRETS", "vsock:x"),
        ("TEEMARK_EGRESS", "tcp:127.0.0.1:1"),
        ("TEEMARK_MAX_FILE", "64MB"),
        ("TEEMARK_MAX_CONNECTIONS", "0"),
        ("TEEMARK_MEMORY", "lots"),
        ("TEEMARK_FORWARD", "yes"),
        ("TEEMARK_ALLOW_UNWATERMARKED", "true"),
        ("TEEMARK_TIMEOUT", "-1s"),
    ] {
        let line = refused(&Setup::new(1).env(name, value));
        assert!(line.contains(name) && line.contains(value), "{line}");
    }
}

#[test]
fn a_variable_that_looks_like_a_setting_but_is_not_one_is_named_without_its_value() {
    let daemon = Setup::new(1).env("TEEMARK_MAXFILE", "a-value").env("TEEMARK_GRANT", "off").start();
    let log = daemon.process.log();
    for name in ["TEEMARK_MAXFILE", "TEEMARK_GRANT"] {
        let line = format!("\"{name}\" is not a setting of teemarkd and has no effect");
        assert_eq!(log.lines().filter(|l| l.contains("WARN") && l.contains(&line)).count(), 1, "{log}");
    }
    assert_eq!(log.matches("is not a setting").count(), 2, "{log}");
    assert!(!log.contains("a-value"), "{log}");
}

#[test]
fn a_bad_allow_list_stops_the_start_and_file_and_line_are_named() {
    for (list, line, reason) in [
        ("endpoints:\n  - good:1\n  - bad host\n", 3, "bad host"),
        ("endpoints:\n  - good:99999\n", 2, "port"),
        ("endpoints:\n  - good:1\n# comment\n  - Good:1\n", 4, "listed twice"),
        ("hosts:\n  - good:1\n", 1, "endpoints:"),
    ] {
        let mut setup = Setup::new(1);
        setup.allowed = list.to_owned();
        let told = refused(&setup);
        let place = format!("{}:{line}: ", setup.folder.path().join("allowed_endpoints.yaml").display());
        assert!(told.contains(&place) && told.contains(reason), "{told}");
    }
    let told = refused(&Setup::new(1).env("TEEMARK_ENDPOINTS", "/does/not/exist.yaml"));
    assert!(told.contains("/does/not/exist.yaml"), "{told}");
}

#[test]
fn a_port_in_use_stops_the_start_and_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", taken.local_addr().unwrap());
    for (name, listener) in [("TEEMARK_PUBLIC", "public"), ("TEEMARK_ADMIN", "admin"), ("TEEMARK_SECRETS", "secrets")] {
        let line = refused(&Setup::new(1).env(name, &address));
        assert!(line.contains(&address) && line.contains(listener) && line.contains("in use"), "{line}");
    }
    let taken = TcpListener::bind("127.0.0.64:0").unwrap();
    let forwarder = taken.local_addr().unwrap();
    let line = refused(&Setup::new(forwarder.port()).env("TEEMARK_FORWARD", "on"));
    assert!(line.contains("TEEMARK_FORWARD") && line.contains(&forwarder.to_string()), "{line}");
}

#[test]
fn the_daemon_forbids_itself_core_dumps() {
    let daemon = Setup::new(1).start();
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.process.child.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let figures: Vec<&str> = core.trim_start_matches("Max core file size").split_whitespace().collect();
    assert_eq!(figures, ["0", "0", "bytes"], "soft and hard limit");
}
