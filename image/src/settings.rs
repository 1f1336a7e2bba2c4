//! The allow list and the environment file, read by the code that reads them in the enclave, so that no image is built
//! that would refuse its own settings.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::allow_list::AllowList;
use formats::bundle::Received;
use formats::certificates::Fingerprint;
use formats::items::{CERTIFICATES, FILE_KEYS, ITEMS};
use formats::signature::VerifyingKey;
use formats::time::Utc;
use init::environment::{self, Environment};
use teemarkd::net::egress::Route;
use teemarkd::secrets::bundle::{Bundle, bundle_of_environment};
use teemarkd::settings::{self, Handshake};

use crate::files::Files;
use crate::paths;
use crate::read::{InputError, read};

/// The variables whose value is a secret.
const SECRET: [&str; 2] = [CERTIFICATES, FILE_KEYS];

/// The two files, which are consistent with each other and the image.
pub struct Settings {
    /// The allow list.
    pub endpoints: Vec<u8>,
    /// The environment file, with the operators' keys.
    pub environment: Vec<u8>,
    /// Its variables that hold a secret.
    pub secrets: Vec<&'static str>,
    /// The CAs that may issue the service's certificate; any if empty.
    pub pinned: Vec<Fingerprint>,
    /// Settings that work, but are probably not intended or weaken a promise.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Reads and checks the two files, and adds the operators' keys to the second. Certificates in the environment have
    /// to be valid at `now`.
    ///
    /// # Errors
    /// What init or the daemon would refuse, or a setting with a path at which the image has nothing.
    pub fn read(files: &Files, now: Utc) -> Result<Settings, InputError> {
        let (endpoints, file, baked) = (&*files.endpoints, &*files.environment, files.certs.is_some());
        let list = read(endpoints)?;
        let allowed = AllowList::parse(&endpoints.display().to_string(), &list).map_err(InputError::AllowList)?;
        let mut text = read(file)?;
        put_operators(&files.operators, &mut text)?;
        let mut warnings = Vec::new();
        if allowed.iter().next().is_none() {
            warnings.push(format!("{} allows no endpoint, so the enclave can reach none", endpoints.display()));
        }

        let mut used_up = text.clone();
        let environment = parse(file, &mut used_up)?;
        let refused = |name: &str, reason: String| {
            let line = line_of(&text, name);
            InputError::Refused { file: file.to_owned(), line, reason }
        };
        let variable = |name: &str| value_of(&environment, name).map(OsStr::to_owned);
        let daemon = settings::Settings::read(variable).map_err(|error| refused(error.name, error.to_string()))?;
        if let Some(items) = bundle_of_environment(&ITEMS, variable) {
            Received::parse(&items)
                .and_then(|received| Bundle::check(received, &allowed, &daemon.pinned, now))
                .map_err(|refusal| refused(refusal.field.split('.').next().unwrap_or_default(), refusal.to_string()))?;
        }
        if daemon.endpoints != Path::new(paths::ENDPOINTS) {
            let name = "TEEMARK_ENDPOINTS";
            return Err(refused(name, format!("{name}: the image has the allow list at {}", paths::ENDPOINTS)));
        }
        if baked && daemon.certs != Path::new(paths::CERTS) {
            let name = "TEEMARK_CERTS";
            return Err(refused(name, format!("{name}: the image has the certificates in {}", paths::CERTS)));
        }

        let at = |name| match line_of(&text, name) {
            0 => file.display().to_string(),
            line => format!("{}:{line}", file.display()),
        };
        if daemon.egress == Route::Direct {
            warnings.push(format!(
                "{}: TEEMARK_EGRESS=direct reaches nothing: an enclave has no TCP",
                at("TEEMARK_EGRESS")
            ));
        }
        warnings.extend(trust(&daemon).into_iter().map(|(name, warning)| format!("{}: {warning}", at(name))));
        let unknown = names(&environment).filter(|name| settings::is_unknown(name));
        warnings.extend(unknown.map(|name| format!("{}: teemarkd has no setting {name}", at(name))));
        let set = |name: &&&str| value_of(&environment, name).is_some_and(|value| !value.is_empty());
        let secrets = SECRET.iter().filter(set).copied().collect();
        Ok(Settings { endpoints: list, environment: text, secrets, pinned: daemon.pinned, warnings })
    }
}

/// Adds TEEMARK_OPERATOR_KEYS to the environment file.
fn put_operators(operators: &[PathBuf], text: &mut Vec<u8>) -> Result<(), InputError> {
    let mut keys = Vec::new();
    for file in operators {
        let key = String::from_utf8(read(file)?).unwrap_or_default();
        let good = STANDARD.decode(key.trim()).is_ok_and(|bytes| VerifyingKey::from_slice(&bytes).is_some());
        if !good {
            return Err(InputError::refused(file, "is not the public half of an operator's key (base64 of 32 bytes)"));
        }
        keys.push(key.trim().to_owned());
    }
    if !keys.is_empty() {
        if !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        text.extend_from_slice(format!("TEEMARK_OPERATOR_KEYS={}\n", keys.join(",")).as_bytes());
    }
    Ok(())
}

/// The promises that an image's settings give up, each with the name of the setting.
fn trust(daemon: &settings::Settings) -> Vec<(&'static str, &'static str)> {
    let mut warnings = Vec::new();
    match &daemon.handshake {
        Handshake::Plain => warnings.push((
            "TEEMARK_HANDSHAKE",
            "TEEMARK_HANDSHAKE=plain lets the parent read the secrets, and send its own in their place",
        )),
        Handshake::Sealed(operators) if operators.keys.is_empty() => warnings.push((
            "TEEMARK_OPERATOR_KEYS",
            "the image has no operator's key, so nobody can send it secrets; give one with --operator",
        )),
        Handshake::Sealed(_) => {}
    }
    if daemon.allow_unwatermarked {
        warnings.push((
            "TEEMARK_ALLOW_UNWATERMARKED",
            "TEEMARK_ALLOW_UNWATERMARKED=on gives out unmarked files if the service's answer has no marked one",
        ));
    }
    if !daemon.grants {
        warnings.push(("TEEMARK_GRANTS", "TEEMARK_GRANTS=off gives any file to whoever reaches the public port"));
    }
    if daemon.public_metrics {
        warnings.push((
            "TEEMARK_PUBLIC_METRICS",
            "TEEMARK_PUBLIC_METRICS=on tells whoever reaches the public port the exact sizes of others' files",
        ));
    }
    warnings
}

/// Parses the environment file as init does, which changes the text.
fn parse<'a>(file: &Path, text: &'a mut [u8]) -> Result<Environment<'a>, InputError> {
    if text.len() > environment::FILE_BYTES {
        return Err(InputError::refused(file, format!("has more than {} bytes", environment::FILE_BYTES)));
    }
    Environment::parse(text).map_err(|error| match error {
        environment::Error::Line(line, fault) => {
            InputError::Refused { file: file.to_owned(), line, reason: fault.to_string() }
        }
        environment::Error::File(_) => InputError::refused(file, error.to_string()),
    })
}

/// Each variable's name and value.
fn variables<'a>(environment: &'a Environment<'_>) -> impl Iterator<Item = (&'a str, &'a OsStr)> {
    environment.variables().iter().filter_map(|variable| {
        let (name, value) =
            variable.to_bytes().split_at_checked(variable.to_bytes().iter().position(|b| *b == b'=')?)?;
        Some((str::from_utf8(name).ok()?, OsStr::from_bytes(&value[1..])))
    })
}

fn names<'a>(environment: &'a Environment<'_>) -> impl Iterator<Item = &'a str> {
    variables(environment).map(|(name, _)| name)
}

fn value_of<'a>(environment: &'a Environment<'_>, name: &str) -> Option<&'a OsStr> {
    variables(environment).find(|(n, _)| *n == name).map(|(_, value)| value)
}

/// The line that sets a variable, counted from 1; 0 if there is none.
fn line_of(text: &[u8], name: &str) -> usize {
    let sets = |line: &[u8]| line.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"="));
    text.split(|byte| *byte == b'\n').position(sets).map_or(0, |at| at + 1)
}
