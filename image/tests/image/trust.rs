//! The operators who may send secrets to the image, and the warnings of what its settings give up.

use super::*;

const KEY: &str = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

/// What the build warns of.
fn warnings(place: &Place, more: &[&str]) -> String {
    stderr(&succeeds(place.build(more)))
}

#[test]
fn operators_keys_become_a_setting_that_is_measured() {
    let place = Place::new();
    place.write("a.pub", format!("{KEY}\n"));
    place.write("b.pub", KEY);
    place.parts(&["--operator", "a.pub", "--operator", "b.pub"]);
    let environment =
        place.shell("mkdir -p root; xz -dc parts/ramdisk-1 | (cd root; cpio -id --quiet); cat root/etc/teemark.env");
    assert!(environment.ends_with(&format!("\nTEEMARK_OPERATOR_KEYS={KEY},{KEY}\n")), "{environment}");
    let with = place.text("out/teemark.pcrs");
    succeeds(place.build(&["--operator", "a.pub"]));
    let other = place.text("out/teemark.pcrs");
    assert_ne!(with.lines().next().unwrap(), other.lines().next().unwrap());
}

#[test]
fn what_is_no_operators_key_is_refused() {
    let place = Place::new();
    for (bytes, reason) in [
        (&b"AAAA"[..], "is not the public half"),
        (b"-----BEGIN PRIVATE KEY-----\n", "is not the public half"),
        (b"\xff\xfe", "is not the public half"),
        (b"", "is empty"),
    ] {
        place.write("a.pub", bytes);
        let output = place.build(&["--operator", "a.pub"]);
        assert!(output.status.code() == Some(2) && stderr(&output).contains(reason), "{}", stderr(&output));
    }
    place.write("a.pub", KEY);
    place.write("env", format!("TEEMARK_OPERATOR_KEYS={KEY}\n"));
    let told = stderr(&place.build(&["--operator", "a.pub"]));
    assert!(told.contains("env:2"), "{told}");
}

#[test]
fn a_threshold_above_the_number_of_operators_is_refused() {
    let place = Place::new();
    place.write("a.pub", KEY);
    place.write("env", "TEEMARK_OPERATOR_THRESHOLD=2\n");
    // Listed twice, it is one operator.
    let output = place.build(&["--operator", "a.pub", "--operator", "a.pub"]);
    let told = stderr(&output);
    assert!(output.status.code() == Some(2) && told.contains("env:1") && told.contains("1 different keys"), "{told}");
    place.write("b.pub", "PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=\n");
    succeeds(place.build(&["--operator", "a.pub", "--operator", "b.pub"]));
}

#[test]
fn an_image_that_gives_something_up_is_told_so() {
    let place = Place::new();
    place.write("a.pub", KEY);
    assert_eq!(warnings(&place, &["--operator", "a.pub"]), "");
    assert!(warnings(&place, &[]).contains("nobody can send it secrets"));
    place.write(
        "env",
        "TEEMARK_HANDSHAKE=plain\nTEEMARK_GRANTS=off\nTEEMARK_ALLOW_UNWATERMARKED=on\nTEEMARK_PUBLIC_METRICS=on\n",
    );
    let told = warnings(&place, &[]);
    assert!(told.contains("env:3: TEEMARK_ALLOW_UNWATERMARKED=on gives out unmarked files"), "{told}");
    assert!(told.contains("env:4: TEEMARK_PUBLIC_METRICS=on tells whoever reaches the public port"), "{told}");
    assert!(told.contains("env:1: TEEMARK_HANDSHAKE=plain lets the parent read"), "{told}");
    assert!(told.contains("env:2: TEEMARK_GRANTS=off gives any file"), "{told}");
}

#[test]
fn certificates_of_a_ca_that_is_not_pinned_are_refused() {
    let place = Place::new();
    place.certs();
    let pin = |name: &str| place.shell(&format!("openssl x509 -in {name} -noout -fingerprint -sha256 | cut -d= -f2"));
    place.write("env", format!("TEEMARK_PIN_CA={}", pin("certs/ecs-ca.crt")));
    succeeds(place.build(&["--certs", "certs"]));
    place.write("env", format!("TEEMARK_PIN_CA={}", pin("certs/client.crt")));
    let told = stderr(&place.build(&["--certs", "certs"]));
    assert!(told.contains("ecs-ca.crt") && told.contains("is not pinned"), "{told}");
}
