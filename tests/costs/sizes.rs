//! Bytes of the daemon by crate, and of the image by part.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::daemon;
use crate::recorded::Figure;
use crate::support::{repository, run};

pub(crate) fn measure() -> Vec<Figure> {
    let mut figures = vec![];
    let crates = run(Command::new(repository().join("bench/crate-bytes.sh")).arg(daemon()));
    for line in String::from_utf8(crates).unwrap().lines() {
        let (bytes, name) = line.trim().split_once("  ").expect("bytes and a name");
        figures.push(Figure::new("crates", name, bytes.parse().unwrap()));
    }
    let record = repository().join("target/size/teemark-x86_64.json");
    let record = fs::read(record).unwrap_or_else(|e| panic!("the image is not built: run `make costs` ({e})"));
    let record: Value = serde_json::from_slice(&record).unwrap();
    for (name, part) in record["parts"].as_object().expect("parts") {
        figures.push(Figure::new("image", name, part["bytes"].as_u64().expect("bytes")));
    }
    figures
}
