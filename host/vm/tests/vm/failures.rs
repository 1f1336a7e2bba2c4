//! Boots that fail. Without a console a user of nitro-cli sees E36 or E39; the console has the reason.

use anyhow::{Context, Result};
use teemark_vm::{Bus, Enclave, Entry, Image};

use crate::stage::Stage;
use crate::workshop::Workshop;
use crate::world::{SOON, logs};

pub(crate) fn a_boot_that_fails_is_named_on_the_console_and_ends_the_machine(
    stage: &Stage,
    workshop: &Workshop,
) -> Result<()> {
    let image = workshop.ordinary()?;
    stage.step("a target that is not there", || {
        let image = image.with_command_line(&image.command_line().replace("=/teemarkd", "=/nowhere"));
        fails(stage, &image, &["[INIT] FATAL: starting /nowhere:", "is not in the image", "restarting"])
    })?;
    stage.step("a bad line in the environment file", || {
        let image = image.with_files(&[
            Entry::directory("/etc", 0o755),
            Entry::file("/etc/teemark.env", 0o644, "# settings\nexport RUST_LOG=debug\n"),
        ])?;
        fails(stage, &image, &["[INIT] FATAL: environment: line 2 of /etc/teemark.env:", "restarting"])
    })?;
    stage.step("a bad line in the allow list, over which the daemon ends", || {
        let list = Entry::file("/allowed_endpoints.yaml", 0o644, "endpoints:\n  - a host\n");
        let image = image.with_files(&[list])?;
        let reason = "teemarkd cannot go on: allow list: /allowed_endpoints.yaml:2:";
        fails(stage, &image, &[reason, "[INIT] /teemarkd ended with status 1", "restarting"])
    })
}

/// Boots the image alone, and waits for the lines in turn and for the machine's end.
pub(crate) fn fails(stage: &Stage, image: &Image, lines: &[&str]) -> Result<()> {
    let bus = Bus::start()?;
    let mut enclave = Enclave::boot(&bus, image, 128, &logs()?, false)?;
    stage.watch(&enclave.console);
    for line in lines {
        enclave.console.wait_for(line, teemark_vm::BOOT)?;
    }
    enclave.ended(SOON).context("the machine still runs").map(drop)
}
