//! A parent and an enclave as two virtual machines, for a machine that has no Nitro enclaves.
//!
//! [`Bus`] is the vsock between them. [`Parent`] stands in for the EC2 instance and has the programs of one. [`Enclave`]
//! boots an [`Image`], the same EIF that is shipped. Both kernels use their real AF_VSOCK. Each of the three ends its
//! processes when it is dropped; declare them in this order, so that they end in the reverse one.
//!
//! `run-vm` starts a whole system of them. The test in `tests/vm` does to it what an operator does, and what an attacker
//! does.

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
mod service;
mod shape;
mod switch;
mod workspace;

pub use bus::Bus;
pub use console::Console;
pub use enclave::Enclave;
pub use image::Image;
pub use machine::BOOT;
pub use parent::Parent;
pub use parent_ramdisk::with_libraries;
pub use process::run;
pub use service::Service;
pub use shape::Shape;
pub use teemark_image::ramdisk::Entry;
pub use workspace::{program, repository};
