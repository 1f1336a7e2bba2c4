//! Reads and builds enclave images, as they are shipped, and changes them for tests.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use teemark_image::arch::Arch;
use teemark_image::parts::Parts;
use teemark_image::ramdisk::{Entry, newc};

/// An EIF, and what it boots from.
pub struct Image {
    /// Its path; none if it was altered.
    path: Option<PathBuf>,
    parts: Parts,
}

impl Image {
    /// Reads an EIF.
    ///
    /// # Errors
    /// It is missing, or is not an EIF.
    pub fn open(eif: &Path) -> Result<Image> {
        let parts = Parts::read(eif).with_context(|| eif.display().to_string())?;
        Ok(Image { path: Some(eif.to_owned()), parts })
    }

    /// Builds one by `image/build.sh`, named so and put into `folder`.
    ///
    /// # Errors
    /// The build failed; what it said went to standard error.
    pub fn build(folder: &Path, name: &str, arguments: &[&OsStr]) -> Result<Image> {
        let mut command = Command::new(crate::workspace::repository().join("image/build.sh"));
        command.args(["--name", name, "--output"]).arg(folder).args(arguments);
        // Cargo's words about the crate that runs. ring's build script looks at them, so with them the build would compile
        // ring anew, with all that needs it, and the next one without them again.
        for (variable, _) in std::env::vars_os() {
            if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|words| variable.to_string_lossy().starts_with(words)) {
                command.env_remove(variable);
            }
        }
        // Standard output has sizes and PCRs, which nobody needs here.
        let status = command.stdout(Stdio::null()).status().with_context(|| format!("{command:?} cannot be run"))?;
        ensure!(status.success(), "{command:?} failed");
        Image::open(&folder.join(format!("{name}.eif")))
    }

    /// The same kernel, command line and ramdisks, but to be booted on `microvm` in any case.
    pub fn taken_apart(&self) -> Image {
        Image { path: None, parts: self.parts.clone() }
    }

    /// The same image with another command line. It is no longer an EIF, so it boots on `microvm`.
    pub fn with_command_line(&self, command_line: &str) -> Image {
        let mut altered = self.taken_apart();
        altered.parts.command_line = command_line.to_owned();
        altered
    }

    /// The same image with another kernel. It is no longer an EIF, so it boots on `microvm`.
    pub fn with_kernel(&self, kernel: Vec<u8>) -> Image {
        let mut altered = self.taken_apart();
        altered.parts.kernel = kernel;
        altered
    }

    /// The same image with files in place of its own or beside them, in one more ramdisk: the kernel unpacks the last
    /// one last. It is no longer an EIF, so it boots on `microvm`.
    ///
    /// # Errors
    /// No ramdisk can be made of the entries.
    pub fn with_files(&self, entries: &[Entry]) -> Result<Image> {
        let mut altered = self.taken_apart();
        altered.parts.ramdisks.push(newc(entries)?);
        Ok(altered)
    }

    /// The path of the EIF, if it was not altered.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What it is for.
    pub fn arch(&self) -> Arch {
        self.parts.arch
    }

    /// The kernel, which the parent boots too if it is for x86-64.
    pub fn kernel(&self) -> &[u8] {
        &self.parts.kernel
    }

    /// The kernel's command line.
    pub fn command_line(&self) -> &str {
        &self.parts.command_line
    }

    /// The ramdisks as the kernel gets them, concatenated.
    pub fn ramdisks(&self) -> Vec<u8> {
        self.parts.ramdisks.concat()
    }
}
