//! teemarkd: decrypts a file inside an AWS Nitro Enclave, has the Zing watermark service mark it over mutual TLS, and
//! returns the marked file. The parent EC2 instance, through which every byte goes, is not trusted.
//!
//! The code is blocking throughout: one thread for each request in flight, and one event loop for the connections that
//! wait. To read it, follow a request. The [`event_loop`] accepts a connection, [`net::ingress`] waits for a request's
//! head and hands the connection to a thread, and [`api`] answers: [`formats::files`] opens the file, and [`watermark`]
//! has it marked, over connections that [`net::egress`] makes under the identity of [`mtls`]. [`secrets`] receives the
//! keys and certificates. [`formats::grants`] decides who may have which file. [`formats::reply`] seals and signs the
//! answer with the keys of [`attest`]. [`boot`] is what happens before the first request.
//!
//! What goes over the wire is the crate [`formats`], and the event loop with its streams the crate [`event_loop`]; the
//! programs outside the enclave use both too. This crate is only what runs inside. A module uses only those below it:
//!
//! ```text
//! main       arguments, log
//! boot       the start, told once from top to bottom
//! api        one pipeline for files (admitted, received, opened, marked, given), the routes, the one error table
//! watermark  the client of the service
//! secrets    the handshake: sealed (which sealed bundles count), bundle (checked against the image), listener (port
//!            7777), store (what is in force now)
//! grants     which grants have been used
//! attest     the enclave's own keys, and the Nitro Secure Module's word for them
//! mtls       certificates and key in any accepted form -> one checked identity -> one pooled ureq agent: certificate
//!            (reads X.509), authorities, cryptography (algorithms), tls_error (failures in words)
//! settings   every setting, its default and its limit
//! net        in: ingress (requests in flight), request, request_id, answer, http, workers; out: egress, tls; wait
//!            (streams with a deadline), pace; forward; link (loopback, /etc/hosts)
//! memory     admission        metrics  what is counted
//! logging    the log: numbered, chained, sealed, and on its way to a collector
//! audit      what the log says of decisions
//! der        elements of certificates and keys
//! allocator  wipes memory that is freed, and keeps some of it for later
//! ```

// Two files have a reason for it: attest/raw.rs, a system call without a safe wrapper, and allocator.rs.
#![deny(unsafe_code)]

pub mod allocator;
pub mod api;
pub mod attest;
pub mod audit;
pub mod boot;
mod der;
pub mod grants;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod mtls;
pub mod net;
pub mod secrets;
pub mod settings;
pub mod watermark;
