//! Clients in a closed loop: each asks again once it has its answer.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::cell::Cell;
use crate::client::Client;
use crate::grants::Issuer;
use crate::request::Request;
use crate::server::Server;

/// Each client checks the signature of its first answer, and of every so-many-th.
const SIGNATURE_EVERY: usize = 64;

/// What one program did in one cell, once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measurement {
    pub(crate) program: String,
    pub(crate) cell: Cell,
    pub(crate) round: usize,
    pub(crate) answers: usize,
    /// CPU time a request, all threads, user and system.
    pub(crate) cpu_us: f64,
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// The most resident memory during this measurement.
    pub(crate) peak_kib: u64,
    pub(crate) threads: u64,
}

/// Asks `server` for as long as `duration`, and each client at least once; requests in flight at its end count too.
pub(crate) fn measure(
    server: &Server,
    cell: &Cell,
    request: &Request,
    issuer: &Issuer,
    duration: Duration,
) -> Result<Measurement> {
    let (ready, stop) = (Barrier::new(cell.clients + 1), AtomicBool::new(false));
    server.process.forget_peak()?;
    let mut threads = 0;
    let (before, begun, results) = thread::scope(|scope| -> Result<_> {
        let clients: Vec<_> = (0..cell.clients)
            .map(|_| {
                let (ready, stop) = (&ready, &stop);
                scope.spawn(move || one_client(server, cell, request, issuer, ready, stop))
            })
            .collect();
        let (before, begun) = (server.process.cpu()?, Instant::now());
        ready.wait();
        while begun.elapsed() < duration && !stop.load(Ordering::Relaxed) {
            threads = threads.max(server.process.threads()?);
            thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
        Ok((before, begun, clients.into_iter().map(|client| client.join().expect("no panic")).collect::<Vec<_>>()))
    })?;
    let (took, cpu) = (begun.elapsed(), server.process.cpu()? - before);

    let mut times = Vec::new();
    for result in results {
        times.extend(result?);
    }
    times.sort_unstable();
    let quantile = |q: usize| times[((times.len() * q) / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    let answers = times.len();
    Ok(Measurement {
        program: String::new(),
        cell: *cell,
        round: 0,
        answers,
        cpu_us: cpu.as_secs_f64() * 1e6 / answers as f64,
        per_second: answers as f64 / took.as_secs_f64(),
        p50_ms: quantile(50),
        p99_ms: quantile(99),
        peak_kib: server.process.peak_kib()?,
        threads,
    })
}

/// How long each answer took. A wrong one ends the measurement for all.
fn one_client(
    server: &Server,
    cell: &Cell,
    request: &Request,
    issuer: &Issuer,
    ready: &Barrier,
    stop: &AtomicBool,
) -> Result<Vec<Duration>> {
    let mut client = Client::new(server.address, cell.keep_alive);
    let mut times = Vec::new();
    ready.wait();
    loop {
        let grant =
            if cell.grant { format!("Authorization: Bearer {}\r\n\r\n", issuer.grant()?) } else { "\r\n".into() };
        let begun = Instant::now();
        let checked = client.ask(&[&request.head, &grant], &request.body).and_then(|answer| {
            let took = begun.elapsed();
            request.check(&answer)?;
            if times.len() % SIGNATURE_EVERY == 0 {
                request.check_signature(&answer, &server.identity)?;
            }
            Ok(took)
        });
        match checked {
            Ok(took) => times.push(took),
            Err(error) => {
                stop.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
        // Only now: a client that gets no turn on its core before the time is over has an answer too.
        if stop.load(Ordering::Relaxed) {
            return Ok(times);
        }
    }
}
