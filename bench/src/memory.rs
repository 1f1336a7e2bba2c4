//! Resident memory: idle, with idle connections, and for one large file.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::cell::{Cell, MIB, Route};
use crate::client::Client;
use crate::request::Request;
use crate::server::{Program, Setting};

/// The large file, before its encryption.
pub(crate) const LARGE: usize = 64 * MIB;
pub(crate) const CONNECTIONS: usize = 256;
/// Until a program has settled.
const SETTLE: Duration = Duration::from_secs(1);

/// Of one program, in KiB.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MemoryUse {
    pub(crate) program: String,
    pub(crate) idle: u64,
    /// With [`CONNECTIONS`] that each had an answer and wait.
    pub(crate) connections: u64,
    pub(crate) raw: LargeFile,
    pub(crate) json: LargeFile,
}

/// One file of [`LARGE`] bytes, by a program that was just started; in KiB.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LargeFile {
    pub(crate) before: u64,
    pub(crate) peak: u64,
    /// A while after the answer.
    pub(crate) after: u64,
}

impl LargeFile {
    /// The peak above what was there before, in file sizes.
    pub(crate) fn times(&self) -> f64 {
        self.peak.saturating_sub(self.before) as f64 * 1024.0 / LARGE as f64
    }
}

pub(crate) fn run(setting: &Setting, programs: &[Program]) -> Result<Vec<MemoryUse>> {
    programs
        .iter()
        .map(|program| {
            let (idle, connections) = idle(setting, program).with_context(|| format!("memory, {}", program.name))?;
            let large =
                |route| large_file(setting, program, route).with_context(|| format!("memory, {}", program.name));
            let (raw, json) = (large(Route::Raw)?, large(Route::Json)?);
            let name = &program.name;
            eprintln!("  {name}: idle {idle} KiB, raw {:.2}, JSON {:.2} times the file", raw.times(), json.times());
            Ok(MemoryUse { program: name.clone(), idle, connections, raw, json })
        })
        .collect()
}

fn idle(setting: &Setting, program: &Program) -> Result<(u64, u64)> {
    let server = program.start(setting, false)?;
    thread::sleep(SETTLE);
    let idle = server.process.resident_kib()?;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = TcpStream::connect(server.address)?;
        connection.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        ensure!(connection.read(&mut [0; 4096])? > 0, "no answer");
        connections.push(connection);
    }
    thread::sleep(SETTLE);
    Ok((idle, server.process.resident_kib()?))
}

fn large_file(setting: &Setting, program: &Program, route: Route) -> Result<LargeFile> {
    let cell = Cell { clients: 1, ..Cell::new(route, LARGE) };
    let request = Request::new(&cell, setting.material.sample(LARGE, cell.content)?)?;
    let server = program.start(setting, false)?;
    thread::sleep(SETTLE);
    let before = server.process.resident_kib()?;
    server.process.forget_peak()?;
    let mut client = Client::new(server.address, true);
    let answer = client.ask(&[&request.head, "\r\n"], &request.body)?;
    request.check(&answer)?;
    request.check_signature(&answer, &server.identity)?;
    let peak = server.process.peak_kib()?;
    thread::sleep(2 * SETTLE);
    Ok(LargeFile { before, peak, after: server.process.resident_kib()? })
}
