//! Images that hold a secret.

use super::*;

#[test]
fn baked_in_certificates_have_their_modes_and_the_image_is_for_its_owner_only() {
    let place = Place::new();
    place.certs();
    let output = succeeds(place.build(&["--certs", "certs"]));
    let warning = "warning: THE IMAGE HOLDS SECRETS: client.key. Everyone who can read out/teemark.eif (mode 600)";
    assert!(stderr(&output).contains(warning), "{}", stderr(&output));
    assert!(!stderr(&output).contains("not issued by ecs-ca.crt"), "{}", stderr(&output));
    assert_eq!((place.mode("out/teemark.eif"), place.mode("out/teemark.pcrs")), (0o600, 0o644));

    succeeds(place.run(&["parts", "out/teemark.eif", "parts"]));
    for part in ["kernel", "cmdline", "ramdisk-0", "ramdisk-1"] {
        assert_eq!(place.mode(&format!("parts/{part}")), 0o600);
    }
    let list = place.shell("xz -dc <parts/ramdisk-1 | cpio -itv --quiet 'opt/enclave/certs/*'");
    let files: Vec<_> = list.lines().map(|l| (&l[..10], l.rsplit('/').next().unwrap())).collect();
    assert_eq!(files, [("-rw-r--r--", "client.crt"), ("-rw-------", "client.key"), ("-rw-r--r--", "ecs-ca.crt")]);
    place
        .shell("mkdir root; cd root; xz -dc <../parts/ramdisk-1 | cpio -i --quiet; diff -r opt/enclave/certs ../certs");
}

#[test]
fn the_hash_of_a_secret_is_left_out_of_the_record() {
    let place = Place::new();
    place.certs();
    place.write("env", format!("FILE_KEYS={{\"1\":\"{}=\"}}\n", "A".repeat(43)));
    let output = succeeds(place.build(&["--certs", "certs"]));
    assert!(stderr(&output).contains("THE IMAGE HOLDS SECRETS: client.key, FILE_KEYS."), "{}", stderr(&output));
    let json = place.json("out/teemark.json");
    assert_eq!(json["secrets"], serde_json::json!(["client.key", "FILE_KEYS"]));
    for (part, hash) in [("client.key", false), ("environment", false), ("client.crt", true), ("ecs-ca.crt", true)] {
        assert!(json["parts"][part]["bytes"].as_u64().unwrap() > 0);
        assert_eq!(json["parts"][part]["sha256"].is_string(), hash, "{part}");
    }
}

#[test]
fn a_secret_in_the_environment_file_is_warned_of_and_the_image_is_for_its_owner_only() {
    let place = Place::new();
    place.write("operator.pub", "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n");
    place.write("env", "FILE_KEYS=\n");
    let output = succeeds(place.build(&["--operator", "operator.pub"]));
    assert_eq!((stderr(&output).as_str(), place.mode("out/teemark.eif")), ("", 0o644));
    place.write("env", format!("FILE_KEYS={{\"1\":\"{}=\"}}\n", "A".repeat(43)));
    let output = succeeds(place.build(&[]));
    assert!(stderr(&output).contains("THE IMAGE HOLDS SECRETS: FILE_KEYS."), "{}", stderr(&output));
    assert_eq!(place.mode("out/teemark.eif"), 0o600);
}

#[test]
fn the_build_warns_of_settings_that_work_but_are_probably_not_intended() {
    let place = Place::new();
    place.certs();
    place.certificate("ca2", P_256, "ca2", FOR_AUTHORITY, VALID);
    place.shell("cp ca2.crt certs/ecs-ca.crt");
    place.write("list.yaml", "endpoints:\n");
    place.write("env", "A=1\nTEEMARK_EGRESS=direct\nTEEMARK_MAXFILE=1MiB\n");
    let output = succeeds(place.build(&["--certs", "certs"]));
    for warning in [
        "warning: list.yaml allows no endpoint",
        "warning: env:2: TEEMARK_EGRESS=direct reaches nothing",
        "warning: env:3: teemarkd has no setting TEEMARK_MAXFILE",
        "warning: certs: client.crt is not issued by ecs-ca.crt: the service must know its CA",
    ] {
        assert!(stderr(&output).contains(warning), "{warning} in {}", stderr(&output));
    }
}
