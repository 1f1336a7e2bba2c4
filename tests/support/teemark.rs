//! `teemark`, as its users run it, and what it prints.

use std::path::Path;
use std::process::{Command, Output};

use super::program;

/// Runs `teemark` in this folder.
pub(crate) fn teemark(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(program("teemark")).args(arguments).current_dir(folder).output().unwrap()
}

/// The command succeeded.
#[track_caller]
pub(crate) fn succeeds(output: Output) -> Output {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The command ended with this status and these words.
#[track_caller]
pub(crate) fn fails(status: i32, output: &Output, words: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{told}");
    assert!(told.contains(words), "{words} in {told}");
}

/// What a command that succeeded printed.
#[track_caller]
pub(crate) fn printed(output: Output) -> String {
    String::from_utf8(succeeds(output).stdout).unwrap()
}

/// The line that was printed.
#[track_caller]
pub(crate) fn line(output: Output) -> String {
    printed(output).trim_end().to_owned()
}

/// The content of a .pcrs file whose registers, from PCR0 on, consist of these bytes (in hex).
pub(crate) fn pcrs(bytes: &[&str]) -> String {
    bytes.iter().enumerate().map(|(index, byte)| format!("{} PCR{index}\n", byte.repeat(48))).collect()
}
