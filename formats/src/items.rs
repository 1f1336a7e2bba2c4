//! The names of a bundle's items. docs/FORMATS.md describes each item.

/// The client certificate, its key and the service's CAs: [`crate::certificates`].
pub const CERTIFICATES: &str = "MTLS_CLIENT_CERT_JSON";
/// The watermark service's URL: [`crate::service`].
pub const ENDPOINT: &str = "ECS_WATERMARK_ENDPOINT";
/// Keys of encrypted files: [`crate::file_keys`].
pub const FILE_KEYS: &str = "FILE_KEYS";
/// Public keys that sign grants: [`crate::jwks`].
pub const GRANT_KEYS: &str = "GRANT_KEYS";
/// The items of a bundle.
pub const ITEMS: [&str; 4] = [CERTIFICATES, ENDPOINT, FILE_KEYS, GRANT_KEYS];

/// Largest bundle, in bytes.
pub const MAX_BUNDLE: usize = 1 << 20;
