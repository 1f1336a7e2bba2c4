//! Finds this crate's repository, and the programs built from it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder of the repository that this was built from.
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
    // Tests are in the folder `deps`, in that of the programs.
    let mut folders = this.ancestors().skip(1).take(2);
    let found = folders.find_map(|folder| Some(folder.join(name)).filter(|path| path.is_file()));
    found.with_context(|| format!("{name} is not built: run `cargo build --workspace` first"))
}
