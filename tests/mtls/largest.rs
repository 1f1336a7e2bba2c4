//! The largest file, with the memory that the shipped settings leave.

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use teemarkd::settings::memory_for_requests;

use crate::scripted::{Scripted, Step};
use crate::*;

const MIB: usize = 1 << 20;
/// TEEMARK_MAX_FILE's default.
const LARGEST: usize = 64 * MIB;
/// Memory of an enclave that is in use when the daemon starts: src/api/limits.rs has the sum.
const NOT_AVAILABLE: usize = 48 * MIB;

/// TEEMARK_MEMORY's default in an enclave of ENCLAVE_MEMORY's default, in bytes.
fn memory() -> usize {
    let script = fs::read_to_string(repository().join("host/deploy/run-enclave.sh")).unwrap();
    let (_, rest) = script.split_once("${ENCLAVE_MEMORY:-").unwrap();
    memory_for_requests(rest.split_once('}').unwrap().0.parse::<usize>().unwrap() * MIB - NOT_AVAILABLE)
}

/// A service that answers every request with these bytes as the marked file.
fn service_that_gives(answer: serde_json::Value) -> Scripted {
    let body = answer.to_string();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let bytes: &'static [u8] = Vec::leak([head.as_bytes(), body.as_bytes()].concat());
    Scripted::start(move |_, _| Step::Bytes(bytes.to_vec()))
}

/// A daemon with the memory of a shipped enclave, and with this service.
fn daemon_with(service: &Scripted) -> Daemon {
    let setup = Setup::new(service.port).env("TEEMARK_MEMORY", &memory().to_string());
    // Enough time on a busy machine; and glibc returns freed memory, as the enclave's musl does.
    let setup = setup.env("TEEMARK_TIMEOUT", "600s").env("MALLOC_MMAP_THRESHOLD_", "131072");
    Daemon::ready_with(setup, service.port, &CERTS)
}

fn the_peak_is_bounded(daemon: &Daemon) {
    let peak = usize::try_from(daemon.process.memory("VmHWM")).unwrap() * 1024;
    println!("peak RSS {} MiB, TEEMARK_MEMORY {} MiB", peak / MIB, memory() / MIB);
    assert!(peak <= memory() / 4 * 5, "{peak} bytes at the peak, with {} for requests", memory());
}

#[test]
fn with_the_memory_of_a_shipped_enclave_a_text_of_the_largest_size_passes_by_the_raw_route() {
    let mut text = vec![b'x'; LARGEST];
    text.iter_mut().step_by(64).for_each(|byte| *byte = b'\n');
    let file = encrypt(&KEY, &text);
    text[1] = b'y';
    let marked = String::from_utf8(text).unwrap();
    let service = service_that_gives(json!({"status": "success", "watermarked_data": marked}));
    let daemon = daemon_with(&service);
    let answer = daemon.decrypt(&file, "f", "u");
    assert_eq!(answer.status, 200, "{}", daemon.process.log());
    assert!(answer.body == marked.as_bytes(), "another file than the marked one");
    the_peak_is_bounded(&daemon);
}

#[test]
fn with_the_memory_of_a_shipped_enclave_any_file_of_the_largest_size_passes_by_the_json_route() {
    let mut file = vec![0xff; LARGEST];
    let sent = STANDARD.encode(encrypt(&KEY, &file));
    file[1] = 0xfe;
    let answer = json!({"status": "success", "encoding": "base64", "watermarked_data": STANDARD.encode(&file)});
    let service = service_that_gives(answer);
    let daemon = daemon_with(&service);
    let body = json!({"file_id": "f", "user_id": "u", "encrypted_content": sent}).to_string();
    let answer = daemon.post("/files/decrypt", body.as_bytes());
    assert_eq!(answer.status, 200, "{}", daemon.process.log());
    let given = STANDARD.decode(answer.json()["decrypted_data"].as_str().unwrap()).unwrap();
    assert!(given == file, "another file than the marked one");
    the_peak_is_bounded(&daemon);
}
