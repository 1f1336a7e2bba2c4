//! Where the enclaves are: addresses that are given, and those that names resolve to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ureq::http::Uri;

use super::config::Enclaves;
use crate::daemon;

/// Most addresses that are watched, whatever names resolve to.
const MOST: usize = 1000;
/// Largest file with addresses, in bytes.
const LARGEST: u64 = 1 << 20;

/// One address of one enclave.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    /// The base of its URLs.
    pub(crate) endpoint: String,
    /// Where that leads.
    pub(crate) address: SocketAddr,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match host_and_port(&self.endpoint) {
            Some((host, _)) if host.parse::<IpAddr>().is_ok() => f.write_str(&self.endpoint),
            _ => write!(f, "{} ({})", self.endpoint, self.address.ip()),
        }
    }
}

/// Finds the addresses, again and again.
pub(crate) struct Directory {
    urls: Vec<String>,
    file: Option<PathBuf>,
    /// What was found last in the file, and for each URL: it counts while it cannot be found out again.
    listed: Vec<String>,
    resolved: BTreeMap<String, Vec<SocketAddr>>,
}

impl Directory {
    pub(crate) fn new(enclaves: &Enclaves) -> Directory {
        let (urls, file) = (enclaves.urls.clone(), enclaves.file.clone());
        Directory { urls, file, listed: Vec::new(), resolved: BTreeMap::new() }
    }

    /// The addresses now, and what went wrong.
    pub(crate) fn targets(&mut self) -> (BTreeSet<Target>, Vec<String>) {
        self.targets_by(|host, port| Ok((host, port).to_socket_addrs()?.collect()))
    }

    fn targets_by(
        &mut self,
        resolve: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>>,
    ) -> (BTreeSet<Target>, Vec<String>) {
        let mut faults = Vec::new();
        if let Some(path) = &self.file {
            match read(path) {
                Ok(listed) => self.listed = listed,
                Err(error) => faults.push(format!("{error:#}")),
            }
        }
        let urls: BTreeSet<&String> = self.urls.iter().chain(&self.listed).collect();
        self.resolved.retain(|url, _| urls.contains(url));
        for url in urls {
            let Some((host, port)) = host_and_port(url) else { continue };
            match resolve(&host, port) {
                Ok(addresses) => drop(self.resolved.insert(url.clone(), addresses)),
                Err(error) => faults.push(format!("{host} cannot be resolved: {error}")),
            }
        }
        let target = |url: &String, address: &SocketAddr| Target { endpoint: url.clone(), address: *address };
        let all = self.resolved.iter().flat_map(|(url, addresses)| addresses.iter().map(|a| target(url, a)));
        let mut targets: BTreeSet<Target> = all.collect();
        if targets.len() > MOST {
            faults.push(format!("there are {} addresses, and {MOST} are watched", targets.len()));
            targets = targets.into_iter().take(MOST).collect();
        }
        (targets, faults)
    }
}

/// The addresses in a file, one a line; a line that begins with # is a comment.
fn read(path: &Path) -> Result<Vec<String>> {
    let what = || format!("enclaves.file {}", path.display());
    if fs::metadata(path).with_context(what)?.len() > LARGEST {
        bail!("{} is larger than 1 MiB", what());
    }
    let text = fs::read_to_string(path).with_context(what)?;
    let lines = text.lines().enumerate().map(|(n, line)| (n + 1, line.trim()));
    let mut urls = Vec::new();
    for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        match daemon::endpoint(line) {
            Ok(url) => urls.push(url),
            Err(why) => bail!("{}, line {number}: {why}", what()),
        }
    }
    Ok(urls)
}

fn host_and_port(url: &str) -> Option<(String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let default = if uri.scheme_str()?.eq_ignore_ascii_case("https") { 443 } else { 80 };
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    Some((host, uri.port_u16().unwrap_or(default)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(urls: &[&str], file: Option<&Path>) -> Directory {
        let urls = urls.iter().map(|url| (*url).to_owned()).collect();
        Directory { urls, file: file.map(Path::to_owned), listed: Vec::new(), resolved: BTreeMap::new() }
    }

    fn names(directory: &mut Directory, resolve: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>>) -> Vec<String> {
        directory.targets_by(resolve).0.iter().map(Target::to_string).collect()
    }

    #[test]
    fn each_address_of_a_name_is_an_enclave_and_stays_one_while_the_name_cannot_be_resolved() {
        let mut directory = directory(&["https://fleet.internal", "http://10.0.0.9:3000"], None);
        let addresses = |list: &[[u8; 4]]| -> Vec<SocketAddr> { list.iter().map(|ip| (*ip, 443).into()).collect() };
        let both = ["http://10.0.0.9:3000", "https://fleet.internal (10.0.0.1)", "https://fleet.internal (10.0.0.2)"];
        let resolve = |host: &str, port: u16| match host {
            "10.0.0.9" => Ok(vec![([10, 0, 0, 9], port).into()]),
            _ => Ok(addresses(&[[10, 0, 0, 2], [10, 0, 0, 1], [10, 0, 0, 2]])),
        };
        assert_eq!(names(&mut directory, resolve), both);
        assert_eq!(names(&mut directory, |_, _| Err(io::ErrorKind::NotFound.into())), both);
        assert_eq!(names(&mut directory, |_, _| Ok(vec![])), Vec::<String>::new());
    }

    #[test]
    fn a_file_is_read_again_and_one_with_a_mistake_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("enclaves");
        let mut directory = directory(&[], Some(&path));
        let resolve = |host: &str, port| Ok(vec![(host.parse::<IpAddr>().unwrap(), port).into()]);
        assert!(directory.targets_by(resolve).1[0].contains("enclaves"));
        for (text, expected) in [
            (
                "# two\nhttp://10.0.0.1:3000\n\n http://[::1]:3000/ \n",
                vec!["http://10.0.0.1:3000", "http://[::1]:3000"],
            ),
            ("http://10.0.0.1:3000\n10.0.0.2:3000\n", vec!["http://10.0.0.1:3000", "http://[::1]:3000"]),
            ("http://10.0.0.3:3000\n", vec!["http://10.0.0.3:3000"]),
            ("", vec![]),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(names(&mut directory, resolve), expected, "{text}");
        }
    }

    #[test]
    fn a_name_that_resolves_to_very_many_addresses_is_bounded() {
        let mut directory = directory(&["http://fleet:1"], None);
        let many = |_: &str, _: u16| Ok((0..2000_u16).map(|n| SocketAddr::from(([10, 0, 0, 1], n))).collect());
        let (targets, faults) = directory.targets_by(many);
        assert!(targets.len() == MOST && faults[0].contains("2000 addresses"));
    }
}
