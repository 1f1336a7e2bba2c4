//! A watermark service for development: what teemarkd talks to in place of the real one.
//!
//! `serve` answers over mutual TLS and puts real marks into PNG images and text; the other commands read them back
//! and show them. It holds no secrets, and is for a developer's machine only.

#![forbid(unsafe_code)]

mod api;
mod body;
mod content;
mod difference;
mod error;
mod fault;
mod form;
mod log;
mod mark;
mod sample;
mod serve;
mod tls;
mod twice;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use content::Content;

/// A watermark service for development: marks PNG images and text, and reads the marks back
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve POST /api/watermark, POST /api/extract and GET /health over mutual TLS
    Serve(serve::Options),
    /// Print file_id and user_id of a marked file as JSON
    Extract { file: PathBuf },
    /// Write the amplified difference of two pictures of the same size
    Difference {
        a: PathBuf,
        b: PathBuf,
        out: PathBuf,
        /// Factor by which differences in brightness are multiplied
        #[arg(long, default_value_t = 64)]
        gain: u32,
    },
    /// Write a picture to try the service with; it is always the same
    Sample { out: PathBuf },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("watermark-service: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Serve(options) => serve::run(options),
        Command::Extract { file } => extract(&file),
        Command::Difference { a, b, out, gain } => {
            let picture = difference::amplified(&read(&a)?, &read(&b)?, gain)
                .with_context(|| format!("{} and {}", a.display(), b.display()))?;
            write(&out, &picture)
        }
        Command::Sample { out } => write(&out, &sample::png()?),
    }
}

fn extract(file: &Path) -> Result<()> {
    let mark = Content::recognize(read(file)?).and_then(|content| content.mark());
    match mark.with_context(|| file.display().to_string())? {
        Some(mark) => println!("{}", serde_json::to_string(&mark)?),
        None => bail!("{}: no mark found", file.display()),
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
