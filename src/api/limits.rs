//! The limits of requests: the settings that bound them, and the memory that they add up to.

use std::time::Duration;

use formats::files;
use formats::items::MAX_BUNDLE;
use serde_json::{Value, json};

use crate::memory::{FIXED_COST, JSON_SLACK, while_arriving};
use crate::settings::Settings;
use crate::watermark::KEPT;

/// Bytes beyond the largest body that are still read, so that the request's own route reports the error.
const BODY_SLACK: usize = 2 << 20;

/// The limits in force.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest plaintext, in bytes.
    pub max_file: usize,
    /// Whether a file is kept beside its marked file.
    pub keep_file: bool,
    /// Bytes that all requests together may hold.
    pub memory: usize,
    /// Most connections of a listener, and most requests in flight.
    pub connections: usize,
    /// Time limit of one call of the watermark service, but for a second for each MiB of the file.
    pub timeout: Duration,
}

/// The limit that a request exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooLarge {
    /// Largest file, in bytes.
    File(usize),
    /// Memory that all requests together may hold, in bytes: the request needs more.
    Memory(usize),
    /// The same, where the length of the body alone decides.
    Route {
        /// "raw" or "JSON".
        route: &'static str,
        /// Largest file that fits by this route, in bytes, if its request has nothing that is not needed.
        largest: usize,
        /// Memory that all requests together may hold, in bytes.
        memory: usize,
    },
    /// The watermark service does not accept a file of this size.
    Service,
    /// Largest bundle, in bytes.
    Bundle(usize),
}

impl TooLarge {
    /// Names the limit, in bytes, and its setting.
    pub fn message(self) -> String {
        match self {
            TooLarge::File(n) => format!("the file is too large: the limit is {n} bytes (TEEMARK_MAX_FILE)"),
            TooLarge::Memory(n) => format!(
                "the file is too large: it needs more memory than all requests may hold together, {n} bytes (TEEMARK_MEMORY)"
            ),
            TooLarge::Route { route, largest, memory } => format!(
                "the file is too large: by the {route} route a file of up to {largest} bytes fits into what all requests may \
                 hold together, {memory} bytes (TEEMARK_MEMORY)"
            ),
            TooLarge::Service => "the file is too large for the watermark service (it answered HTTP 413)".into(),
            TooLarge::Bundle(n) => format!("the bundle is too large: the limit is {n} bytes"),
        }
    }
}

/// A body's limit, and the error for a body that exceeds it.
#[derive(Clone, Copy)]
pub struct BodyLimit {
    /// Most bytes of the body.
    pub bytes: usize,
    /// The error for a body with more.
    pub past: TooLarge,
}

/// The limit of a bundle. One byte more is read, so that the handshake itself reports the error.
pub const BUNDLE: BodyLimit = BodyLimit { bytes: MAX_BUNDLE + 1, past: TooLarge::Bundle(MAX_BUNDLE) };

impl Limits {
    /// From the settings; `connections` is how many of theirs the system allows.
    pub fn new(settings: &Settings, connections: usize) -> Limits {
        let &Settings { max_file, allow_unwatermarked: keep_file, memory, timeout, .. } = settings;
        Limits { max_file, keep_file, memory, connections, timeout }
    }

    /// Peak memory of a raw request whose body, the encrypted file, has this many bytes. The file is decrypted in its
    /// buffer, and gives way to the service's answer, which is decoded in its own: the marked file as base64, for which
    /// half as much again is reserved; a small file is kept beside it. What turns out larger is reserved when that is known.
    pub fn raw_cost(&self, body: usize) -> usize {
        let kept = if self.keep_file { body } else { body.min(KEPT) };
        body.saturating_add(body / 2).saturating_add(kept).max(while_arriving(body)).saturating_add(FIXED_COST)
    }

    /// The same for a JSON request: the file is decoded in the buffer of its body, which is a third larger. A file that is
    /// to be kept gives that third back; a small one does not.
    pub fn json_cost(&self, body: usize) -> usize {
        let kept = if self.keep_file { body / 4 * 3 } else { 0 }.max(body.min(KEPT / 3 * 4));
        body.saturating_add(body / 8).saturating_add(kept).max(while_arriving(body)).saturating_add(FIXED_COST)
    }

    /// The error for a file that is too large.
    pub fn past_file(&self) -> TooLarge {
        TooLarge::File(self.max_file)
    }

    /// The limit of the raw route's body, the encrypted file.
    pub fn raw_body(&self) -> BodyLimit {
        BodyLimit { bytes: self.max_file + files::OVERHEAD, past: self.past_file() }
    }

    /// The limit of the JSON route's body, with the encrypted file as base64. It may be in lines of 76 characters (RFC
    /// 2045, 6.8), each with a line end that JSON escapes as four.
    pub fn json_body(&self) -> BodyLimit {
        let file = (self.max_file + files::OVERHEAD).div_ceil(3) * 4;
        BodyLimit { bytes: file + file / 19 + JSON_SLACK, past: self.past_file() }
    }

    /// The limit of any body: whatever is larger, the ingress refuses.
    pub fn any_body(&self) -> BodyLimit {
        let limit = self.json_body();
        BodyLimit { bytes: limit.bytes + BODY_SLACK, ..limit }
    }

    /// The largest files that fit by the raw route and by the JSON route, in bytes: TEEMARK_MAX_FILE, or less if that
    /// does not fit into TEEMARK_MEMORY.
    pub fn largest_files(&self) -> [usize; 2] {
        let raw = |file: usize| self.raw_cost(file + files::OVERHEAD + 1);
        let json = |file: usize| self.json_cost((file + files::OVERHEAD).div_ceil(3) * 4 + JSON_SLACK + 1);
        [self.largest(raw), self.largest(json)]
    }

    fn largest(&self, cost: impl Fn(usize) -> usize) -> usize {
        let (mut fits, mut too_large) = (0, self.max_file + 1);
        while too_large - fits > 1 {
            let file = fits.midpoint(too_large);
            *if cost(file) <= self.memory { &mut fits } else { &mut too_large } = file;
        }
        fits
    }

    /// The limits as operators see them.
    pub fn to_json(&self) -> Value {
        let [raw, json] = self.largest_files();
        json!({
            "max_file_bytes": self.max_file,
            "largest_file_bytes": {"raw": raw, "json": json},
            "memory_bytes": self.memory,
            "connections": self.connections,
            "timeout_seconds": self.timeout.as_secs(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Budget, grown, while_growing};
    use crate::settings::memory_for_requests;

    const MIB: usize = 1 << 20;
    /// Memory of an enclave that is not available when the daemon starts. With 512 MiB, Linux takes 8 for its page
    /// structures (64 bytes a page), some 16 for the kernel and its tables, 6 for the ramdisks and what is unpacked
    /// from them, 2 for init and the daemon, and keeps 3 in reserve (min_free_kbytes and the watermarks above it). The
    /// VM scenario `handshake` compares a booted enclave with the value that the daemon derives from this.
    const NOT_AVAILABLE: usize = 48 * MIB;

    /// ENCLAVE_MEMORY's default in host/deploy/run-enclave.sh, in bytes.
    fn memory_of_an_enclave() -> usize {
        let script = include_str!("../../host/deploy/run-enclave.sh");
        let (_, rest) = script.split_once("${ENCLAVE_MEMORY:-").unwrap();
        rest.split_once('}').unwrap().0.parse::<usize>().unwrap() * MIB
    }

    /// The settings of the image as it is shipped.
    fn shipped() -> Settings {
        shipped_but_for(&[])
    }

    /// The same with other values of these.
    fn shipped_but_for(settings: &[(&str, &str)]) -> Settings {
        let lines = include_str!("../../image/teemark.env").lines().filter(|line| !line.starts_with('#'));
        let shipped = lines.filter_map(|line| line.split_once('='));
        let set: Vec<_> = settings.iter().copied().chain(shipped).collect();
        let memory = memory_for_requests(memory_of_an_enclave() - NOT_AVAILABLE).to_string();
        Settings::read(|name| match set.iter().find(|(n, _)| *n == name) {
            Some((_, value)) => Some(value.into()),
            None => (name == "TEEMARK_MEMORY").then(|| memory.clone().into()),
        })
        .unwrap()
    }

    #[test]
    fn with_the_shipped_numbers_a_file_of_the_largest_size_is_admitted_by_both_routes() {
        let limits = Limits::new(&shipped(), 256);
        assert_eq!(limits.largest_files(), [limits.max_file; 2], "{limits:?}");
        let budget = Budget::new(limits.memory, 1);
        // One byte more than the limit is read, to notice a larger body.
        for cost in [limits.raw_cost(limits.raw_body().bytes + 1), limits.json_cost(limits.json_body().bytes + 1)] {
            assert!(budget.open().cover(cost).is_ok(), "{cost} bytes of {limits:?}");
        }
    }

    #[test]
    fn an_enclave_of_the_shipped_size_has_room_for_a_file_of_200_mib() {
        let limits = Limits::new(&shipped_but_for(&[("TEEMARK_MAX_FILE", "200MiB")]), 256);
        assert_eq!(limits.largest_files(), [200 * MIB; 2], "{limits:?}");
        // While a body arrives, its buffer grows: admission must not count more than the whole will need.
        let budget = Budget::new(limits.memory, 1);
        for most in [limits.raw_body().bytes, limits.json_body().bytes] {
            let growing = while_growing(most.next_power_of_two() / 2, most);
            assert!(budget.open().cover(growing + FIXED_COST).is_ok(), "{growing} bytes of {limits:?}");
        }
    }

    #[test]
    fn admission_leaves_the_enclave_room_for_everything_else() {
        // The daemon's peak is five quarters of TEEMARK_MEMORY (SPECIFICATION.md).
        let (memory, available) = (shipped().memory, memory_of_an_enclave() - NOT_AVAILABLE);
        assert!(memory / 4 * 5 <= available, "{memory} of {available} bytes");
    }

    #[test]
    fn a_file_that_is_kept_counts_once_more() {
        let limits = |allow: &str| Limits::new(&shipped_but_for(&[("TEEMARK_ALLOW_UNWATERMARKED", allow)]), 256);
        let tenths = |cost: usize| cost.saturating_sub(FIXED_COST) * 10 / (64 * MIB);
        let costs = |l: Limits| [l.raw_cost(64 * MIB), l.json_cost(64 * MIB / 3 * 4)].map(tenths);
        assert_eq!((costs(limits("off")), costs(limits("on"))), ([15, 15], [25, 24]));
    }

    #[test]
    fn the_largest_file_is_the_last_that_fits() {
        for memory in [MIB, 5 * MIB + 7, 100 * MIB, 1000 * MIB] {
            let limits =
                Limits { max_file: 64 * MIB, keep_file: false, memory, connections: 1, timeout: Duration::ZERO };
            let [raw, json] = limits.largest_files();
            let needs = |file: usize| limits.raw_cost(file + files::OVERHEAD + 1);
            assert!(needs(raw) <= memory && (raw == 64 * MIB || needs(raw + 1) > memory), "{limits:?}: {raw}");
            assert!(json <= raw && json > 0, "{limits:?}: {json}");
        }
    }

    #[test]
    fn a_file_that_fits_also_fits_while_it_arrives() {
        for memory in (2..40).map(|n| n * MIB / 2) {
            let limits =
                Limits { max_file: 64 * MIB, keep_file: false, memory, connections: 1, timeout: Duration::ZERO };
            let [raw, json] = limits.largest_files();
            for body in [raw + files::OVERHEAD, (json + files::OVERHEAD).div_ceil(3) * 4 + JSON_SLACK] {
                let (mut reservation, mut bytes) = (Budget::new(memory, 1).open(), 0);
                while bytes < body {
                    let room = grown(bytes, body);
                    let cost = FIXED_COST + while_growing(bytes, room);
                    assert!(reservation.cover(cost).is_ok(), "{body} bytes: from {bytes} to {room} of {memory}");
                    bytes = room;
                }
            }
        }
    }

    #[test]
    fn each_limit_is_named_in_bytes_with_its_setting() {
        assert!(TooLarge::File(7).message().contains("7 bytes (TEEMARK_MAX_FILE)"));
        assert!(TooLarge::Memory(8).message().contains("together, 8 bytes (TEEMARK_MEMORY)"));
        let route = TooLarge::Route { route: "JSON", largest: 5, memory: 8 };
        assert!(route.message().contains("by the JSON route a file of up to 5 bytes"));
        assert!(TooLarge::Bundle(9).message().contains("9 bytes"));
        assert!(TooLarge::Service.message().contains("the watermark service"));
    }
}
