//! The processes and TCP listeners of a machine, as proc(5) shows them, and what a command line says of where it leads.

use std::fs;
use std::path::Path;

use super::facts::{Listener, Process};

/// TCP_LISTEN in /proc/net/tcp (include/net/tcp_states.h).
const LISTENING: &str = "0A";

/// Every process whose command line can be read.
pub(super) fn all(proc: &Path) -> Vec<Process> {
    let numbers = fs::read_dir(proc).into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let words = |number: u32| fs::read(proc.join(number.to_string()).join("cmdline")).ok();
    let split = |bytes: Vec<u8>| {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        text.split_terminator('\0').map(str::to_owned).collect::<Vec<_>>()
    };
    let mut processes: Vec<Process> =
        numbers.filter_map(|number| Some(Process { number, words: split(words(number)?) })).collect();
    processes.retain(|process| !process.words.is_empty());
    processes.sort_by_key(|process| process.number);
    processes
}

/// The value of a variable in the environment that a process was started with, if that can be read.
pub(super) fn variable(proc: &Path, number: u32, name: &str) -> Option<String> {
    let environment = fs::read(proc.join(number.to_string()).join("environ")).ok()?;
    let environment = String::from_utf8_lossy(&environment).into_owned();
    environment.split('\0').find_map(|line| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

/// Who listens on a TCP port.
pub(super) fn listener(proc: &Path, processes: &[Process], port: u16) -> Listener {
    let tables = ["net/tcp", "net/tcp6"].map(|table| fs::read_to_string(proc.join(table)).unwrap_or_default());
    let sockets: Vec<String> = tables.iter().flat_map(|table| listening(table, port)).collect();
    if sockets.is_empty() {
        return Listener::Nobody;
    }
    let has_one = |process: &&Process| {
        let descriptors = fs::read_dir(proc.join(process.number.to_string()).join("fd"));
        let targets = descriptors.into_iter().flatten().flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        targets.into_iter().any(|target| sockets.iter().any(|socket| target == Path::new(socket)))
    };
    processes.iter().find(has_one).map_or(Listener::Unseen, |process| Listener::Process(process.clone()))
}

/// The sockets that listen on this port, as /proc/PID/fd names them. Fields of a line: number, local address, remote
/// address, state, queues, timer, retransmits, user, timeout, inode.
fn listening(table: &str, port: u16) -> impl Iterator<Item = String> {
    table.lines().skip(1).filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
        (local == port && *fields.get(3)? == LISTENING)
            .then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))?
    })
}

/// The arguments of this program, if the command line is one of it: itself, or behind its interpreter.
fn arguments<'a>(words: &'a [String], program: &str) -> Option<&'a [String]> {
    let is = |word: &String| Path::new(word).file_name().is_some_and(|name| name == program);
    let at = words.iter().take(2).position(is)?;
    Some(&words[at + 1..])
}

/// The value of an option, `--name VALUE` or `--name=VALUE`.
pub(super) fn option<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    words.iter().enumerate().find_map(|(at, word)| match word.strip_prefix(name) {
        Some("") => words.get(at + 1).map(String::as_str),
        Some(rest) => rest.strip_prefix('='),
        None => None,
    })
}

/// The CID to which a process forwards TCP connections: of `teemark expose` or of socat.
pub(super) fn exposed_cid(words: &[String]) -> Option<u32> {
    if let Some(["expose", ..]) = arguments(words, "teemark").map(as_strs).as_deref() {
        return option(words, "--enclave")?.parse().ok();
    }
    let socat = arguments(words, "socat")?;
    let to = socat.iter().find_map(|word| word.strip_prefix("VSOCK-CONNECT:"))?;
    to.split(':').next()?.parse().ok()
}

/// Where a process forwards a vsock port, if it does: AWS' vsock-proxy, `vsock-proxy [OPTIONS] PORT HOST PORT`, or socat.
pub(super) fn proxied(words: &[String]) -> Option<(u32, String)> {
    if let Some(rest) = arguments(words, "vsock-proxy") {
        // Its options that have a value in the next word (vsock_proxy/src/main.rs of aws-nitro-enclaves-cli).
        let (mut positional, mut skip) = (Vec::new(), false);
        for word in rest {
            match word.as_str() {
                _ if std::mem::take(&mut skip) => {}
                "--config" | "--num_workers" | "-w" => skip = true,
                option if option.starts_with('-') => {}
                value => positional.push(value),
            }
        }
        let [port, host, remote] = positional[..] else { return None };
        return Some((port.parse().ok()?, format!("{host}:{remote}")));
    }
    let socat = arguments(words, "socat")?;
    let find = |kinds: &[&str]| {
        let rest = |word: &String| kinds.iter().find_map(|kind| word.strip_prefix(kind).map(str::to_owned));
        let value = socat.iter().find_map(rest)?;
        value.split(',').next().map(str::to_owned)
    };
    let port = find(&["VSOCK-LISTEN:"])?.parse().ok()?;
    Some((port, find(&["TCP:", "TCP4:", "TCP6:", "TCP-CONNECT:", "TCP4-CONNECT:"])?))
}

/// Whether a process is `teemark log relay`.
pub(super) fn relays_log(words: &[String]) -> bool {
    matches!(arguments(words, "teemark").map(as_strs).as_deref(), Some(["log", "relay", ..]))
}

fn as_strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_command_line_says_where_a_port_leads() {
        for (line, cid) in [
            ("/usr/local/bin/teemark expose --enclave 16 --public 0.0.0.0:3000", Some(16)),
            ("teemark expose --public 127.0.0.1:3000 --enclave=17", Some(17)),
            ("socat -t 60 TCP4-LISTEN:3000,bind=0.0.0.0,fork VSOCK-CONNECT:18:3000", Some(18)),
            ("sh /bin/teemark expose --enclave 19", Some(19)),
            ("nginx: master process", None),
            ("teemark log relay --to tcp:h:9002", None),
        ] {
            assert_eq!(exposed_cid(&words(line)), cid, "{line}");
        }
        let config = "--config /etc/teemark/vsock-proxy.yaml --num_workers 256";
        for (line, expected) in [
            (format!("/usr/bin/vsock-proxy {config} 8101 a.example 443"), Some((8101, "a.example:443"))),
            ("vsock-proxy 8102 b.example 8080 -w 20 -4".to_owned(), Some((8102, "b.example:8080"))),
            (format!("/bin/sh /usr/bin/vsock-proxy {config} 8101 a.example 443"), Some((8101, "a.example:443"))),
            ("socat -d VSOCK-LISTEN:8103,fork,reuseaddr TCP:127.0.0.1:8080".to_owned(), Some((8103, "127.0.0.1:8080"))),
            ("socat VSOCK-LISTEN:9000,reuseaddr SYSTEM:cat".to_owned(), None),
            ("vsock-proxy --help".to_owned(), None),
        ] {
            let proxied = proxied(&words(&line));
            assert_eq!(proxied.as_ref().map(|(port, to)| (*port, to.as_str())), expected, "{line}");
        }
        assert!(relays_log(&words("/usr/local/bin/teemark log relay")) && !relays_log(&words("teemark log show x")));
        assert_eq!(option(&words("log relay --to tcp:h:1"), "--to"), Some("tcp:h:1"));
    }

    #[test]
    fn a_listener_is_found_by_its_port_and_state() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100\n   \
            1: 0100007F:0BB8 0100007F:8000 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100\n";
        assert_eq!(listening(table, 3000).collect::<Vec<_>>(), ["socket:[4711]"]);
        assert_eq!(listening(table, 3001).count(), 0);
    }
}
