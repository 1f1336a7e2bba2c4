//! Puts an enclave image file together with the crate that nitro-cli uses, and measures it.
//!
//! The enclave's registers (AWS, "Where to get an enclave's measurements"): PCR0 is the SHA-384 of kernel, command line
//! and ramdisks; PCR1 of kernel, command line and the first ramdisk; PCR2 of the other ramdisks; PCR8, of a signed
//! image, of the signing certificate. Each as a register that was extended once from zero. The metadata is in none.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use aws_nitro_enclaves_image_format::defs::{EIF_HDR_ARCH_ARM64, EifBuildInfo, EifIdentityInfo};
use aws_nitro_enclaves_image_format::utils::EifBuilder;
use formats::time::Utc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha384};

use crate::arch::Arch;
use crate::parts::{Parts, PartsError};
use crate::signer::Signer;

/// What an image says about itself. It is not measured, so it proves nothing.
pub struct Metadata<'a> {
    /// The image's name.
    pub name: &'a str,
    /// The version of teemark that it was built from.
    pub version: &'a str,
    /// The kernel's version, if the kernel tells it.
    pub kernel_version: Option<&'a str>,
    /// When it was built. Two builds give the same bytes only if this is the same.
    pub built: Utc,
    /// Whether the image has a shell.
    pub debug: bool,
}

/// An image and its measurements.
pub struct Image {
    /// The EIF.
    pub bytes: Vec<u8>,
    /// What `nitro-cli` would measure of it.
    pub pcrs: Pcrs,
}

/// Registers by name, `PCR0` and so on, in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pcrs(pub BTreeMap<String, String>);

impl Pcrs {
    /// The registers among the measurements of nitro-cli's crate, which also name the hash algorithm.
    pub(crate) fn of(measurements: BTreeMap<String, String>) -> Pcrs {
        Pcrs(measurements.into_iter().filter(|(name, _)| name.starts_with("PCR")).collect())
    }
}

/// One line per register, `VALUE NAME`: the format of Nautilus' nitro.pcrs.
impl fmt::Display for Pcrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, value)| writeln!(f, "{value} {name}"))
    }
}

/// No image was made.
#[derive(Debug)]
pub enum EifError {
    /// The system gives no memory for a file.
    Memory(io::Error),
    /// The command line has a zero byte, or there are not 1 to 28 ramdisks.
    Parts,
    /// The image that was made does not hold what was put in.
    ReadBack(Option<PartsError>),
}

impl fmt::Display for EifError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(e) => write!(f, "no memory for the image: {e}"),
            Self::Parts => write!(f, "no image can be made of this command line and number of ramdisks"),
            Self::ReadBack(Some(e)) => write!(f, "the image that was made {e}"),
            Self::ReadBack(None) => write!(f, "the image that was made does not hold what was put in"),
        }
    }
}

impl std::error::Error for EifError {}

/// A file that exists in memory only. The EIF crate works on paths and panics if a disk is full; besides, a
/// ramdisk may hold a private key, which has no business in a temporary folder.
pub(crate) struct InMemory(File);

impl InMemory {
    pub(crate) fn holding(contents: &[u8]) -> io::Result<InMemory> {
        const NAME: &CStr = c"teemark-image";
        let mut file = File::from(memfd_create(NAME, MFdFlags::MFD_CLOEXEC)?);
        file.write_all(contents)?;
        Ok(InMemory(file))
    }

    /// A path for it, in this process and as long as it exists.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    fn contents(mut self) -> io::Result<Vec<u8>> {
        let mut contents = Vec::new();
        self.0.rewind()?;
        self.0.read_to_end(&mut contents)?;
        Ok(contents)
    }
}

/// Puts an image together, and reads it back to check it. A signature differs each time, since ECDSA takes a random
/// number; what is measured does not.
///
/// # Errors
/// [`EifError`].
pub fn assemble(parts: &Parts, metadata: &Metadata<'_>, signer: Option<&Signer>) -> Result<Image, EifError> {
    // A signed image with 28 ramdisks has all the sections that the header can hold.
    if parts.command_line.contains('\0') || !(1..=28).contains(&parts.ramdisks.len()) {
        return Err(EifError::Parts);
    }
    let in_memory = |contents: &Vec<u8>| InMemory::holding(contents).map_err(EifError::Memory);
    let kernel = in_memory(&parts.kernel)?;
    let mut builder = EifBuilder::new(
        &kernel.path(),
        parts.command_line.clone(),
        signer.map(Signer::key_data),
        Sha384::new(),
        // An enclave refuses an image for the other architecture.
        match parts.arch {
            Arch::X86_64 => 0,
            Arch::Aarch64 => EIF_HDR_ARCH_ARM64,
        },
        identity(metadata),
    );
    for ramdisk in &parts.ramdisks {
        // The builder opens the file at once.
        builder.add_ramdisk(&in_memory(ramdisk)?.path());
    }
    let mut image = InMemory::holding(&[]).map_err(EifError::Memory)?;
    let pcrs = Pcrs::of(builder.write_to(&mut image.0));
    let bytes = image.contents().map_err(EifError::Memory)?;
    match Parts::parse(&bytes) {
        Ok(read) if read == *parts => Ok(Image { bytes, pcrs }),
        Ok(_) => Err(EifError::ReadBack(None)),
        Err(e) => Err(EifError::ReadBack(Some(e))),
    }
}

fn identity(metadata: &Metadata<'_>) -> EifIdentityInfo {
    EifIdentityInfo {
        img_name: metadata.name.into(),
        img_version: metadata.version.into(),
        build_info: EifBuildInfo {
            build_time: metadata.built.to_string(),
            build_tool: env!("CARGO_PKG_NAME").into(),
            build_tool_version: env!("CARGO_PKG_VERSION").into(),
            img_os: "Linux".into(),
            img_kernel: metadata.kernel_version.unwrap_or("unknown").into(),
        },
        docker_info: serde_json::json!({}),
        custom_info: serde_json::json!({ "Debug": metadata.debug }),
    }
}
