//! What all requests share.

use std::sync::Arc;
use std::time::Instant;

use formats::allow_list::AllowList;
use formats::time::Utc;

use super::cors::Cors;
use super::drain::Drain;
use super::health::Health;
use super::limits::Limits;
use super::permit::Grants;
use crate::attest::Attestation;
use crate::memory::Budget;
use crate::net::egress::Route;
use crate::secrets::listener::Handshakes;
use crate::secrets::store::Store;
use crate::settings::{Settings, WatermarkApi};

/// What all requests share.
pub struct Api {
    /// The secrets in force.
    pub store: Arc<Store>,
    /// Receives others.
    pub handshakes: Arc<Handshakes>,
    /// The enclave's keys and its attestation.
    pub attestation: Arc<Attestation>,
    /// Which grants are required, and which have been used.
    pub grants: Grants,
    /// The allow list.
    pub allowed: Arc<AllowList>,
    /// How allowed endpoints are reached.
    pub route: Route,
    /// The memory of all requests.
    pub memory: Budget,
    /// The limits of a request.
    pub limits: Limits,
    /// Whether the plain file is returned if the service's success answer has no marked file.
    pub allow_unwatermarked: bool,
    /// How the watermark service is called.
    pub watermark_api: WatermarkApi,
    /// Whether the public listener serves /metrics too.
    pub public_metrics: bool,
    /// Which pages may call the public listener.
    pub cors: Cors,
    /// Whether this enclave is being taken out of service.
    pub drain: Drain,
    /// When the daemon started.
    pub started: Instant,
    /// The same by the clock.
    pub started_at: Utc,
    /// The last health check.
    pub health: Health,
}

impl Api {
    /// Combines the settings with what the start has made; `memory` is that of all requests.
    pub fn new(
        store: Arc<Store>,
        allowed: Arc<AllowList>,
        attestation: Arc<Attestation>,
        settings: &Settings,
        limits: Limits,
        memory: Budget,
    ) -> Api {
        Api {
            handshakes: Arc::new(Handshakes::new(store.clone(), memory.clone())),
            store,
            health: Health::new(allowed.iter().count()),
            allowed,
            grants: Grants::new(settings, attestation.identity()),
            attestation,
            route: settings.egress,
            memory,
            limits,
            allow_unwatermarked: settings.allow_unwatermarked,
            watermark_api: settings.watermark_api,
            public_metrics: settings.public_metrics,
            cors: Cors::new(settings.cors.clone()),
            drain: Drain::default(),
            started: Instant::now(),
            started_at: Utc::now(),
        }
    }
}
