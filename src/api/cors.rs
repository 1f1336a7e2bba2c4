//! Web pages that call the public listener: what their browsers have to be told (Fetch Standard, 3.3, CORS protocol).
//!
//! Credentials are never allowed: the daemon has no cookies, and a grant comes in a header field that a page sets.

use formats::reply;

use crate::net::answer::Answer;
use crate::net::http::values;
use crate::net::request_id;
use crate::settings::Origins;

/// How long a browser may keep the answer to a preflight, in seconds: the most that Chromium does.
const MAX_AGE: &str = "7200";
/// The header fields of requests that a browser asks about.
const REQUEST_FIELDS: &str = "Authorization, Content-Type, Teemark-Reply-Key, Teemark-Attest, X-Request-Id";

/// Which pages may call, and what they may read.
pub struct Cors {
    origins: Origins,
    /// The header fields of answers that pages may read besides the few that they always may.
    exposed: String,
}

impl Cors {
    pub(crate) fn new(origins: Origins) -> Cors {
        let exposed = [
            reply::WATERMARKED,
            reply::SEALED,
            reply::TIMESTAMP,
            reply::SIGNATURE,
            reply::IDENTITY,
            reply::ATTESTATION_LENGTH,
            "Retry-After",
            request_id::FIELD,
        ];
        Cors { origins, exposed: exposed.join(", ") }
    }

    /// Adds to an answer what a browser needs to hand it to the page. `head` has the lines of the request's head.
    pub(crate) fn admit(&self, head: &[u8], answer: &mut Answer) {
        let allowed = match &self.origins {
            Origins::Any => Some("*"),
            Origins::These(origins) if origins.is_empty() => return,
            Origins::These(origins) => {
                let origin = values(head, "Origin").next().unwrap_or_default();
                origins.iter().map(String::as_str).find(|known| known.as_bytes() == origin)
            }
        };
        // Also where the page may not call: a cache must not give it the answer for another.
        let mut add = |name, value: &str| answer.headers.push((name, value.to_owned()));
        add("Vary", "Origin");
        let Some(origin) = allowed else { return };
        add("Access-Control-Allow-Origin", origin);
        if values(head, "Access-Control-Request-Method").next().is_some() {
            add("Access-Control-Allow-Methods", "GET, HEAD, POST");
            add("Access-Control-Allow-Headers", REQUEST_FIELDS);
            add("Access-Control-Max-Age", MAX_AGE);
        } else {
            add("Access-Control-Expose-Headers", &self.exposed);
        }
    }
}

/// The answer to OPTIONS on a route that accepts this method: a preflight, or the check of a balancer.
pub(crate) fn options(method: &'static str) -> Answer {
    let allowed = if method == "GET" { "GET, HEAD, OPTIONS".into() } else { format!("{method}, OPTIONS") };
    Answer::empty(vec![("Allow", allowed)])
}
