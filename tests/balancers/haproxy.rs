use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use tempfile::TempDir;

use super::support::balancer::{self, READY};
use super::*;

/// HAProxy with the documented configuration, in which `check` is replaced. Both daemons have been found up.
fn haproxy(daemons: &[Daemon; 2], folder: &TempDir, check: &str) -> Balancer {
    let to = daemons.each_ref().map(|daemon| daemon.public);
    let (process, port) = balancer::documented_haproxy(to, check, &CERTS, folder.path());
    wait_for("both servers", || (up(folder) == 2).then_some(()));
    Balancer { _process: process, port }
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

#[test]
fn an_enclave_that_is_killed_behind_haproxy_fails_only_what_it_had_and_haproxy_no_longer_has() {
    // HAProxy keeps what fits into one of its buffers, of 16 KiB.
    for (length, status) in [(1000, "200"), (1 << 20, "502")] {
        let folder = TempDir::new().unwrap();
        let granted = Granted::new();
        let haproxy = haproxy(&granted.daemons, &folder, READY);
        let noticed = || wait_for("one to be down", || (up(&folder) == 1).then_some(()));
        let answer = granted.killing_one(&haproxy, folder.path(), length, noticed);
        assert_eq!(answer, status, "{length}");
    }
}
