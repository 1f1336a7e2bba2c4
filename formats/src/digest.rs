//! SHA-256 as a value of its own; ring gives a slice of any length.

use std::fmt;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A SHA-256 (FIPS 180-4), printed and read in hex. The default, all zeros, is the hash of nothing known.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Sha256([u8; 32]);

/// SHA-256 of these bytes.
pub fn sha256(bytes: &[u8]) -> Sha256 {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    Sha256(hash)
}

impl Sha256 {
    /// The hash of these bytes, computed elsewhere.
    pub const fn from_bytes(bytes: [u8; 32]) -> Sha256 {
        Sha256(bytes)
    }

    /// Reads hex, in either case.
    pub fn from_hex(text: &str) -> Option<Sha256> {
        hex::decode(text).ok()?.try_into().ok().map(Sha256)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl AsRef<[u8]> for Sha256 {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Sha256, D::Error> {
        let text = String::deserialize(deserializer)?;
        Sha256::from_hex(&text).ok_or_else(|| de::Error::custom("not hex of 32 bytes"))
    }
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
