//! A parent and an enclave as two virtual machines, on a machine that is neither.
//!
//! [`Bus`] is the vsock between them, [`Parent`] stands in for the EC2 instance and has what such an instance has,
//! [`Enclave`] boots an [`Image`], the very EIF that is shipped. AF_VSOCK is the real one of both kernels. Each of the
//! three ends its processes when it is dropped; declared in this order, they go in the right one.
//!
//! `run-vm` makes a running system of them; the test in `tests/vm` does to it what an operator does, and worse.

#![forbid(unsafe_code)]

pub mod bus;
pub mod console;
pub mod enclave;
pub mod forward;
pub mod image;
mod machine;
pub mod operator;
pub mod parent;
mod parent_ramdisk;
mod process;
pub mod qemu;
mod switch;

pub use bus::Bus;
pub use console::Console;
pub use enclave::Enclave;
pub use image::Image;
pub use machine::BOOT;
pub use parent::Parent;
pub use process::run;
pub use teemark_image::ramdisk::Entry;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The clone that this was built from.
pub fn repository() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// A program of this workspace, built beside the one that runs.
///
/// # Errors
/// It is not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    // Tests stand in a folder `deps` of the programs' own.
    let mut folders = this.ancestors().skip(1).take(2);
    let found = folders.find_map(|folder| Some(folder.join(name)).filter(|path| path.is_file()));
    found.with_context(|| format!("{name} is not built: run `cargo build --workspace` before"))
}
