//! Every kind of key, in every encoding, in every form that a bundle may give it.

use serde_json::json;

use super::*;
use support::openssl::*;

/// Sends a certificate with a key of this kind in each of `encodings` (openssl commands from PEM) and in every form,
/// and has each prove itself in a new TLS handshake with the service.
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
    daemon.health(|answer| answer.status == 200);
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
    // As `openssl ecparam -genkey` writes it without -noout: the curve precedes the key.
    let curve = certs.shell("openssl ecparam -name prime256v1");
    let key = curve + &certs.shell("openssl pkey -in client.key -traditional");
    accepted(&daemon, &bundle(service.port, parts(&told, &key, &certs.read("ca.crt").replace('\n', "\r\n"))));
    assert_eq!(decrypts(&daemon), 200);
}

#[test]
fn an_elliptic_key_without_its_public_half_works_in_both_encodings() {
    for kind in [P_256, P_384] {
        let certs = Certs::with_root();
        certs.issue("client", kind, "ca", FOR_CLIENT, VALID);
        let service = Service::start(&certs, &[]);
        let daemon = Setup::new(service.port).start();
        let sec1 = certs.shell("openssl ec -in client.key -no_public -out sec1.key; cat sec1.key");
        // As Java writes it.
        let pkcs8 = certs.shell("openssl pkcs8 -topk8 -nocrypt -in sec1.key");
        let whole = certs.shell("openssl pkcs8 -topk8 -nocrypt -in client.key");
        assert!(pkcs8.len() + 60 < whole.len(), "openssl left the public half in");
        // With the point compressed, which ring does not read.
        let compressed = certs.shell("openssl ec -in client.key -conv_form compressed");
        for key in [sec1, pkcs8, compressed] {
            accepted(&daemon, &bundle(service.port, parts(&certs.read("client.crt"), &key, &certs.read("ca.crt"))));
            assert_eq!(decrypts(&daemon), 200, "{}", service.process.log());
        }
        assert_eq!(tls_handshakes(&service, &certs.serial("client")), 3);
    }
}

#[test]
fn pem_without_line_ends_and_with_white_space_in_it_works() {
    let certs = &*CERTS;
    let service = Service::start(certs, &[]);
    let daemon = Setup::new(service.port).start();
    let [certificate, key, authority] = ["client.crt", "client.key", "ca.crt"].map(|name| certs.read(name));
    // As an unquoted variable holds it; indented, as in YAML; between other texts on the same line.
    let unquoted = |text: &str| text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    let indented = |text: &str| text.lines().map(|line| format!("    {line} \r\n")).collect::<String>();
    let inline = |text: &str| format!("cert: {} # {{", text.trim_end());
    for form in [&unquoted as &dyn Fn(&str) -> String, &indented, &inline] {
        accepted(&daemon, &bundle(service.port, parts(&form(&certificate), &form(&key), &form(&authority))));
        assert_eq!(decrypts(&daemon), 200);
    }
    assert_eq!(tls_handshakes(&service, &certs.serial("client")), 3);
}

#[test]
fn each_item_may_be_a_string_that_holds_json_and_the_bundle_may_begin_with_a_byte_order_mark() {
    let certs = &*CERTS;
    let service = Service::start(certs, &[]);
    let daemon = Setup::new(service.port).start();
    let mut whole = bundle(service.port, client(certs, "client"));
    for item in ["MTLS_CLIENT_CERT_JSON", "FILE_KEYS"] {
        whole[item] = json!(whole[item].to_string());
    }
    accepted(&daemon, &whole);
    assert_eq!(decrypts(&daemon), 200);
    // What Windows PowerShell 5 writes; also within a string.
    whole["FILE_KEYS"] = json!(format!("\u{feff}{}", whole["FILE_KEYS"].as_str().unwrap()));
    let answer = daemon.handshake(format!("\u{feff}{whole}\r\n").as_bytes());
    assert_eq!(answer["ok"], true, "{answer}");
    assert_eq!(decrypts(&daemon), 200);
}

#[test]
fn white_space_around_strings_and_base64_in_lines_or_without_padding_works() {
    let certs = &*CERTS;
    let service = Service::start(certs, &[]);
    let daemon = Setup::new(service.port).start();
    let mut odd = bundle(service.port, client(certs, "client"));
    odd["ECS_WATERMARK_ENDPOINT"] = json!(format!(" https://localhost:{}\r\n", service.port));
    let key = STANDARD.encode(KEY);
    for form in [format!("{key}\n"), key.replace('=', ""), format!("{}\r\n {}", &key[..9], &key[9..])] {
        odd["FILE_KEYS"] = json!({"k": form});
        accepted(&daemon, &odd);
        assert_eq!(decrypts(&daemon), 200);
    }
    let of_der = |line: &str| certs.shell(&format!("{line} -outform DER | base64 -w 0")).replace('=', "");
    let lines = ["openssl x509 -in client.crt", "openssl pkey -in client.key", "openssl x509 -in ca.crt"].map(of_der);
    odd["MTLS_CLIENT_CERT_JSON"] = parts(&lines[0], &lines[1], &lines[2]);
    accepted(&daemon, &odd);
    assert_eq!(decrypts(&daemon), 200);
}

#[test]
fn a_member_that_is_null_counts_as_absent_and_is_named() {
    let certs = &*CERTS;
    let service = Service::start(certs, &[]);
    let daemon = Setup::new(service.port).start();
    accepted(&daemon, &bundle(service.port, client(certs, "client")));
    let key = STANDARD.encode(KEY);
    let sparse = json!({
        "MTLS_CLIENT_CERT_JSON": null, "ECS_WATERMARK_ENDPOINT": null,
        "FILE_KEYS": {"k": {"key": key, "note": null, "aaad": "file_id"}, "old": null},
    });
    let answer = daemon.handshake(sparse.to_string().as_bytes());
    assert_eq!(answer["updated"], json!(["FILE_KEYS"]));
    let mut ignored: Vec<_> = answer["ignored"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    ignored.sort_unstable();
    let named = [
        "ECS_WATERMARK_ENDPOINT (null)",
        "FILE_KEYS.k.aaad",
        "FILE_KEYS.k.note",
        "FILE_KEYS.old (null)",
        "MTLS_CLIENT_CERT_JSON (null)",
    ];
    assert_eq!(ignored, named);
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
