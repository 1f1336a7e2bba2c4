//! Debian's nginx and HAProxy, which host/install-tools.sh installs.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Process, wait_for};

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
