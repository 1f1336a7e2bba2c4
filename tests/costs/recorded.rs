//! The values that were recorded, how far each may go, and the table.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::callgrind;
use crate::support::repository;

const HEAD: &str = "\
# What a request and the image cost: written by `make costs RECORD=1`, compared by `make costs` and `make test`.
# tests/costs/main.rs tells how each is counted, and tests/costs/recorded.rs how far it may go.
# Instructions are those of x86-64 with AVX2 as valgrind presents it (3.19), whatever else the processor can do.
";

/// Something that was counted.
#[derive(Clone)]
pub(crate) struct Figure {
    /// What it is a cost of: a route and a size, or what has parts.
    of: String,
    name: String,
    value: u64,
    /// What it is made of, to be shown where it grew.
    detail: String,
}

impl Figure {
    pub(crate) fn new(of: impl Display, name: impl Into<String>, value: u64) -> Figure {
        let name: String = name.into();
        Figure { of: of.to_string(), name: name.replace(' ', "-"), value, detail: String::new() }
    }

    pub(crate) fn with_detail(self, detail: String) -> Figure {
        Figure { detail, ..self }
    }

    /// Puts what was measured again in the place of what is more.
    pub(crate) fn lessen(figures: &mut [Figure], again: Vec<Figure>) {
        for measured in again {
            let before = figures.iter_mut().find(|figure| figure.key() == measured.key());
            if let Some(before) = before.filter(|before| before.value > measured.value) {
                *before = measured;
            }
        }
    }

    fn key(&self) -> Key {
        (self.of.clone(), self.name.clone())
    }
}

/// How far a figure may exceed the recorded one: by this many thousandths of it, plus this many.
struct Slack {
    thousandths: u64,
    more: u64,
}

impl Slack {
    fn of(figure: &Key) -> Slack {
        let (thousandths, more) = match (figure.0.as_str(), figure.1.as_str()) {
            // A function that is inlined elsewhere moves to another crate.
            ("crates", _) => (50, 1024),
            ("image", _) => (10, 1024),
            (_, "instructions" | "instructions-beside-cryptography") => (20, 2000),
            // One more copy of the file is past this. From run to run the figure differs by at most 1,000 bytes with a
            // file of 4 KiB, and by 10,000 with the others, however busy the machine is.
            (of, "bytes-copied") => (0, file_bytes(of) / 2),
            (_, "bytes-wiped") => (50, 2048),
            // What the kernel had at each read can make it twice as much.
            (_, "bytes-shifted") => (2000, 65536),
            (_, "system-calls") => (20, 3),
            (_, "allocations") => (20, 4),
            (_, "bytes-allocated") => (10, 1024),
            (_, "bytes-read" | "bytes-written") => (0, 128),
            _ => (0, 0),
        };
        Slack { thousandths, more }
    }

    fn most(&self, recorded: u64) -> u64 {
        recorded + recorded * self.thousandths / 1000 + self.more
    }

    fn least(&self, recorded: u64) -> u64 {
        recorded.saturating_sub(recorded * self.thousandths / 1000 + self.more)
    }
}

/// Of `raw/64KiB`: 65,536.
fn file_bytes(of: &str) -> u64 {
    let kib = of.split_once('/').and_then(|(_, size)| size.strip_suffix("KiB")?.parse::<u64>().ok());
    kib.unwrap_or_else(|| panic!("{of} names no size")) << 10
}

/// What it is a cost of, and the figure's name.
type Key = (String, String);

/// The recorded values.
pub(crate) struct Recorded(BTreeMap<Key, u64>);

fn file() -> PathBuf {
    repository().join("tests/costs/recorded.txt")
}

impl Recorded {
    /// Writes them.
    pub(crate) fn write(figures: &[Figure]) {
        let mut text = HEAD.to_owned();
        for Figure { of, name, value, .. } in figures {
            text += &format!("{of} {name} {value}\n");
        }
        fs::write(file(), text).unwrap();
        print!("{}", Recorded::read().table(figures));
        println!("recorded in {}", file().display());
    }

    pub(crate) fn read() -> Recorded {
        let text = fs::read_to_string(file()).unwrap_or_else(|e| panic!("{}: {e}", file().display()));
        let rows = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let mut words = line.split(' ');
            let row = (|| Some(((words.next()?.into(), words.next()?.into()), words.next()?.parse().ok()?)))();
            row.unwrap_or_else(|| panic!("{}: not a figure: {line}", file().display()))
        });
        Recorded(rows.collect())
    }

    /// Whether any of these is past its limit.
    pub(crate) fn exceeds(&self, figures: &[Figure]) -> bool {
        figures.iter().any(|figure| self.0.contains_key(&figure.key()) && self.excess(figure).is_some())
    }

    /// Prints the table, and names what grew and what is missing.
    pub(crate) fn compare(&self, figures: &[Figure]) -> ExitCode {
        print!("{}", self.table(figures));
        let mut wrong: Vec<String> = figures.iter().filter_map(|figure| self.excess(figure)).collect();
        let gone = self.0.keys().filter(|key| !figures.iter().any(|figure| figure.key() == **key));
        // The others were said when it was their turn.
        let gone = gone.filter(|(_, name)| callgrind::comparable() || !callgrind::FIGURES.contains(&name.as_str()));
        wrong.extend(gone.map(|(of, name)| format!("{of}: {name} is recorded, and is not measured any more")));
        if figures.iter().any(|figure| self.fell(figure)) {
            println!("What is marked with - fell; keep it by `make costs RECORD=1`");
        }
        for line in &wrong {
            eprintln!("costs: {line}");
        }
        if wrong.is_empty() {
            return ExitCode::SUCCESS;
        }
        eprintln!("costs: if this is what it should cost, accept it by `make costs RECORD=1` and say why");
        ExitCode::FAILURE
    }

    /// What a figure has to say that is past its limit.
    fn excess(&self, figure: &Figure) -> Option<String> {
        let Figure { of, name, value, detail } = figure;
        let Some(&recorded) = self.0.get(&figure.key()) else {
            return Some(format!("{of}: {name} is {value} and was never recorded"));
        };
        let most = Slack::of(&figure.key()).most(recorded);
        (*value > most).then(|| {
            let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
            format!("{of}: {name} grew from {recorded} to {value}, past {most}{detail}")
        })
    }

    fn fell(&self, figure: &Figure) -> bool {
        let recorded = self.0.get(&figure.key());
        recorded.is_some_and(|&recorded| figure.value < Slack::of(&figure.key()).least(recorded))
    }

    fn table(&self, figures: &[Figure]) -> String {
        let row = |of: &str, name: &str, [recorded, now, change, most]: [&str; 4], sign: &str| {
            let line = format!("{of:<12} {name:<34} {recorded:>11} {now:>11} {change:>9} {most:>11} {sign}");
            line.trim_end().to_owned() + "\n"
        };
        let mut table = row("cost of", "figure", ["recorded", "now", "change", "at most"], "");
        for figure in figures {
            let Figure { of, name, value, .. } = figure;
            let now = value.to_string();
            table += &match self.0.get(&figure.key()) {
                None => row(of, name, ["", &now, "", ""], "new"),
                Some(&recorded) => {
                    let most = Slack::of(&figure.key()).most(recorded);
                    let sign = match () {
                        () if *value > most => "GREW",
                        () if self.fell(figure) => "-",
                        () => "",
                    };
                    row(of, name, [&recorded.to_string(), &now, &change(recorded, *value), &most.to_string()], sign)
                }
            };
        }
        table
    }
}

/// The change in per cent.
fn change(from: u64, to: u64) -> String {
    match (i128::from(from), i128::from(to)) {
        (from, to) if from == to => String::new(),
        (0, to) => format!("+{to}"),
        (from, to) => {
            let tenths = (to - from) * 1000 / from;
            let sign = if to < from { '-' } else { '+' };
            format!("{sign}{}.{} %", tenths.abs() / 10, tenths.abs() % 10)
        }
    }
}
