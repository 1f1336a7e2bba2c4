//! host/install-tools.sh, where most of what it looks for is missing.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// A PATH with little more than what the script itself calls, and no apt-get.
struct Bare(TempDir);

impl Bare {
    fn new() -> Bare {
        let bare = Bare(tempfile::tempdir().unwrap());
        for program in ["dirname", "id", "rustc", "sh", "uname"] {
            symlink(installed(program), bare.0.path().join(program)).unwrap();
        }
        bare
    }

    fn add(&self, program: &str, script: &str) {
        let file = self.0.path().join(program);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The packages that are missing for this part.
    fn missing(&self, part: &str) -> Vec<String> {
        let script = repository().join("host/install-tools.sh");
        let output = Command::new(script).arg(part).env("PATH", self.0.path()).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        let packages =
            told.strip_prefix("missing: ").and_then(|rest| rest.split_once(". ")).unwrap_or_else(|| panic!("{told}"));
        packages.0.split(' ').map(str::to_owned).collect()
    }
}

#[test]
fn what_the_tests_take_from_npm_and_pypi_is_installed_by_the_packages_whose_commands_are_missing() {
    let bare = Bare::new();
    let wanted = ["nodejs", "npm", "python3-venv", "chromium", "socat"];
    for part in ["tests", "vm"] {
        let missing = bare.missing(part);
        assert!(wanted.iter().all(|package| missing.iter().any(|m| m == package)), "{part}: {missing:?}");
    }
    // A Python without pip for its environments, as Debian's is.
    bare.add("python3", "exit 1");
    assert!(bare.missing("tests").contains(&"python3-venv".to_owned()));
    // From wherever they are.
    for program in ["node", "npm", "python3"] {
        bare.add(program, "exit 0");
    }
    for part in ["tests", "vm"] {
        let missing = bare.missing(part);
        assert!(!wanted[..3].iter().any(|package| missing.iter().any(|m| m == package)), "{part}: {missing:?}");
    }
}
