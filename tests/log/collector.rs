//! `teemark log collect` as a process, and what `teemark log verify` says of its files.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use formats::log::Record;
use tempfile::TempDir;

use super::support::{Process, free_port, line, program, teemark, wait_for};

/// A collector's place: its folder, its keys, its port, and its process while it runs.
pub(super) struct Collector {
    pub(super) folder: TempDir,
    pub(super) port: u16,
    /// The public half of its key.
    pub(super) public: String,
    process: Option<Process>,
}

pub(super) fn keygen(folder: &Path, purpose: &str) -> String {
    line(teemark(folder, &["keygen", "--for", purpose, "--output", &format!("{purpose}.key")]))
}

impl Collector {
    pub(super) fn new() -> Collector {
        let folder = tempfile::tempdir().unwrap();
        let public = keygen(folder.path(), "collector");
        Collector { folder, port: free_port(), public, process: None }
    }

    pub(super) fn address(&self) -> String {
        format!("tcp:127.0.0.1:{}", self.port)
    }

    pub(super) fn key(&self) -> PathBuf {
        self.folder.path().join("collector.key")
    }

    pub(super) fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    /// Starts it, and waits until it listens.
    pub(super) fn start(&mut self) {
        self.start_with(&self.key().clone(), &[]);
    }

    pub(super) fn start_with(&mut self, key: &Path, more: &[&str]) {
        self.run(Command::new(program("teemark")), key, more);
    }

    /// Starts it as the last arguments of this command, if there is one.
    pub(super) fn start_by(&mut self, by: &[&str], more: &[&str]) {
        let teemark = program("teemark");
        let words: Vec<&OsStr> = by.iter().map(OsStr::new).chain([teemark.as_os_str()]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        self.run(command, &self.key().clone(), more);
    }

    /// Its process, or that of the command which started it and became it.
    pub(super) fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().child.id()
    }

    fn run(&mut self, mut command: Command, key: &Path, more: &[&str]) {
        command.args(["log", "collect", "--listen", &self.address(), "--into"]).arg(self.files());
        command.arg("--key").arg(key).args(more).stdout(Stdio::null());
        let process = Process::spawn(&mut command, self.folder.path().join("log"));
        assert!(process.has_logged("keeps records in"), "{}", process.log());
        self.process = Some(process);
    }

    /// Kills it, as a crash would.
    pub(super) fn kill(&mut self) {
        self.process = None;
    }

    /// All records in its files, in their order.
    pub(super) fn lines(&self) -> Vec<String> {
        lines_of(&self.files())
    }

    /// Waits until this text is in so many records of its files.
    pub(super) fn wait_for(&self, text: &str, times: usize) {
        wait_for(&format!("{times} records with {text} in the files"), || {
            let found = self.lines().iter().filter(|line| line.contains(text)).count();
            (found >= times).then_some(())
        });
    }

    pub(super) fn verify(&self, more: &[&str]) -> Output {
        verify(&self.files(), more)
    }
}

pub(super) fn lines_of(files: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let Ok(boots) = fs::read_dir(files) else { return all };
    for boot in boots {
        all.extend(lines_of_boot(&boot.unwrap().path()));
    }
    all
}

/// The records in a boot's folder, in their order. The last line may still be on its way, and is left out then.
pub(super) fn lines_of_boot(folder: &Path) -> Vec<String> {
    let mut days: Vec<_> = fs::read_dir(folder).unwrap().map(|day| day.unwrap().path()).collect();
    days.retain(|path| path.extension() == Some(OsStr::new("log")));
    days.sort();
    let mut lines = Vec::new();
    for day in days {
        let text = fs::read_to_string(day).unwrap();
        lines.extend(text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned));
    }
    lines
}

/// `teemark log verify`.
pub(super) fn verify(files: &Path, more: &[&str]) -> Output {
    Command::new(program("teemark")).args(["log", "verify"]).arg(files).args(more).output().unwrap()
}

/// The audit records in these lines.
pub(super) fn audits(lines: &[String]) -> Vec<serde_json::Value> {
    let records = lines.iter().map(|line| Record::parse(line.as_bytes()).unwrap());
    let audits = records.filter(|record| record.kind == formats::log::Kind::Audit);
    audits.map(|record| serde_json::from_str(record.body).unwrap()).collect()
}
