//! Every setting, with its default and its limits.
//!
//! Settings are environment variables; in the image they come from a measured file. An invalid value stops the start
//! and is named; nothing is guessed.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use formats::address::Address;
use formats::base64;
use formats::certificates::Fingerprint;
use formats::hpke::PublicKey;
use formats::signature::VerifyingKey;

use crate::net::egress::Route;
pub use logs::{Audit, LogForm, LogSettings};
pub use origins::Origins;

mod logs;
mod origins;

/// The daemon's settings.
#[derive(Debug)]
pub struct Settings {
    /// Listener for users' requests.
    pub public: Address,
    /// Listener for operators' requests.
    pub admin: Address,
    /// Listener for the handshake.
    pub secrets: Address,
    /// File with the allow list.
    pub endpoints: PathBuf,
    /// How allowed endpoints are reached.
    pub egress: Route,
    /// Folder of client.crt, client.key and ecs-ca.crt.
    pub certs: PathBuf,
    /// The hosts file to write, if any.
    pub hosts: Option<PathBuf>,
    /// Whether other processes' connections to allowed hosts are forwarded to the parent.
    pub forward: bool,
    /// Largest plaintext, in bytes; 1 KiB to 1 GiB.
    pub max_file: usize,
    /// Most connections of a listener, and most requests in flight; 1 to 65,536.
    pub max_connections: usize,
    /// Bytes that all requests together may hold; at least 1 MiB.
    pub memory: usize,
    /// Whether the plain file is returned if a success answer of the service has no marked file.
    pub allow_unwatermarked: bool,
    /// How the watermark service is called.
    pub watermark_api: WatermarkApi,
    /// Time limit of one call of the watermark service, but for a second for each MiB of the file; 1 s to 1 h.
    pub timeout: Duration,
    /// How long a connection of a client is kept without a request; 1 s to 1 h. It has to be longer than a balancer in
    /// front keeps it, or a request may find it closed: 60 s is the default of AWS' ALB and of nginx.
    pub idle: Duration,
    /// How long an idle connection to the service may be reused; 1 s to 1 h. It should be shorter than the service
    /// keeps it, or a call may find it closed. The shortest defaults of servers are 2 s (gunicorn) and 5 s (Node.js,
    /// Uvicorn).
    pub keepalive: Duration,
    /// How often the attestation document without a nonce is made anew, by which the clock is compared with the Nitro Secure
    /// Module's; 1 s to 60 s, since that document is promised to be no older than a minute.
    pub clock_interval: Duration,
    /// Which bundles the handshake accepts.
    pub handshake: Handshake,
    /// Whether a request for a file needs a grant.
    pub grants: bool,
    /// The name that a grant may be for, besides the identity key.
    pub fleet: Option<String>,
    /// SHA-256 of the CA certificates, in DER, that the service's certificate may come from; if empty, any.
    pub pinned: Vec<Fingerprint>,
    /// Whether the public listener serves /metrics too. They show exact sizes and outcomes of other users' requests.
    pub public_metrics: bool,
    /// The web pages that may call the public listener, by their origins.
    pub cors: Origins,
    /// How the log leaves the enclave.
    pub log: LogSettings,
}

/// How the watermark service is called (docs/FORMATS.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatermarkApi {
    /// The checklist's form: text in `data`, other bytes as base64 in `data` with an `encoding`.
    Data,
    /// The reference handler's form: every file as base64 in `image`.
    Image,
}

/// Which bundles the handshake accepts.
#[derive(Debug, PartialEq, Eq)]
pub enum Handshake {
    /// Any bundle. The parent can read it, and put its own in its place.
    Plain,
    /// Bundles that these operators sealed to this enclave. If there are none, the handshake is closed.
    Sealed(Operators),
}

/// Who may send secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operators {
    /// Their Ed25519 public keys, each once.
    pub keys: Vec<VerifyingKey>,
    /// How many of them have to sign a bundle; at least 1.
    pub threshold: usize,
}

impl Operators {
    /// Checks that there are enough operators for the threshold. Without any, the handshake is closed.
    fn new(listed: Vec<VerifyingKey>, threshold: usize) -> Result<Operators, SettingError> {
        let mut keys: Vec<VerifyingKey> = Vec::new();
        for key in listed {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        if threshold > keys.len().max(1) {
            let reason = format!(
                "{threshold} operators would have to sign, but TEEMARK_OPERATOR_KEYS has {} different keys",
                keys.len()
            );
            return Err(SettingError { name: THRESHOLD, reason });
        }
        Ok(Operators { keys, threshold })
    }
}

/// A setting that cannot be used: which, and what it should be.
#[derive(Debug)]
pub struct SettingError {
    /// The variable's name.
    pub name: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

impl std::error::Error for SettingError {}

impl Settings {
    /// Reads the settings through `variable`, which is `std::env::var_os` outside tests.
    ///
    /// # Errors
    /// The first variable that is invalid.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Settings, SettingError> {
        Settings::read_by(&variable)
    }

    /// One copy for all callers: it is 10 KB of code.
    fn read_by(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Settings, SettingError> {
        let text = |name: &'static str, default: &str| match variable(name) {
            None => Ok(default.to_owned()),
            Some(value) => value.into_string().map_err(|_| SettingError { name, reason: "is not UTF-8".into() }),
        };
        let address = |name, default| -> Result<Address, SettingError> {
            text(name, default)?.parse().map_err(|e| SettingError { name, reason: format!("{e}") })
        };
        let size = |name, default: &str, least, most| {
            let value = text(name, default)?;
            bytes(&value).filter(|n| (least..=most).contains(n)).ok_or_else(|| SettingError {
                name,
                reason: format!(
                    "{value:?} is not a size from {least} to {most} bytes: write 64MiB, 512KiB or a plain number"
                ),
            })
        };
        let either = |name, default, [yes, no]: [&str; 2]| match text(name, default)?.as_str() {
            given if given == yes => Ok(true),
            given if given == no => Ok(false),
            other => Err(SettingError { name, reason: format!("{other:?} is neither {yes} nor {no}") }),
        };
        let switch = |name| either(name, "off", ["on", "off"]);
        let operators = list("TEEMARK_OPERATOR_KEYS", &text("TEEMARK_OPERATOR_KEYS", "")?, ED25519_KEY, ed25519_key)?;
        let threshold = count(THRESHOLD, &text(THRESHOLD, "1")?, MOST_SIGNERS)?;
        let fleet = text("TEEMARK_FLEET", "")?;
        let hosts = text("TEEMARK_HOSTS", "/etc/hosts")?;
        let public = address("TEEMARK_PUBLIC", "vsock:3000")?;
        let given = |name| variable(name).is_some().then(|| text(name, "")).transpose();
        let log = LogSettings::read(logs::Given {
            log: given(logs::LOG)?.as_deref(),
            keys: list(logs::LOG_KEYS, &text(logs::LOG_KEYS, "")?, LOG_KEY, PublicKey::from_base64)?,
            to: given(logs::LOG_TO)?.as_deref(),
            public: &public,
            audit: given(logs::AUDIT)?.as_deref(),
            audit_keys: list(logs::AUDIT_KEYS, &text(logs::AUDIT_KEYS, "")?, ED25519_KEY, ed25519_key)?,
        })?;
        let grants = either("TEEMARK_GRANTS", "required", ["required", "off"])?;
        Ok(Settings {
            public,
            admin: address("TEEMARK_ADMIN", "vsock:3001")?,
            secrets: address("TEEMARK_SECRETS", "vsock:7777")?,
            endpoints: text("TEEMARK_ENDPOINTS", "/allowed_endpoints.yaml")?.into(),
            egress: text("TEEMARK_EGRESS", "vsock:3:8101")?
                .parse()
                .map_err(|reason| SettingError { name: "TEEMARK_EGRESS", reason })?,
            certs: text("TEEMARK_CERTS", "/opt/enclave/certs")?.into(),
            hosts: (!hosts.is_empty()).then(|| hosts.into()),
            forward: switch("TEEMARK_FORWARD")?,
            max_file: size("TEEMARK_MAX_FILE", "64MiB", 1 << 10, 1 << 30)?,
            max_connections: count("TEEMARK_MAX_CONNECTIONS", &text("TEEMARK_MAX_CONNECTIONS", "256")?, 65_536)?,
            memory: match variable("TEEMARK_MEMORY") {
                None => memory_for_requests(available_memory()),
                Some(_) => size("TEEMARK_MEMORY", "", 1 << 20, usize::MAX)?,
            },
            allow_unwatermarked: switch("TEEMARK_ALLOW_UNWATERMARKED")?,
            watermark_api: match either("TEEMARK_WATERMARK_API", "data", ["data", "image"])? {
                true => WatermarkApi::Data,
                false => WatermarkApi::Image,
            },
            timeout: seconds("TEEMARK_TIMEOUT", &text("TEEMARK_TIMEOUT", "30s")?, HOUR)?,
            idle: seconds("TEEMARK_IDLE", &text("TEEMARK_IDLE", "75s")?, HOUR)?,
            keepalive: seconds("TEEMARK_WATERMARK_KEEPALIVE", &text("TEEMARK_WATERMARK_KEEPALIVE", "1s")?, HOUR)?,
            clock_interval: seconds("TEEMARK_CLOCK_INTERVAL", &text("TEEMARK_CLOCK_INTERVAL", "60s")?, MINUTE)?,
            handshake: match either("TEEMARK_HANDSHAKE", "sealed", ["sealed", "plain"])? {
                true => Handshake::Sealed(Operators::new(operators, threshold)?),
                false if threshold > 1 => {
                    let reason = "nobody signs a plain bundle (TEEMARK_HANDSHAKE=plain)".into();
                    return Err(SettingError { name: THRESHOLD, reason });
                }
                false => Handshake::Plain,
            },
            grants,
            fleet: (!fleet.is_empty()).then_some(fleet),
            pinned: list("TEEMARK_PIN_CA", &text("TEEMARK_PIN_CA", "")?, FINGERPRINT, Fingerprint::from_hex)?,
            public_metrics: switch("TEEMARK_PUBLIC_METRICS")?,
            cors: Origins::read(&items(&text(CORS, "")?), grants)
                .map_err(|reason| SettingError { name: CORS, reason })?,
            log,
        })
    }
}

/// Every setting, without [`PREFIX`].
const NAMES: [&str; 30] = [
    "PUBLIC",
    "ADMIN",
    "SECRETS",
    "ENDPOINTS",
    "EGRESS",
    "CERTS",
    "HOSTS",
    "FORWARD",
    "MAX_FILE",
    "MAX_CONNECTIONS",
    "MEMORY",
    "ALLOW_UNWATERMARKED",
    "WATERMARK_API",
    "WATERMARK_KEEPALIVE",
    "CLOCK_INTERVAL",
    "TIMEOUT",
    "HANDSHAKE",
    "OPERATOR_KEYS",
    "OPERATOR_THRESHOLD",
    "GRANTS",
    "FLEET",
    "PIN_CA",
    "PUBLIC_METRICS",
    "CORS",
    "IDLE",
    "LOG",
    "LOG_KEYS",
    "LOG_TO",
    "AUDIT",
    "AUDIT_KEYS",
];
const PREFIX: &str = "TEEMARK_";
const CORS: &str = "TEEMARK_CORS";
const THRESHOLD: &str = "TEEMARK_OPERATOR_THRESHOLD";
/// Most signatures that may be asked for: with them a bundle's line has half of the bytes that it may have.
const MOST_SIGNERS: usize = 50;

/// Whether a variable looks like a setting but is not one: misspelled, or from another version.
pub fn is_unknown(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| !NAMES.contains(&rest))
}

/// Parses a number of bytes: digits, then nothing, KiB, MiB or GiB.
fn bytes(text: &str) -> Option<usize> {
    let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let unit = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

fn count(name: &'static str, text: &str, most: usize) -> Result<usize, SettingError> {
    text.parse()
        .ok()
        .filter(|n| (1..=most).contains(n))
        .ok_or_else(|| SettingError { name, reason: format!("{text:?} is not a number from 1 to {most}") })
}

const MINUTE: usize = 60;
const HOUR: usize = 60 * MINUTE;

fn seconds(name: &'static str, text: &str, most: usize) -> Result<Duration, SettingError> {
    let digits = text.strip_suffix('s').unwrap_or(text);
    count(name, digits, most)
        .map(|n| Duration::from_secs(n as u64))
        .map_err(|_| SettingError { name, reason: format!("{text:?} is not a time from 1s to {most}s") })
}

const ED25519_KEY: &str = "an Ed25519 public key in base64";
const LOG_KEY: &str = "an X25519 public key in base64";
const FINGERPRINT: &str = "a SHA-256 fingerprint in hex";

/// Items separated by commas.
fn items(value: &str) -> Vec<&str> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()
}

fn list<T>(name: &'static str, value: &str, what: &str, parse: fn(&str) -> Option<T>) -> Result<Vec<T>, SettingError> {
    let mut list = Vec::new();
    for item in items(value) {
        list.push(parse(item).ok_or_else(|| is_not(name, item, what))?);
    }
    Ok(list)
}

fn is_not(name: &'static str, item: &str, what: &str) -> SettingError {
    SettingError { name, reason: format!("{item:?} is not {what}") }
}

fn ed25519_key(text: &str) -> Option<VerifyingKey> {
    base64::decode(text).and_then(|bytes| VerifyingKey::from_slice(&bytes))
}

/// The default of TEEMARK_MEMORY, in bytes, if this many are available at the start. The daemon stays under five
/// quarters of TEEMARK_MEMORY. The rest is for the blocks that the allocator keeps, and for the kernel's socket buffers.
pub fn memory_for_requests(available: usize) -> usize {
    const REST: usize = 16 << 20;
    available.saturating_sub(REST).max(available / 2) / 5 * 4
}

/// MemAvailable (proc(5)) in bytes; if the kernel does not report it, what an enclave of 128 MiB would have.
fn available_memory() -> usize {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = available.and_then(|rest| rest.trim().strip_suffix(" kB")).and_then(|n| n.parse::<usize>().ok());
    kib.map_or(112 << 20, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use formats::digest::Sha256;

    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into())).map_err(|e| e.to_string())
    }

    #[test]
    fn without_an_environment_the_defaults_of_an_enclave_hold() {
        let s = read(&[]).unwrap();
        assert_eq!((s.public.to_string(), s.secrets.to_string()), ("vsock:3000".into(), "vsock:7777".into()));
        assert_eq!((s.max_file, s.max_connections, s.timeout.as_secs(), s.idle.as_secs()), (64 << 20, 256, 30, 75));
        assert!(s.memory > 1 << 20 && !s.forward && !s.allow_unwatermarked && !s.public_metrics);
        assert_eq!((s.hosts, s.clock_interval.as_secs()), (Some("/etc/hosts".into()), 60));
    }

    #[test]
    fn values_are_read_with_their_units() {
        let s = read(&[("TEEMARK_MEMORY", "256MiB"), ("TEEMARK_MAX_FILE", "2048"), ("TEEMARK_HOSTS", "")]).unwrap();
        assert_eq!((s.memory, s.max_file, s.hosts), (256 << 20, 2048, None));
    }

    #[test]
    fn by_default_the_handshake_is_sealed_and_closed_and_grants_are_required() {
        let s = read(&[]).unwrap();
        let nobody = Operators { keys: vec![], threshold: 1 };
        assert_eq!((s.handshake, s.grants, s.fleet, s.pinned), (Handshake::Sealed(nobody), true, None, vec![]));
    }

    #[test]
    fn lists_of_keys_and_fingerprints_are_read() {
        let key = base64::encode([7; 32]);
        let (keys, pins) = (format!("{key}, {key}"), format!("{},{}", "ab:".repeat(31) + "ab", "cd".repeat(32)));
        let s = read(&[("TEEMARK_OPERATOR_KEYS", &keys), ("TEEMARK_PIN_CA", &pins)]).unwrap();
        let once = Operators { keys: vec![VerifyingKey::from_bytes([7; 32])], threshold: 1 };
        assert_eq!(s.handshake, Handshake::Sealed(once));
        assert_eq!(s.pinned, [[0xab; 32], [0xcd; 32]].map(|bytes| Fingerprint(Sha256::from_bytes(bytes))));
        assert_eq!(read(&[("TEEMARK_HANDSHAKE", "plain")]).unwrap().handshake, Handshake::Plain);
    }

    #[test]
    fn no_more_operators_may_have_to_sign_than_there_are_different_keys() {
        let [one, two] = [1, 2].map(|byte| base64::encode([byte; 32]));
        let with = |keys: &str, threshold, handshake| {
            let settings = [("TEEMARK_OPERATOR_KEYS", keys), (THRESHOLD, threshold), ("TEEMARK_HANDSHAKE", handshake)];
            read(&settings).map(|settings| settings.handshake)
        };
        let both = format!("{one},{two},{one}");
        let Ok(Handshake::Sealed(operators)) = with(&both, "2", "sealed") else { panic!("2 of 2") };
        assert_eq!((operators.keys.len(), operators.threshold), (2, 2));
        let error = with(&both, "3", "sealed").unwrap_err();
        assert!(error.starts_with(THRESHOLD) && error.contains("2 different keys"), "{error}");
        assert!(with(&format!("{one},{one}"), "2", "sealed").is_err() && with("", "2", "sealed").is_err());
        assert!(with(&both, "2", "plain").unwrap_err().contains("plain"));
        for bad in ["0", "-1", "two", "51"] {
            assert!(with(&both, bad, "sealed").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_variable_that_is_not_a_setting_is_found_by_its_prefix() {
        for unknown in ["TEEMARK_MAXFILE", "TEEMARK_", "TEEMARK_max_file"] {
            assert!(is_unknown(unknown), "{unknown}");
        }
        // Every default is valid, so every setting is read.
        let asked = RefCell::new(BTreeSet::new());
        let asks = |name: &str| {
            asked.borrow_mut().insert(name.to_owned());
            None
        };
        Settings::read(asks).unwrap();
        assert_eq!(asked.into_inner(), NAMES.map(|name| format!("{PREFIX}{name}")).into());
        for known in ["TEEMARKD", "PATH", "TEEMARK_PUBLIC_METRICS"] {
            assert!(!is_unknown(known), "{known}");
        }
    }

    #[test]
    fn invalid_values_are_named() {
        for (name, value) in [
            ("TEEMARK_PUBLIC", "3000"),
            ("TEEMARK_MAX_FILE", "64MB"),
            ("TEEMARK_MAX_FILE", "-1"),
            ("TEEMARK_MAX_FILE", "99999999999999999999GiB"),
            ("TEEMARK_MEMORY", "1KiB"),
            ("TEEMARK_MAX_CONNECTIONS", "0"),
            ("TEEMARK_FORWARD", "yes"),
            ("TEEMARK_TIMEOUT", "0s"),
            ("TEEMARK_IDLE", "75m"),
            ("TEEMARK_IDLE", "3601s"),
            ("TEEMARK_CLOCK_INTERVAL", "61s"),
            ("TEEMARK_EGRESS", "tcp:1.2.3.4:5"),
            ("TEEMARK_HANDSHAKE", "open"),
            ("TEEMARK_GRANTS", "on"),
            ("TEEMARK_WATERMARK_API", "text"),
            ("TEEMARK_OPERATOR_KEYS", "AAAA"),
            ("TEEMARK_PIN_CA", "aa:bb"),
            ("TEEMARK_PUBLIC_METRICS", "yes"),
            ("TEEMARK_CORS", "app.example"),
            ("TEEMARK_LOG", "on"),
            ("TEEMARK_LOG_KEYS", "AAAA"),
            ("TEEMARK_LOG_TO", "9001"),
            ("TEEMARK_AUDIT", "on"),
            ("TEEMARK_AUDIT_KEYS", "AAAA"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert!(error.starts_with(name) && error.contains(value), "{error}");
        }
    }
}
