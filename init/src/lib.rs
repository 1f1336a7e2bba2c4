//! PID 1 of the enclave: makes the world that the daemon expects, starts it, and restarts the machine when it ends,
//! which in an enclave is its end.
//!
//! `main.rs` is the list of what it does; here is one module for each line of that list. There is no heap and no
//! standard library: every buffer has a fixed size, stated where it stands. System calls go through rustix; the few
//! without a safe function are in `sys`.
//!
//! Whatever cannot be done and matters is one line on the console that begins with `[INIT] FATAL:` and names the
//! thing, the kernel's error and what to look at; then the machine restarts. `nitro-cli run-enclave` gets no heartbeat
//! from such an image: it waits for a minute, then says E36, and E39 of its own process, and knows no reason. The
//! console does, in debug mode; but nitro-cli attaches to it only after the heartbeat, `--attach-console` or not. It is
//! vsock port 10000 + CID of the hypervisor, CID 0, so this reads it, started before the enclave with CID 16:
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
