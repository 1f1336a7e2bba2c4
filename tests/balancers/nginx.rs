use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, socket};
use tempfile::TempDir;

use super::support::balancer;
use super::*;

/// nginx with the documented configuration. `more` is added to its location.
fn nginx(daemons: &[Daemon; 2], folder: &TempDir, more: &str) -> Balancer {
    let to = daemons.each_ref().map(|daemon| daemon.public);
    let (process, port) = balancer::documented_nginx(to, more, &CERTS, folder.path());
    Balancer { _process: process, port }
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

#[test]
fn an_enclave_that_is_killed_behind_nginx_fails_no_request_whatever_its_size() {
    for length in [1000, 1 << 20] {
        let folder = TempDir::new().unwrap();
        let granted = Granted::new();
        let nginx = nginx(&granted.daemons, &folder, "");
        // It has no check: each request finds out.
        let answer = granted.killing_one(&nginx, folder.path(), length, || {});
        assert_eq!(answer, "200", "{length}");
    }
}

#[test]
fn a_machine_that_is_gone_behind_nginx_fails_no_request() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Daemon::ready(&service, &CERTS);
    let folder = TempDir::new().unwrap();
    // Linux drops the first packet of a connection for which its queue has no room.
    let gone = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
    bind(gone.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    listen(&gone, Backlog::new(0).unwrap()).unwrap();
    let address: SockaddrIn = getsockname(gone.as_raw_fd()).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], address.port()));
    let _fills_it = TcpStream::connect(address).unwrap();
    let (process, port) = balancer::documented_nginx([address, daemon.public], "", &CERTS, folder.path());
    let nginx = Balancer { _process: process, port };
    let file = encrypted(folder.path(), 1000);
    for _ in 0..4 {
        assert_eq!(nginx.decrypt(&file).0, "200");
    }
}

/// A 503 because the service is busy is no reason for nginx to take an enclave for dead.
#[test]
fn after_answers_of_503_nginx_still_asks_both() {
    let service = Service::start(&CERTS, &["--fault", "fail=503", "--fault", "first=3"]);
    let daemons = [(), ()].map(|()| Daemon::ready(&service, &CERTS));
    let folder = TempDir::new().unwrap();
    let nginx = nginx(&daemons, &folder, "");
    let file = encrypted(folder.path(), 1000);
    let (status, told) = nginx.decrypt(&file);
    let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
    assert_eq!((&*status, told["code"].as_str()), ("503", Some("watermark_busy")));
    for _ in 0..4 {
        assert_eq!(nginx.decrypt(&file).0, "200");
    }
}
