//! A day of an operator and of a user, by the exact commands of docs/OPERATOR.md and docs/USER.md.

use std::fs;
use std::os::unix::fs::symlink;

use super::markdown::code_and_prose;
use super::*;

/// What replaces the build before the first block: the built programs, and an end for what the blocks start in
/// terminals of their own.
const BEGIN: &str = "export PATH=$PWD/target/debug:$PATH
trap 'kill $(jobs -p) && wait' EXIT
listens() { for _ in $(seq 1200); do (: <>/dev/tcp/127.0.0.1/$1) 2>/dev/null && return; sleep 0.1; done; return 1; }
";

/// The blocks of a document before this heading.
fn blocks(document: &str, end: &str) -> Vec<String> {
    let text = fs::read_to_string(repository().join(document)).unwrap();
    code_and_prose(text.split(end).next().unwrap()).0.into_iter().map(|block| without_fence(&block)).collect()
}

fn without_fence(block: &str) -> String {
    block.split_once('\n').unwrap().1.to_owned()
}

#[test]
fn the_day_of_an_operator_and_of_a_user_runs_as_it_stands_in_the_documents() {
    let operator = blocks("docs/OPERATOR.md", "## Behind a balancer");
    let user = blocks("docs/USER.md", "## What an error means");
    let [service, public, admin, secrets] = std::array::from_fn(|_| free_port().to_string());

    let mut script = BEGIN.to_owned();
    for block in &operator[1..] {
        let block = block.replace("target/x86_64-unknown-linux-musl/release", "target/debug");
        let block = block.lines().filter(|line| !line.starts_with("cargo build ")).collect::<Vec<_>>().join("\n");
        if block.ends_with("watermark-service serve") {
            script += &format!("{block} --listen 127.0.0.1:8080 >/dev/null &\nlistens 8080\n");
        } else if block.ends_with("./run.sh") {
            script += &format!("{block} &\nlistens 3000\n");
        } else {
            script += &format!("{block}\n");
        }
        // Between the checks and the rotation.
        if block.contains("/metrics") {
            script += &user.concat();
        }
    }
    // By way of their names: a free port may contain another's digits.
    for (port, name) in [("8080", "{service}"), ("3000", "{public}"), ("3001", "{admin}"), ("7777", "{secrets}")] {
        script = script.replace(port, name);
    }
    for (name, free) in [("{service}", service), ("{public}", public), ("{admin}", admin), ("{secrets}", secrets)] {
        script = script.replace(name, &free);
    }

    let folder = tempfile::TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["certs", "target"] {
        fs::create_dir(path(name)).unwrap();
    }
    fs::copy(repository().join("certs/make-certs.sh"), path("certs/make-certs.sh")).unwrap();
    symlink(repository().join("run.sh"), path("run.sh")).unwrap();
    symlink(program("teemarkd").parent().unwrap(), path("target/debug")).unwrap();
    let told = bash(folder.path(), &script);

    for words in [r#"{"missing":[],"ready":true}"#, r#""watermark":{"healthy":true}"#, "teemark_connections_open "] {
        assert!(told.contains(words), "{words} in {told}");
    }
    for marked in ["marked.png", "marked2.png"] {
        assert_eq!(extract(&fs::read(path(marked)).unwrap())["user_id"], "alice", "{marked}");
    }
    // The handshake, and the rotation.
    assert_eq!(told.matches("MTLS_CLIENT_CERT_JSON").count(), 2, "{told}");
}
