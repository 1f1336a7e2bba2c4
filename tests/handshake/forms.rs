//! Every kind of key, in every encoding, in every form that a bundle may give it.

use serde_json::json;

use super::*;
use support::openssl::*;

/// Sends a certificate with a key of this kind in each of `encodings` (openssl commands from PEM) and in every form, and
/// has each prove itself in a new TLS handshake with the service.
fn works_in_every_form(kind: &str, encodings: &[&str]) {
    let certs = Certs::with_root();
    certs.issue("client", kind, "ca", FOR_CLIENT, VALID);
    let serial = certs.serial("client");
    let service = Service::start(&certs, &[]);
    let daemon = Setup::new(service.port).start();
    let mut tried = 0;
    for encoding in encodings {
        let key = certs.shell(&format!("openssl {encoding} -in client.key"));
        let pem = [certs.read("client.crt"), key, certs.read("ca.crt")];
        let der = [
            "openssl x509 -in client.crt -outform DER",
            &format!("openssl {encoding} -in client.key -outform DER"),
            "openssl x509 -in ca.crt -outform DER",
        ];
        let base64 = |line: &String| certs.shell(&format!("{line} | base64 -w 0"));
        let of_der = der.map(|line| base64(&line.to_owned()));
        let of_pem = pem.each_ref().map(|text| STANDARD.encode(text));
        let in_lines = der.map(|line| certs.shell(&format!("{line} | base64")));
        for [certificate, key, authority] in [&pem, &of_pem, &of_der, &in_lines] {
            let object = parts(certificate, key, authority);
            for form in [json!(object.to_string()), object] {
                accepted(&daemon, &bundle(service.port, form));
                tried += 1;
                assert_eq!(decrypts(&daemon), 200, "{encoding}: {}", daemon.process.log());
                assert_eq!(tls_handshakes(&service, &serial), tried, "{encoding}");
            }
        }
    }
    assert_eq!(tried, 8 * encodings.len());
    assert_eq!(daemon.get("/health_check").status, 200);
}

/// PKCS#8, then what the kind had before it: PKCS#1 for RSA, SEC1 for elliptic curves.
const BOTH: [&str; 2] = ["pkcs8 -topk8 -nocrypt", "pkey -traditional"];

#[test]
fn an_rsa_key_of_2048_bits_works_in_every_form() {
    works_in_every_form(RSA_2048, &BOTH);
}

#[test]
fn an_rsa_key_of_3072_bits_works_in_every_form() {
    works_in_every_form(RSA_3072, &BOTH);
}

#[test]
fn an_rsa_key_of_4096_bits_works_in_every_form() {
    works_in_every_form(RSA_4096, &BOTH);
}

#[test]
fn a_p_256_key_works_in_every_form() {
    works_in_every_form(P_256, &BOTH);
}

#[test]
fn a_p_384_key_works_in_every_form() {
    works_in_every_form(P_384, &BOTH);
}

#[test]
fn an_ed25519_key_works_in_every_form() {
    works_in_every_form(ED25519, &BOTH[..1]);
}

#[test]
fn openssl_gives_the_two_encodings_of_a_key_that_these_tests_take_them_for() {
    for (kind, label) in [(RSA_2048, "RSA PRIVATE KEY"), (P_256, "EC PRIVATE KEY")] {
        let certs = Certs(tempfile::TempDir::new().unwrap());
        let [new, old] = BOTH.map(|encoding| certs.shell(&format!("{kind} | openssl {encoding}")));
        assert!(new.starts_with("-----BEGIN PRIVATE KEY-----"), "{kind}");
        assert!(old.starts_with(&format!("-----BEGIN {label}-----")), "{kind}");
    }
}

#[test]
fn pem_with_text_around_it_and_with_the_line_ends_of_windows_works() {
    let certs = &*CERTS;
    let service = Service::start(certs, &[]);
    let daemon = Setup::new(service.port).start();
    let told = certs.shell("openssl x509 -in client.crt -text");
    assert!(told.starts_with("Certificate:"));
    // As `openssl ecparam -genkey` writes it without -noout: the curve stands before the key.
    let curve = certs.shell("openssl ecparam -name prime256v1");
    let key = curve + &certs.shell("openssl pkey -in client.key -traditional");
    accepted(&daemon, &bundle(service.port, parts(&told, &key, &certs.read("ca.crt").replace('\n', "\r\n"))));
    assert_eq!(decrypts(&daemon), 200);
}

#[test]
fn parts_of_one_bundle_may_have_different_forms() {
    let certs = &*CERTS;
    let service = Service::start(certs, &[]);
    let daemon = Setup::new(service.port).start();
    let der = certs.shell("openssl pkey -in client.key -outform DER | base64 -w 0");
    let mixed = parts(&STANDARD.encode(certs.read("client.crt")), &der, &certs.read("ca.crt"));
    accepted(&daemon, &bundle(service.port, mixed));
    assert_eq!(decrypts(&daemon), 200);
}

#[test]
fn a_certificate_without_any_restriction_of_its_use_works() {
    let certs = Certs::with_root();
    certs.issue("client", P_256, "ca", "basicConstraints=CA:FALSE", VALID);
    let service = Service::start(&certs, &[]);
    let daemon = Setup::new(service.port).start();
    let free = parts(&certs.read("client.crt"), &certs.read("client.key"), &certs.read("ca.crt"));
    accepted(&daemon, &bundle(service.port, free));
    assert_eq!(decrypts(&daemon), 200);
}
