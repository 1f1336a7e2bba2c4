//! The handshake, and what it delivered.

pub mod bundle;
pub mod listener;
pub mod store;
