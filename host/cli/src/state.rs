//! Asks an enclave what it holds.

use anyhow::{Result, bail};
use formats::digest::{Sha256, sha256};
use formats::state::State;

use crate::daemon::Daemon;
use crate::failure::Failure;

/// Longest state, in bytes: 1,000 ids of file keys and 64 of grant keys, each of 128 bytes that JSON may write as six.
const LARGEST: u64 = 1 << 20;

/// The state that an enclave serves, if it is the one that its attestation document names.
///
/// # Errors
/// It is another one, since a bundle arrived meanwhile, another enclave answered, or somebody on the way made it up; as
/// [`Daemon::get`].
pub(crate) fn fetch(daemon: &Daemon, attested: &Sha256) -> Result<State> {
    let json = daemon.get("/state", LARGEST)?;
    if sha256(&json) != *attested {
        let message = format!(
            "the state that {} answers with is not the one that the enclave attests ({attested}): a bundle arrived \
             meanwhile, the address leads to several enclaves, or somebody on the way made it up",
            daemon.endpoint
        );
        bail!(Failure::try_again("state_not_attested", message));
    }
    let Some(state) = State::parse(&json) else {
        bail!("{} attests a state that this teemark cannot read; use the one of the image's release", daemon.endpoint);
    };
    Ok(state)
}
