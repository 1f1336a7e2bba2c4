//! `teemark log`: the log of an enclave, and its audit trail, from the parent to whoever reads them.
//!
//! ```text
//! relay      on the parent: carries the stream on, and knows nothing about it
//! collect    behind it: keeps records in files, and acknowledges them
//! kept       a boot's files as collect writes them
//! files      the files of a boot, and how they are read
//! chains     which records of a boot belong together
//! removal    what --keep-days removes of those files
//! verify     whether records are as the enclave wrote them, in order and complete
//! read       open, show, grep, follow
//! reader     the records of files one after the other, sealed ones opened
//! ```

mod chains;
mod collect;
mod files;
mod kept;
mod read;
mod reader;
mod relay;
mod removal;
mod verify;

use anyhow::Result;

pub(crate) use self::read::log_key;
pub(crate) use self::reader::Segments;

use crate::failure::Done;

/// Carry, keep, verify and read the log and the audit trail of an enclave.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Relay(relay::Arguments),
    Collect(collect::Arguments),
    Verify(verify::Arguments),
    Open(read::OpenArguments),
    Show(read::ShowArguments),
    Grep(read::GrepArguments),
    Follow(read::FollowArguments),
}

/// Runs one of the commands.
///
/// # Errors
/// That command's.
pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<Done> {
    match &arguments.command {
        Command::Relay(arguments) => relay::run(arguments),
        Command::Collect(arguments) => collect::run(arguments),
        Command::Verify(arguments) => verify::run(arguments),
        Command::Open(arguments) => read::open(arguments, json),
        Command::Show(arguments) => read::show(arguments, json),
        Command::Grep(arguments) => read::grep(arguments, json),
        Command::Follow(arguments) => read::follow(arguments, json),
    }
}
