//! SHA-256 as a type of its own; ring returns a slice of any length.

use ring::digest::{SHA256, digest};

use crate::bytes::hex32;

hex32! {
    /// A SHA-256 hash (FIPS 180-4). The default, all zeros, stands for "no such thing yet".
    #[derive(Default)]
    Sha256
}

/// The SHA-256 hash of these bytes.
pub fn sha256(bytes: &[u8]) -> Sha256 {
    Sha256::from_slice(digest(&SHA256, bytes).as_ref()).expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_printed_and_read_as_sha256sum_prints_it() {
        let hash = sha256(b"abc"); // FIPS 180-4's own example
        assert_eq!(hash.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Sha256::from_hex(&hash.to_string().to_uppercase()), Some(hash));
        for bad in ["", "ba", &hash.to_string()[1..], &format!("{hash}00"), &hash.to_string().replace('b', "g")] {
            assert_eq!(Sha256::from_hex(bad), None, "{bad}");
        }
    }
}
