//! The settings of the log: in which form its records leave the enclave, and where they go.

use formats::address::Address;
use formats::hpke::PublicKey;
use formats::signature::VerifyingKey;

use super::SettingError;

pub(super) const LOG: &str = "TEEMARK_LOG";
pub(super) const LOG_KEYS: &str = "TEEMARK_LOG_KEYS";
pub(super) const LOG_TO: &str = "TEEMARK_LOG_TO";
pub(super) const AUDIT: &str = "TEEMARK_AUDIT";
pub(super) const AUDIT_KEYS: &str = "TEEMARK_AUDIT_KEYS";

/// How the log leaves the enclave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// In which form.
    pub form: LogForm,
    /// The collector, or who leads to it, if records go to one.
    pub to: Option<Address>,
    /// Which decisions are recorded, and who has to have the record.
    pub audit: Audit,
    /// The collectors whose acknowledgements count, by their Ed25519 public keys; anybody's, if there are none.
    pub audit_keys: Vec<VerifyingKey>,
}

/// Whether decisions are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// No.
    Off,
    /// Yes; what no collector takes in time is lost.
    BestEffort,
    /// Yes; no file is given before a collector has acknowledged the record of it.
    Required,
}

impl Audit {
    /// The setting's word.
    pub fn name(self) -> &'static str {
        match self {
            Audit::Off => "off",
            Audit::BestEffort => "best_effort",
            Audit::Required => "required",
        }
    }
}

/// In which form records leave the enclave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogForm {
    /// No line does, but for the checklist's own.
    Off,
    /// As they are: whoever carries them reads them.
    Clear,
    /// Sealed to these keys; at least one.
    Sealed(Vec<PublicKey>),
}

impl LogForm {
    /// The setting's word.
    pub fn name(&self) -> &'static str {
        match self {
            LogForm::Off => "off",
            LogForm::Clear => "clear",
            LogForm::Sealed(_) => "sealed",
        }
    }
}

impl Default for LogSettings {
    /// To standard error only, for a process whose settings are not known.
    fn default() -> LogSettings {
        LogSettings { form: LogForm::Clear, to: None, audit: Audit::Off, audit_keys: Vec::new() }
    }
}

/// The values of the settings, as they are given.
pub(super) struct Given<'a> {
    /// TEEMARK_LOG; the default depends on the keys.
    pub(super) log: Option<&'a str>,
    pub(super) keys: Vec<PublicKey>,
    /// TEEMARK_LOG_TO; the default depends on the public listener.
    pub(super) to: Option<&'a str>,
    pub(super) public: &'a Address,
    /// TEEMARK_AUDIT; the default depends on TEEMARK_LOG.
    pub(super) audit: Option<&'a str>,
    pub(super) audit_keys: Vec<VerifyingKey>,
}

impl LogSettings {
    /// Checks that the settings fit together.
    ///
    /// # Errors
    /// The first that is invalid, or that another contradicts.
    pub(super) fn read(
        Given { log, keys, to, public, audit, audit_keys }: Given<'_>,
    ) -> Result<LogSettings, SettingError> {
        let wrong = |name, reason: String| Err(SettingError { name, reason });
        let form = match (log, keys.is_empty()) {
            (Some("off"), true) => LogForm::Off,
            (Some("clear") | None, true) => LogForm::Clear,
            (Some("sealed") | None, false) => LogForm::Sealed(keys),
            (Some("sealed"), true) => {
                return wrong(
                    LOG,
                    "\"sealed\" needs keys to seal to: TEEMARK_LOG_KEYS, X25519 public keys in base64".into(),
                );
            }
            (Some(form @ ("off" | "clear")), false) => {
                return wrong(
                    LOG,
                    format!("{form:?} seals nothing: leave out TEEMARK_LOG_KEYS, or set TEEMARK_LOG=sealed"),
                );
            }
            (Some(other), _) => return wrong(LOG, format!("{other:?} is not off, clear or sealed")),
        };
        let is_off = form == LogForm::Off;
        let to = match to {
            None if is_off => None,
            None if matches!(public, Address::Vsock { .. }) => Some(Address::Vsock { cid: Some(3), port: 9001 }),
            None | Some("off") => None,
            Some(text) => match text.parse() {
                Ok(Address::Vsock { cid: None, port }) => {
                    return wrong(LOG_TO, format!("{text:?} names no machine: write vsock:3:{port} for the parent"));
                }
                Ok(address) => Some(address),
                Err(e) => return wrong(LOG_TO, format!("{e}, or off")),
            },
        };
        let audit = match audit {
            None if is_off => Audit::Off,
            None => Audit::BestEffort,
            Some("off") => Audit::Off,
            Some(word @ ("best_effort" | "required")) if is_off => {
                return wrong(AUDIT, format!("{word:?} needs a log: set TEEMARK_LOG to clear or sealed, not off"));
            }
            Some("best_effort") => Audit::BestEffort,
            Some("required") if audit_keys.is_empty() => {
                let what = "the keys that collectors sign acknowledgements with, Ed25519 public keys in base64";
                return wrong(AUDIT, format!("\"required\" needs TEEMARK_AUDIT_KEYS, {what}"));
            }
            Some("required") if to.is_none() => {
                return wrong(
                    AUDIT,
                    "\"required\" needs a collector: set TEEMARK_LOG_TO to where it is reached".into(),
                );
            }
            Some("required") => Audit::Required,
            Some(other) => return wrong(AUDIT, format!("{other:?} is not off, best_effort or required")),
        };
        if is_off && to.is_some() {
            return wrong(LOG_TO, "has no effect with TEEMARK_LOG=off: leave it out, or set TEEMARK_LOG".into());
        }
        if audit == Audit::Off && !audit_keys.is_empty() {
            return wrong(
                AUDIT_KEYS,
                "has no effect without an audit trail: leave it out, or set TEEMARK_AUDIT".into(),
            );
        }
        Ok(LogSettings { form, to, audit, audit_keys })
    }
}

#[cfg(test)]
mod tests {
    use formats::hpke::PrivateKey;

    use super::*;

    fn read(log: Option<&str>, keys: usize, to: Option<&str>, public: &str) -> Result<LogSettings, String> {
        let keys = vec![PrivateKey::new(Box::new([5; 32])).public(); keys];
        let public = &public.parse().unwrap();
        let given = Given { log, keys, to, public, audit: None, audit_keys: Vec::new() };
        LogSettings::read(given).map_err(|e| e.to_string())
    }

    fn read_audit(audit: Option<&str>, keys: usize, log: Option<&str>, to: Option<&str>) -> Result<Audit, String> {
        let audit_keys = vec![VerifyingKey::from_bytes([7; 32]); keys];
        let public = &"tcp:127.0.0.1:0".parse().unwrap();
        let given = Given { log, keys: Vec::new(), to, public, audit, audit_keys };
        LogSettings::read(given).map(|settings| settings.audit).map_err(|e| e.to_string())
    }

    #[test]
    fn an_audit_trail_is_kept_where_there_is_a_log_and_required_only_with_a_collectors_key() {
        let to = Some("unix:/x");
        assert_eq!(read_audit(None, 0, None, None), Ok(Audit::BestEffort));
        assert_eq!(read_audit(None, 0, Some("off"), None), Ok(Audit::Off));
        assert_eq!(read_audit(Some("off"), 0, None, None), Ok(Audit::Off));
        assert_eq!(read_audit(Some("best_effort"), 1, None, None), Ok(Audit::BestEffort));
        assert_eq!(read_audit(Some("required"), 1, None, to), Ok(Audit::Required));
        for (audit, keys, log, to, name, words) in [
            (Some("required"), 0, None, to, AUDIT, "needs TEEMARK_AUDIT_KEYS"),
            (Some("required"), 1, None, None, AUDIT, "set TEEMARK_LOG_TO"),
            (Some("required"), 1, Some("off"), to, AUDIT, "needs a log"),
            (Some("best_effort"), 0, Some("off"), to, AUDIT, "needs a log"),
            (Some("yes"), 0, None, to, AUDIT, "not off, best_effort or required"),
            (Some("off"), 1, None, to, AUDIT_KEYS, "has no effect"),
        ] {
            let error = read_audit(audit, keys, log, to).unwrap_err();
            assert!(error.starts_with(name) && error.contains(words), "{error}");
        }
    }

    #[test]
    fn the_log_is_sealed_where_there_is_a_key_and_goes_to_the_parent_from_an_enclave() {
        let parent = Some("vsock:3:9001".parse().unwrap());
        for (log, keys, form) in [(None, 0, "clear"), (None, 1, "sealed"), (Some("sealed"), 2, "sealed")] {
            let settings = read(log, keys, None, "vsock:3000").unwrap();
            assert_eq!((settings.form.name(), settings.to), (form, parent.clone()));
        }
        for (log, public) in [(None, "tcp:127.0.0.1:0"), (Some("off"), "vsock:3000")] {
            assert_eq!(read(log, 0, None, public).unwrap().to, None);
        }
        assert_eq!(read(None, 0, Some("off"), "vsock:3000").unwrap().to, None);
        assert_eq!(read(None, 0, Some("unix:/x"), "tcp:a:1").unwrap().to, Some(Address::Unix("/x".into())));
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused_with_what_to_do() {
        for (log, keys, to, name, words) in [
            (Some("sealed"), 0, None, LOG, "TEEMARK_LOG_KEYS"),
            (Some("clear"), 1, None, LOG, "TEEMARK_LOG=sealed"),
            (Some("off"), 1, None, LOG, "leave out"),
            (Some("open"), 0, None, LOG, "not off, clear or sealed"),
            (None, 0, Some("vsock:9001"), LOG_TO, "vsock:3:9001"),
            (None, 0, Some("9001"), LOG_TO, "or off"),
            (Some("off"), 0, Some("unix:/x"), LOG_TO, "set TEEMARK_LOG"),
        ] {
            let error = read(log, keys, to, "vsock:3000").unwrap_err();
            assert!(error.starts_with(name) && error.contains(words), "{error}");
        }
    }
}
