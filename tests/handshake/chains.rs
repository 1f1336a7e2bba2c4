//! Chains, and files with several roots.

use super::*;
use support::openssl::*;

const NOT_BY_CA: &str = "client_cert is not issued by ca_cert: the service must know its CA";

/// A root `ca`, an intermediate `middle`, and `client` issued by the intermediate.
fn with_intermediate() -> Certs {
    let certs = Certs::with_root();
    certs.issue("middle", P_256, "ca", FOR_AUTHORITY, VALID);
    certs.issue("client", P_256, "middle", FOR_CLIENT, VALID);
    certs
}

#[test]
fn a_client_certificate_is_shown_with_the_intermediates_that_it_came_with() {
    let certs = with_intermediate();
    let service = Service::start(&certs, &[]);
    let daemon = Setup::new(service.port).start();
    let (leaf, key, root) = (certs.read("client.crt"), certs.read("client.key"), certs.read("ca.crt"));
    let chain = leaf.clone() + &certs.read("middle.crt");
    for form in [chain.clone(), STANDARD.encode(&chain)] {
        accepted(&daemon, &bundle(service.port, parts(&form, &key, &root)));
        assert_eq!(decrypts(&daemon), 200, "{}", service.process.log());
    }
    assert_eq!(tls_handshakes(&service, &certs.serial("client")), 2);

    // The service knows only the root: the calls above succeeded thanks to the intermediate.
    accepted_with(&daemon, &bundle(service.port, parts(&leaf, &key, &root)), &[NOT_BY_CA]);
    assert_eq!(decrypts(&daemon), 502);
}

#[test]
fn the_whole_chain_is_written_to_client_crt_and_read_again() {
    let certs = with_intermediate();
    let service = Service::start(&certs, &[]);
    let daemon = Setup::new(service.port).start();
    let chain = certs.read("client.crt") + &certs.read("middle.crt");
    accepted(&daemon, &bundle(service.port, parts(&chain, &certs.read("client.key"), &certs.read("ca.crt"))));
    let folder = daemon.folder.path().join("certs");
    assert_eq!(std::fs::read_to_string(folder.join("client.crt")).unwrap(), chain);

    let again = Setup::new(service.port).env("TEEMARK_CERTS", folder.to_str().unwrap()).start();
    let mut rest = bundle(service.port, json!(null));
    rest.as_object_mut().unwrap().remove("MTLS_CLIENT_CERT_JSON");
    assert_eq!(again.handshake(rest.to_string().as_bytes())["ok"], true);
    assert_eq!(decrypts(&again), 200);
}

#[test]
fn each_root_of_a_file_with_several_is_trusted_and_no_other() {
    let (ours, theirs, strange) = (&*CERTS, Certs::with_root(), Certs::with_root());
    let service = Service::start(ours, &[]);
    let daemon = Setup::new(service.port).start();
    let [ours_pem, theirs_pem, strange_pem] = [ours, &theirs, &strange].map(|certs| certs.read("ca.crt"));
    let (certificate, key) = (ours.read("client.crt"), ours.read("client.key"));
    for (roots, status) in [
        ([&theirs_pem, &ours_pem, &strange_pem], 200),
        ([&ours_pem, &theirs_pem, &strange_pem], 200),
        ([&strange_pem, &theirs_pem, &ours_pem], 200),
        ([&strange_pem, &theirs_pem, &strange_pem], 502),
    ] {
        let roots: String = roots.into_iter().map(String::as_str).collect();
        // As `cat` makes it from files that do not end with a newline.
        let glued = roots.replace("-----\n-----", "----------");
        assert_eq!(glued.matches("-----END CERTIFICATE----------BEGIN CERTIFICATE-----").count(), 2);
        for form in [roots.clone(), STANDARD.encode(&roots), glued] {
            let warnings: &[&str] = if status == 200 { &[] } else { &[NOT_BY_CA] };
            accepted_with(&daemon, &bundle(service.port, parts(&certificate, &key, &form)), warnings);
            assert_eq!(decrypts(&daemon), status);
        }
        let written = std::fs::read_to_string(daemon.folder.path().join("certs/ecs-ca.crt")).unwrap();
        assert_eq!(written, roots);
    }
}

#[test]
fn an_expired_root_beside_a_valid_one_does_no_harm() {
    let certs = Certs::with_root();
    certs.client("client");
    certs.issue("old", P_256, "old", FOR_AUTHORITY, EXPIRED);
    let service = Service::start(&certs, &[]);
    let daemon = Setup::new(service.port).start();
    let (certificate, key) = (certs.read("client.crt"), certs.read("client.key"));
    let roots = certs.read("old.crt") + &certs.read("ca.crt");
    let warning = "ca_cert: certificate 1 expired at 2021-01-01T00:00:00Z";
    accepted_with(&daemon, &bundle(service.port, parts(&certificate, &key, &roots)), &[warning]);
    assert_eq!(decrypts(&daemon), 200);
}

#[test]
fn a_client_certificate_of_another_ca_than_the_services_works_where_the_service_knows_it() {
    let certs = Certs::with_root();
    certs.issue("clients", P_256, "clients", FOR_AUTHORITY, VALID);
    certs.issue("client", P_256, "clients", FOR_CLIENT, VALID);
    let servers = certs.read("ca.crt");
    // The service accepts clients of the other root; its own certificate is still issued by the first.
    certs.shell("cp clients.crt ca.crt");
    let service = Service::start(&certs, &[]);
    let daemon = Setup::new(service.port).start();
    let parts = parts(&certs.read("client.crt"), &certs.read("client.key"), &servers);
    accepted_with(&daemon, &bundle(service.port, parts), &[NOT_BY_CA]);
    assert_eq!(decrypts(&daemon), 200);
}

#[test]
fn a_chain_that_only_could_not_be_verified_is_not_said_to_miss_ca_cert() {
    let certs = Certs::with_root();
    certs.issue("middle", &P_256.replace("P-256", "P-521"), "ca", FOR_AUTHORITY, VALID);
    certs.issue("client", P_256, "middle", FOR_CLIENT, VALID);
    let daemon = Setup::new(8080).start();
    let chain = certs.read("client.crt") + &certs.read("middle.crt");
    accepted(&daemon, &bundle(8080, parts(&chain, &certs.read("client.key"), &certs.read("ca.crt"))));
}

#[test]
fn an_unusable_ca_is_named_if_another_is_usable() {
    let certs = Certs::with_root();
    certs.client("client");
    certs.issue("p521", &P_256.replace("P-256", "P-521"), "p521", FOR_AUTHORITY, VALID);
    certs.issue("odd", P_256, "odd", &FOR_AUTHORITY.replace("keyCertSign", "digitalSignature"), VALID);
    let service = Service::start(&certs, &[]);
    let daemon = Setup::new(service.port).start();
    let roots = ["p521.crt", "ca.crt", "odd.crt", "server.crt"].map(|name| certs.read(name)).concat();
    let warnings = [
        "ca_cert: certificate 1 has a key whose signatures cannot be verified here: ECDSA P-521 with SHA-256",
        "ca_cert: certificate 3 may not sign others (basicConstraints, keyUsage), and a server could not present it either",
        "ca_cert: certificate 4 is not a CA certificate: the service must present this very certificate",
    ];
    let parts = parts(&certs.read("client.crt"), &certs.read("client.key"), &roots);
    accepted_with(&daemon, &bundle(service.port, parts), &warnings);
    assert_eq!(decrypts(&daemon), 200);

    // A whole system's CAs may be more than an answer should list.
    let roots = certs.read("p521.crt").repeat(19) + &certs.read("ca.crt");
    let parts = self::parts(&certs.read("client.crt"), &certs.read("client.key"), &roots);
    let answer = daemon.handshake(json!({"MTLS_CLIENT_CERT_JSON": parts}).to_string().as_bytes());
    let told: Vec<_> = answer["warnings"].as_array().unwrap().iter().map(|told| told.as_str().unwrap()).collect();
    assert_eq!((told.len(), told[16]), (17, "ca_cert: there are warnings about 3 more certificates"));
}

#[test]
fn a_ca_with_a_self_signature_that_cannot_be_verified_is_named_by_curve_and_hash() {
    let certs = Certs::with_root();
    certs.client("client");
    certs.shell("openssl req -x509 -new -key ca.key -sha512 -subj /CN=ca -days 9 -out strong.crt");
    let daemon = Setup::new(8080).start();
    let parts = parts(&certs.read("client.crt"), &certs.read("client.key"), &certs.read("strong.crt"));
    let warning = "ca_cert: certificate 1 is signed by ECDSA P-256 with SHA-512, which cannot be verified here: a service \
                   whose certificate is signed like this is refused";
    accepted_with(&daemon, &bundle(8080, parts), &[warning]);
}
