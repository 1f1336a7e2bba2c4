//! The handshake, and what it delivered.

pub mod bundle;
pub mod listener;
pub mod sealed;
pub mod store;
pub mod validity;
