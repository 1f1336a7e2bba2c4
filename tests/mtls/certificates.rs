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

/// A service with this certificate is not trusted, for this reason; right after, a good one is used.
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
    assert_not_trusted(&OTHERS, "the service's signature is wrong: its CA only has the name of ca_cert");
}

#[test]
fn a_service_whose_certificate_has_expired_is_not_trusted() {
    assert_not_trusted(&with_server(FOR_SERVER, EXPIRED), "the service's certificate expired at 2021-01-01T00:00:00Z");
}

#[test]
fn a_service_whose_certificate_is_not_valid_yet_is_not_trusted() {
    assert_not_trusted(
        &with_server(FOR_SERVER, NOT_YET_VALID),
        "the service's certificate is not valid before 2048-01-01T00:00:00Z",
    );
}

#[test]
fn a_service_whose_certificate_names_another_host_is_not_trusted() {
    // The common name says nothing about the host (RFC 9525, 2).
    let elsewhere = "extendedKeyUsage=serverAuth\nsubjectAltName=DNS:elsewhere.example,DNS:localhost.example";
    assert_not_trusted(
        &with_server(elsewhere, VALID),
        "is not for localhost, but for elsewhere.example, localhost.example",
    );
}

#[test]
fn a_service_that_shows_a_clients_certificate_is_not_trusted() {
    let client = format!("{FOR_CLIENT}\nsubjectAltName=DNS:localhost");
    assert_not_trusted(&with_server(&client, VALID), "is not for TLS servers: its extendedKeyUsage lacks serverAuth");
}

/// [`CERTS`] with a server certificate that openssl self-signed, as `self`, by this line.
fn self_signed(line: &str) -> Certs {
    let certs = with_server(FOR_SERVER, VALID);
    certs
        .shell(&format!("openssl req -x509 -newkey rsa:2048 -nodes -keyout server.key -out server.crt -days 9 {line}"));
    certs
}

/// Sends these certificates with the service's own as ca_cert.
fn trust_the_very_certificate(daemon: &Daemon, certs: &Certs) -> serde_json::Value {
    let [cert, key, ca] = ["client.crt", "client.key", "server.crt"].map(|name| certs.read(name));
    let bundle = json!({"MTLS_CLIENT_CERT_JSON": {"client_cert": cert, "client_key": key, "ca_cert": ca}});
    daemon.handshake(bundle.to_string().as_bytes())
}

#[test]
fn a_service_is_trusted_by_the_very_certificate_that_is_ca_cert_whether_a_cas_self_signed_or_issued() {
    let named = "-subj /CN=localhost -addext subjectAltName=DNS:localhost";
    for (certs, is_ca) in [
        (self_signed(named), true),
        (self_signed(&format!("{named} -addext basicConstraints=critical,CA:FALSE")), false),
        (with_server(FOR_SERVER, VALID), false),
    ] {
        for version in ["1.2", "1.3"] {
            let service = Service::start(&certs, &["--tls", version]);
            let daemon = Daemon::ready(&service, &CERTS);
            let answer = trust_the_very_certificate(&daemon, &certs);
            let warnings = answer["warnings"].to_string();
            assert_eq!(warnings.contains("the service must present this very certificate"), !is_ca, "{answer}");
            assert_works(&daemon);
        }
    }
}

#[test]
fn the_very_certificate_has_to_name_the_host_and_to_be_the_one_that_is_shown() {
    let (named, other) = ("-addext subjectAltName=DNS:localhost", "-addext subjectAltName=DNS:elsewhere.example");
    let not_ca = "-addext basicConstraints=critical,CA:FALSE";
    for (line, reason) in [
        (format!("-subj /CN=localhost {other}"), "is not for localhost, but for elsewhere.example"),
        (format!("-subj /CN=localhost {other} {not_ca}"), "is not for localhost, but for elsewhere.example"),
    ] {
        let certs = self_signed(&line);
        let service = Service::start(&certs, &[]);
        let daemon = Daemon::ready(&service, &CERTS);
        assert_eq!(trust_the_very_certificate(&daemon, &certs)["ok"], true);
        let message = assert_fails(&daemon);
        assert!(message.contains(reason), "{message}");
    }
    // One that has expired, beside another that is in use.
    let certs = with_server(FOR_SERVER, VALID);
    for extensions in [format!("{FOR_SERVER}\nbasicConstraints=CA:TRUE"), FOR_SERVER.to_owned()] {
        certs.issue("server", P_256, "server", &extensions, EXPIRED);
        let service = Service::start(&certs, &[]);
        let daemon = Daemon::ready(&service, &CERTS);
        certs.shell("mv server.crt old.crt; cat old.crt ca.crt >server.crt");
        assert_eq!(trust_the_very_certificate(&daemon, &certs)["ok"], true);
        let message = assert_fails(&daemon);
        assert!(message.contains("the service's certificate expired at 2021-01-01T00:00:00Z"), "{message}");
    }
    // The same name and even the same key, but another certificate.
    for (extensions, reason) in [("", "is a CA's, and not in ca_cert itself"), (not_ca, "is not issued by ca_cert")] {
        let certs = self_signed(&format!("-subj /CN=localhost {named} {extensions}"));
        let service = Service::start(&certs, &[]);
        let daemon = Daemon::ready(&service, &CERTS);
        let again = format!("-new -key server.key -days 8 -out server.crt -subj /CN=localhost {named} {extensions}");
        certs.shell(&format!("openssl req -x509 {again}"));
        assert_eq!(trust_the_very_certificate(&daemon, &certs)["ok"], true);
        let message = assert_fails(&daemon);
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn a_certificate_that_may_not_sign_vouches_for_no_other() {
    // The service presents a certificate signed with its former one, which is ca_cert: webpki does not check whether a
    // root may sign.
    let certs = with_server(FOR_SERVER, VALID);
    certs.issue("inner", P_256, "server", FOR_SERVER, VALID);
    let daemon_knows = certs.read("server.crt");
    certs.shell("cp inner.key server.key; cat inner.crt > shown.crt");
    let [cert, key] = ["client.crt", "client.key"].map(|name| certs.read(name));
    certs.shell("cp shown.crt server.crt");
    let service = Service::start(&certs, &[]);
    let daemon = Daemon::ready(&service, &CERTS);
    let bundle = json!({"MTLS_CLIENT_CERT_JSON": {"client_cert": cert, "client_key": key, "ca_cert": daemon_knows}});
    assert_eq!(daemon.handshake(bundle.to_string().as_bytes())["ok"], true);
    let message = assert_fails(&daemon);
    assert!(message.contains("is not issued by ca_cert"), "{message}");
}

#[test]
fn a_service_whose_certificate_is_signed_by_an_unknown_algorithm_is_named_by_curve_and_hash() {
    let certs = with_server(FOR_SERVER, VALID);
    certs.shell(
        "openssl req -new -key server.key -subj /CN=server -out server.csr
         printf 'extendedKeyUsage=serverAuth\\nsubjectAltName=DNS:localhost\\n' >ext
         openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -sha512 -days 9 -extfile ext -out server.crt",
    );
    assert_not_trusted(&certs, "is signed by an algorithm that cannot be verified here: ECDSA with SHA-512");
}

#[test]
fn a_port_without_tls_is_named_as_such() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let daemon = daemon_for(&[listener.local_addr().unwrap().port()]);
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").unwrap();
        let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
    });
    let message = assert_fails(&daemon);
    assert!(message.ends_with("TLS with the watermark service failed: the service does not speak TLS on this port"));
    served.join().unwrap();
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
        let warning = "client_cert is not issued by ca_cert: the service must know its CA";
        assert_eq!(answer["warnings"], json!([warning]));
        let message = assert_fails(&daemon);
        // The service closes when it refuses, and a write of the request may notice that before the alert is read.
        let refused = "the service refused the connection (decrypt_error): client_cert is not from the CA";
        assert!(message.contains(refused), "{message}");
        // In TLS 1.3 the client has finished before the server checks its certificate.
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
    // The service writes to its log only after it has told the client.
    wait_for("both refusals in the service's log", || (service.count("TLS handshake failed") == 2).then_some(()));
    assert_eq!(service.count("GET /health"), 1);
}
