//! The names of a bundle's items. docs/FORMATS.md describes each item.

/// The items of a bundle.
pub const CERTIFICATES: &str = "MTLS_CLIENT_CERT_JSON";
pub const ENDPOINT: &str = "ECS_WATERMARK_ENDPOINT";
pub const FILE_KEYS: &str = "FILE_KEYS";
pub const GRANT_KEYS: &str = "GRANT_KEYS";
pub const ITEMS: [&str; 4] = [CERTIFICATES, ENDPOINT, FILE_KEYS, GRANT_KEYS];

/// Largest bundle, in bytes.
pub const MAX_BUNDLE: usize = 1 << 20;
