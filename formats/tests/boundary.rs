//! The trust boundary follows the folders: the two sides share only this crate and event-loop/, and neither links the
//! other's code.

use std::process::Command;

/// The names of all crates that a package links; `edges` says whether its tests count.
fn links(package: &str, edges: &str) -> Vec<String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--offline", "--package", package, "--edges", edges, "--prefix", "none", "--format", "{p}"]);
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn what_runs_outside_the_enclave_does_not_link_the_daemon() {
    for package in ["teemark", "watermark-service"] {
        let linked = links(package, "normal,build,dev");
        assert!(linked.iter().any(|name| name == package));
        assert!(!linked.iter().any(|name| name == "teemarkd"), "{package}");
    }
}

#[test]
fn the_formats_bring_no_socket_no_tls_and_no_http_client() {
    let linked = links("teemark-formats", "normal");
    assert!(linked.iter().any(|name| name == "ring"));
    for name in ["teemarkd", "rustls", "ureq", "tiny_http", "vsock", "nix", "rustix"] {
        assert!(!linked.iter().any(|linked| linked == name), "{name}");
    }
}

#[test]
fn the_event_loop_brings_no_tls_and_no_http() {
    let linked = links("teemark-event-loop", "normal");
    assert!(linked.iter().any(|name| name == "nix"));
    for name in ["teemarkd", "teemark", "rustls", "ureq", "tiny_http", "httparse"] {
        assert!(!linked.iter().any(|linked| linked == name), "{name}");
    }
}
