//! Instructions of the daemon, by valgrind's callgrind: the difference between two runs, of which one has twice as many
//! requests, so that the start and the first request's preparations drop out.
//!
//! callgrind counts each round of a string instruction. musl copies and clears with `rep movsq` and `rep stosq` on
//! x86-64, eight bytes a round, so the instructions of memcpy and memset tell how much was copied and wiped.
//!
//! ring and the base64 crate choose their code by CPUID, and there they see what valgrind answers, not the machine: on
//! any x86-64 with AVX2 a Core i7-4910MQ, with AES-NI, PCLMULQDQ and AVX2, without AVX-512, VAES and the SHA extensions
//! (valgrind's amd64g_dirtyhelper_CPUID_avx2; it takes nothing but F16C, RDRAND and RDSEED from the machine). So the
//! figures are the same on all of these, and are not those of the instructions that a newer processor would execute. On
//! others they are not compared.
//!
//! Most instructions encrypt, and one more copy of a file is half a per cent of all: that shows in the bytes copied, by
//! the functions that copy. Their sum is the same from run to run but for a few hundred bytes, with one exception: rustls
//! shifts what it has not read yet to the front of its buffer, and how often depends on how much the kernel had each time.
//! That is a figure of its own, and not among the instructions.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs;
use std::process::Command;
use std::sync::LazyLock;

use crate::client;
use crate::daemon;
use crate::material::{Material, Sample};
use crate::recorded::Figure;
use crate::support::{not_run, run};
use crate::system_calls::Held;

/// Bytes that a round of musl's `rep movsq` and `rep stosq` moves.
const BYTES_A_ROUND: u64 = 8;

/// What is measured here.
pub(crate) const FIGURES: [&str; 5] =
    ["instructions", "instructions-beside-cryptography", "bytes-copied", "bytes-shifted", "bytes-wiped"];

/// Whether instructions can be compared with those of other machines.
#[cfg(target_arch = "x86_64")]
pub(crate) fn comparable() -> bool {
    std::is_x86_feature_detected!("avx2")
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn comparable() -> bool {
    false
}

/// Shifts what rustls has received.
const SHIFTS: &str = "DeframerVecBuffer::discard";

/// What a function does, by its name and file.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    /// By the function for which memcpy and memmove do it.
    Copying,
    Shifting,
    Wiping,
    Cryptography,
    Other,
}

/// Functions that are shown where instructions grew.
const SHOWN: usize = 12;

/// Instructions by function.
type Counted = HashMap<(Work, String), u64>;

pub(crate) fn measure(material: &Material, sample: &Sample, attempt: usize) -> Vec<Figure> {
    if !comparable() {
        not_run(&format!("instructions of {sample}"), "they were recorded for x86-64 with AVX2");
        return vec![];
    }
    let requests = match sample.size {
        0..=0x1000 => 60,
        0x1001..=0x10000 => 8,
        _ => 2,
    };
    let (once, mut each) = (count(material, sample, requests, attempt), count(material, sample, 2 * requests, attempt));
    for (function, instructions) in &mut each {
        *instructions = instructions.saturating_sub(once.get(function).copied().unwrap_or(0)) / requests as u64;
    }
    let sum = |is: fn(Work) -> bool| each.iter().filter(|((work, _), _)| is(*work)).map(|(_, n)| n).sum::<u64>();
    let largest = |is: fn(Work) -> bool, unit| {
        let mut functions: Vec<_> = each.iter().filter(|((work, _), _)| is(*work)).collect();
        functions.sort_by_key(|(_, instructions)| Reverse(**instructions));
        let shown = functions.iter().take(SHOWN).map(|((_, name), n)| format!("{} {name}", **n * unit));
        shown.collect::<Vec<_>>().join(", ")
    };
    let all: fn(Work) -> bool = |work| work != Work::Shifting;
    let copying: fn(Work) -> bool = |work| work == Work::Copying;
    let values = [
        (sum(all), largest(all, 1)),
        (sum(|work| !matches!(work, Work::Shifting | Work::Cryptography)), String::new()),
        (sum(copying) * BYTES_A_ROUND, largest(copying, BYTES_A_ROUND)),
        (sum(|work| work == Work::Shifting) * BYTES_A_ROUND, String::new()),
        (sum(|work| work == Work::Wiping) * BYTES_A_ROUND, String::new()),
    ];
    let figures = FIGURES.into_iter().zip(values);
    figures.map(|(name, (value, detail))| Figure::new(sample, name, value).with_detail(detail)).collect()
}

fn count(material: &Material, sample: &Sample, requests: usize, attempt: usize) -> Counted {
    let folder = tempfile::tempdir().unwrap();
    let profile = folder.path().join("profile");
    let out = format!("--callgrind-out-file={}", profile.display());
    // The fair one of its locks is a futex; the other is a pipe, and its reads and writes would be held up too.
    let valgrind = ["valgrind", "--tool=callgrind", "--dump-line=no", "--fair-sched=yes", &out];
    let mut held = Held::start(material, &valgrind, attempt);
    client::ask(&mut held.daemon, sample, requests);
    Profile::default().read(&fs::read_to_string(profile).unwrap())
}

/// The functions that copy and wipe, as callgrind calls them: without a size in the symbol table, which musl's assembly
/// does not give, a function goes by its address.
static MOVERS: LazyLock<HashMap<String, (Work, &str)>> = LazyLock::new(|| {
    let symbols = run(Command::new("nm").arg(daemon()));
    let symbols = String::from_utf8(symbols).unwrap();
    let address = |name: &str| {
        let line = symbols.lines().find(|line| line.split(' ').nth(2) == Some(name));
        let line = line.unwrap_or_else(|| panic!("the daemon has no symbol {name}: run `make costs`"));
        format!("0x{}", line.split(' ').next().expect("an address"))
    };
    let movers = [("memcpy", Work::Copying), ("memmove", Work::Copying), ("memset", Work::Wiping)];
    movers.into_iter().flat_map(|(name, work)| [(name.into(), (work, name)), (address(name), (work, name))]).collect()
});

/// A profile as it is read: the manual's "Callgrind Format Specification".
#[derive(Default)]
struct Profile<'a> {
    files: HashMap<&'a str, &'a str>,
    functions: HashMap<&'a str, &'a str>,
    counted: Counted,
}

impl<'a> Profile<'a> {
    /// Sums up each line that has a cost.
    fn read(mut self, profile: &'a str) -> Counted {
        let (mut file, mut function, mut called) = ("", "", "");
        let mut lines = profile.lines();
        while let Some(line) = lines.next() {
            let costs = line.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '*'));
            match line.split_once('=') {
                Some(("fn", named)) => function = name(&mut self.functions, named),
                Some(("cfn", named)) => called = name(&mut self.functions, named),
                Some(("fl" | "fi" | "fe", named)) => file = name(&mut self.files, named),
                Some(("cfl" | "cfi", named)) => _ = name(&mut self.files, named),
                // The line that follows is what the called function costs. That is counted as that function's, but for
                // what copies, which is counted as its caller's.
                Some(("calls", _)) => {
                    let line = lines.next().expect("a cost");
                    if is_copying(called) {
                        let work = if function.contains(SHIFTS) { Work::Shifting } else { Work::Copying };
                        *self.counted.entry((work, plain(function).to_owned())).or_default() += cost(line);
                    }
                }
                None if costs && !is_copying(function) => {
                    *self.counted.entry(work(file, function)).or_default() += cost(line);
                }
                _ => {}
            }
        }
        self.counted
    }
}

/// The cost in a line that has a position and a cost.
fn cost(line: &str) -> u64 {
    line.split(' ').nth(1).and_then(|cost| cost.parse().ok()).expect("a position and a cost")
}

/// The name without a recursion's depth.
fn plain(function: &str) -> &str {
    function.split('\'').next().unwrap_or(function)
}

fn is_copying(function: &str) -> bool {
    MOVERS.get(plain(function)).is_some_and(|(work, _)| *work == Work::Copying)
}

fn work(file: &str, function: &str) -> (Work, String) {
    let function = plain(function);
    let is_ring = file.contains("/ring-") || function.contains("ring_core") || function.contains("ring::");
    match MOVERS.get(function) {
        Some((work, name)) => (*work, (*name).to_owned()),
        None if is_ring => (Work::Cryptography, function.to_owned()),
        None => (Work::Other, function.to_owned()),
    }
}

/// The name of `(NUMBER) NAME`; the name is there where the number is used first.
fn name<'a>(names: &mut HashMap<&'a str, &'a str>, named: &'a str) -> &'a str {
    let (number, name) = named.split_once(' ').unwrap_or((named, ""));
    if name.is_empty() { names[number] } else { names.entry(number).or_insert(name) }
}
