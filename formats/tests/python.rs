//! The vectors, held against another implementation: Python's cryptography.

use std::path::Path;
use std::process::Command;

#[path = "../../tests/support/packages.rs"]
#[allow(dead_code)]
mod packages;

#[test]
fn pythons_cryptography_agrees_with_every_vector() {
    let modules = "cryptography.hazmat.primitives.ciphers.aead, cryptography.hazmat.primitives.asymmetric.x25519";
    let python = match packages::python("cryptography", modules) {
        Ok(python) => python,
        Err(reason) => {
            eprintln!("not run: the Python package cryptography cannot be had here: {reason}");
            return;
        }
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(python);
    command.arg("-B").arg(folder.join("tests/check_vectors.py")).arg(folder.join("vectors"));
    let output = command.output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.is_empty(), "{told}");
}
