//! Builds the enclave image: packs the programs and files of the enclave into two ramdisks, and joins these with a
//! kernel and its command line into one file in the enclave image format (EIF). It also computes the measurements (PCRs).
//!
//! The result depends on the given files and on nothing else: not on the time, the machine, the user or the order of a
//! folder. Only a signature differs from one build to the next, and it is not measured.
//!
//! ```text
//! build      the build, step by step
//! inputs     the given files, each checked by the code that reads it in the enclave: kernel (which decides for an
//!            arch), program (the static ones), settings (allow list, environment), certificates, signer
//! files      the options that name the files           read     one file, or the error that names it
//! contents   what goes into the two ramdisks           paths    where it is in the enclave
//! ramdisk    a list of entries -> newc archive         compression, xz   what the kernel unpacks
//! eif        parts -> EIF and PCRs                     parts    EIF -> parts
//! record     NAME.json: sizes, hashes, limits          describe an EIF as `nitro-cli describe-eif` shows it
//! output     writes files completely or not at all
//! ```

#![forbid(unsafe_code)]

pub mod arch;
pub mod build;
pub mod certificates;
pub mod compression;
pub mod contents;
pub mod describe;
pub mod eif;
pub mod files;
pub mod inputs;
pub mod kernel;
pub mod output;
pub mod parts;
pub mod paths;
pub mod program;
pub mod ramdisk;
pub mod read;
pub mod record;
pub mod settings;
pub mod signer;
pub mod xz;
