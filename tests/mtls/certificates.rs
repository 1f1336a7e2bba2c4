//! Who trusts whom.

use std::process::Command;

use crate::scripted::{Scripted, Step};
use crate::support::openssl::{EXPIRED, FOR_CLIENT, NOT_YET_VALID};
use crate::*;

#[test]
fn tls_1_2_and_tls_1_3_are_both_spoken() {
    for version in ["1.2", "1.3"] {
        let service = Service::start(&CERTS, &["--tls", version]);
        let daemon = Daemon::ready(&service, &CERTS);
        assert_works(&daemon);
        let line = format!("TLSv{version}");
        assert_eq!((service.count("TLS handshake: client"), service.count(&line)), (1, 1), "{}", service.process.log());
        let serial = CERTS.serial("client");
        assert!(service.count(&format!("serial={serial}")) > 0, "the service sees the client's certificate");
    }
}

/// A service with this certificate is not trusted, for this reason, and a good one is used right after.
fn assert_not_trusted(certs: &Certs, reason: &str) {
    let good = Service::start(&CERTS, &[]);
    for version in ["1.2", "1.3"] {
        let service = Service::start(certs, &["--tls", version]);
        let daemon = daemon_for(&[service.port, good.port]);
        let message = assert_fails(&daemon);
        assert!(message.contains(reason), "{message}");
        assert_eq!(service.count("POST"), 0, "no request leaves for a service that is not trusted");
        turn_to(&daemon, good.port);
        assert_works(&daemon);
    }
}

#[test]
fn a_service_certified_by_another_ca_is_not_trusted() {
    assert_not_trusted(&OTHERS, "invalid peer certificate");
}

#[test]
fn a_service_whose_certificate_has_expired_is_not_trusted() {
    assert_not_trusted(&with_server(FOR_SERVER, EXPIRED), "expired");
}

#[test]
fn a_service_whose_certificate_is_not_valid_yet_is_not_trusted() {
    assert_not_trusted(&with_server(FOR_SERVER, NOT_YET_VALID), "not valid yet");
}

#[test]
fn a_service_whose_certificate_names_another_host_is_not_trusted() {
    // The common name says nothing about the host (RFC 9525, 2).
    let elsewhere = "extendedKeyUsage=serverAuth\nsubjectAltName=DNS:elsewhere.example,DNS:localhost.example";
    assert_not_trusted(&with_server(elsewhere, VALID), "not valid for name");
}

#[test]
fn a_service_that_shows_a_clients_certificate_is_not_trusted() {
    let client = format!("{FOR_CLIENT}\nsubjectAltName=DNS:localhost");
    assert_not_trusted(&with_server(&client, VALID), "invalid peer certificate");
}

#[test]
fn a_client_certificate_that_the_service_does_not_know_gives_502_until_the_right_one_is_delivered() {
    for version in ["1.2", "1.3"] {
        let service = Service::start(&CERTS, &["--tls", version]);
        let daemon = Setup::new(service.port).start();
        let mut bundle = OTHERS.full_bundle(service.port);
        let mut parts: serde_json::Value =
            serde_json::from_str(bundle["MTLS_CLIENT_CERT_JSON"].as_str().unwrap()).unwrap();
        parts["ca_cert"] = json!(CERTS.read("ecs-ca.crt"));
        bundle["MTLS_CLIENT_CERT_JSON"] = parts;
        let answer = daemon.handshake(bundle.to_string().as_bytes());
        assert_eq!(answer["ok"], true, "the service may know another CA than the client: {answer}");
        assert_fails(&daemon);
        // In TLS 1.3 the client is done before the server has looked at its certificate.
        assert_eq!((service.count("TLS handshake: client"), service.count("POST")), (0, 0));
        assert_eq!(daemon.handshake(CERTS.bundle(service.port).to_string().as_bytes())["ok"], true);
        assert_works(&daemon);
    }
}

#[test]
fn a_service_that_asks_for_no_client_certificate_is_served_too() {
    let service = Scripted::start(|_, _| Step::Answer);
    let daemon = daemon_for(&[service.port]);
    assert_eq!(call(&daemon).text(), scripted::MARKED);
}

#[test]
fn the_development_service_lets_nobody_in_without_a_certificate_of_its_ca() {
    let service = Service::start(&CERTS, &[]);
    let curl = |certs: Option<&Certs>| {
        let mut command = Command::new("curl");
        command.args(["-q", "-sS", "--noproxy", "*", "--max-time", "30", "--cacert"]).arg(CERTS.path("ca.crt"));
        if let Some(certs) = certs {
            command.arg("--cert").arg(certs.path("client.crt")).arg("--key").arg(certs.path("client.key"));
        }
        command.arg(format!("https://localhost:{}/health", service.port)).output().unwrap()
    };
    let known = curl(Some(&CERTS));
    assert!(known.status.success() && known.stdout.starts_with(b"{"), "{known:?}");
    for refused in [curl(None), curl(Some(&OTHERS))] {
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    }
    // The service tells its log only after it has told the client.
    wait_for("both refusals in the service's log", || (service.count("TLS handshake failed") == 2).then_some(()));
    assert_eq!(service.count("GET /health"), 1);
}
