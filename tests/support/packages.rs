//! Other people's implementations: packages of PyPI and npm, which are put under target/tmp unless they are installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn works(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// A Python that can import these modules of a package.
///
/// # Errors
/// The package is not here and cannot be installed.
pub(crate) fn python(package: &str, modules: &str) -> Result<PathBuf, String> {
    let own = folder(package);
    let python = own.join("bin/python");
    let has = |python: &Path| works(Command::new(python).args(["-c", &format!("import {modules}")]));
    if let Some(found) = [PathBuf::from("python3"), python.clone()].into_iter().find(|python| has(python)) {
        return Ok(found);
    }
    // With a limit of two minutes, since pip without a network tries for a long time.
    let pip = format!(
        "python3 -m venv --clear '{0}' && timeout 120 '{0}/bin/pip' install --quiet --disable-pip-version-check \
         '{package}'",
        own.display()
    );
    let done = Command::new("sh").arg("-c").arg(pip).output().map_err(|e| e.to_string())?;
    if has(&python) { Ok(python) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
}

/// A Python that has just these packages, as a list of requirements for pip names them.
///
/// # Errors
/// They are not here and cannot be installed.
pub(crate) fn pinned(name: &str, requirements: &Path) -> Result<PathBuf, String> {
    let own = folder(name);
    let (python, installed) = (own.join("bin/python"), own.join("requirements.txt"));
    let wanted = std::fs::read(requirements).map_err(|e| e.to_string())?;
    if std::fs::read(&installed).is_ok_and(|installed| installed == wanted)
        && works(Command::new(own.join("bin/pip")).arg("-V"))
    {
        return Ok(python);
    }
    let pip = format!(
        "python3 -m venv --clear '{0}' && timeout 300 '{0}/bin/pip' install --quiet --disable-pip-version-check \
         --requirement '{1}' && cp '{1}' '{2}'",
        own.display(),
        requirements.display(),
        installed.display()
    );
    let done = Command::new("sh").arg("-c").arg(pip).output().map_err(|e| e.to_string())?;
    if done.status.success() { Ok(python) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
}

/// A folder in which Node.js finds a package.
///
/// # Errors
/// The package is not here and cannot be installed.
pub(crate) fn node(package: &str) -> Result<PathBuf, String> {
    let own = folder("node");
    let import = format!("import('{package}').catch(() => process.exit(1))");
    let has = || works(Command::new("node").args(["-e", &import]).current_dir(&own));
    std::fs::create_dir_all(&own).map_err(|e| e.to_string())?;
    if has() {
        return Ok(own);
    }
    let npm = format!("timeout 120 npm install --silent --no-audit --no-fund '{package}'");
    let done = Command::new("sh").arg("-c").arg(npm).current_dir(&own).output().map_err(|e| e.to_string())?;
    if has() { Ok(own) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
}
