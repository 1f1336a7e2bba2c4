//! A parent and an enclave as two virtual machines, on a machine that is neither.
//!
//! [`Bus`] is the vsock between them, [`Parent`] stands in for the EC2 instance and has what such an instance has,
//! [`Enclave`] boots an [`Image`], the very EIF that is shipped. AF_VSOCK is the real one of both kernels. Each of the
//! three ends its processes when it is dropped; declared in this order, they go in the right one.
//!
//! `run-vm` makes a running system of them; the test in `tests/vm` does to it what an operator does, and worse.

#![forbid(unsafe_code)]

pub mod bus;
pub mod console;
pub mod enclave;
pub mod forward;
pub mod image;
mod machine;
pub mod operator;
pub mod parent;
mod parent_ramdisk;
mod process;
pub mod qemu;
mod switch;
mod workspace;

pub use bus::Bus;
pub use console::Console;
pub use enclave::Enclave;
pub use image::Image;
pub use machine::BOOT;
pub use parent::Parent;
pub use process::run;
pub use teemark_image::ramdisk::Entry;
pub use workspace::{program, repository};
