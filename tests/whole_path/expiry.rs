//! A client certificate that expires while the daemon runs.

use std::thread;
use std::time::Duration;

use formats::time::Utc;
use serde_json::Value;

use crate::support::openssl::{FOR_CLIENT, P_256};
use crate::support::*;
use crate::*;

/// The bundle with a client certificate that is valid for this many seconds from now.
fn bundle_for(certs: &Certs, port: u16, seconds: u64) -> Value {
    // The form that openssl ca expects: 20491231235959Z
    let moment = |at: u64| Utc(at).to_string().replace(['-', ':', 'T'], "");
    let now = Utc::now().0;
    certs.issue("client", P_256, "ca", FOR_CLIENT, (&moment(now - 3600), &moment(now + seconds)));
    certs.full_bundle(port)
}

#[test]
fn with_an_expired_client_certificate_the_daemon_is_not_ready_and_says_why() {
    let certs = Certs::with_root();
    let service = Service::start(&certs, &[]);
    let daemon = Setup::new(service.port).start();
    // The handshake refuses a certificate that has expired on the way; then the next one is valid for longer.
    let taken = [3, 6, 12, 24, 48].into_iter().find(|seconds| {
        let answer = daemon.handshake(bundle_for(&certs, service.port, *seconds).to_string().as_bytes());
        assert!(answer["ok"] == true || answer["error"].as_str().unwrap().contains("expired"), "{answer}");
        answer["ok"] == true
    });
    let seconds = taken.expect("a handshake within 48 s");
    thread::sleep(Duration::from_secs(seconds + 1));
    let not_ready = wait_for("the certificate to expire", || Some(daemon.get("/ready")).filter(|a| a.status == 503));
    let told = not_ready.json();
    assert_eq!((&told["ready"], &told["missing"]), (&json!(false), &json!([])), "{told}");
    let fault = told["client_certificate"].as_str().unwrap();
    assert!(fault.starts_with("expired at 2") && fault.contains("teemark secrets"), "{told}");
    let status = daemon.get_admin("/admin/status").json();
    assert_eq!((&status["ready"], &status["client_certificate"]), (&json!(false), &told["client_certificate"]));
    // The log warned when it arrived; and a rotation fixes it.
    let warning = "the client certificate expires within a day, at 2";
    assert!(daemon.process.has_logged(warning));
    assert_eq!(daemon.process.log().matches(warning).count(), 1, "{}", daemon.process.log());
    let next = bundle_for(&certs, service.port, 100 * 86_400);
    assert_eq!(daemon.handshake(next.to_string().as_bytes())["ok"], true);
    let ready = daemon.get("/ready");
    assert_eq!((ready.status, ready.json()), (200, json!({"ready": true, "missing": []})));
    assert_eq!(daemon.get_admin("/admin/status").json()["client_certificate"], "valid");
}

#[test]
fn each_certificate_that_expires_soon_is_warned_of_when_it_comes() {
    let certs = Certs::with_root();
    let daemon = Setup::new(1).start();
    let mut told = 0;
    for (days, warning) in
        [(25, Some("expires within 30 days, at ")), (100, None), (20, Some("expires within 30 days, at "))]
    {
        let before = daemon.process.log().matches("WARN").count();
        let bundle = bundle_for(&certs, 1, days * 86_400).to_string();
        assert_eq!(daemon.handshake(bundle.as_bytes())["ok"], true);
        if let Some(warning) = warning {
            wait_for("the warning", || (daemon.process.log().matches(warning).count() > told).then_some(()));
            told += 1;
        }
        let log = daemon.process.log();
        let new: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).skip(before).collect();
        let expected = usize::from(warning.is_some());
        assert_eq!(new.len(), expected, "{days} days: {new:?}");
        assert!(warning.is_none_or(|warning| new[0].contains(&format!("the client certificate {warning}"))), "{new:?}");
    }
}
