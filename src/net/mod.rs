//! How bytes get in and out of the enclave.

pub mod addr;
pub mod backend;
pub mod certificate;
pub mod cryptography;
pub mod egress;
pub mod endpoints;
pub mod forward;
pub mod http;
pub mod ingress;
pub mod link;
pub mod pump;
pub mod timed;
pub mod tls;
pub mod tls_error;
