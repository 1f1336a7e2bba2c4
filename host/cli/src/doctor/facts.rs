//! What is known of a deployment: plain data, which parent.rs and enclave.rs gather and checks.rs judges.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use formats::digest::Sha256;
use formats::time::Utc;
use serde_json::Value;

use crate::attest::{Attested, Pcrs};

/// A fact, or why it could not be found out.
pub(super) type Found<T> = Result<T, String>;

/// What the parent instance shows.
pub(super) struct Parent {
    /// Whether /dev/nitro_enclaves is there.
    pub(super) device: bool,
    pub(super) allocator: Allocator,
    /// What run-enclave.sh asks nitro-cli for.
    pub(super) wanted: Size,
    /// The image's file, and its registers by nitro-cli describe-eif.
    pub(super) eif: (String, Found<BTreeMap<u8, Vec<u8>>>),
    /// The enclave's name, and the CID that was asked for.
    pub(super) name: String,
    pub(super) cid: Option<u32>,
    /// What nitro-cli describe-enclaves lists.
    pub(super) enclaves: Found<Vec<Described>>,
    /// The last lines that nitro-cli and the enclave wrote, by the places where they are kept.
    pub(super) last_words: Vec<Vec<Said>>,
    /// The two HTTP ports.
    pub(super) exposed: Vec<Exposed>,
    /// The programs that forward a vsock port to an endpoint.
    pub(super) proxies: Vec<Proxy>,
    pub(super) relays: Vec<Relay>,
}

/// A line that a program wrote.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) at: Utc,
    pub(super) text: String,
}

/// Memory and CPUs that are set aside for enclaves.
#[derive(Default)]
pub(super) struct Allocator {
    /// Huge pages in MiB: all of them, and those that no enclave has.
    pub(super) memory_mib: u64,
    pub(super) free_mib: u64,
    /// CPUs of the module nitro_enclaves; `None` where that is not loaded.
    pub(super) cpus: Option<usize>,
}

/// Memory and CPUs of an enclave.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) memory_mib: u64,
    pub(super) cpus: usize,
}

/// An enclave, as nitro-cli describes it.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Described {
    #[serde(default)]
    pub(super) enclave_name: String,
    #[serde(rename = "EnclaveCID")]
    pub(super) cid: u32,
    #[serde(default)]
    pub(super) state: String,
    #[serde(default)]
    pub(super) flags: String,
    /// `PCR0` to `PCR2` in hex, besides other members.
    #[serde(default)]
    pub(super) measurements: BTreeMap<String, Value>,
}

impl Described {
    pub(super) fn runs(&self) -> bool {
        self.state == "RUNNING"
    }
}

/// A port that is to be exposed.
pub(super) struct Exposed {
    /// `public` or `admin`.
    pub(super) name: &'static str,
    /// HOST:PORT on the parent.
    pub(super) address: String,
    pub(super) listener: Listener,
}

/// Who listens on a TCP port.
pub(super) enum Listener {
    Nobody,
    /// Somebody whose process cannot be seen.
    Unseen,
    Process(Process),
}

/// A process: its number, and its command line.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) number: u32,
    pub(super) words: Vec<String>,
}

/// A program that listens on a vsock port.
pub(super) struct Proxy {
    /// The vsock port.
    pub(super) port: u32,
    pub(super) to: Place,
    pub(super) process: u32,
}

/// A host and port, and the addresses that the host has here.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// HOST:PORT
    pub(super) name: String,
    pub(super) addresses: Vec<SocketAddr>,
}

impl Place {
    /// Whether both lead to the same place: by their names, or by an address.
    pub(super) fn is(&self, other: &Place) -> bool {
        let same_address = || self.addresses.iter().any(|address| other.addresses.contains(address));
        self.name.eq_ignore_ascii_case(&other.name) || same_address()
    }
}

/// A `teemark log relay`.
pub(super) struct Relay {
    /// Where it listens.
    pub(super) listen: String,
    /// The collector's address.
    pub(super) to: String,
    /// Whether somebody listens there.
    pub(super) reached: Found<()>,
}

/// What the enclave answers.
pub(super) struct Enclave {
    /// Its public address.
    pub(super) endpoint: String,
    /// /ready: whether it is 200, and the object.
    pub(super) ready: Found<(bool, Value)>,
    /// /health_check
    pub(super) health: Found<Value>,
    /// /admin/status and /metrics; `None` where the admin port is not asked.
    pub(super) status: Option<Found<Value>>,
    /// The last record of the log when it was first asked; `status` was asked for later, once a collector had that record
    /// or time was up. 0 if it did not say.
    pub(super) logged: u64,
    pub(super) metrics: Option<Found<String>>,
    /// What its document proves; `None` if nobody said which image is expected.
    pub(super) attested: Option<Found<Attested>>,
    /// The option because of which that proves nothing, if there is one.
    pub(super) unproven: Option<&'static str>,
    /// By how many milliseconds the document is ahead of this machine's clock, whoever made it.
    pub(super) ahead_ms: Found<i64>,
}

/// Everything.
pub(super) struct Facts {
    pub(super) now: Utc,
    /// `None` from outside.
    pub(super) parent: Option<Parent>,
    pub(super) enclave: Enclave,
    /// The .pcrs file, if it was named.
    pub(super) pcrs: Option<Pcrs>,
    /// The allow list here: its file, and what it has.
    pub(super) allow_list: (String, Found<AllowList>),
    /// The entries of the list in force in the enclave, or else of the file.
    pub(super) endpoints: Vec<Place>,
    /// The vsock port of the first of them.
    pub(super) base_port: u32,
    /// The keeper's metrics; `None` if no keeper was named.
    pub(super) keeper: Option<Found<String>>,
}

/// An allow list.
pub(super) struct AllowList {
    /// Its entries, HOST:PORT.
    pub(super) endpoints: Vec<String>,
    pub(super) sha256: Sha256,
}

impl Facts {
    /// The enclave that is meant, as nitro-cli describes it: the one that runs with the CID that was asked for, or else the
    /// only one that runs with the name.
    pub(super) fn described(&self) -> Option<&Described> {
        let parent = self.parent.as_ref()?;
        let mut meant = parent.enclaves.as_ref().ok()?.iter().filter(|enclave| match parent.cid {
            Some(cid) => enclave.runs() && enclave.cid == cid,
            None => enclave.runs() && enclave.enclave_name == parent.name,
        });
        let first = meant.next();
        first.filter(|_| meant.next().is_none())
    }
}
