//! Connections into and out of the enclave.

pub mod answer;
pub mod egress;
pub mod event_loop;
pub mod forward;
pub mod http;
pub mod ingress;
pub mod link;
pub mod outbox;
pub mod pace;
pub mod request;
pub mod socket;
pub mod tls;
pub mod wait;
pub mod workers;
