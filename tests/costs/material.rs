//! What is asked for: one file for each route and size, and a service that marks it.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::service;
use crate::support::{Certs, Daemon, KEY, Setup, encrypt};

pub(crate) const ROUTES: [Route; 2] = [Route::Raw, Route::Json];
/// Bytes of a file.
pub(crate) const SIZES: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];

/// What the service puts in the place of the first four characters of the base64.
pub(crate) const MARK: &str = "MARK";

/// A way to ask for a file.
#[derive(Clone, Copy)]
pub(crate) enum Route {
    Raw,
    Json,
}

/// A request, and what has to come back.
pub(crate) struct Sample {
    route: Route,
    pub(crate) size: usize,
    pub(crate) request: Vec<u8>,
    marked: Vec<u8>,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let route = match self.route {
            Route::Raw => "raw",
            Route::Json => "json",
        };
        write!(f, "{route}/{}KiB", self.size >> 10)
    }
}

/// The certificates and the service of one run.
pub(crate) struct Material {
    certs: Certs,
    port: u16,
}

impl Material {
    pub(crate) fn make() -> Material {
        let certs = Certs::make();
        let port = service::start(&certs);
        Material { certs, port }
    }

    pub(crate) fn sample(&self, route: Route, size: usize) -> Sample {
        let plain = noise(size);
        let marked = [&STANDARD.decode(MARK).unwrap(), &plain[3..]].concat();
        let file = encrypt(&KEY, &plain);
        let (path, body) = match route {
            Route::Raw => ("/files/f/decrypt?user_id=u", file),
            Route::Json => {
                let body = json!({"file_id": "f", "user_id": "u", "encrypted_content": STANDARD.encode(file)});
                ("/files/decrypt", body.to_string().into_bytes())
            }
        };
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        Sample { route, size, request: [head.as_bytes(), &body].concat(), marked }
    }

    /// The daemon, started by a command that takes its path as the last argument, and ready.
    pub(crate) fn daemon(&self, by: &[&str]) -> Daemon {
        // Under valgrind and strace, beside whatever else runs here, a call takes as long as it takes, and the next one
        // uses the same connection to the service.
        let setup = Setup::new(self.port).by(by).envs(&[("RUST_LOG", "info"), ("TEEMARK_TIMEOUT", "3600s")]);
        let setup = setup.env("TEEMARK_WATERMARK_KEEPALIVE", "3600s");
        Daemon::ready_with(setup, self.port, &self.certs)
    }
}

impl Sample {
    pub(crate) fn check(&self, body: &[u8]) {
        let marked = match self.route {
            Route::Raw => body.to_vec(),
            Route::Json => {
                let answer: serde_json::Value = serde_json::from_slice(body).unwrap();
                STANDARD.decode(answer["decrypted_data"].as_str().unwrap()).unwrap()
            }
        };
        assert!(marked == self.marked, "{self}: another file came back");
    }
}

/// Bytes that are no text, and are the same each time (Knuth's MMIX generator).
fn noise(size: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(&mut next).take(size).collect()
}
