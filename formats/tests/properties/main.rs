//! Properties of the formats that hold for every input: sealed bundles, grants, answers, the allow list, encrypted files,
//! lines of a log.
//!
//! The inputs are the same in each run. PROPTEST_CASES=100000 tries more, PROPTEST_RNG_SEED=7 tries others.

mod allow_list;
mod files;
mod log;
mod trust;

use proptest::test_runner::{Config, RngSeed};

/// proptest's configuration, as the environment asks for it, with a seed in any case.
fn config() -> Config {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if matches!(config.rng_seed, RngSeed::Random) {
        config.rng_seed = RngSeed::Fixed(1);
    }
    config
}
