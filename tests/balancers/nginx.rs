use tempfile::TempDir;

use super::support::balancer;
use super::*;

/// nginx with the documented configuration. `more` is added to its location.
fn nginx(daemons: &[Daemon; 2], folder: &TempDir, more: &str) -> Balancer {
    let port = free_port();
    let [a, b] = daemons.each_ref().map(|daemon| daemon.public.to_string());
    let servers = documented(
        "nginx",
        &[
            ("10.0.1.10:3000", &a),
            ("10.0.1.11:3000", &b),
            ("listen 443", &format!("listen 127.0.0.1:{port}")),
            ("/etc/teemark/tls.crt", &CERTS.path("server.crt").display().to_string()),
            ("/etc/teemark/tls.key", &CERTS.path("server.key").display().to_string()),
            ("proxy_http_version 1.1;", &format!("proxy_http_version 1.1; {more}")),
        ],
    );
    Balancer { _process: balancer::nginx(&servers, port, folder.path()), port }
}

#[test]
fn through_nginx_files_of_5_mb_come_back_over_tls_and_kept_connections() {
    let (_service, daemons) = fleet();
    let folder = TempDir::new().unwrap();
    files_come_back_over_kept_connections(&nginx(&daemons, &folder, ""), &daemons, folder.path());
}

#[test]
fn uploads_through_nginx_that_are_reset_cost_nothing() {
    let (_service, daemons) = fleet();
    let folder = TempDir::new().unwrap();
    // Else the daemon would not see them: nginx waits for the whole body.
    let nginx = nginx(&daemons, &folder, "proxy_request_buffering off;");
    resets_cost_nothing(&nginx, &daemons, folder.path());
}

#[test]
fn draining_behind_nginx_loses_no_request() {
    let (_service, daemons) = fleet();
    let folder = TempDir::new().unwrap();
    let nginx = nginx(&daemons, &folder, "");
    draining_one_loses_no_request(&nginx, daemons, folder.path());
}

#[test]
fn nginxs_request_id_is_in_the_answer_and_in_the_log() {
    let (_service, daemons) = fleet();
    let folder = TempDir::new().unwrap();
    let nginx = nginx(&daemons, &folder, "");
    let head = run(nginx.curl().args(["--head", &nginx.url("/ready")]));
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let id = head.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap().to_owned();
    assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    let logs = || daemons.iter().map(|daemon| daemon.process.log()).collect::<String>();
    wait_for("the line", || logs().contains(&format!(" {id}] ready 200")).then_some(()));
}
