//! `teemark`, the operator's command line: keys, encrypted files, the handshake, grants, decryption by a running daemon, what a
//! running enclave proves of itself, and the parent's side of the allow list.
//!
//! Exit status: 0 done, 1 the daemon refused or its attestation was refused, 2 anything else went wrong (also a wrong
//! command line).
#![forbid(unsafe_code)]

mod answer;
mod attest;
mod certificate;
mod daemon;
mod decrypt;
mod encrypt;
mod grant;
mod handshake;
mod issuer;
mod keygen;
mod keys;
mod output;
mod private_key;
mod progress;
mod seal;
mod secrets;
mod vsock_proxy;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use zeroizing_alloc::ZeroAlloc;

/// Wipes memory as it is freed, keys and plaintext with it.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<std::alloc::System> = ZeroAlloc(std::alloc::System);

/// Keys, encrypted files, certificates and the parent's proxies for teemarkd, the watermarking enclave.
#[derive(Parser)]
#[command(
    name = "teemark",
    version,
    after_help = "Exit status: 0 done, 1 refused by the daemon or on its attestation, 2 any other error."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Keygen(keygen::Arguments),
    Encrypt(encrypt::Arguments),
    Secrets(secrets::Arguments),
    Grant(grant::Arguments),
    Decrypt(decrypt::Arguments),
    Attest(attest::Arguments),
    VsockProxy(vsock_proxy::Arguments),
    /// Print a completion script for a shell.
    #[command(after_help = "Example: teemark completions bash > ~/.local/share/bash-completion/completions/teemark")]
    Completions {
        shell: clap_complete::Shell,
    },
}

/// How a command that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// The daemon said no; what it said is on stderr already.
    Refused,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Keygen(arguments) => keygen::run(&arguments),
        Command::Encrypt(arguments) => encrypt::run(&arguments),
        Command::Secrets(arguments) => secrets::run(&arguments),
        Command::Grant(arguments) => grant::run(&arguments),
        Command::Decrypt(arguments) => decrypt::run(&arguments),
        Command::Attest(arguments) => attest::run(&arguments),
        Command::VsockProxy(arguments) => vsock_proxy::run(&arguments),
        Command::Completions { shell } => completions(shell),
    };
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Refused) => ExitCode::from(1),
        Err(error) if is_refusal(&error) => {
            eprintln!("refused: {error:#}");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether the daemon said no, or what it proves of itself does.
fn is_refusal(error: &anyhow::Error) -> bool {
    error.is::<daemon::Refusal>() || error.is::<attest::Refusal>() || error.is::<seal::Unconfirmed>()
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<Outcome> {
    // Into memory first: clap_complete panics where its writer fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "teemark", &mut script);
    output::to_stdout(&script)?;
    Ok(Outcome::Done)
}

/// What a peer sent, fit for a terminal: control characters are shown escaped.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_a_peer_sends_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jé\n"), "a\\u{1b}[2Jé\\n");
    }
}
