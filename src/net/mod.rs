//! Connections into and out of the enclave.

pub mod answer;
pub mod egress;
pub mod forward;
pub mod http;
pub mod ingress;
pub mod link;
pub mod pace;
pub mod request;
pub mod request_id;
pub mod sessions;
pub mod tls;
pub mod wait;
pub mod workers;
