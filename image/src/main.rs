//! `teemark-image`: builds an enclave image, takes one apart, and shows what is in it.
//!
//! Exit status: 0 done, 1 an image that fails a check (a size limit, its signature), 2 any other error.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use formats::time::Utc;
use teemark_image::build::{Request, build};
use teemark_image::describe::describe;
use teemark_image::files::Files;
use teemark_image::parts::Parts;
use teemark_image::record::Record;
use zeroizing_alloc::ZeroAlloc;

/// Wipes memory as it is freed: a private key may be built into the image.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<std::alloc::System> = ZeroAlloc(std::alloc::System);

/// Build teemark's enclave image: ramdisks, kernel and command line in one file, and their measurements.
#[derive(Parser)]
#[command(name = "teemark-image", version, after_help = "Exit status: 0 done, 1 an image that fails a check, 2 error.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build NAME.eif, NAME.pcrs and NAME.json
    #[command(after_help = "The same files give the same bytes. SOURCE_DATE_EPOCH sets the build time in the image's \
        metadata, which is not measured. A signature differs each time.")]
    Build {
        #[command(flatten)]
        files: Box<Files>,
        /// The kernel's command line [default: reboot=k panic=1 console=ttyS0 teemark.target=/teemarkd; that of a debug
        /// image is in docs/HARDWARE.md]
        #[arg(long, value_name = "STRING")]
        command_line: Option<String>,
        #[arg(long, default_value = "teemark")]
        name: String,
        /// The folder of the results
        #[arg(long, value_name = "FOLDER")]
        output: PathBuf,
    },
    /// Take an image apart into FOLDER/kernel, cmdline, ramdisk-0 and ramdisk-1
    Parts { eif: PathBuf, folder: PathBuf },
    /// Print the size of each part of an image, and fail if one exceeds its limit
    Size {
        #[arg(value_name = "NAME.json")]
        record: PathBuf,
    },
    /// Check that an image is whole, measure it, and print what it says about itself, as nitro-cli describe-eif does
    Describe { eif: PathBuf },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Build { files, command_line, name, output } => {
            run_build(&files, command_line.as_deref(), &name, &output)
        }
        Command::Parts { eif, folder } => run_parts(&eif, &folder),
        Command::Size { record } => run_size(&record),
        Command::Describe { eif } => run_describe(&eif),
    };
    match result {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

type Outcome = Result<ExitCode, Box<dyn Error>>;

fn run_build(files: &Files, command_line: Option<&str>, name: &str, output: &Path) -> Outcome {
    let request = Request { files, command_line, name, output, built: build_time()?, now: Utc::now() };
    let built = build(&request)?;
    for path in &built.paths {
        print(&format!("{}\n", path.display()))?;
    }
    print(&format!("\n{}\n{}", built.record.table(), built.record.pcrs))?;
    for warning in &built.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The time of the build as SOURCE_DATE_EPOCH sets it (reproducible-builds.org), else 1970-01-01.
fn build_time() -> Result<Utc, String> {
    match std::env::var_os("SOURCE_DATE_EPOCH") {
        None => Ok(Utc(0)),
        Some(text) => {
            let seconds = text.to_str().and_then(|text| text.parse().ok());
            seconds.map(Utc).ok_or_else(|| format!("SOURCE_DATE_EPOCH: {text:?} is not a number of seconds"))
        }
    }
}

fn run_parts(eif: &Path, folder: &Path) -> Outcome {
    let named = |e: &dyn Error| format!("{} {e}", eif.display());
    let parts = Parts::read(eif).map_err(|e| named(&e))?;
    // The parts get the image's mode, since it may hold a private key.
    let mode = fs::metadata(eif).map_err(|e| named(&e))?.permissions().mode() & 0o666;
    for path in parts.write(folder, mode)? {
        print(&format!("{}\n", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn run_size(file: &Path) -> Outcome {
    let record = Record::read(file).map_err(|e| format!("{} {e}", file.display()))?;
    print(&record.table())?;
    let excesses = record.excesses();
    for excess in &excesses {
        eprintln!("too large: {excess}");
    }
    Ok(if excesses.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn run_describe(eif: &Path) -> Outcome {
    let description = describe(eif).map_err(|e| format!("{} {e}", eif.display()))?;
    print(&format!("{:#}\n", description.json))?;
    match description.genuine {
        true => Ok(ExitCode::SUCCESS),
        false => {
            eprintln!("{}: the signature does not match this image", eif.display());
            Ok(ExitCode::from(1))
        }
    }
}

/// Writes to standard output; unlike `print!` it does not panic when the reader is gone.
fn print(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())
}
