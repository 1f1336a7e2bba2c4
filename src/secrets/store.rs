//! The secrets in force.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use formats::allow_list::AllowList;
use formats::certificates::Fingerprint;
use formats::files::FileKeys;
use formats::items::{CERTIFICATES, ENDPOINT, FILE_KEYS, GRANT_KEYS, MAX_BUNDLE};
use formats::jwks::GrantKeys;
use formats::refusal::{Refusal, WHOLE, refuse};
use formats::time::Utc;
use log::{info, warn};
use serde_json::{Value, json};

use super::bundle::{Bundle, Service};
use super::sealed::Unsealer;
use super::validity::{Remark, Validity};
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
    certs: PathBuf,
    pinned: Vec<Fingerprint>,
    allowed: Arc<AllowList>,
    route: Route,
    calls: Calls,
}

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
}

impl Accepted {
    /// The handshake's answer.
    pub fn to_json(&self) -> Value {
        let Accepted { updated, ignored, warnings, missing } = self;
        json!({"ok": true, "updated": updated, "ignored": ignored, "warnings": warnings, "missing": missing})
    }
}

impl Store {
    /// An empty store. `unsealer` opens the handshake's bundles, if they come sealed.
    pub fn new(settings: &Settings, allowed: Arc<AllowList>, unsealer: Option<Unsealer>) -> Store {
        let grants = (!settings.grants).then(Arc::default);
        Store {
            in_force: RwLock::new(Arc::new(Secrets { grants, ..Secrets::default() })),
            changing: Mutex::new(()),
            said: Mutex::default(),
            unsealer,
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

    /// Handles a handshake: opens the bundle if bundles come sealed, checks it and puts it in force.
    ///
    /// # Errors
    /// Why it is refused; nothing has changed then.
    pub fn accept(&self, bytes: &[u8]) -> Result<Accepted, Refusal> {
        let accepted = self.open_and_put_in_force(bytes);
        match &accepted {
            Ok(done) => {
                METRICS.handshakes_accepted.add(1);
                info!("handshake accepted: {} in force, missing: {}", list(&done.updated), list(&done.missing));
            }
            Err(refusal) => {
                METRICS.handshakes_refused.add(1);
                warn!("handshake refused, nothing changed: {refusal}");
            }
        }
        accepted
    }

    fn open_and_put_in_force(&self, bytes: &[u8]) -> Result<Accepted, Refusal> {
        // Checking takes memory, so bundles are checked one at a time too.
        let _one_at_a_time = self.exclusive();
        if bytes.len() > MAX_BUNDLE {
            return refuse(WHOLE, format!("is larger than {MAX_BUNDLE} bytes"));
        }
        let Some(unsealer) = &self.unsealer else { return self.check_and_replace(bytes) };
        let opened = unsealer.open(bytes)?;
        let accepted = self.check_and_replace(&opened.bundle)?;
        unsealer.took_effect(&opened);
        Ok(accepted)
    }

    /// Puts a bundle in force that did not come by the handshake.
    ///
    /// # Errors
    /// Why it is refused; nothing has changed then.
    pub fn put_in_force(&self, bytes: &[u8]) -> Result<Accepted, Refusal> {
        let _one_at_a_time = self.exclusive();
        self.check_and_replace(bytes)
    }

    fn check_and_replace(&self, bytes: &[u8]) -> Result<Accepted, Refusal> {
        let bundle = Bundle::parse(bytes, &self.allowed, &self.pinned, Utc::now())?;
        if let Some(identity) = &bundle.identity {
            identity.write(&self.certs).map_err(|e| Refusal {
                field: CERTIFICATES.into(),
                reason: format!("cannot be written to {}: {e}", self.certs.display()),
            })?;
            info!("[RUN_SH] mTLS client certificates written to {}/", self.certs.display());
        }
        let ignored = bundle.ignored.clone();
        let warnings = bundle.identity.as_ref().map(|identity| identity.warnings.clone()).unwrap_or_default();
        let updated = self.replace(bundle);
        Ok(Accepted { updated, ignored, warnings, missing: self.now().missing() })
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
        self.replace(Bundle { identity: Some(identity), ..Bundle::default() });
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

    fn replace(&self, bundle: Bundle) -> Vec<&'static str> {
        let mut secrets = Secrets::clone(&self.now());
        let mut updated = Vec::new();
        if let Some(identity) = bundle.identity {
            METRICS.certificate_ends.set(identity.ends.0);
            info!("mTLS client ready, its certificate is valid until {}", identity.ends);
            identity.warnings.iter().for_each(|warning| warn!("{warning}"));
            secrets.validity = Some(Validity { begins: identity.begins, ends: identity.ends });
            let mtls = identity.connect(self.allowed.clone(), self.route, self.calls);
            secrets.mtls = Some(Arc::new(mtls));
            updated.push(CERTIFICATES);
        }
        if let Some(service) = bundle.service {
            secrets.service = Some(service);
            updated.push(ENDPOINT);
        }
        if let Some(keys) = bundle.keys {
            secrets.keys = Some(Arc::new(keys));
            updated.push(FILE_KEYS);
        }
        if let Some(grants) = bundle.grants {
            secrets.grants = Some(Arc::new(grants));
            updated.push(GRANT_KEYS);
        }
        *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(secrets);
        if updated.contains(&CERTIFICATES) {
            *self.said.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.check_certificate(Utc::now());
        }
        updated
    }
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}
