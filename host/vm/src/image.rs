//! An enclave image as it is shipped, and its building.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use teemark_image::parts::Parts;
use teemark_image::ramdisk::{Entry, newc};

/// An EIF, and what it boots from.
pub struct Image {
    /// Where it stands; none where it was altered.
    path: Option<PathBuf>,
    parts: Parts,
}

impl Image {
    /// Reads an EIF.
    ///
    /// # Errors
    /// It is not there, or is no EIF.
    pub fn open(eif: &Path) -> Result<Image> {
        let parts = Parts::read(eif).with_context(|| eif.display().to_string())?;
        Ok(Image { path: Some(eif.to_owned()), parts })
    }

    /// Builds one by `image/build.sh`, named so and put into `folder`.
    ///
    /// # Errors
    /// The build failed; what it said went to standard error.
    pub fn build(folder: &Path, name: &str, arguments: &[&OsStr]) -> Result<Image> {
        let mut command = Command::new(crate::repository().join("image/build.sh"));
        command.args(["--name", name, "--output"]).arg(folder).args(arguments);
        // Standard output tells sizes and PCRs, which are not of interest here.
        let status = command.stdout(Stdio::null()).status().with_context(|| format!("{command:?} cannot be run"))?;
        ensure!(status.success(), "{command:?} failed");
        Image::open(&folder.join(format!("{name}.eif")))
    }

    /// The same kernel, command line and ramdisks, to be booted on `microvm` wherever that is done.
    pub fn taken_apart(&self) -> Image {
        Image { path: None, parts: self.parts.clone() }
    }

    /// The same image with another command line. It is no EIF any more and boots on `microvm`.
    pub fn with_command_line(&self, command_line: &str) -> Image {
        let mut altered = self.taken_apart();
        altered.parts.command_line = command_line.to_owned();
        altered
    }

    /// The same image with files in place of its own or beside them, in one more ramdisk: the kernel unpacks the last
    /// one last. It is no EIF any more and boots on `microvm`.
    ///
    /// # Errors
    /// No ramdisk can be made of the entries.
    pub fn with_files(&self, entries: &[Entry]) -> Result<Image> {
        let mut altered = self.taken_apart();
        altered.parts.ramdisks.push(newc(entries)?);
        Ok(altered)
    }

    /// The EIF, where it is as it was built.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The kernel, which serves the parent too.
    pub fn kernel(&self) -> &[u8] {
        &self.parts.kernel
    }

    pub fn command_line(&self) -> &str {
        &self.parts.command_line
    }

    /// Both ramdisks as the kernel gets them: one after the other.
    pub fn ramdisks(&self) -> Vec<u8> {
        self.parts.ramdisks.concat()
    }
}
