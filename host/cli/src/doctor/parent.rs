//! Gathers what the parent instance shows: files, processes, nitro-cli.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use formats::address::Address;
use serde_json::Value;

use super::facts::{Allocator, Described, Exposed, Found, Listener, Parent, Place, Proxy, Relay, Size};
use super::{processes, said};
use crate::command;
use crate::connect::connect;

/// Time limit of a program that is asked: nitro-cli gives each enclave's process some seconds.
const PROGRAM: Duration = Duration::from_secs(30);
/// Where `teemark log relay` listens unless it is told otherwise.
const RELAY: &str = "vsock:9001";
/// Time limit to connect to the collector.
const COLLECTOR: Duration = Duration::from_secs(5);
/// How much is read of what a program says when it fails, in bytes.
const MESSAGE: u64 = 64 << 10;

/// What the operator wants, by options, the environment or /etc/teemark/parent.env.
pub(super) struct Wanted {
    /// The folder that stands for `/`.
    pub(super) root: PathBuf,
    pub(super) name: String,
    pub(super) cid: Option<u32>,
    pub(super) eif: PathBuf,
    pub(super) size: Size,
    /// HOST:PORT of the public and of the admin port; empty: not exposed.
    pub(super) public: String,
    pub(super) admin: String,
    /// A collector's folder, where its files can be read.
    pub(super) logs: Option<PathBuf>,
}

/// Looks at the parent.
pub(super) fn look(wanted: &Wanted) -> Parent {
    let root = &wanted.root;
    let proc = root.join("proc");
    let processes = processes::all(&proc);
    let exposed = [("public", &wanted.public), ("admin", &wanted.admin)].into_iter();
    let exposed = exposed.filter(|(_, address)| !address.is_empty()).map(|(name, address)| {
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let listener = port.map_or(Listener::Nobody, |port| processes::listener(&proc, &processes, port));
        Exposed { name, address: address.clone(), listener }
    });
    let proxies = processes.iter().filter_map(|process| {
        let (port, name) = processes::proxied(&process.words)?;
        Some(Proxy { port, to: place(&name), process: process.number })
    });
    let relays = processes.iter().filter(|process| processes::relays_log(&process.words)).map(|process| {
        let set = |option: &str, variable: &str| {
            let given = processes::option(&process.words, option).map(str::to_owned);
            given.or_else(|| processes::variable(&proc, process.number, variable))
        };
        let listen = set("--listen", "LOG_RELAY_LISTEN").unwrap_or_else(|| RELAY.into());
        relay(listen, set("--to", "LOG_RELAY_TO"))
    });
    Parent {
        device: root.join("dev/nitro_enclaves").exists(),
        allocator: allocator(root),
        wanted: wanted.size,
        eif: (wanted.eif.display().to_string(), measured(&wanted.eif)),
        name: wanted.name.clone(),
        cid: wanted.cid,
        enclaves: described(),
        last_words: said::gather(root, wanted.logs.as_deref()),
        exposed: exposed.collect(),
        proxies: proxies.collect(),
        relays: relays.collect(),
    }
}

/// The settings of /etc/teemark/parent.env: NAME=value lines, as systemd reads them.
pub(super) fn settings(root: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(root.join("etc/teemark/parent.env")).unwrap_or_default();
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let pairs = lines.filter_map(|line| line.split_once('='));
    let unquoted = |value: &str| value.trim().trim_matches(['"', '\'']).to_owned();
    pairs.map(|(name, value)| (name.trim().to_owned(), unquoted(value))).collect()
}

/// A host and port, with the addresses that the host has here.
pub(super) fn place(name: &str) -> Place {
    let addresses = name.to_socket_addrs().map(Iterator::collect).unwrap_or_default();
    Place { name: name.to_owned(), addresses }
}

/// Huge pages by their sizes, and the module's CPUs.
fn allocator(root: &Path) -> Allocator {
    let mut allocator = Allocator::default();
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    for folder in fs::read_dir(root.join("sys/kernel/mm/hugepages")).into_iter().flatten().flatten() {
        // hugepages-2048kB
        let name = folder.file_name().to_string_lossy().into_owned();
        let size = name.strip_prefix("hugepages-").and_then(|name| name.strip_suffix("kB")?.parse::<u64>().ok());
        let of = |file: &str| number(folder.path().join(file)).unwrap_or(0) * size.unwrap_or(0) / 1024;
        allocator.memory_mib += of("nr_hugepages");
        allocator.free_mib += of("free_hugepages");
    }
    let cpus = fs::read_to_string(root.join("sys/module/nitro_enclaves/parameters/ne_cpus")).ok();
    allocator.cpus = cpus.map(|list| cpus_of(list.trim()));
    allocator
}

/// How many CPUs a list has, such as `1,3` or `1-3,5`.
fn cpus_of(list: &str) -> usize {
    let of = |range: &str| -> Option<usize> {
        match range.split_once('-') {
            Some((first, last)) => (last.parse::<usize>().ok()? + 1).checked_sub(first.parse().ok()?),
            None => range.parse::<usize>().ok().map(|_| 1),
        }
    };
    list.split(',').filter_map(of).sum()
}

fn relay(listen: String, to: Option<String>) -> Relay {
    let Some(to) = to else {
        let reached = Err("its address cannot be read; run this as root".to_owned());
        return Relay { listen, to: "?".into(), reached };
    };
    let address = to.parse::<Address>().map_err(|e| e.to_string());
    let reached = address.and_then(|address| connect(&address, COLLECTOR).map(drop).map_err(|e| e.to_string()));
    Relay { listen, to, reached }
}

/// nitro-cli's list of enclaves.
fn described() -> Found<Vec<Described>> {
    let text = said_by("nitro-cli", &["describe-enclaves"])?;
    serde_json::from_str(&text).map_err(|_| "nitro-cli describe-enclaves did not print a list of enclaves".to_owned())
}

/// An image's registers, as nitro-cli measures its file.
fn measured(eif: &Path) -> Found<BTreeMap<u8, Vec<u8>>> {
    if !eif.is_file() {
        return Err("there is no such file".into());
    }
    let text = said_by("nitro-cli", &["describe-eif", "--eif-path", &eif.to_string_lossy()])?;
    let described: Value = serde_json::from_str(&text).unwrap_or_default();
    if described["CheckCRC"] == false {
        return Err("nitro-cli describe-eif says CheckCRC: false; the file is damaged".into());
    }
    let registers = described["Measurements"].as_object().into_iter().flatten().filter_map(|(name, value)| {
        let index = name.strip_prefix("PCR")?.parse().ok()?;
        Some((index, hex::decode(value.as_str()?).ok()?))
    });
    let registers: BTreeMap<u8, Vec<u8>> = registers.collect();
    match registers.is_empty() {
        true => Err("nitro-cli describe-eif printed no measurements".into()),
        false => Ok(registers),
    }
}

/// What a program prints.
pub(super) fn said_by(program: &str, arguments: &[&str]) -> Found<String> {
    // What it says on standard error is for its message if it fails.
    let errors = tempfile::tempfile().map_err(|e| e.to_string())?;
    let mut said = errors.try_clone().map_err(|e| e.to_string())?;
    let mut command = Command::new(program);
    command.args(arguments).stderr(errors);
    let (output, status) = command::run(&mut command, program, PROGRAM).map_err(|e| format!("{e:#}"))?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&output).into_owned());
    }
    let mut text = Vec::new();
    let _ = said.seek(SeekFrom::Start(0)).and_then(|_| said.take(MESSAGE).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text).into_owned();
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
    Err(format!("{program} {} failed: {}", arguments.first().copied().unwrap_or_default(), first.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cpus_is_counted() {
        for (list, count) in [("", 0), ("1,3", 2), ("1-3,5", 4), ("2", 1), ("x", 0), ("3-1", 0)] {
            assert_eq!(cpus_of(list), count, "{list}");
        }
    }

    #[test]
    fn pages_of_each_size_count_and_settings_are_read_as_systemd_does() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert!(allocator(root.path()).memory_mib == 0 && allocator(root.path()).cpus.is_none());
        write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "256\n");
        write("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "6\n");
        write("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "1\n");
        write("sys/module/nitro_enclaves/parameters/ne_cpus", "1,3\n");
        let found = allocator(root.path());
        assert_eq!((found.memory_mib, found.free_mib, found.cpus), (1536, 12, Some(2)));
        write("etc/teemark/parent.env", "# ours\nENCLAVE_MEMORY=1024\nEXPOSE_ADMIN=\"\"\n");
        let settings = settings(root.path());
        assert_eq!((settings["ENCLAVE_MEMORY"].as_str(), settings["EXPOSE_ADMIN"].as_str()), ("1024", ""));
    }
}
