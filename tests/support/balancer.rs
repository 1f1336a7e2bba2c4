//! Debian's nginx and HAProxy, which host/install-tools.sh installs.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use super::markdown::code_and_prose;
use super::{Certs, Process, free_port, repository, wait_for};

/// The block of code in this language in docs/OPERATOR.md, with these words replaced, each of which occurs in it.
fn documented(language: &str, replaced: &[(&str, &str)]) -> String {
    let page = fs::read_to_string(repository().join("docs/OPERATOR.md")).unwrap();
    let blocks = code_and_prose(&page).0;
    let fence = format!("```{language}\n");
    let mut block = blocks.iter().find_map(|block| block.strip_prefix(&fence)).expect("its block").to_owned();
    for (from, to) in replaced {
        assert!(block.contains(from), "{from} is not in {block}");
        block = block.replace(from, to);
    }
    block
}

/// nginx with the documented configuration, in front of these two, and its port for TLS. `more` is added to its location.
pub(crate) fn documented_nginx(to: [SocketAddr; 2], more: &str, certs: &Certs, folder: &Path) -> (Process, u16) {
    let port = free_port();
    let [a, b] = to.map(|address| address.to_string());
    let servers = documented(
        "nginx",
        &[
            ("10.0.1.10:3000", &a),
            ("10.0.1.11:3000", &b),
            ("listen 443", &format!("listen 127.0.0.1:{port}")),
            ("/etc/teemark/tls.crt", &certs.path("server.crt").display().to_string()),
            ("/etc/teemark/tls.key", &certs.path("server.key").display().to_string()),
            ("proxy_http_version 1.1;", &format!("proxy_http_version 1.1; {more}")),
        ],
    );
    (nginx(&servers, port, folder), port)
}

/// HAProxy with the documented configuration, in which `check` is the check, in front of these two; and its port for TLS.
/// A socket for its statistics is in the folder.
pub(crate) fn documented_haproxy(to: [SocketAddr; 2], check: &str, certs: &Certs, folder: &Path) -> (Process, u16) {
    let (port, pem) = (free_port(), folder.join("tls.pem"));
    let [a, b] = to.map(|address| address.to_string());
    let both = ["server.crt", "server.key"].map(|name| fs::read(certs.path(name)).unwrap()).concat();
    fs::write(&pem, both).unwrap();
    let sections = documented(
        "haproxy",
        &[
            ("10.0.1.10:3000", &a),
            ("10.0.1.11:3000", &b),
            ("bind :443", &format!("bind 127.0.0.1:{port}")),
            ("/etc/teemark/tls.pem", &pem.display().to_string()),
            ("option httpchk GET /ready", check),
            // Else a daemon that answers a check late, on a busy machine, would be down.
            ("timeout connect 5s", "timeout connect 5s\n    timeout check 60s"),
        ],
    );
    let config = format!("global\n    stats socket {}/stats\n\n{sections}", folder.display());
    (haproxy(&config, port, folder), port)
}

/// The documented check of HAProxy.
pub(crate) const READY: &str = "option httpchk GET /ready";

/// Starts nginx with these lines in its `http` block, and waits until it listens on this port.
pub(crate) fn nginx(http: &str, port: u16, folder: &Path) -> Process {
    let (path, file) = (folder.display(), folder.join("nginx.conf"));
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String = kinds.map(|kind| format!("{kind}_temp_path {path}/{kind};\n")).concat();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {path}/pid;\nerror_log stderr;\nevents {{}}\n\
         http {{\naccess_log off;\n{temporary}{http}}}\n"
    );
    fs::write(&file, config).unwrap();
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-e").arg("stderr").arg("-p").arg(folder).arg("-c").arg(&file);
    start(&mut command, port, folder)
}

/// Starts HAProxy with this configuration, and waits until it listens on this port.
pub(crate) fn haproxy(config: &str, port: u16, folder: &Path) -> Process {
    let file = folder.join("haproxy.cfg");
    fs::write(&file, config).unwrap();
    let mut command = Command::new("/usr/sbin/haproxy");
    start(command.arg("-db").arg("-f").arg(&file), port, folder)
}

fn start(command: &mut Command, port: u16, folder: &Path) -> Process {
    let program = command.get_program().to_owned();
    assert!(Path::new(&program).exists(), "{program:?} is not installed: run host/install-tools.sh");
    let mut process = Process::spawn(command.stdout(Stdio::null()), folder.join("log"));
    wait_for(&format!("{program:?} to listen"), || {
        if let Some(ended) = process.child.try_wait().unwrap() {
            panic!("{program:?} ended with {ended}: {}", process.log());
        }
        TcpStream::connect(("127.0.0.1", port)).ok()
    });
    process
}
