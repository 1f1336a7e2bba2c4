//! Searching for secrets in whatever form.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::support::run;

/// Length of the pieces that are searched for: too long to occur by chance.
const PIECE: usize = 16;

/// Secrets cut into pieces. Any text with 31 consecutive bytes of a secret contains a piece.
#[derive(Default)]
pub(crate) struct Needles {
    pieces: HashMap<[u8; PIECE], String>,
    /// Whether a piece begins with these two bytes.
    begins: Vec<bool>,
}

impl Needles {
    /// Adds these bytes as they are.
    pub(crate) fn add(&mut self, name: &str, bytes: &[u8]) {
        self.begins.resize(1 << 16, false);
        for piece in bytes.chunks_exact(PIECE) {
            self.begins[usize::from(piece[0]) << 8 | usize::from(piece[1])] = true;
            self.pieces.insert(piece.try_into().unwrap(), name.to_owned());
        }
    }

    /// Adds the bytes, and their forms in base64 at each alignment, in hex, and as a list of numbers.
    pub(crate) fn add_all_forms(&mut self, name: &str, secret: &[u8]) {
        self.add(&format!("{name}, bytes"), secret);
        for shift in 0..3 {
            let text = STANDARD.encode([&[0; 2][..shift], secret].concat());
            // The letters at both ends depend on the neighbouring bytes too.
            let first = (shift * 8).div_ceil(6);
            let last = (shift + secret.len()) * 8 / 6;
            self.add(&format!("{name}, base64 at {shift}"), &text.as_bytes()[first..last]);
        }
        let list = |separator: &str| secret.iter().map(u8::to_string).collect::<Vec<_>>().join(separator);
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        for (form, text) in [("hex", hex.to_uppercase()), ("hex", hex), ("numbers", list(",")), ("numbers", list(", "))]
        {
            self.add(&format!("{name}, {form}"), text.as_bytes());
        }
    }

    /// The first piece in `hay`: where, and of what.
    pub(crate) fn find(&self, hay: &[u8]) -> Option<(usize, &str)> {
        hay.windows(PIECE).enumerate().find_map(|(at, window)| {
            let likely = self.begins[usize::from(window[0]) << 8 | usize::from(window[1])];
            likely.then(|| self.pieces.get(window)).flatten().map(|name| (at, name.as_str()))
        })
    }

    #[allow(dead_code)] // each test program uses its part
    pub(crate) fn must_not_be_in(&self, place: &str, hay: &[u8]) {
        if let Some((at, name)) = self.find(hay) {
            let around = &hay[at.saturating_sub(200)..hay.len().min(at + 60)];
            panic!("{name} is in {place}, at {at}: {}", String::from_utf8_lossy(around));
        }
    }
}

/// The secret numbers of an RSA key, big endian, by name (RFC 8017, A.1.2).
pub(crate) fn integers_of_rsa_key(key: &Path) -> Vec<(&'static str, Vec<u8>)> {
    let der = run(Command::new("openssl").args(["rsa", "-traditional", "-outform", "DER", "-in"]).arg(key));
    let mut rest = element(&der).0;
    let mut integers = Vec::new();
    while !rest.is_empty() {
        let (integer, after) = element(rest);
        integers.push(integer.iter().copied().skip_while(|&byte| byte == 0).collect());
        rest = after;
    }
    let names = ["version", "n", "e", "d", "p", "q", "d mod p-1", "d mod q-1", "q^-1 mod p"];
    assert_eq!(integers.len(), names.len());
    names.into_iter().zip(integers).skip(3).collect()
}

/// The contents of the first DER element, and what comes after it (X.690, 8.1).
fn element(der: &[u8]) -> (&[u8], &[u8]) {
    let (length, start) = match der[1] {
        short @ 0..0x80 => (usize::from(short), 2),
        long => {
            let n = usize::from(long & 0x7f);
            (der[2..2 + n].iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), 2 + n)
        }
    };
    (&der[start..start + length], &der[start + length..])
}
