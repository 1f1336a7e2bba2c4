//! certs/make-certs.sh

use super::*;

fn make(place: &Place, arguments: &[&str]) -> Output {
    Command::new("sh")
        .arg(repository().join("certs/make-certs.sh"))
        .args(arguments)
        .arg(place.path("certs"))
        .output()
        .unwrap()
}

fn openssl(place: &Place, arguments: &str) -> Output {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(place.path("certs")).output();
    output.unwrap()
}

fn text(place: &Place, certificate: &str) -> String {
    stdout(&succeeds(openssl(place, &format!("x509 -in {certificate} -noout -text"))))
}

#[test]
fn both_certificates_are_good_for_their_purpose_and_only_for_that() {
    let place = Place::new();
    succeeds(make(&place, &[]));
    for (purpose, certificate, good) in [
        ("sslclient", "client.crt", true),
        ("sslserver", "server.crt", true),
        ("sslserver", "client.crt", false),
        ("sslclient", "server.crt", false),
    ] {
        let verified = openssl(&place, &format!("verify -purpose {purpose} -CAfile ecs-ca.crt {certificate}"));
        assert_eq!(verified.status.success(), good, "{certificate} as {purpose}");
    }
    let client = text(&place, "client.crt");
    for part in ["Digital Signature, Key Encipherment", "TLS Web Client Authentication", "tee-client", "2048 bit"] {
        assert!(client.contains(part), "{part} in {client}");
    }
    let server = text(&place, "server.crt");
    for part in ["DNS:watermark.internal.staging.zing.you", "DNS:localhost", "IP Address:127.0.0.1"] {
        assert!(server.contains(part), "{part} in {server}");
    }
    assert!(text(&place, "ca.crt").contains("CA:TRUE"));
    assert_eq!(place.read("certs/ca.crt"), place.read("certs/ecs-ca.crt"));
}

#[test]
fn keys_are_for_their_owner_only() {
    let place = Place::new();
    succeeds(make(&place, &[]));
    for name in ["ca.key", "server.key", "client.key"] {
        assert_eq!(place.mode(&format!("certs/{name}")), 0o600, "{name}");
    }
    for name in ["ca.crt", "server.crt", "client.crt", "client.csr", "ecs-ca.crt"] {
        assert_eq!(place.mode(&format!("certs/{name}")), 0o644, "{name}");
    }
    // No temporary file is left.
    assert_eq!(fs::read_dir(place.path("certs")).unwrap().count(), 9);
}

#[test]
fn a_second_run_changes_nothing_and_says_so() {
    let place = Place::new();
    succeeds(make(&place, &[]));
    let before = ["ca.key", "server.key", "client.key", "client.crt"].map(|name| place.read(&format!("certs/{name}")));
    assert!(stdout(&succeeds(make(&place, &[]))).contains("nothing changed"));
    let after = ["ca.key", "server.key", "client.key", "client.crt"].map(|name| place.read(&format!("certs/{name}")));
    assert_eq!(before, after);
    succeeds(make(&place, &["--force"]));
    assert_ne!(place.read("certs/ca.key"), before[0]);
}

#[test]
fn rotation_makes_the_client_anew_and_leaves_the_ca_alone() {
    let place = Place::new();
    succeeds(make(&place, &[]));
    let (ca, server, client) =
        (place.read("certs/ca.crt"), place.read("certs/server.crt"), place.read("certs/client.key"));
    assert!(fails(1, &make(&place, &["--client-only"])).contains("--client-only --force"));
    assert_eq!(place.read("certs/client.key"), client);
    succeeds(make(&place, &["--client-only", "--force", "--days", "3"]));
    assert_ne!(place.read("certs/client.key"), client);
    assert_eq!((place.read("certs/ca.crt"), place.read("certs/server.crt")), (ca, server));
    succeeds(openssl(&place, "x509 -in client.crt -noout -checkend 172800"));
    fails(1, &openssl(&place, "x509 -in client.crt -noout -checkend 345600"));
}

#[test]
fn a_real_ca_signs_the_client_and_gets_nothing_else() {
    let place = Place::new();
    fs::create_dir(place.path("certs")).unwrap();
    let ca = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -subj /CN=Real";
    succeeds(openssl(&place, ca));
    succeeds(make(&place, &["--client-only"]));
    succeeds(openssl(&place, "verify -purpose sslclient -CAfile ca.crt client.crt"));
    assert!(place.path("certs/ecs-ca.crt").exists());
    assert!(!place.path("certs/server.crt").exists());
}

#[test]
fn what_does_not_belong_together_is_refused_before_anything_changes() {
    let place = Place::new();
    succeeds(make(&place, &[]));
    fs::rename(place.path("certs/ca.key"), place.path("ca.key")).unwrap();
    assert!(fails(1, &make(&place, &[])).contains("only one of ca.crt and ca.key"));
    assert!(fails(1, &make(&place, &["--client-only", "--force"])).contains("needs ca.crt and ca.key"));

    let client = place.read("certs/client.key");
    succeeds(openssl(&place, "genrsa -out ca.key 2048"));
    assert!(fails(1, &make(&place, &["--client-only", "--force"])).contains("nothing was changed"));
    assert_eq!(place.read("certs/client.key"), client);

    fs::remove_file(place.path("certs/ca.key")).unwrap();
    fs::remove_file(place.path("certs/ca.crt")).unwrap();
    assert!(fails(1, &make(&place, &[])).contains("not the CA that signed them"));
}

#[test]
fn a_wrong_command_line_is_told() {
    let place = Place::new();
    for days in ["0", "-1", "x", "3651", "99999999999999999999", ""] {
        assert!(fails(1, &make(&place, &["--days", days])).contains("1 to 3650"), "{days}");
    }
    assert!(fails(1, &make(&place, &["--frce"])).contains("--frce"));
    assert!(place.names().is_empty());
}
