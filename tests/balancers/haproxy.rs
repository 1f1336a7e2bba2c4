use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use tempfile::TempDir;

use super::support::balancer;
use super::*;

/// HAProxy with the documented configuration, in which `check` is replaced, and a socket for its statistics.
fn haproxy(daemons: &[Daemon; 2], folder: &TempDir, check: &str) -> Balancer {
    let (port, path) = (free_port(), folder.path().display());
    let [a, b] = daemons.each_ref().map(|daemon| daemon.public.to_string());
    let pem = folder.path().join("tls.pem");
    let both = ["server.crt", "server.key"].map(|name| std::fs::read(CERTS.path(name)).unwrap()).concat();
    std::fs::write(&pem, both).unwrap();
    let sections = documented(
        "haproxy",
        &[
            ("10.0.1.10:3000", &a),
            ("10.0.1.11:3000", &b),
            ("bind :443", &format!("bind 127.0.0.1:{port}")),
            ("/etc/teemark/tls.pem", &pem.display().to_string()),
            ("option httpchk GET /ready", check),
        ],
    );
    let config = format!("global\n    stats socket {path}/stats\n\n{sections}");
    let balancer = Balancer { _process: balancer::haproxy(&config, port, folder.path()), port };
    wait_for("both servers", || (up(folder) == 2).then_some(()));
    balancer
}

/// How many servers a check has found up.
fn up(folder: &TempDir) -> usize {
    // It listens for clients before it listens here.
    let Ok(mut stats) = UnixStream::connect(folder.path().join("stats")) else { return 0 };
    stats.write_all(b"show stat\n").unwrap();
    let mut text = String::new();
    stats.read_to_string(&mut text).unwrap();
    // Before its first check a server counts as up; L7OK is a check's result.
    text.lines()
        .filter(|line| line.starts_with("enclaves,") && line.contains(",UP,") && line.contains(",L7OK,"))
        .count()
}

const READY: &str = "option httpchk GET /ready";

#[test]
fn haproxys_default_check_finds_daemons_up_while_they_live() {
    let (_service, daemons) = fleet();
    let folder = TempDir::new().unwrap();
    let _haproxy = haproxy(&daemons, &folder, "option httpchk");
    let [first, second] = daemons;
    first.process.signal("TERM");
    wait_for("one to be down", || (up(&folder) == 1).then_some(()));
    drop(second);
    wait_for("both to be down", || (up(&folder) == 0).then_some(()));
}

#[test]
fn through_haproxy_files_of_5_mb_come_back_over_tls_and_kept_connections() {
    let (_service, daemons) = fleet();
    let folder = TempDir::new().unwrap();
    files_come_back_over_kept_connections(&haproxy(&daemons, &folder, READY), &daemons, folder.path());
}

#[test]
fn uploads_through_haproxy_that_are_reset_cost_nothing() {
    let (_service, daemons) = fleet();
    let folder = TempDir::new().unwrap();
    resets_cost_nothing(&haproxy(&daemons, &folder, READY), &daemons, folder.path());
}

#[test]
fn draining_behind_haproxy_loses_no_request() {
    let (_service, daemons) = fleet();
    let folder = TempDir::new().unwrap();
    let haproxy = haproxy(&daemons, &folder, READY);
    draining_one_loses_no_request(&haproxy, daemons, folder.path());
}
