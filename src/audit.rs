//! The audit trail: a record in the log for each decision. docs/REFERENCE.md lists their members.
//!
//! A record is an object that grows with what becomes known of a request, in one buffer, which then is the record.

use std::sync::{Mutex, MutexGuard, PoisonError};

use formats::attestation::BundleId;
use formats::base64;
use formats::digest::{Sha256, sha256};
use formats::log::Kind;
use formats::refusal::Refusal;
use formats::signature::VerifyingKey;
use formats::time::now_ms;
use serde::Serialize;

use crate::logging::{Log, log};
use crate::net::request_id;
use crate::settings::Audit;

/// A record that is being made. Without an audit trail it stays empty, and nothing is recorded.
pub struct Trail {
    json: Vec<u8>,
    log: Option<&'static Log>,
}

impl Trail {
    /// Begins a record.
    pub fn new() -> Trail {
        let log = log().filter(|log| log.audit() != Audit::Off);
        // Enough for most requests, so that the buffer does not grow.
        let json = if log.is_some() { Vec::with_capacity(768) } else { Vec::new() };
        Trail { json, log }
    }

    /// Begins the record of this thread's request.
    pub fn of_request() -> Trail {
        let mut trail = Trail::new();
        request_id::of_this_thread(|number, name| {
            trail.number("request", number);
            trail.text("request_id", name);
        });
        trail
    }

    fn member(&mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
        if self.log.is_none() {
            return;
        }
        self.json.extend_from_slice(if self.json.is_empty() { b"{\"" } else { b",\"" });
        self.json.extend_from_slice(name.as_bytes());
        self.json.extend_from_slice(b"\":");
        write(&mut self.json);
    }

    /// Adds a text.
    pub fn text(&mut self, name: &str, text: &str) {
        // Writing to a Vec cannot fail.
        self.member(name, |json| _ = serde_json::to_writer(json, text));
    }

    /// Adds a number.
    pub fn number(&mut self, name: &str, number: u64) {
        self.member(name, |json| json.extend_from_slice(number.to_string().as_bytes()));
    }

    /// Adds a hash, in hex.
    pub fn hash(&mut self, name: &str, hash: Sha256) {
        self.hex(name, hash.as_ref());
    }

    /// Adds bytes, in hex.
    pub fn hex(&mut self, name: &str, bytes: &[u8]) {
        self.member(name, |json| {
            json.push(b'"');
            let start = json.len();
            json.resize(start + 2 * bytes.len(), 0);
            hex::encode_to_slice(bytes, &mut json[start..]).expect("twice as long");
            json.push(b'"');
        });
    }

    /// Adds a list of names.
    pub fn names(&mut self, name: &str, names: &[impl Serialize]) {
        self.member(name, |json| _ = serde_json::to_writer(json, names));
    }

    /// Adds who signed a bundle.
    fn signed(&mut self, signed: Option<(BundleId, &[VerifyingKey])>) {
        let Some((id, signers)) = signed else { return };
        let signers: Vec<String> = signers.iter().map(base64::encode).collect();
        self.names("signers", &signers);
        self.number("counter", id.counter);
        self.hash("bundle_sha256", id.sha256);
    }

    /// Adds a truth.
    pub fn flag(&mut self, name: &str, is: bool) {
        self.member(name, |json| json.extend_from_slice(if is { b"true" } else { b"false" }));
    }

    #[cold]
    #[inline(never)]
    fn panicked(&mut self) {
        self.number("status", 500);
        self.text("code", "internal");
        self.record("refused");
    }

    /// Records it as this event; gives its number, unless there is no audit trail or no room. The trail is empty then.
    pub fn record(&mut self, event: &str) -> Option<u64> {
        self.text("event", event);
        self.number("time_ms", now_ms());
        let mut json = std::mem::take(&mut self.json);
        json.push(b'}');
        self.log.take()?.record(Kind::Audit, json)
    }
}

impl Drop for Trail {
    /// A request that panics is answered too.
    fn drop(&mut self) {
        if !self.json.is_empty() && std::thread::panicking() {
            self.panicked();
        }
    }
}

impl Default for Trail {
    fn default() -> Trail {
        Trail::new()
    }
}

/// Records that a file is about to be given and, where a collector has to have that record first, waits for its word.
/// Then records that it is given. Returns whether it may be.
#[must_use]
pub fn gives(trail: &mut Trail) -> bool {
    let Some(log) = log() else { return true };
    if log.audit() != Audit::Required {
        trail.record("given");
        return true;
    }
    let acknowledged = log.acknowledged(|| trail.record("about_to_give"));
    let mut outcome = Trail::of_request();
    if let Some(number) = acknowledged.number() {
        outcome.number("about", number);
    }
    let given = acknowledged.is_good();
    outcome.record(if given { "given" } else { "withheld" });
    given
}

/// Most records a second of requests without a valid grant, and of bundles without a good line: whoever reaches the port can
/// make as many as they like.
const MOST_STRANGERS: u32 = 10;

/// The requests that were refused before they had shown a valid grant or a good line.
struct Strangers {
    second: u64,
    /// How many came in that second.
    came: u32,
    /// How many were not recorded, nor counted in a record.
    left_out: u64,
}

static STRANGERS: Mutex<Strangers> = Mutex::new(Strangers { second: 0, came: 0, left_out: 0 });

impl Strangers {
    /// One more, in this second. Gives how many were left out before it, if it is to be recorded.
    fn refuse(&mut self, second: u64) -> Option<u64> {
        if self.second != second {
            (self.second, self.came) = (second, 0);
        }
        self.came = self.came.saturating_add(1);
        if self.came > MOST_STRANGERS {
            self.left_out += 1;
            return None;
        }
        Some(std::mem::take(&mut self.left_out))
    }
}

fn strangers() -> MutexGuard<'static, Strangers> {
    STRANGERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records that a request is refused before it has shown a valid grant.
pub fn refuses_stranger(trail: &mut Trail) {
    record_of_stranger(trail, "refused");
}

fn record_of_stranger(trail: &mut Trail, event: &str) {
    let left_out = strangers().refuse(now_ms() / 1000);
    if let Some(left_out) = left_out {
        if left_out > 0 {
            trail.number("not_recorded_before", left_out);
        }
        trail.record(event);
    }
}

/// Has the records so far signed; before that, records how many requests without a valid grant, and bundles without
/// a good line, were not recorded.
pub fn checkpoint() {
    let Some(log) = log() else { return };
    let left_out = std::mem::take(&mut strangers().left_out);
    if left_out > 0 {
        let mut trail = Trail::new();
        trail.number("not_recorded_before", left_out);
        trail.record("not_recorded");
    }
    log.checkpoint();
}

/// Records that a bundle with these items is in force, and led to this state; and who signed it, if it came sealed.
pub fn bundle_accepted(names: &[&str], state: Sha256, signed: Option<(BundleId, &[VerifyingKey])>) {
    let mut trail = Trail::of_request();
    trail.signed(signed);
    trail.names("names", names);
    trail.hash("state_sha256", state);
    trail.record("bundle_accepted");
}

/// Most bytes of a bundle's refusal that are recorded of each text: it may name what is in the bundle, whoever sent it.
const MOST_TOLD: usize = 512;

/// Records that a bundle was refused. What is known depends on how far it came: whose signatures verified, and once it was
/// open the names of its items and the state, which stays in force.
pub fn bundle_refused(
    refusal: &Refusal,
    signed: Option<(BundleId, &[VerifyingKey])>,
    contents: Option<(&[&str], Sha256)>,
) {
    let mut trail = refused_bundle(refusal, signed);
    if let Some((names, state)) = contents {
        trail.names("names", names);
        trail.hash("state_sha256", state);
    }
    trail.record("bundle_refused");
}

/// Records that a bundle which came by the public listener was refused for its line. Anybody can send one, also one that an
/// operator signed once.
pub fn refuses_strangers_bundle(refusal: &Refusal, signed: Option<(BundleId, &[VerifyingKey])>) {
    record_of_stranger(&mut refused_bundle(refusal, signed), "bundle_refused");
}

fn refused_bundle(refusal: &Refusal, signed: Option<(BundleId, &[VerifyingKey])>) -> Trail {
    let mut trail = Trail::of_request();
    trail.signed(signed);
    for (name, text) in [("field", &refusal.field), ("reason", &refusal.reason)] {
        trail.text(name, &text[..text.floor_char_boundary(MOST_TOLD)]);
    }
    trail
}

/// Records that an attestation document was made.
pub fn document(nonce: Option<&[u8]>, document: &[u8]) {
    let mut trail = Trail::of_request();
    if let Some(nonce) = nonce {
        trail.hex("nonce", nonce);
    }
    trail.hash("document_sha256", sha256(document));
    trail.record("document");
}

/// Records what came of setting the clock, which was so many milliseconds ahead of the Nitro Secure Module's.
pub fn clock(ahead_ms: i64, how: &str) {
    let mut trail = Trail::new();
    trail.text("correction", how);
    trail.flag("ahead", ahead_ms > 0);
    trail.number("by_ms", ahead_ms.unsigned_abs());
    trail.record("clock");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_panics_leaves_a_record() {
        let log = Log::of_tests();
        let panics = || {
            let mut trail = Trail::new();
            trail.text("request_id", "it panics");
            panic!("as asked");
        };
        std::panic::catch_unwind(panics).unwrap_err();
        let text = log.settled();
        let line = text.lines().find(|line| line.contains("it panics")).expect("a record");
        assert!(line.contains(r#""status":500,"code":"internal","event":"refused""#), "{line}");
    }

    #[test]
    fn ten_strangers_a_second_are_recorded_and_the_others_are_counted_once() {
        let mut strangers = Strangers { second: 0, came: 0, left_out: 0 };
        let recorded: Vec<_> = (0..15).map(|_| strangers.refuse(7)).collect();
        assert_eq!(recorded, [vec![Some(0); 10], vec![None; 5]].concat());
        assert_eq!([8, 8].map(|second| strangers.refuse(second)), [Some(5), Some(0)]);
    }
}
