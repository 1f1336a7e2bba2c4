//! The secrets in force.

use std::mem::take;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use formats::allow_list::AllowList;
use formats::attestation::BundleId;
use formats::bundle::Received;
use formats::certificates::Fingerprint;
use formats::digest::Sha256;
use formats::file_keys::DeliveredKeys;
use formats::files::FileKeys;
use formats::items::{
    CERTIFICATES, ENDPOINT, FILE_KEYS, FILE_KEYS_ADD, FILE_KEYS_REMOVE, GRANT_KEYS, GRANT_KEYS_ADD, GRANT_KEYS_REMOVE,
    MAX_BUNDLE,
};
use formats::jwks::GrantKeys;
use formats::refusal::{Refusal, WHOLE, refuse};
use formats::sealed_bundle::v2;
use formats::state::{Item, State, Told};
use formats::time::Utc;
use log::{info, warn};
use serde_json::{Value, json};

use super::bundle::{Bundle, Service};
use super::sealed::{CheckedLine, Known, Opened, Signed, Unsealer};
use super::validity::{Remark, Validity};
use crate::attest::Attestation;
use crate::audit;
use crate::memory::{Budget, Reservation};
use crate::metrics::METRICS;
use crate::mtls::{Calls, Identity, MutualTls};
use crate::net::egress::Route;
use crate::settings::Settings;

/// The secrets of one moment. A request takes them once and finishes with them, whatever is rotated meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    mtls: Option<Arc<MutualTls>>,
    /// The client certificate's.
    validity: Option<Validity>,
    service: Option<Service>,
    keys: Option<Arc<FileKeys>>,
    /// Empty if TEEMARK_GRANTS is off.
    grants: Option<Arc<GrantKeys>>,
    state: State,
    /// The state, as it is served; `None` while there is nothing in force.
    state_json: Option<Arc<str>>,
    /// The state that bundles to come lead to. Until then the enclave does not call itself ready.
    complete_at: Option<Sha256>,
}

/// Secrets with nothing missing.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The clients of the watermark service, under the identity in force.
    pub mtls: Arc<MutualTls>,
    /// The watermark service.
    pub service: Service,
    /// Keys of encrypted files.
    pub keys: Arc<FileKeys>,
    /// Keys that sign grants.
    pub grants: Arc<GrantKeys>,
}

impl Secrets {
    /// The items that no handshake has delivered yet.
    pub fn missing(&self) -> Vec<&'static str> {
        let items = [
            (CERTIFICATES, self.mtls.is_none()),
            (ENDPOINT, self.service.is_none()),
            (FILE_KEYS, self.keys.is_none()),
            (GRANT_KEYS, self.grants.is_none()),
        ];
        items.into_iter().filter_map(|(name, missing)| missing.then_some(name)).collect()
    }

    /// What is in force, described without a secret: the JSON of a [`State`], whose SHA-256 documents have.
    pub fn state_json(&self) -> Arc<str> {
        self.state_json.clone().unwrap_or_else(|| self.state.to_json().into())
    }

    /// The SHA-256 of the state that bundles to come lead to, if an operator said that there are some.
    pub fn complete_at(&self) -> Option<Sha256> {
        self.complete_at
    }

    /// How many file keys and grant keys there are.
    pub fn keys_in_force(&self) -> [usize; 2] {
        [self.keys.as_ref().map_or(0, |keys| keys.len()), self.grants.as_ref().map_or(0, |grants| grants.0.len())]
    }

    /// Why the client certificate, if there is one, cannot be used at `now`, although it was valid when it came.
    pub fn certificate_fault(&self, now: Utc) -> Option<String> {
        self.validity?.fault(now)
    }

    /// The complete secrets.
    ///
    /// # Errors
    /// The items that are missing.
    pub fn ready(&self) -> Result<Ready, Vec<&'static str>> {
        match self {
            Secrets { mtls: Some(mtls), service: Some(service), keys: Some(keys), grants: Some(grants), .. } => {
                Ok(Ready { mtls: mtls.clone(), service: service.clone(), keys: keys.clone(), grants: grants.clone() })
            }
            _ => Err(self.missing()),
        }
    }
}

/// Holds the secrets and replaces them, a whole bundle at a time.
pub struct Store {
    in_force: RwLock<Arc<Secrets>>,
    /// Held while a bundle is written and put in force, so that two do not mix.
    changing: Mutex<()>,
    /// The last remark about the client certificate in force.
    said: Mutex<Option<Remark>>,
    /// Opens what the handshake brings; `None` if that is plain.
    unsealer: Option<Unsealer>,
    /// Is told of each change.
    attestation: Option<Arc<Attestation>>,
    memory: Budget,
    /// File keys that were replaced as a whole, while requests hold them, and the memory that they take.
    leaving: Mutex<Vec<(Weak<FileKeys>, usize)>>,
    certs: PathBuf,
    pinned: Vec<Fingerprint>,
    allowed: Arc<AllowList>,
    route: Route,
    calls: Calls,
}

/// Memory of file keys for which nothing is set aside: TEEMARK_MEMORY leaves room for a thousand of them.
const FEW_KEYS: usize = 1 << 20;

/// The effect of an accepted bundle.
#[derive(Debug)]
pub struct Accepted {
    /// The items that changed.
    pub updated: Vec<&'static str>,
    /// Names that were ignored, with the reason.
    pub ignored: Vec<String>,
    /// What the operator may not have intended.
    pub warnings: Vec<String>,
    /// The items that are still missing.
    pub missing: Vec<&'static str>,
    /// Who signed it, if it came sealed.
    pub signed: Option<Signed>,
    /// SHA-256 of the state in force by it.
    pub state: Sha256,
}

impl Accepted {
    /// The handshake's answer.
    pub fn to_json(&self) -> Value {
        let Accepted { updated, ignored, warnings, missing, .. } = self;
        json!({"ok": true, "updated": updated, "ignored": ignored, "warnings": warnings, "missing": missing})
    }
}

/// Which bundle a change comes by.
#[derive(Clone, Copy, Default)]
struct By<'b> {
    /// The bundle, if it came sealed.
    id: Option<BundleId>,
    /// What it says that it does, in JSON: in version 2.
    manifest: Option<&'b [u8]>,
}

impl Store {
    /// An empty store. `unsealer` opens the handshake's bundles, if they come sealed; `attestation` is told of changes;
    /// file keys count in `memory`.
    pub fn new(
        settings: &Settings,
        allowed: Arc<AllowList>,
        unsealer: Option<Unsealer>,
        attestation: Option<Arc<Attestation>>,
        memory: Budget,
    ) -> Store {
        let grants = (!settings.grants).then(Arc::default);
        Store {
            in_force: RwLock::new(Arc::new(Secrets { grants, ..Secrets::default() })),
            changing: Mutex::new(()),
            said: Mutex::default(),
            unsealer,
            attestation,
            memory,
            leaving: Mutex::default(),
            certs: settings.certs.clone(),
            pinned: settings.pinned.clone(),
            allowed,
            route: settings.egress,
            calls: Calls {
                timeout: settings.timeout,
                keepalive: settings.keepalive,
                at_once: settings.max_connections,
            },
        }
    }

    /// The secrets in force now.
    pub fn now(&self) -> Arc<Secrets> {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Handles a bundle that has come whole, by the handshake: opens it if bundles come sealed, checks it and puts it in
    /// force.
    ///
    /// # Errors
    /// Why it is refused; nothing has changed then.
    pub fn accept(&self, bytes: &[u8]) -> Result<Accepted, Refusal> {
        // Checking takes memory, so bundles are checked one at a time too.
        let _one_at_a_time = self.exclusive();
        let mut known = Known::default();
        let result = self.accept_whole(bytes, &mut known);
        tell(result, &known)
    }

    fn accept_whole(&self, bytes: &[u8], known: &mut Known) -> Result<Accepted, Refusal> {
        if bytes.len() > MAX_BUNDLE {
            return refuse(WHOLE, format!("is larger than {MAX_BUNDLE} bytes"));
        }
        match &self.unsealer {
            None => {
                let result = Received::parse(bytes).and_then(|it| self.check_and_replace(it, By::default()));
                self.knows(bytes, result, known)
            }
            Some(unsealer) if v2::Line::is_one(bytes) => {
                let end = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1);
                let (line, rest) = bytes.split_at(end);
                self.replace_by(unsealer.open_v2(unsealer.check_line(line, known)?, rest.to_vec())?, known)
            }
            Some(unsealer) => self.replace_by(unsealer.open(bytes, known)?, known),
        }
    }

    /// Adds to what is `known` if this bundle, in the clear, is refused.
    fn knows<T>(&self, bundle: &[u8], result: Result<T, Refusal>, known: &mut Known) -> Result<T, Refusal> {
        result.inspect_err(|_| known.contents = Some((Received::names(bundle), self.now().state.sha256())))
    }

    /// Checks the line of a bundle of version 2. Adds to what is `known`.
    ///
    /// # Errors
    /// Why what follows it is not worth reading.
    pub fn check_line(&self, line: &[u8], known: &mut Known) -> Result<CheckedLine, Refusal> {
        match &self.unsealer {
            Some(unsealer) => unsealer.check_line(line, known),
            None => refuse(WHOLE, "is sealed, but this daemon takes plain bundles (TEEMARK_HANDSHAKE)"),
        }
    }

    /// Handles a bundle of version 2 that has come after its line.
    ///
    /// # Errors
    /// Why it is refused; nothing has changed then.
    pub fn accept_v2(&self, line: CheckedLine, rest: Vec<u8>) -> Result<Accepted, Refusal> {
        let _one_at_a_time = self.exclusive();
        let Some(unsealer) = &self.unsealer else { return refuse(WHOLE, "is sealed") };
        let mut known = Known { signed: Some(line.signed()), ..Known::default() };
        let result = unsealer.open_v2(line, rest).and_then(|opened| self.replace_by(opened, &mut known));
        tell(result, &known)
    }

    fn replace_by(
        &self,
        Opened { bundle, id, manifest, signers }: Opened,
        known: &mut Known,
    ) -> Result<Accepted, Refusal> {
        let received = if manifest.is_some() { Received::parse_v2(&bundle) } else { Received::parse(&bundle) };
        let by = By { id: Some(id), manifest: manifest.as_deref() };
        let result = received.and_then(|received| self.check_and_replace(received, by));
        let mut accepted = self.knows(&bundle, result, known)?;
        let names: Vec<String> = signers.iter().map(formats::base64::encode).collect();
        info!("the bundle of counter {} is signed by {}", id.counter, names.join(", "));
        accepted.signed = Some(Signed { id, signers });
        Ok(accepted)
    }

    /// Puts a bundle in force that did not come by the handshake.
    ///
    /// # Errors
    /// Why it is refused; nothing has changed then.
    pub fn put_in_force(&self, bytes: &[u8]) -> Result<Accepted, Refusal> {
        let _one_at_a_time = self.exclusive();
        self.check_and_replace(Received::parse(bytes)?, By::default())
    }

    fn check_and_replace(&self, received: Received, by: By<'_>) -> Result<Accepted, Refusal> {
        let old = self.now();
        let manifest = by.manifest.map(Told::parse).transpose()?;
        if let Some(Told { from, .. }) = manifest {
            let state = old.state.sha256();
            if from != state {
                return refuse(
                    "manifest.from",
                    format!(
                        "is not the state in force, {state}: get a new attestation document and seal the bundle again"
                    ),
                );
            }
        }
        let _room = self.room_for_keys(&received, &old)?;
        let mut bundle = Bundle::check(received, &self.allowed, &self.pinned, Utc::now())?;
        if let Some(manifest) = &manifest {
            manifest.describes(&bundle.items)?;
        }
        let replaced = old.keys.as_ref().filter(|_| bundle.file_keys.whole.is_some());
        let [names, grant_names] = [[FILE_KEYS_REMOVE, FILE_KEYS_ADD], [GRANT_KEYS_REMOVE, GRANT_KEYS_ADD]];
        let file_keys = take(&mut bundle.file_keys).apply(old.keys.as_deref(), names, FileKeys::changed)?;
        let grant_keys = take(&mut bundle.grant_keys).apply(old.grants.as_deref(), grant_names, GrantKeys::changed)?;
        if let Some(identity) = &bundle.identity {
            identity.write(&self.certs).map_err(|e| Refusal {
                field: CERTIFICATES.into(),
                reason: format!("cannot be written to {}: {e}", self.certs.display()),
            })?;
            info!("[RUN_SH] mTLS client certificates written to {}/", self.certs.display());
        }
        let ignored = bundle.ignored.clone();
        let warnings = bundle.identity.as_ref().map(|identity| identity.warnings.clone()).unwrap_or_default();
        let updated = NAMES.into_iter().filter(|name| bundle.items.contains_key(*name)).collect();
        self.replace(bundle, file_keys, grant_keys, by.id, manifest.and_then(|manifest| manifest.complete_at));
        // Requests may hold the old keys for a while. Sets that were changed one by one share their keys.
        let leaving = replaced.map(|keys| (Arc::downgrade(keys), keys.memory()));
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner).extend(leaving);
        let now = self.now();
        drop(old);
        self.account();
        Ok(Accepted { updated, ignored, warnings, missing: now.missing(), signed: None, state: now.state.sha256() })
    }

    /// Reserves memory for the file keys of a bundle before they are expanded, until they are accounted for.
    fn room_for_keys(&self, received: &Received, old: &Secrets) -> Result<Reservation, Refusal> {
        let Received { file_keys, added_file_keys, .. } = received;
        let new: usize = [file_keys, added_file_keys].into_iter().flatten().map(DeliveredKeys::memory).sum();
        let needed = self.memory_of_keys(old) + new;
        if new > 0
            && let Err(most) = self.memory.may_keep(needed.saturating_sub(FEW_KEYS))
        {
            let half = "half of TEEMARK_MEMORY";
            return refuse(
                FILE_KEYS,
                format!("would take {needed} bytes of memory, and file keys may have {most}, {half}"),
            );
        }
        let mut room = self.memory.open();
        // Other bundles wait for this one.
        let covered = room.cover_soon(new.saturating_sub(FEW_KEYS));
        covered.or_else(|_| refuse(WHOLE, "finds no memory for its keys now (TEEMARK_MEMORY): try again"))?;
        Ok(room)
    }

    /// Memory of the file keys in force, and of those that were replaced while requests hold them.
    fn memory_of_keys(&self, secrets: &Secrets) -> usize {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.retain(|(keys, _)| keys.strong_count() > 0);
        secrets.keys.as_ref().map_or(0, |keys| keys.memory()) + leaving.iter().map(|(_, bytes)| bytes).sum::<usize>()
    }

    /// Sets aside the memory of file keys.
    fn account(&self) {
        let needed = self.memory_of_keys(&self.now());
        self.memory.keep(needed.saturating_sub(FEW_KEYS));
    }

    /// Returns the memory of file keys that were replaced, once no request holds them.
    pub fn trim(&self) {
        let is_leaving = !self.leaving.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if is_leaving {
            self.account();
        }
    }

    /// Loads the certificates that are already in the folder; returns whether there are any.
    ///
    /// # Errors
    /// Why they are refused, with the part's file as the field.
    pub fn accept_files(&self) -> Result<bool, Refusal> {
        let found = Identity::load(&self.certs, Utc::now())
            .and_then(|found| found.map(|identity| identity.within(&self.pinned)).transpose())
            .map_err(|e| Refusal { field: format!("{}: {}", self.certs.display(), e.part.name()), reason: e.reason })?;
        let Some(identity) = found else { return Ok(false) };
        let mut bundle = Bundle::default();
        bundle.items.insert(CERTIFICATES.to_owned(), identity.describe());
        bundle.identity = Some(identity);
        self.replace(bundle, None, None, None, None);
        Ok(true)
    }

    /// Waits until no bundle is being written. None begins before the result is dropped.
    pub fn exclusive(&self) -> impl Sized + '_ {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Warns once of each new remark about the client certificate: it expires soon, or has expired.
    pub fn check_certificate(&self, now: Utc) {
        let Some(validity) = self.now().validity else { return };
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(warning) = validity.warning(&mut said, now) {
            warn!("the client certificate {warning}");
        }
    }

    /// Puts the bundle in force, with these sets of keys if they change.
    fn replace(
        &self,
        bundle: Bundle,
        file_keys: Option<FileKeys>,
        grant_keys: Option<GrantKeys>,
        id: Option<BundleId>,
        complete_at: Option<Sha256>,
    ) {
        let mut secrets = Secrets::clone(&self.now());
        let mut items = take(&mut secrets.state.items);
        let new_identity = bundle.identity.is_some();
        for (name, item) in bundle.items.into_iter().filter(|(name, _)| [CERTIFICATES, ENDPOINT].contains(&&**name)) {
            items.insert(name, item);
        }
        if let Some(identity) = bundle.identity {
            METRICS.certificate_ends.set(identity.ends.0);
            info!("mTLS client ready, its certificate is valid until {}", identity.ends);
            identity.warnings.iter().for_each(|warning| warn!("{warning}"));
            secrets.validity = Some(Validity { begins: identity.begins, ends: identity.ends });
            let mtls = identity.connect(self.allowed.clone(), self.route, self.calls);
            secrets.mtls = Some(Arc::new(mtls));
        }
        if let Some(service) = bundle.service {
            secrets.service = Some(service);
        }
        if let Some(keys) = file_keys {
            items.insert(FILE_KEYS.into(), keys.describe());
            secrets.keys = Some(Arc::new(keys));
        }
        if let Some(grants) = grant_keys {
            items.insert(GRANT_KEYS.into(), Item::grant_keys(&grants));
            secrets.grants = Some(Arc::new(grants));
        }
        secrets.state = State { items };
        secrets.state_json = Some(secrets.state.to_json().into());
        let state = secrets.state.sha256();
        secrets.complete_at = complete_at.or(secrets.complete_at).filter(|at| *at != state);
        *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(secrets);
        if let Some(attestation) = &self.attestation {
            attestation.put_in_force(id, state);
        }
        if new_identity {
            *self.said.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.check_certificate(Utc::now());
        }
    }
}

/// The items as handshakes name them.
const NAMES: [&str; 8] =
    [CERTIFICATES, ENDPOINT, FILE_KEYS, FILE_KEYS_ADD, FILE_KEYS_REMOVE, GRANT_KEYS, GRANT_KEYS_ADD, GRANT_KEYS_REMOVE];

fn tell(result: Result<Accepted, Refusal>, known: &Known) -> Result<Accepted, Refusal> {
    match &result {
        Ok(done) => {
            METRICS.handshakes_accepted.add(1);
            info!("handshake accepted: {} in force, missing: {}", list(&done.updated), list(&done.missing));
            audit::bundle_accepted(&done.updated, done.state, done.signed.as_ref().map(Signed::parts));
            audit::checkpoint();
        }
        Err(refusal) => tell_refusal(refusal, known),
    }
    result
}

/// Counts, logs and records a refusal.
pub(super) fn tell_refusal(refusal: &Refusal, known: &Known) {
    METRICS.handshakes_refused.add(1);
    warn!("handshake refused, nothing changed: {refusal}");
    let contents = known.contents.as_ref().map(|(names, state)| (&names[..], *state));
    audit::bundle_refused(refusal, known.signed.as_ref().map(Signed::parts), contents);
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}
