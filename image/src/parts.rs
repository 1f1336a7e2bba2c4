//! Takes an enclave image file apart, which may be cut off or damaged.
//!
//! The format is defined by the "Enclave Image File (EIF) Specification" in the README.md of the crate
//! aws-nitro-enclaves-image-format, whose src/defs/mod.rs has the numbers. A header of 548 bytes holds the offset and
//! length of up to 32 sections and ends with a CRC-32 of everything but itself. Each section begins with a header of 12
//! bytes, which gives its type and its length again. Numbers are big-endian.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use aws_nitro_enclaves_image_format::defs::{
    CURRENT_VERSION, EIF_HDR_ARCH_ARM64, EIF_MAGIC, EifHeader, EifSectionHeader, EifSectionType, MAX_NUM_SECTIONS,
};

use crate::arch::Arch;
use crate::kernel::Kernel;
use crate::output::{self, Output, OutputError};

const HEADER: usize = EifHeader::size();
const SECTION_HEADER: usize = EifSectionHeader::size();
/// The bytes of the CRC in the header.
const CRC: std::ops::Range<usize> = HEADER - 4..HEADER;

/// What an image boots from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// What it is for.
    pub arch: Arch,
    /// The kernel.
    pub kernel: Vec<u8>,
    /// The kernel's command line.
    pub command_line: String,
    /// The ramdisks in their order; the kernel gets them concatenated.
    pub ramdisks: Vec<Vec<u8>>,
}

/// An image that cannot be taken apart.
#[derive(Debug)]
pub enum PartsError {
    /// The file cannot be read.
    Read(io::Error),
    /// It does not begin with `.eif`.
    Magic,
    /// It has this version of the format, not 4.
    Version(u16),
    /// It is shorter than its header says.
    Truncated {
        /// Its length in bytes.
        length: usize,
        /// The least length in bytes that its header asks for.
        expected: u64,
    },
    /// Header and sections contradict each other.
    Sections(String),
    /// The CRC-32 does not match the contents.
    Crc {
        /// The value in the header.
        stated: u32,
        /// The value computed from the contents.
        found: u32,
    },
    /// The sections are whole, but an enclave cannot boot from them.
    Contents(&'static str),
}

impl fmt::Display for PartsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(e) => write!(f, "cannot be read: {e}"),
            Self::Magic => write!(f, "is not an enclave image: it does not begin with .eif"),
            Self::Version(version) => write!(f, "has version {version} of the format, not {CURRENT_VERSION}"),
            Self::Truncated { length, expected } => {
                write!(
                    f,
                    "is cut off: it has {length} bytes and should have at least {expected}; copy or build it again"
                )
            }
            Self::Sections(what) => write!(f, "is damaged: {what}; copy or build it again"),
            Self::Crc { stated, found } => {
                write!(f, "is damaged: its CRC is {found:08x} and should be {stated:08x}; copy or build it again")
            }
            Self::Contents(what) => write!(f, "cannot boot: {what}"),
        }
    }
}

impl std::error::Error for PartsError {}

/// The image as its sections.
pub(crate) struct Sections<'a> {
    pub(crate) header: EifHeader,
    sections: Vec<(EifSectionType, &'a [u8])>,
}

impl<'a> Sections<'a> {
    /// Finds the sections, which must fill the file one after the other. The enclave's loader goes by their offsets and
    /// nitro-cli by their order, so a file that the two would read differently is refused.
    pub(crate) fn find(eif: &'a [u8]) -> Result<Sections<'a>, PartsError> {
        if !eif.starts_with(&EIF_MAGIC) {
            return Err(PartsError::Magic);
        }
        let truncated = |expected| PartsError::Truncated { length: eif.len(), expected };
        let bytes = eif.get(..HEADER).ok_or(truncated(HEADER as u64))?;
        let header = EifHeader::from_be_bytes(bytes).map_err(PartsError::Sections)?;
        if header.version != CURRENT_VERSION {
            return Err(PartsError::Version(header.version));
        }
        let count = usize::from(header.num_sections);
        if count > MAX_NUM_SECTIONS {
            return Err(PartsError::Sections(format!(
                "it claims {count} sections, and at most {MAX_NUM_SECTIONS} are possible"
            )));
        }
        let mut at = HEADER;
        let mut sections = Vec::new();
        for i in 0..count {
            let (offset, size) = (header.section_offsets[i], header.section_sizes[i]);
            if offset != at as u64 {
                return Err(PartsError::Sections(format!(
                    "section {i} should begin at {at}, but its offset is {offset}"
                )));
            }
            let end = offset.saturating_add(SECTION_HEADER as u64).saturating_add(size);
            let section = usize::try_from(end).ok().and_then(|end| eif.get(at..end)).ok_or(truncated(end))?;
            let (head, body) = section.split_at(SECTION_HEADER);
            let head = EifSectionHeader::from_be_bytes(head)
                .map_err(|_| PartsError::Sections(format!("section {i} has an unknown type")))?;
            if head.section_size != size {
                let stated = head.section_size;
                return Err(PartsError::Sections(format!(
                    "section {i} has {stated} bytes by its own header, but {size} by the file's"
                )));
            }
            sections.push((head.section_type, body));
            at += section.len();
        }
        if at != eif.len() {
            return Err(PartsError::Sections(format!("{} bytes follow the last section", eif.len() - at)));
        }
        let found = crc(eif);
        match header.eif_crc32 == found {
            true => Ok(Sections { header, sections }),
            false => Err(PartsError::Crc { stated: header.eif_crc32, found }),
        }
    }

    /// The sections of a kind, in order.
    pub(crate) fn of(&self, kind: EifSectionType) -> impl Iterator<Item = &'a [u8]> {
        self.sections.iter().filter(move |(k, _)| *k == kind).map(|(_, body)| *body)
    }

    /// The only section of a kind.
    fn one(&self, kind: EifSectionType, none: &'static str, several: &'static str) -> Result<&'a [u8], PartsError> {
        let mut found = self.of(kind);
        match (found.next(), found.next()) {
            (Some(body), None) => Ok(body),
            (None, _) => Err(PartsError::Contents(none)),
            (Some(_), Some(_)) => Err(PartsError::Contents(several)),
        }
    }
}

/// CRC-32 (IEEE 802.3) of everything but the field that holds it.
fn crc(eif: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&eif[..CRC.start]);
    crc.update(&eif[CRC.end..]);
    crc.finalize()
}

impl Parts {
    /// Takes an image apart.
    ///
    /// # Errors
    /// [`PartsError`].
    pub fn parse(eif: &[u8]) -> Result<Parts, PartsError> {
        let sections = Sections::find(eif)?;
        let arch = match sections.header.flags & EIF_HDR_ARCH_ARM64 {
            0 => Arch::X86_64,
            _ => Arch::Aarch64,
        };
        let kernel = sections.one(EifSectionType::EifSectionKernel, "it has no kernel", "it has several kernels")?;
        if !Kernel::read(kernel).is_ok_and(|kernel| kernel.arch == arch) {
            return Err(PartsError::Contents("its kernel is not one for the architecture in its header"));
        }
        let command_line = sections.one(
            EifSectionType::EifSectionCmdline,
            "it has no command line",
            "it has several command lines",
        )?;
        let command_line = String::from_utf8(command_line.to_owned());
        let ramdisks: Vec<_> = sections.of(EifSectionType::EifSectionRamdisk).map(<[u8]>::to_owned).collect();
        if ramdisks.is_empty() {
            return Err(PartsError::Contents("it has no ramdisk"));
        }
        Ok(Parts {
            arch,
            kernel: kernel.to_owned(),
            command_line: command_line.map_err(|_| PartsError::Contents("its command line is not UTF-8"))?,
            ramdisks,
        })
    }

    /// Reads an image and takes it apart.
    ///
    /// # Errors
    /// [`PartsError`].
    pub fn read(eif: &Path) -> Result<Parts, PartsError> {
        Parts::parse(&std::fs::read(eif).map_err(PartsError::Read)?)
    }

    /// Writes `kernel`, `cmdline`, `ramdisk-0`, `ramdisk-1` … into a folder, which is created if it is missing, and
    /// returns their paths. They get `mode`, before the umask is applied; it should be the image's, which may hold a
    /// private key.
    ///
    /// # Errors
    /// The file system's error, with the path.
    pub fn write(&self, folder: &Path, mode: u32) -> Result<Vec<PathBuf>, OutputError> {
        let mut files = vec![
            Output { name: "kernel".into(), contents: &self.kernel, mode },
            Output { name: "cmdline".into(), contents: self.command_line.as_bytes(), mode },
        ];
        let ramdisks = self.ramdisks.iter().enumerate();
        files.extend(ramdisks.map(|(i, ramdisk)| Output { name: format!("ramdisk-{i}"), contents: ramdisk, mode }));
        output::write(folder, &files)
    }
}
