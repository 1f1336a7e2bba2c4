//! Properties that hold for every input: the bundle, sealed or not, grants, the allow list, encrypted files, HTTP's
//! framing.
//!
//! The inputs are the same in each run. PROPTEST_CASES=100000 tries more, PROPTEST_RNG_SEED=7 tries others.

#[path = "../support/mod.rs"]
mod support;

mod bundle;
mod endpoints;
mod files;
mod framing;
mod trust;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::allow_list::{AllowList, AllowListError};
use proptest::test_runner::{Config, RngSeed};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use support::*;

/// proptest's configuration, as the environment asks for it, with a seed in any case.
fn config() -> Config {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if matches!(config.rng_seed, RngSeed::Random) {
        config.rng_seed = RngSeed::Fixed(1);
    }
    config
}

/// The list that a file with this text gives.
fn allow_list(text: &str) -> Result<AllowList, AllowListError> {
    AllowList::parse("list", text.as_bytes())
}

/// IV, ciphertext, tag.
fn seal(key: &[u8; 32], iv: [u8; 12], aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut sealed = plain.to_vec();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::from(aad), &mut sealed).unwrap();
    [&iv[..], &sealed].concat()
}
