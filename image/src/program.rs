//! The programs that run in the enclave: static ones, since the enclave has no libraries.

use object::LittleEndian as LE;
use object::elf::{DT_NEEDED, EM_AARCH64, EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, PT_INTERP, PT_LOAD};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

use crate::arch::Arch;

/// Checks that this is a whole program for that architecture that needs no library and no loader.
///
/// # Errors
/// It is not; the text completes a sentence that begins with the file's name.
pub fn check(program: &[u8], arch: Arch) -> Result<(), &'static str> {
    let (machine, other) = match arch {
        Arch::X86_64 => (EM_X86_64, "is not a program for x86-64 Linux, as the kernel is"),
        Arch::Aarch64 => (EM_AARCH64, "is not a program for aarch64 Linux, as the kernel is"),
    };
    const DAMAGED: &str = "is damaged or cut off: build it again";
    if !program.starts_with(b"\x7fELF") {
        return Err(other);
    }
    let header = FileHeader64::<LE>::parse(program).map_err(|_| other)?;
    if header.e_machine(LE) != machine || ![ET_EXEC, ET_DYN].contains(&header.e_type(LE)) {
        return Err(other);
    }
    let segments = header.program_headers(LE, program).map_err(|_| DAMAGED)?;
    if !segments.iter().any(|segment| segment.p_type(LE) == PT_LOAD) {
        return Err(other);
    }
    for segment in segments {
        segment.data(LE, program).map_err(|()| DAMAGED)?;
        let dynamic = segment.dynamic(LE, program).map_err(|_| DAMAGED)?.unwrap_or_default();
        if segment.p_type(LE) == PT_INTERP || dynamic.iter().any(|entry| entry.tag32(LE) == Some(DT_NEEDED)) {
            return Err("is not static: build it for a musl target, as image/programs.sh does");
        }
    }
    Ok(())
}
