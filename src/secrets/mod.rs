//! The handshake, and what it delivered.

pub mod bundle;
pub mod jwks;
pub mod listener;
mod object;
pub mod sealed;
pub mod store;
pub mod validity;
