//! PID 1 of the enclave: sets up what the daemon needs, starts it, and restarts the machine when it ends, which ends the
//! enclave.
//!
//! `main.rs` lists the steps, and each step has a module here. There is no heap and no standard library: every buffer has
//! a fixed size. System calls go through rustix; `sys` has the few for which rustix has no safe function.
//!
//! A step that fails prints one line on the console, which begins with `[INIT] FATAL:` and says what failed, the kernel's
//! error and what to look at; then the machine restarts. `nitro-cli run-enclave` gets no heartbeat from such an image:
//! it waits for 180 s, then reports E36, and E39 for its own process, without the reason. In debug mode the console
//! has the reason, but nitro-cli attaches to it only after the heartbeat, even with `--attach-console`. It is port 10000 +
//! CID at the hypervisor's CID 0, so this command, started before an enclave with CID 16, reads it:
//! `until socat - VSOCK-CONNECT:0:10016; do sleep 0.1; done`.
#![no_std]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

// First, since the other modules use its macro.
#[macro_use]
pub mod console;

pub mod clock;
pub mod command_line;
pub mod entropy;
pub mod environment;
pub mod errno;
pub mod fatal;
pub mod files;
pub mod heartbeat;
pub mod limits;
pub mod modules;
pub mod mounts;
pub mod restart;
pub mod supervise;
#[allow(unsafe_code)]
mod sys;
pub mod target;
pub mod text;

pub use sys::exit;
