//! Properties that hold for every input: of the bundle, and of HTTP's framing. Those of the formats are in
//! formats/tests.
//!
//! The inputs are the same in each run. PROPTEST_CASES=100000 tries more, PROPTEST_RNG_SEED=7 tries others.

#[path = "../support/mod.rs"]
mod support;

mod bundle;
mod framing;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::test_runner::{Config, RngSeed};

use support::*;

/// proptest's configuration, as the environment asks for it, with a seed in any case.
fn config() -> Config {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if matches!(config.rng_seed, RngSeed::Random) {
        config.rng_seed = RngSeed::Fixed(1);
    }
    config
}
