//! `teemark`, the command line of operators, grant issuers and users: makes keys, encrypts files, sends the bundle, signs
//! grants, has a running daemon decrypt files, attests an enclave, prints the parent's side of the allow list, exposes
//! the enclave's ports on the parent, goes through the checklist of a deployment, shows what enclaves are doing, and carries,
//! keeps, verifies and reads the enclave's log.
//!
//! A command returns what it did ([`failure::Done`]) or why it failed ([`failure::Failure`]). Only `main` writes results
//! to standard output, except for files that are to go there.
#![forbid(unsafe_code)]

mod answer;
mod attest;
mod batch;
mod bundle;
mod certificate;
mod changes;
mod command;
mod connect;
mod daemon;
mod decrypt;
mod doctor;
mod encrypt;
mod expose;
mod failure;
mod grant;
mod handshake;
mod interrupt;
mod keeper;
mod keygen;
mod keys;
mod log;
mod manifest;
mod metrics;
mod output;
mod private_key;
mod progress;
mod proof;
mod seal;
mod secrets;
mod sign;
mod state;
mod terminal;
mod top;
mod vsock_proxy;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use serde_json::{Value, json};
use zeroizing_alloc::ZeroAlloc;

use crate::failure::{Class, Done, Failure};
use crate::terminal::{json_line, say};

/// Wipes memory as it is freed, keys and plaintext with it.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<std::alloc::System> = ZeroAlloc(std::alloc::System);

/// Keys, encrypted files, certificates and the parent's proxies for teemarkd, the watermarking enclave.
#[derive(Parser)]
#[command(
    name = "teemark",
    version,
    after_help = "Exit status:
  0  done
  1  refused for good, by the daemon or because its attestation failed
  2  wrong usage, or any other error
  3  try again later: no complete answer in time, or the daemon answered 408, 429, 503 or 504
With several files each is tried, and the lowest of these statuses other than 0 counts.
With --json standard output has one object: the result, or {\"error\": …, \"code\": …, \"exit\": …}.
A signal ends a command as usual (Ctrl-C: 130 in a shell), and no unfinished file is left behind."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object, for scripts: the result, or the error with its code and exit status
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    Keygen(keygen::Arguments),
    Encrypt(encrypt::Arguments),
    Secrets(secrets::Arguments),
    Sign(sign::Arguments),
    Keeper(keeper::Arguments),
    Grant(grant::Arguments),
    Decrypt(decrypt::Arguments),
    Attest(attest::Arguments),
    VsockProxy(vsock_proxy::Arguments),
    Expose(expose::Arguments),
    Doctor(doctor::Arguments),
    Top(top::Arguments),
    Log(log::Arguments),
    /// Print a completion script for a shell.
    #[command(after_help = "Example: teemark completions bash > ~/.local/share/bash-completion/completions/teemark")]
    Completions {
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return not_parsed(&error),
    };
    let json = arguments.json;
    let done = match arguments.command {
        Command::Keygen(arguments) => keygen::run(&arguments),
        Command::Encrypt(arguments) => encrypt::run(&arguments, json),
        Command::Secrets(arguments) => secrets::run(&arguments),
        Command::Sign(arguments) => sign::run(&arguments),
        Command::Keeper(arguments) => keeper::run(&arguments),
        Command::Grant(arguments) => grant::run(&arguments),
        Command::Decrypt(arguments) => decrypt::run(&arguments, json),
        Command::Attest(arguments) => attest::run(&arguments),
        Command::VsockProxy(arguments) => vsock_proxy::run(&arguments),
        Command::Expose(arguments) => expose::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments, json),
        Command::Top(arguments) => top::run(&arguments, json),
        Command::Log(arguments) => log::run(&arguments, json),
        Command::Completions { shell } => Ok(completions(shell)),
    };
    let printed = done.and_then(|Done { text, json: object }| {
        let line = json.then(|| json_line(&object).into_bytes());
        output::to_stdout(&line.unwrap_or(text))
    });
    let Err(error) = printed else { return ExitCode::SUCCESS };
    let class = Failure::class_of(&error);
    say(format_args!("{}: {error:#}", class.word()));
    if json {
        print_error(&Failure::object_of(&error));
    }
    class.into()
}

/// Ends as clap does, with help on standard output and errors on standard error; with `--json` an error is an object too.
fn not_parsed(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || !std::env::args_os().any(|argument| argument == "--json") {
        error.exit();
    }
    let _ = error.print();
    let text = error.to_string();
    let class = Class::Other;
    print_error(&json!({"error": text.trim_end(), "code": "usage", "exit": class.status()}));
    class.into()
}

/// Prints an error's object. If standard output is closed, the exit status has to be enough.
fn print_error(object: &Value) {
    let _ = output::to_stdout(json_line(object).as_bytes());
}

fn completions(shell: clap_complete::Shell) -> Done {
    // Into memory first: clap_complete panics if its writer fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "teemark", &mut script);
    let object = json!({"shell": shell.to_string(), "script": String::from_utf8_lossy(&script)});
    Done::new(script, object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
