//! Which enclaves may be given secrets.
//!
//! PCR0 to PCR2 are public: whoever runs the same image on an instance of his own, and leads a watched name there, has an
//! enclave that passes them. So PCR3 or PCR4 has to be given too, unless the configuration says that any instance will do.

use anyhow::{Result, bail};
use formats::state::State;

use super::config::Enclaves;
use crate::attest::{self, Attested, Expected, Pcrs, Policy, Purpose, Root, Signature};
use crate::daemon::Daemon;
use crate::state;

/// What documents are checked against: one of these has to fit.
#[derive(Clone, Debug)]
pub(crate) struct Policies {
    policies: Vec<Policy>,
    /// Each document's own root vouches for it.
    development: bool,
}

impl Policies {
    /// Reads what the configuration names.
    ///
    /// # Errors
    /// A file cannot be read, or nothing says which instances are meant.
    pub(crate) fn read(enclaves: &Enclaves) -> Result<Policies> {
        let Enclaves { pcrs, roles, instances, any_instance, root, debug_mode, unsigned, development, .. } = enclaves;
        let root = root.as_deref().map_or(Ok(Root::AWS), Root::read)?;
        let mut images = pcrs.iter().map(|path| Pcrs::read(path)).collect::<Result<Vec<_>>>()?;
        if !roles.is_empty() {
            images = images.iter().flat_map(|pcrs| roles.iter().map(|role| pcrs.of_role(role))).collect();
        }
        if !instances.is_empty() {
            images = images.iter().flat_map(|pcrs| instances.iter().map(|id| pcrs.of_instance(id))).collect();
        }
        // In debug mode every register may be zero; without AWS' signature, or that of a root that is named, whoever answers
        // writes what they like into PCR3.
        let proves_registers = !debug_mode && !development && !unsigned;
        let names_instances = !images.is_empty() && images.iter().all(Pcrs::name_instance) && proves_registers;
        if !names_instances && !any_instance {
            bail!(
                "enclaves: whoever runs the same image on an instance of his own would be given the secrets, since PCR0 to \
                 PCR2 are public. Give roles or instances, or PCR3 or PCR4 in each file of pcrs, which nothing vouches for \
                 with debug_mode, unsigned or development; or, for trials without real secrets, any_instance = true"
            );
        }
        let signature = if *unsigned { Signature::Dummy } else { Signature::Real };
        let policy = |pcrs| Policy { pcrs, root, debug_mode: *debug_mode, signature };
        Ok(Policies { policies: images.into_iter().map(policy).collect(), development: *development })
    }

    /// Asks an enclave for a document for a new nonce, and checks it.
    ///
    /// # Errors
    /// It passes by none of these policies; the daemon cannot be reached, or is not the daemon.
    pub(crate) fn attest(&self, daemon: &Daemon) -> Result<Attested> {
        let nonce = attest::nonce()?;
        let document = attest::document(daemon, &nonce)?;
        let mut found = None;
        for expected in self.expected() {
            // Warnings would be repeated with each document; the lines say what is not proven.
            let attested = expected.made_for(&nonce, &document, &daemon.endpoint, Purpose::Confirmation);
            if attested.is_ok() {
                return attested;
            }
            found = Some(attested);
        }
        found.unwrap_or_else(|| bail!("there is no policy"))
    }

    fn expected(&self) -> Vec<Expected> {
        match (self.development, self.policies.as_slice()) {
            (true, []) => vec![Expected::by_own_root(None)],
            (true, some) => some.iter().map(|policy| Expected::by_own_root(Some(policy.pcrs.clone()))).collect(),
            (false, some) => some.iter().cloned().map(Expected::by_root).collect(),
        }
    }
}

/// The state that an enclave has attested.
///
/// # Errors
/// As [`state::fetch`]; it attests none.
pub(crate) fn state_of(daemon: &Daemon, attested: &Attested) -> Result<State> {
    match attested.state_sha256 {
        Some(hash) => state::fetch(daemon, &hash),
        None => bail!("it attests no state"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::keeper::config::Config;

    fn read(folder: &Path, pcrs: &str, more: &str) -> Result<Policies> {
        std::fs::write(folder.join("a.pcrs"), pcrs).unwrap();
        let text = format!(
            "operator_key = {{ file = 'k' }}\n[items]\nendpoint = 'https://h'\n[enclaves]\nurls = ['http://h:1']\n\
             pcrs = ['a.pcrs']\n{more}\n"
        );
        std::fs::write(folder.join("keeper.toml"), text).unwrap();
        Policies::read(&Config::read(&folder.join("keeper.toml")).unwrap().enclaves)
    }

    #[test]
    fn an_image_alone_is_not_enough_unless_any_instance_will_do() {
        let folder = tempfile::tempdir().unwrap();
        let registers = |indices: &[u8], byte: &str| {
            indices.iter().map(|index| format!("{} PCR{index}\n", byte.repeat(48))).collect::<String>()
        };
        let image = registers(&[0, 1, 2], "aa");
        let with = |more: &[u8], byte: &str| image.clone() + &registers(more, byte);
        for (pcrs, more, good) in [
            (image.clone(), "", false),
            (with(&[3], "00"), "", false),
            (with(&[8], "bb"), "", false),
            (with(&[3], "bb"), "", true),
            (with(&[4], "bb"), "", true),
            (with(&[3], "bb"), "debug_mode = true", false),
            (with(&[3], "bb"), "unsigned = true", false),
            (with(&[3], "bb"), "development = true", false),
            (with(&[3], "bb"), "development = true\nany_instance = true", true),
            (image.clone(), "roles = ['arn:aws:iam::123456789012:role/parent']", true),
            (image.clone(), "instances = ['i-0123456789abcdef0', 'i-0123456789abcdef1']", true),
            (image.clone(), "any_instance = true", true),
        ] {
            let policies = read(folder.path(), &pcrs, more);
            assert_eq!(policies.is_ok(), good, "{pcrs} {more}: {policies:?}");
            if let Err(error) = policies {
                assert!(error.to_string().contains("roles or instances"), "{error}");
            }
        }
        assert_eq!(read(folder.path(), &image, "instances = ['i-1', 'i-2']").unwrap().policies.len(), 2);
    }
}
