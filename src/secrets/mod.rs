//! The handshake, and the secrets that it delivered.

pub mod bundle;
pub mod listener;
pub mod sealed;
pub mod store;
pub mod validity;
