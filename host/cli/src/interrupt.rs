//! What a signal that ends the program would leave behind: names on the disk, for as long as they are there.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::{fs, io, process, thread};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// Files that are removed when a signal comes. One that has gone already, or got another name, does no harm.
static NAMES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Holds off what the three signals do, so that files can be made, named and renamed; the list is of what is to be removed.
///
/// # Errors
/// The signals cannot be watched.
pub(crate) fn hold() -> io::Result<MutexGuard<'static, Vec<PathBuf>>> {
    static WATCHED: OnceLock<()> = OnceLock::new();
    let names = names();
    if WATCHED.get().is_none() {
        watch()?;
        let _ = WATCHED.set(());
    }
    Ok(names)
}

fn names() -> MutexGuard<'static, Vec<PathBuf>> {
    NAMES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a thread wait for the first signal. It ends the program as the signal does by itself, so whoever started it sees
/// which one it was.
fn watch() -> io::Result<()> {
    let ignored = ignored();
    // One that is ignored, as nohup has it, stays so.
    let signals = [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
    let mut signals = Signals::new(signals)?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        // Held to the end: nothing more is made.
        let names = names();
        for name in names.iter() {
            let _ = fs::remove_file(name);
        }
        let _ = emulate_default_handler(signal);
        process::exit(128 + signal);
    })?;
    Ok(())
}

/// The signals that this program was started to ignore: bit n - 1 for signal n (proc_pid_status(5), SigIgn).
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
