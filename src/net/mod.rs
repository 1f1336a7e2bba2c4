//! How bytes get in and out of the enclave.

pub mod addr;
