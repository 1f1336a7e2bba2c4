//! The measurements of an image: the values that the registers have if that image, and no other, was booted.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use ring::digest::{SHA384, digest};

use crate::output;

/// Largest file taken, in bytes: 32 registers are 4 KiB.
const LARGEST: u64 = 64 << 10;
/// A register's length in bytes: SHA-384.
const LENGTH: usize = 48;
/// The image, its kernel with boot ramdisk, and its application; every image has these three
/// (<https://docs.aws.amazon.com/enclaves/latest/user/set-up-attestation.html>).
const OF_EVERY_IMAGE: [u8; 3] = [0, 1, 2];

/// The IAM role of the parent instance, and its id.
const INSTANCE_ROLE: u8 = 3;
const INSTANCE_ID: u8 = 4;

/// The registers of one image by number; 0, 1 and 2 are among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pcrs(BTreeMap<u8, Vec<u8>>);

/// Why an enclave does not run the expected image, or why that is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PcrsError {
    /// PCR0 is zero, as in an enclave that runs in debug mode: nothing was measured.
    DebugMode,
    /// The document does not have this register.
    Missing(u8),
    /// This register has another value than the image's.
    Differs { index: u8, expected: Vec<u8>, found: Vec<u8> },
}

impl fmt::Display for PcrsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PcrsError::DebugMode => f.write_str(
                "debug mode: PCR0 is zero, so nothing is known about the code that runs there; start the enclave \
                 without --debug-mode, or, for a trial without secrets, give --debug-mode here too",
            ),
            PcrsError::Missing(index) => write!(f, "PCR{index}: the document does not have it"),
            PcrsError::Differs { index, expected, found } => write!(
                f,
                "PCR{index}: it is {}, and the image's is {}; another image runs there, or --pcrs is from another build",
                hex::encode(found),
                hex::encode(expected)
            ),
        }
    }
}

impl std::error::Error for PcrsError {}

impl Pcrs {
    /// Reads a file of `teemark-image build` (Nautilus' nitro.pcrs has the same form): one line per register, `VALUE PCR0`.
    ///
    /// # Errors
    /// It cannot be read, a line has another form, or PCR0, PCR1 or PCR2 is missing.
    pub(crate) fn read(path: &Path) -> Result<Pcrs> {
        let (source, _) = output::open_input(path)?;
        let mut text = String::new();
        source.take(LARGEST).read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
        Pcrs::parse(&text).with_context(|| format!("--pcrs {}", path.display()))
    }

    /// Whether it says which instance the enclave is on: by PCR3, a hash of the instance's IAM role, or PCR4, a hash of its
    /// id (<https://docs.aws.amazon.com/enclaves/latest/user/set-up-attestation.html>).
    pub(crate) fn name_instance(&self) -> bool {
        [INSTANCE_ROLE, INSTANCE_ID].iter().any(|index| self.0.get(index).is_some_and(|value| !is_zero(value)))
    }

    /// The same, for an enclave whose parent instance has this IAM role.
    pub(crate) fn of_role(&self, arn: &str) -> Pcrs {
        self.with(INSTANCE_ROLE, arn)
    }

    /// The same, for an enclave whose parent instance has this id.
    pub(crate) fn of_instance(&self, id: &str) -> Pcrs {
        self.with(INSTANCE_ID, id)
    }

    /// A register that is zero and is then extended by the text: the SHA-384 of both.
    fn with(&self, index: u8, text: &str) -> Pcrs {
        let value = digest(&SHA384, &[&[0; LENGTH][..], text.as_bytes()].concat());
        let mut registers = self.0.clone();
        registers.insert(index, value.as_ref().to_vec());
        Pcrs(registers)
    }

    /// The registers of an enclave that nothing measured.
    pub(crate) fn zeros() -> Pcrs {
        Pcrs(OF_EVERY_IMAGE.iter().map(|index| (*index, vec![0; LENGTH])).collect())
    }

    fn parse(text: &str) -> Result<Pcrs> {
        let mut registers = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let form = || anyhow!("line {number} is not of the form VALUE PCR0, with a value of 96 hexadecimal digits");
            let (value, name) = line.trim().split_once(' ').ok_or_else(form)?;
            let value = hex::decode(value).ok().filter(|value| value.len() == LENGTH).ok_or_else(form)?;
            let index = name.trim_start().strip_prefix("PCR").and_then(|index| index.parse::<u8>().ok());
            let index = index.filter(|&index| index < 32).ok_or_else(form)?;
            if registers.insert(index, value).is_some() {
                bail!("line {number} has PCR{index} a second time");
            }
        }
        match OF_EVERY_IMAGE.iter().find(|index| !registers.contains_key(index)) {
            Some(index) => bail!("there is no PCR{index} in it; is this the file that the image builder wrote?"),
            None => Ok(Pcrs(registers)),
        }
    }

    /// Checks that each of these registers has the same value in `found`, and returns their numbers. If `debug_mode` is
    /// allowed and the enclave runs in it, zeros are ignored.
    ///
    /// # Errors
    /// See [`PcrsError`].
    pub(crate) fn check(&self, found: &BTreeMap<u8, Vec<u8>>, debug_mode: bool) -> Result<Vec<u8>, PcrsError> {
        let debugged = in_debug_mode(found);
        if debugged && !debug_mode {
            return Err(PcrsError::DebugMode);
        }
        let mut equal = Vec::new();
        for (&index, expected) in &self.0 {
            match found.get(&index).ok_or(PcrsError::Missing(index))? {
                found if debugged && is_zero(found) => {}
                found if found == expected => equal.push(index),
                found => {
                    return Err(PcrsError::Differs { index, expected: expected.clone(), found: found.clone() });
                }
            }
        }
        Ok(equal)
    }
}

/// Whether an enclave with these registers runs in debug mode, where PCR0 is zero
/// (<https://docs.aws.amazon.com/enclaves/latest/user/cmd-nitro-run-enclave.html>).
pub(crate) fn in_debug_mode(registers: &BTreeMap<u8, Vec<u8>>) -> bool {
    registers.get(&0).is_some_and(|value| is_zero(value))
}

fn is_zero(value: &[u8]) -> bool {
    value.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
impl From<BTreeMap<u8, Vec<u8>>> for Pcrs {
    fn from(registers: BTreeMap<u8, Vec<u8>>) -> Pcrs {
        Pcrs(registers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers(values: &[(u8, u8)]) -> BTreeMap<u8, Vec<u8>> {
        values.iter().map(|&(index, byte)| (index, vec![byte; LENGTH])).collect()
    }

    fn file(values: &[(&str, u8)]) -> String {
        values.iter().map(|&(name, byte)| format!("{} {name}\n", hex::encode([byte; LENGTH]))).collect()
    }

    #[test]
    fn the_builders_file_is_read() {
        let text = file(&[("PCR0", 10), ("PCR1", 11), ("PCR2", 12), ("PCR8", 18)]);
        assert_eq!(Pcrs::parse(&text).unwrap().0, registers(&[(0, 10), (1, 11), (2, 12), (8, 18)]));
        assert_eq!(Pcrs::parse(&text.to_uppercase().replace('\n', "\r\n")).unwrap(), Pcrs::parse(&text).unwrap());
    }

    #[test]
    fn a_file_of_another_form_is_refused_with_its_line() {
        let good = file(&[("PCR0", 1), ("PCR1", 1), ("PCR2", 1)]);
        for (text, words) in [
            (String::new(), "no PCR0"),
            (file(&[("PCR0", 1), ("PCR2", 1)]), "no PCR1"),
            (good.clone() + &file(&[("PCR1", 2)]), "line 4 has PCR1 a second time"),
            (good.clone() + &file(&[("PCR32", 2)]), "line 4"),
            (good.clone() + &file(&[("HashAlgorithm", 2)]), "line 4"),
            (good.replacen("0101", "01", 1), "line 1"),
            (good.replacen("0101", "01x1", 1), "line 1"),
            (good.replacen(' ', "", 1), "line 1"),
            (good + "\n", "line 4"),
        ] {
            let error = Pcrs::parse(&text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn each_register_of_the_file_must_be_there_with_its_value() {
        let image = Pcrs(registers(&[(0, 1), (1, 2), (2, 3), (8, 9)]));
        let found = registers(&[(0, 1), (1, 2), (2, 3), (3, 7), (8, 9)]);
        assert_eq!(image.check(&found, false).unwrap(), [0, 1, 2, 8]);
        for index in [0, 1, 2, 8] {
            let mut found = image.0.clone();
            found.get_mut(&index).unwrap()[47] ^= 1;
            for debug_mode in [false, true] {
                let error = image.check(&found, debug_mode).unwrap_err();
                assert!(matches!(error, PcrsError::Differs { index: named, .. } if named == index), "{error}");
            }
            found.remove(&index);
            assert_eq!(image.check(&found, false), Err(PcrsError::Missing(index)));
        }
    }

    #[test]
    fn zeros_mean_debug_mode_which_is_refused_unless_it_is_asked_for() {
        let image = Pcrs(registers(&[(0, 1), (1, 2), (2, 3), (8, 9)]));
        let debugged = registers(&[(0, 0), (1, 0), (2, 0), (8, 0)]);
        assert_eq!(image.check(&debugged, false), Err(PcrsError::DebugMode));
        assert!(image.check(&debugged, true).unwrap().is_empty());
        // A file of zeros says as little.
        assert_eq!(Pcrs(debugged.clone()).check(&debugged, false), Err(PcrsError::DebugMode));
        // What is not zero must still be the image's.
        let error = image.check(&registers(&[(0, 0), (1, 0), (2, 4), (8, 0)]), true).unwrap_err();
        assert!(matches!(error, PcrsError::Differs { index: 2, .. }), "{error}");
    }

    #[test]
    fn zeros_beside_a_measured_pcr0_are_no_debug_mode() {
        let image = Pcrs(registers(&[(0, 1), (1, 2), (2, 3)]));
        for debug_mode in [false, true] {
            let error = image.check(&registers(&[(0, 1), (1, 0), (2, 3)]), debug_mode).unwrap_err();
            assert!(matches!(error, PcrsError::Differs { index: 1, .. }), "{error}");
        }
    }

    #[test]
    fn the_registers_of_a_role_and_of_an_instance_are_hashed_as_aws_shows() {
        // "Where to get an enclave's measurements", PCR3, of the page above.
        let pcrs = Pcrs::zeros().of_role("arn:aws:iam::123456789012:role/Webserver");
        let expected =
            "78fce75db17cd4e0a3fb8dad3ad128ca5e77edbb2b2c7f75329dccd99aa5f6ef4fc1f1a452e315b9e98f9e312e6921e6";
        assert_eq!(hex::encode(&pcrs.0[&3]), expected);
        assert!(pcrs.name_instance() && pcrs.of_instance("i-1").0[&4] != pcrs.0[&3] && !Pcrs::zeros().name_instance());
    }
}
