//! PID 1 of the enclave, step by step.
//!
//! The shipped program is built with `--profile init --target x86_64-unknown-linux-musl`, where panics abort: it has no
//! standard library, and musl's `_start` starts it. In every other profile it is an ordinary program, so that the
//! workspace can be built and tested as a whole.
#![cfg_attr(panic = "abort", no_std, no_main)]

use init::clock::{Seconds, now};
use init::fatal::Fatal;
use init::restart::PidOne;
use init::supervise::End;
use init::{command_line, console, entropy, environment, heartbeat, limits, modules, mounts, say, supervise, target};

/// The two texts that are needed as long as the target runs.
struct Buffers {
    command_line: [u8; command_line::BYTES + 1],
    environment: [u8; environment::FILE_BYTES + 1],
}

fn boot(buffers: &mut Buffers) -> Result<End<'_>, Fatal<'_>> {
    let begin = now();
    let signals = supervise::hold_signals();
    mounts::mount_dev()?;
    console::open_standard_streams()?;
    say!("{} after the kernel's start: PID 1", Seconds(begin));
    mounts::mount_others()?;
    limits::set()?;
    modules::load()?;
    entropy::seed()?;
    let path = command_line::read_target(&mut buffers.command_line)?;
    let environment = environment::Environment::load(&mut buffers.environment)?;
    let target = target::start(path, &environment)?;
    // Not earlier, since it tells the parent that the boot succeeded; and neither the target nor its supervision waits for
    // the answer.
    heartbeat::send_to_parent();
    Ok(supervise::until_the_end(&target, &signals))
}

/// Boots; returns only if this process is not PID 1.
fn run() -> u8 {
    let Some(machine) = PidOne::check() else {
        say!("this program is PID 1 of an enclave and nothing else; here it does nothing");
        return 1;
    };
    let mut buffers =
        Buffers { command_line: [0; command_line::BYTES + 1], environment: [0; environment::FILE_BYTES + 1] };
    match boot(&mut buffers) {
        Ok(end) => say!("{end}; restarting, which ends the enclave"),
        Err(fatal) => say!("FATAL: {fatal}; restarting, which ends the enclave"),
    }
    machine.restart()
}

#[cfg(not(panic = "abort"))]
fn main() -> std::process::ExitCode {
    run().into()
}

#[cfg(panic = "abort")]
mod shipped {
    use core::ffi::c_int;
    use core::panic::PanicInfo;

    use super::*;

    // The standard library would link musl itself.
    #[link(name = "c")]
    unsafe extern "C" {}

    /// Called by musl's `_start`, by this name.
    #[unsafe(no_mangle)]
    extern "C" fn main() -> c_int {
        run().into()
    }

    #[panic_handler]
    fn panic(info: &PanicInfo) -> ! {
        if let Some(place) = info.location() {
            say!("FATAL: a mistake in this program, {place}: {}; restarting, which ends the enclave", info.message());
        }
        match PidOne::check() {
            Some(machine) => machine.restart(),
            None => init::exit(1),
        }
    }
}
