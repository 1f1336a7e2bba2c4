//! teemarkd: decrypts a file inside an AWS Nitro Enclave, has the Zing watermark service mark it over mutual TLS, and
//! returns the marked file. The parent EC2 instance, through which every byte goes, is not trusted.
//!
//! Blocking sockets throughout: a thread a request, and one thread that carries bytes for the connections that wait.
//! To read it, follow a request: [`net::pump`] accepts a connection, [`net::ingress`] frames its requests and hands
//! them to tiny_http, [`api`] answers them: [`files`] opens the file, [`watermark`] has it marked, over connections
//! that [`net::egress`] makes under the identity of [`mtls`]. The keys and certificates come by [`secrets`]. What
//! happens before the first request stands in [`boot`].

#![forbid(unsafe_code)]

pub mod api;
pub mod boot;
pub mod files;
pub mod memory;
pub mod metrics;
pub mod mtls;
pub mod net;
pub mod secrets;
pub mod settings;
pub mod time;
pub mod watermark;
