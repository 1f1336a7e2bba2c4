//! teemarkd: decrypts a file inside an AWS Nitro Enclave, has the Zing watermark service mark it over mutual TLS, and
//! returns the marked file. The parent EC2 instance, through which every byte goes, is not trusted.
//!
//! Blocking sockets throughout: a thread a request, and one thread that carries bytes for the connections that wait.
//! To read it, follow a request: [`net::pump`] accepts a connection, [`net::ingress`] frames its requests and hands
//! them to tiny_http, [`api`] answers them: [`files`] opens the file, [`watermark`] has it marked, over connections
//! that [`net::egress`] makes under the identity of [`mtls`]. The keys and certificates come by [`secrets`]. Who may
//! have a file [`grants`] tell; that nobody else reads the answer, and who gave it, is up to [`reply`] with the keys of
//! [`attest`]. What happens before the first request stands in [`boot`].
//!
//! A module uses only those below it:
//!
//! ```text
//! main       arguments, log
//! boot       the start, told once from top to bottom
//! api        routes, requests, answers, the error table
//! watermark  the client of the service
//! secrets    the handshake: sealed (opening what an operator sealed), bundle (parse and check), listener (port 7777),
//!            store (what is in force now)
//! grants     the signed tokens that say who may have which file
//! reply      answers sealed to the user's key, and signed
//! attest     the enclave's own keys, and the Nitro Secure Module's word for them
//! files      opening an encrypted file: formats, keys
//! mtls       certificates and key in any accepted form -> one checked identity -> one pooled ureq agent
//! settings   every setting, its default and its limit
//! net        addr, timed (streams with a deadline); endpoints (the allow list), egress, tls, tls_error, certificate,
//!            cryptography (the way out); pump, http, ingress, backend (the way in); forward; link (loopback,
//!            /etc/hosts)
//! hpke       sealing to a public key            digest   SHA-256
//! json       text taken from where it lies      base64   in lines or not, padded or not
//! memory     admission                          metrics  what is counted
//! time       moments as people read them        threads  starting one
//! ```

// One system call has no safe wrapper: attest/raw.rs.
#![deny(unsafe_code)]

pub mod api;
pub mod attest;
pub mod boot;
pub mod grants;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod mtls;
pub mod net;
pub mod secrets;
pub mod settings;
mod threads;
pub mod watermark;
