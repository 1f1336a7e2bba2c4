//! `teemark keeper`: gives enclaves their secrets again when they restart, and what changes in the sources, with nobody.
//!
//! ```text
//! config    keeper.toml
//! sources   the items, from files, credentials and commands (exec)
//! snapshot  what the sources have, and what of it an enclave is sent: no effects
//! enclaves  the addresses that are watched
//! policy    which enclaves may be given secrets
//! plan      what an enclave is to be sent: no effects
//! watch     what to do next about one enclave: no effects
//! act       does it: a thread for each address
//! watches   has such a thread for each, and another where one has ended
//! pass      signs what other keepers sealed
//! operators whose signatures count
//! turns     one bundle of another keeper after the other
//! shared    what all threads know
//! history   what was seen, kept in a file
//! report    lines and counters
//! serve     /ready and /metrics
//! ```
//!
//! A keeper that is killed at any moment and started again goes on: what an enclave has in force is in its attestation
//! document, and the history only says what it has had before.

mod act;
mod config;
mod enclaves;
mod exec;
mod history;
mod operators;
mod pass;
mod plan;
mod policy;
mod report;
mod serve;
mod shared;
mod snapshot;
mod sources;
mod turns;
mod watch;
mod watches;

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use formats::items::MAX_BUNDLE_V2;
use formats::sealed_bundle::v2::MAX_LINE;
use formats::time::now_ms;
use serde_json::json;

use crate::daemon::Cacert;
use crate::failure::Done;
use crate::seal::operator_key;
use config::{Config, CredentialSource, FileSource, KeySource};
use enclaves::{Directory, Target};
use history::{History, Store};
use operators::Operators;
use policy::Policies;
use report::Report;
use shared::{Known, Shared};
use snapshot::Snapshot;
use sources::{Fault, Sources};
use turns::Turns;
use watches::{Change, Watches};

/// Largest bundle that is passed on, in bytes.
const LARGEST: usize = MAX_BUNDLE_V2 + MAX_LINE;

/// Watch enclaves, and give them their secrets whenever they have not got them, or others.
#[derive(clap::Args)]
#[command(after_help = "Example:
  teemark keeper --config /etc/teemark/keeper.toml
docs/REFERENCE.md describes the file. It runs until it is ended, and prints a line of JSON for each thing that it does.")]
pub(crate) struct Arguments {
    /// What to watch, and what to give
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the file and what it names, and end
    #[arg(long)]
    check: bool,
}

/// Runs until the process is ended.
///
/// # Errors
/// The configuration, the key or the policy cannot be read; the address for /metrics cannot be listened on.
pub(crate) fn run(arguments: &Arguments) -> Result<Done> {
    let config = Config::read(&arguments.config)?;
    let modified = std::fs::metadata(&arguments.config).and_then(|found| found.modified());
    let config_ms = modified.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let config_ms = config_ms.and_then(|since| u64::try_from(since.as_millis()).ok()).unwrap_or(0);
    let policies = Policies::read(&config.enclaves)?;
    let operator = operator_key(&match &config.operator_key {
        KeySource::File(FileSource { file }) => file.clone(),
        KeySource::Credential(CredentialSource { credential }) => sources::credential_path(credential)?,
    })?;
    let operators = Operators::new(operator, &config.operators, config.signatures, config.bundles.is_some())?;
    let mut sources = Sources::new(&config.items, config_ms)?;
    if arguments.check {
        return check(&mut sources);
    }
    let config::Enclaves { any_instance, debug_mode, unsigned, development, .. } = config.enclaves;
    let marks = [
        ("any_instance", any_instance),
        ("debug_mode", debug_mode),
        ("unsigned", unsigned),
        ("development", development),
    ];
    let marks: Vec<&str> = marks.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect();
    let report = Arc::new(Report::new(&marks));
    let folder = config.folder.clone().or_else(|| std::env::var_os("STATE_DIRECTORY").map(PathBuf::from));
    let store = Store::new(folder.as_deref());
    let history = store.read().unwrap_or_else(|error| {
        report.line("history_lost", json!({"error": format!("{error:#}")}));
        History::default()
    });
    let numbers = report.clone();
    let address =
        serve::start(&config.listen, 0, move |request| Ok(serve::numbers(&numbers, request))).context("listen")?;
    let (places, boots, watched) = Default::default();
    let known = Known { snapshot: Arc::default(), history, places, boots, watched };
    let shared = Arc::new(Shared {
        operators,
        policies,
        cacert: Cacert { cacert: config.enclaves.cacert.clone() },
        signatures: config.signatures,
        next: config.next.clone(),
        interval: config.interval(),
        items: sources.names().len(),
        max_enclaves: config.enclaves.max_enclaves,
        report,
        store,
        known: Mutex::new(known),
        turns: Turns::default(),
        changed: Condvar::new(),
    });
    let bundles = match &config.bundles {
        None => None,
        Some(listen) => {
            let passed = shared.clone();
            Some(serve::start(listen, LARGEST, move |request| pass::answer(&passed, request)).context("bundles")?)
        }
    };
    let (items, remembers) = (sources.names(), folder.is_some());
    let told = json!({"listen": address, "bundles": bundles, "remembers": remembers, "items": items});
    shared.report.line("started", told);
    let directory = Directory::new(&config.enclaves);
    let watches = shared.clone();
    thread::Builder::new().name("enclaves".into()).spawn(move || keep_watches(&watches, directory))?;
    keep_sources(&shared, &mut sources)
}

/// Reads every source once.
fn check(sources: &mut Sources) -> Result<Done> {
    let (snapshot, faults) = sources.refresh(SystemTime::now());
    if let Some(Fault { item, reason }) = faults.first() {
        bail!("{item}: {reason}");
    }
    let items: Vec<_> = snapshot.items.keys().collect();
    Ok(Done::new("the configuration and what it names are in order\n", json!({"items": items})))
}

/// Reads the sources again and again, and tells the watches what has changed.
fn keep_sources(shared: &Shared, sources: &mut Sources) -> Result<Done> {
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    let mut revision = None;
    loop {
        let names = sources.names();
        let (snapshot, faults) = sources.refresh(SystemTime::now());
        for Fault { item, reason } in &faults {
            shared.report.source_fault(item);
            if told.get(item) != Some(reason) {
                shared.report.line("source_fault", json!({"item": item, "error": reason}));
                told.insert(item.clone(), reason.clone());
            }
        }
        told.retain(|item, _| faults.iter().any(|fault| fault.item == *item));
        if revision != Some(snapshot.revision) {
            revision = Some(snapshot.revision);
            publish(shared, snapshot, &names);
        }
        thread::sleep(shared.interval);
    }
}

/// Takes note of what has changed, and tells the watches.
fn publish(shared: &Shared, snapshot: &Snapshot, names: &[&str]) {
    let mut known = shared.lock();
    for (name, piece) in snapshot.pieces() {
        if known.history.sources_have(name, piece.item.sha256, piece.modified_ms, now_ms()) {
            shared.report.line("source_changed", json!({"item": name, "sha256": piece.item.sha256}));
        }
    }
    for name in names {
        let changed = snapshot.items.contains_key(*name).then(|| known.history.changed_ms(name));
        shared.report.source(name, changed);
    }
    // Before a watch sends anything of it.
    shared.remember(&mut known);
    known.snapshot = Arc::new(snapshot.clone());
    shared.changed.notify_all();
}

/// Finds the addresses again and again, and sees to it that each is watched.
fn keep_watches(shared: &Arc<Shared>, mut directory: Directory) {
    let (mut told, mut watches) = (Vec::new(), Watches::default());
    loop {
        // A panic must not end the thread: what it would have found would never be watched.
        let round = AssertUnwindSafe(|| find(shared, &mut directory, &mut told, &mut watches));
        if panic::catch_unwind(round).is_err() {
            let why = "the keeper has a fault, which standard error has; the addresses are looked for again";
            shared.report.line("enclaves_fault", json!({"error": why}));
        }
        thread::sleep(shared.interval);
    }
}

fn find(shared: &Arc<Shared>, directory: &mut Directory, told: &mut Vec<String>, watches: &mut Watches) {
    let (targets, faults) = directory.targets();
    for fault in faults.iter().filter(|fault| !told.contains(*fault)) {
        shared.report.line("enclaves_fault", json!({"error": fault}));
    }
    *told = faults;
    let mut known = shared.lock();
    let known = &mut *known;
    for change in watches.keep(&mut known.watched, &targets, |target, number| start(shared, target, number)) {
        match change {
            Change::Left(target) => shared.report.line("left", json!({"enclave": target.to_string()})),
            Change::NotWatched(target, error) => {
                shared.report.line("not_watched", json!({"enclave": target.to_string(), "error": error}));
            }
        }
    }
    known.history.keep_watched(&targets.iter().map(ToString::to_string).collect());
    shared.changed.notify_all();
}

fn start(shared: &Arc<Shared>, target: Target, number: u64) -> Result<JoinHandle<()>> {
    let shared = shared.clone();
    let watch = move || act::watch(&shared, target, number);
    thread::Builder::new().name("watch".into()).spawn(watch).context("no thread")
}
