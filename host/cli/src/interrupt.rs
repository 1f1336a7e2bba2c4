//! Removes unfinished files when a signal ends the program.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::{fs, io, process, thread};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// Files to remove when a signal comes. One that was removed or renamed since does no harm.
static NAMES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Holds the three signals back, so that files can be made, named and renamed. Returns the list of files to remove.
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

/// Starts a thread that waits for the first signal and ends the program as the signal itself would, so that whoever
/// started the program sees which one it was.
fn watch() -> io::Result<()> {
    let mut signals = Signals::new(signals())?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        // Held to the end, so that no more files are made.
        let names = names();
        for name in names.iter() {
            let _ = fs::remove_file(name);
        }
        let _ = emulate_default_handler(signal);
        process::exit(128 + signal);
    })?;
    Ok(())
}

/// The signals that end the program. One that is ignored, as under nohup, stays ignored.
pub(crate) fn signals() -> impl Iterator<Item = i32> {
    let ignored = ignored();
    [SIGHUP, SIGINT, SIGTERM].into_iter().filter(move |signal| ignored >> (signal - 1) & 1 == 0)
}

/// The signals that this program was started to ignore: bit n - 1 for signal n (proc_pid_status(5), SigIgn).
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
