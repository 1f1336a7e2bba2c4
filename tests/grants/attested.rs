//! Attestation documents that requests with grants ask for.

use std::time::{Duration, Instant};

use super::*;

impl Scene {
    /// A request with this grant that asks for a document.
    fn ask_attested(&self, token: &str) -> Answer {
        let lines = format!("Authorization: Bearer {token}\r\nTeemark-Attest: {}\r\n", "c0ffee".repeat(5));
        self.ask(&lines, "f", "alice")
    }
}

#[test]
fn a_grant_has_one_document_in_ten_seconds_and_a_request_that_gets_none_leaves_it_good() {
    let issuer = Issuer::new();
    // The first call of the service fails, so its grant stays good.
    let scene = Scene::with(&issuer.jwks(), &["--fault", "first=1", "--fault", "fail=500"]);
    let token = issuer.token(&claims("1"));
    // A file that does not open gets no document, and takes no turn.
    let damaged = Scene { file: vec![0; 100], ..scene };
    assert_eq!(refusal(&damaged.ask_attested(&token)), is(422, "decrypt_failed"));
    let scene = Scene { file: encrypt(&KEY, FILE), ..damaged };
    let start = Instant::now();
    assert_eq!(refusal(&scene.ask_attested(&token)), is(502, "watermark_failed"));
    let answer = scene.ask_attested(&token);
    // On a machine so busy that ten seconds have passed the second attempt is served.
    if start.elapsed() < Duration::from_secs(10) {
        assert_eq!(refusal(&answer), is(429, "too_many_requests"));
        let wait: u64 = answer.field("Retry-After").unwrap().parse().unwrap();
        assert!((1..=10).contains(&wait), "{wait}");
        let calls = scene.service.count("POST /api/watermark");
        assert_eq!(calls, 1, "the service is not called for a request that gets no document");
        let served = wait_for("the grant's next document", || {
            Some(scene.ask_attested(&token)).filter(|answer| answer.status == 200)
        });
        assert!(served.field("Teemark-Attestation-Length").is_some() && start.elapsed() >= Duration::from_secs(10));
    } else if answer.status != 200 {
        // Its turn came later than the clock began.
        assert_eq!(refusal(&answer), is(429, "too_many_requests"));
        wait_for("the grant's next document", || (scene.ask_attested(&token).status == 200).then_some(()));
    }
    assert_eq!(refusal(&scene.ask_attested(&token)), is(403, "grant_used"));
}

#[test]
fn documents_of_requests_with_grants_are_not_used_up_by_get_attestation() {
    let issuer = Issuer::new();
    let scene = Scene::new(&issuer.jwks());
    let refused = || (0..40).filter(|_| scene.daemon.get("/get_attestation").status == 429).count();
    for n in 0..3 {
        wait_for("get_attestation to be used up", || (refused() > 0).then_some(()));
        assert_eq!(scene.ask_attested(&issuer.token(&claims(&n.to_string()))).status, 200);
    }
}
