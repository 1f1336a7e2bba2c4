//! System calls a request, counted by strace in runs of their own: it slows a program down many times over.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::cell::{Cell, KIB, MIB, main_cells};
use crate::client::Client;
use crate::request::Request;
use crate::server::{Program, Server, Setting};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SystemCalls {
    pub(crate) program: String,
    pub(crate) cell: Cell,
    pub(crate) a_request: f64,
}

/// Counts for each program with one client; nothing where there is no strace.
pub(crate) fn run(setting: &Setting, programs: &[Program]) -> Result<Vec<SystemCalls>> {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        eprintln!("  not counted: strace is not installed");
        return Ok(Vec::new());
    }
    let mut all = Vec::new();
    for program in programs {
        let server = program.start(setting, false)?;
        for cell in main_cells() {
            let cell = Cell { clients: 1, ..cell };
            let a_request = count(setting, &server, &cell).with_context(|| format!("{}, {cell}", program.name))?;
            all.push(SystemCalls { program: program.name.clone(), cell, a_request });
        }
        let shown: Vec<_> = all.iter().rev().take(8).rev().map(|calls| format!("{:.0}", calls.a_request)).collect();
        eprintln!("  {}: {}", program.name, shown.join(", "));
    }
    Ok(all)
}

fn count(setting: &Setting, server: &Server, cell: &Cell) -> Result<f64> {
    let requests = match cell.size {
        ..MIB if cell.size <= 4 * KIB => 60,
        ..MIB => 30,
        MIB => 6,
        _ => 2,
    };
    let request = Request::new(cell, setting.material.sample(cell.size, cell.content)?)?;
    let mut client = Client::new(server.address, true);
    let mut ask = || request.check(&client.ask(&[&request.head, "\r\n"], &request.body)?);
    // Connections are there before anything is counted.
    ask()?;
    let summary = tempfile::NamedTempFile::new()?;
    let mut strace = Command::new("strace")
        .args(["-f", "-c", "-o"])
        .arg(summary.path())
        .args(["-p", &server.process.pid().to_string()])
        .stderr(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    BufReader::new(strace.stderr.as_mut().expect("piped")).read_line(&mut said)?;
    if !said.contains("attached") {
        bail!("strace: {said}");
    }
    for _ in 0..requests {
        ask()?;
    }
    kill(Pid::from_raw(strace.id().cast_signed()), Signal::SIGINT)?;
    strace.wait()?;
    let summary = fs::read_to_string(summary.path())?;
    // "% time", seconds, microseconds a call, calls, perhaps errors, and the name.
    let total = summary.lines().find(|line| line.trim_end().ends_with("total")).context("no total")?;
    let calls: f64 = total.split_whitespace().nth(3).context("no number")?.parse()?;
    Ok(calls / f64::from(requests))
}
