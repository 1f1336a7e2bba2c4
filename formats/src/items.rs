//! The names of a bundle's items. docs/FORMATS.md describes each item.

/// The client certificate, its key and the service's CAs: [`crate::certificates`].
pub const CERTIFICATES: &str = "MTLS_CLIENT_CERT_JSON";
/// The watermark service's URL: [`crate::service`].
pub const ENDPOINT: &str = "ECS_WATERMARK_ENDPOINT";
/// Keys of encrypted files: [`crate::file_keys`].
pub const FILE_KEYS: &str = "FILE_KEYS";
/// Public keys that sign grants: [`crate::jwks`].
pub const GRANT_KEYS: &str = "GRANT_KEYS";
/// The items of a bundle, each of which replaces what is in force.
pub const ITEMS: [&str; 4] = [CERTIFICATES, ENDPOINT, FILE_KEYS, GRANT_KEYS];

/// Keys that come to those of [`FILE_KEYS`]; none may have the id of one in force.
pub const FILE_KEYS_ADD: &str = "FILE_KEYS_ADD";
/// The ids of keys of [`FILE_KEYS`] that go: a list of texts.
pub const FILE_KEYS_REMOVE: &str = "FILE_KEYS_REMOVE";
/// Keys that come to those of [`GRANT_KEYS`]; none may have the kid of one in force.
pub const GRANT_KEYS_ADD: &str = "GRANT_KEYS_ADD";
/// The kids of keys of [`GRANT_KEYS`] that go: a list of texts.
pub const GRANT_KEYS_REMOVE: &str = "GRANT_KEYS_REMOVE";
/// The items that change others. They mean something in one state only, so only a bundle that names its state, a sealed
/// one of version 2, may have them.
pub const CHANGES: [&str; 4] = [FILE_KEYS_ADD, FILE_KEYS_REMOVE, GRANT_KEYS_ADD, GRANT_KEYS_REMOVE];

/// Largest bundle that is plain or sealed in version 1, in bytes.
pub const MAX_BUNDLE: usize = 1 << 20;
/// Largest bundle in version 2, with its manifest, in bytes.
pub const MAX_BUNDLE_V2: usize = 16 << 20;
