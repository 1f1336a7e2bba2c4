//! The formats that teemark puts on the wire, into files and into tokens, with both directions of each in one module.
//! docs/FORMATS.md describes them for authors of other clients, and vectors/ has examples of each with every
//! intermediate value.
//!
//! This crate opens no sockets or files and starts no threads. Its input is untrusted, and every parser is bounded.
//! Both the daemon in the enclave and the programs outside use it, so that neither needs the other's code.
//!
//! ```text
//! grants         who may have which file: tokens, signed and checked
//! bundle         what an operator delivers: certificates, service, file_keys, jwks
//! sealed_bundle  the same, sealed to an enclave and signed by operators, in both versions
//! state          what an enclave holds and what a bundle changes, without a secret
//! attestation    user_data of an attestation document
//! reply          answers sealed to the user's key, and the statement that is signed
//! files          an encrypted file, raw or behind Tink's prefix
//! certificates   MTLS_CLIENT_CERT_JSON, and its three parts as files
//! pem            certificates and keys as PEM or DER
//! service        ECS_WATERMARK_ENDPOINT
//! file_keys      FILE_KEYS
//! jwks           GRANT_KEYS
//! items          the names of a bundle's items
//! object         the members of a JSON object           refusal    why a bundle is refused
//! log            records, checkpoints and acknowledgements of the log and the audit trail
//! allow_list     where the enclave may connect        address    vsock:PORT, tcp:HOST:PORT, unix:PATH
//! hpke           sealing to a public key                signature  Ed25519
//! json           objects and strings, without copies     base64     with or without lines and padding
//! digest         SHA-256                                time       times as people read them
//! ```

#![forbid(unsafe_code)]

pub mod address;
pub mod allow_list;
pub mod attestation;
pub mod base64;
pub mod bundle;
mod bytes;
pub mod certificates;
pub mod digest;
pub mod file_keys;
pub mod files;
pub mod grants;
pub mod hpke;
pub mod items;
pub mod json;
pub mod jwks;
pub mod log;
pub mod object;
pub mod pem;
pub mod refusal;
pub mod reply;
pub mod sealed_bundle;
pub mod service;
pub mod signature;
pub mod state;
pub mod time;
#[cfg(test)]
mod vectors;
