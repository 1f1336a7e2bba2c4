//! The handshake, and what it delivered.

pub mod bundle;
pub mod listener;
mod object;
pub mod store;
