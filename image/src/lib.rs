//! The enclave image: two ramdisks from the programs and files that go into the enclave, and of them, with a kernel and
//! its command line, one file in the enclave image format (EIF) and its measurements (PCRs).
//!
//! What is built depends on the given files and on nothing else: not on the time, the machine, the user or the order
//! of a folder. Only a signature differs from one build to the next, and it is outside of what is measured.
//!
//! ```text
//! build      the build, told from top to bottom
//! inputs     the given files, each checked by the code that reads it in the enclave:
//!            kernel, program (the static ones), settings (allow list, environment), certificates, signer
//! files      the options that name the files           read     one file, or the error that names it
//! contents   what goes into the two ramdisks           paths    where it is in the enclave
//! ramdisk    a list of entries -> newc archive         xz       what the kernel unpacks
//! eif        parts -> EIF and PCRs                     parts    EIF -> parts
//! record     NAME.json: sizes, hashes, limits          describe an EIF as `nitro-cli describe-eif` shows it
//! output     files that are there whole or not at all
//! ```

#![forbid(unsafe_code)]

pub mod build;
pub mod certificates;
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
