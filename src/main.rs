//! The daemon's process: arguments, log, boot.

#![forbid(unsafe_code)]

use std::env;
use std::io::Write;
use std::process::ExitCode;

use env_logger::Target;
use formats::items::CERTIFICATES;
use formats::time::Utc;
use log::{LevelFilter, error, info};
use teemarkd::allocator::Allocator;
use teemarkd::boot;
use teemarkd::logging::{self, Log};
use teemarkd::memory::Budget;
use teemarkd::net::request_id::OfThisThread;
use teemarkd::secrets::bundle::bundle_of_environment;
use teemarkd::secrets::store::Store;
use teemarkd::settings::{LogForm, LogSettings, Settings};

/// Wipes every block of memory before it is freed: keys, plaintext, and every copy that a library made of them.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator::new();

const USAGE: &str = "\
teemarkd: decrypts files inside an enclave and has them watermarked

usage: teemarkd                     run the daemon; settings are environment variables, see docs/REFERENCE.md
       teemarkd write-certificates  check MTLS_CLIENT_CERT_JSON and write the files of TEEMARK_CERTS, then end
       teemarkd --version | --help";

fn main() -> ExitCode {
    let code = act();
    if let Some(log) = logging::log() {
        log.finish();
    }
    code
}

fn act() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => run(),
        ["write-certificates"] => write_certificates(),
        ["--version" | "-V"] => {
            println!("teemarkd {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        ["--help" | "-h"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run() -> ExitCode {
    // Before the log starts its thread, which would take a signal otherwise.
    let signals = boot::block_signals();
    let settings = Settings::read(|name| env::var_os(name));
    start_log(settings.as_ref().ok());
    info!("teemarkd {} starts", env!("CARGO_PKG_VERSION"));
    let ran = settings.map_err(|e| e.to_string()).and_then(|settings| {
        signals.and_then(|signals| boot::run(&settings, &signals, &ALLOCATOR)).map_err(|e| e.to_string())
    });
    let failed = ran.is_err();
    let code = ended(ran);
    if let Some(log) = logging::log().filter(|_| failed) {
        log.start_failed();
    }
    code
}

/// For the launcher: writes the certificate files without jq, with the handshake's own checks.
fn write_certificates() -> ExitCode {
    let settings = Settings::read(|name| env::var_os(name));
    start_log(settings.as_ref().ok());
    let wrote = settings.map_err(|e| e.to_string()).and_then(|settings| {
        let items = bundle_of_environment(&[CERTIFICATES], |name| env::var_os(name));
        let items = items.ok_or_else(|| format!("{CERTIFICATES} is not set"))?;
        let store = Store::new(&settings, Default::default(), None, None, Budget::new(settings.memory, 1));
        store.put_in_force(&items).map(drop).map_err(|e| e.to_string())
    });
    ended(wrote)
}

fn ended(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            error!("teemarkd cannot go on: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the log in the form that is set, or in the clear if no settings can be read. Only the daemon's own lines go below
/// warnings: what libraries write for their developers may contain a request's bytes. A panic is logged with its place and
/// without its message.
fn start_log(settings: Option<&Settings>) {
    let mut log = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"));
    log.format(|out, record| {
        writeln!(out, "{} {:5} {}: {OfThisThread}{}", Utc::now(), record.level(), record.target(), record.args())
    });
    for library in ["ureq", "ureq_proto", "tiny_http", "rustls"] {
        log.filter_module(library, LevelFilter::Warn);
    }
    let settings = settings.map_or_else(LogSettings::default, |settings| settings.log.clone());
    match Log::start(settings.clone()) {
        Ok(started) => log.target(Target::Pipe(Box::new(started.clone()))),
        // Without its thread a log in the clear still works, but may block the threads that write to it.
        Err(_) if settings.form == LogForm::Clear => log.target(Target::Stderr),
        Err(_) => log.filter_level(LevelFilter::Off),
    };
    log.init();
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(|| "an unknown place".into(), ToString::to_string);
        // The process ends with this thread, which may hold the locks that a line takes.
        if logging::is_own_thread() {
            return logging::say_last(&format!("panic at {place} in the log's thread: teemarkd ends\n"));
        }
        error!("panic at {place}");
        // The process may end before the log's thread has gathered its lines.
        if let Some(log) = logging::log() {
            log.finish();
        }
    }));
}
