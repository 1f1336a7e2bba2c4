//! Input files that the builder refuses. Each case changes one thing, and the error names the file.

use super::*;

/// Expects that a build is refused with this text, and that an earlier image stays as it was.
fn refused(place: &Place, more: &[&str], reason: &str) {
    let names = ["out/teemark.eif", "out/teemark.pcrs", "out/teemark.json"];
    place.shell("mkdir -p out");
    names.iter().for_each(|name| place.write(name, "old"));
    let output = place.build(more);
    assert_eq!(output.status.code(), Some(2), "{reason}: {}{}", stdout(&output), stderr(&output));
    assert!(stderr(&output).contains(reason), "{reason:?} in {}", stderr(&output));
    names.iter().for_each(|name| assert_eq!(place.text(name), "old", "{reason}"));
    assert_eq!(fs::read_dir(place.path("out")).unwrap().count(), 3);
}

#[test]
fn a_missing_or_empty_file_is_named() {
    for file in ["bzImage", "init", "teemarkd", "list.yaml", "env"] {
        let place = Place::new();
        place.write(file, "");
        refused(&place, &[], &format!("error: {file} is empty"));
        fs::remove_file(place.path(file)).unwrap();
        refused(&place, &[], &format!("error: {file} cannot be read: No such file"));
    }
    let place = Place::new();
    refused(&place, &["--debug", "--launcher", "no", "--shell", "/bin/busybox"], "error: no cannot be read");
    refused(&place, &["--debug", "--launcher", "run.sh", "--shell", "no"], "error: no cannot be read");
    refused(&place, &["--sign-key", "no", "--sign-certificate", "env"], "error: no cannot be read");
    refused(&place, &["--certs", "no"], "error: no/client.crt cannot be read");
}

#[test]
fn options_that_belong_together_are_asked_for_together() {
    let place = Place::new();
    for more in [
        &["--debug"][..],
        &["--debug", "--launcher", "run.sh"],
        &["--launcher", "run.sh", "--shell", "/bin/busybox"],
        &["--sign-key", "k"],
        &["--sign-certificate", "c"],
    ] {
        refused(&place, more, "required");
    }
}

#[test]
fn a_file_that_is_not_a_kernel_is_refused() {
    let place = Place::new();
    place.write("bzImage", program(1000));
    refused(&place, &[], "error: bzImage is not a kernel: a bzImage for x86-64, or an uncompressed Image for aarch64");
}

#[test]
fn a_program_that_would_not_run_in_the_enclave_is_refused() {
    const OTHER: &str = "is not a program for x86-64 Linux, as the kernel is";
    let arm = for_aarch64(program(1));
    let mut object = program(1);
    object[16] = 1;
    let cut = program(100)[..200].to_vec();
    let dynamic = fs::read("/bin/ls").unwrap();
    // A second segment, of type INTERP.
    let mut interpreted = program(100);
    interpreted[56] = 2;
    interpreted[120..176].fill(0);
    interpreted[120] = 3;
    for (contents, reason) in [
        (b"#!/bin/sh\n".to_vec(), OTHER),
        (arm, OTHER),
        (object, OTHER),
        (cut, "is damaged or cut off"),
        (program(1)[..70].to_vec(), "is damaged or cut off"),
        (dynamic, "is not static"),
        (interpreted, "is not static"),
    ] {
        for file in ["init", "teemarkd"] {
            let place = Place::new();
            place.write(file, &contents);
            refused(&place, &[], &format!("error: {file} {reason}"));
        }
    }
    let place = Place::new();
    refused(&place, &["--debug", "--launcher", "run.sh", "--shell", "/bin/ls"], "error: /bin/ls is not static");
}

#[test]
fn programs_for_another_architecture_than_the_kernels_are_refused() {
    let place = Place::new();
    place.write("bzImage", aarch64_kernel());
    refused(&place, &[], "error: init is not a program for aarch64 Linux, as the kernel is");
    place.write("init", for_aarch64(program(1)));
    refused(&place, &[], "error: teemarkd is not a program for aarch64 Linux, as the kernel is");
}

#[test]
fn a_launcher_for_another_interpreter_or_of_another_system_is_refused() {
    let place = Place::new();
    for text in ["#!/bin/bash\n", "#!/bin/sh\r\n", "echo\n"] {
        place.write("run.sh", text);
        refused(
            &place,
            &["--debug", "--launcher", "run.sh", "--shell", "/bin/busybox"],
            "error: run.sh does not begin with the line #!/bin/sh",
        );
    }
}

#[test]
fn an_allow_list_that_the_daemon_would_refuse_is_refused_with_its_line() {
    let place = Place::new();
    place.write("list.yaml", "endpoints:\n- a.example\n- a.example:443\n");
    refused(&place, &[], "error: list.yaml:3: a.example:443 is listed twice");
    place.write("list.yaml", "hosts:\n");
    refused(&place, &[], "error: list.yaml:1: expected `endpoints:`");
}

#[test]
fn an_environment_file_that_init_would_refuse_is_refused_with_its_line() {
    let place = Place::new();
    for (text, reason) in [
        ("# settings\nA\n", "error: env:2: neither NAME=value"),
        ("A=1", "error: env:1: the line does not end"),
        ("A=1\r\n", "error: env:1: a control character in the value"),
        ("A=1\nA=2\n", "error: env:2: an earlier line sets the same variable"),
        ("export A=1\n", "error: env:1: a name has letters"),
    ] {
        place.write("env", text);
        refused(&place, &[], reason);
    }
    place.write("env", format!("# {}\n", "x".repeat(64 * 1024)));
    refused(&place, &[], "error: env has more than 65536 bytes");
}

#[test]
fn a_setting_that_the_daemon_would_refuse_is_refused_with_its_line() {
    let place = Place::new();
    for (text, reason) in [
        ("\nTEEMARK_MAX_FILE=64MB\n", "error: env:2: TEEMARK_MAX_FILE: \"64MB\" is not a size"),
        ("TEEMARK_PUBLIC=3000\n", "error: env:1: TEEMARK_PUBLIC: \"3000\" is not an address"),
        (
            "TEEMARK_ENDPOINTS=/list\n",
            "error: env:1: TEEMARK_ENDPOINTS: the image has the allow list at /allowed_endpoints.yaml",
        ),
        (
            "A=\nECS_WATERMARK_ENDPOINT=https://b.example\n",
            "error: env:2: ECS_WATERMARK_ENDPOINT: is not on the allow list",
        ),
        ("FILE_KEYS={\"1\":\"AAAA\"}\n", "error: env:1: FILE_KEYS.1: is 3 bytes long, not 32"),
        ("MTLS_CLIENT_CERT_JSON={}\n", "error: env:1: MTLS_CLIENT_CERT_JSON.client_cert: is missing"),
    ] {
        place.write("env", text);
        refused(&place, &[], reason);
    }
    place.certs();
    place.write("env", "TEEMARK_CERTS=/certs\n");
    refused(
        &place,
        &["--certs", "certs"],
        "error: env:1: TEEMARK_CERTS: the image has the certificates in /opt/enclave/certs",
    );
    succeeds(place.build(&[]));
}

#[test]
fn certificates_that_the_daemon_would_not_use_are_refused() {
    let place = Place::new();
    place.certs();
    place.certificate("old", P_256, "ca", FOR_CLIENT, EXPIRED);
    place.certificate("server", P_256, "ca", "extendedKeyUsage=serverAuth", VALID);
    for (change, reason) in [
        ("cp old.key certs/client.key", "certs/client.key does not belong to client.crt"),
        (
            "cp old.key certs/client.key; cp old.crt certs/client.crt",
            "certs/client.crt certificate 1 expired at 2021-01-01",
        ),
        ("cp server.key certs/client.key; cp server.crt certs/client.crt", "certs/client.crt is not for TLS clients"),
        ("echo x >certs/ecs-ca.crt", "certs/ecs-ca.crt is "),
        ("cp ca.crt certs/client.crt; cp ca.key certs/client.key", "certs/client.crt is a CA's certificate"),
        ("rm certs/ecs-ca.crt", "certs/ecs-ca.crt cannot be read: No such file"),
        ("rm certs/client.key", "certs/client.key cannot be read: No such file"),
        (": >certs/client.key", "certs/client.key is empty"),
    ] {
        place.shell("cp client.crt client.key certs/; cp ca.crt certs/ecs-ca.crt");
        place.shell(change);
        refused(&place, &["--certs", "certs"], &format!("error: {reason}"));
    }
}

#[test]
fn a_key_or_certificate_that_cannot_sign_is_refused() {
    let place = Place::new();
    place.certificate("signer", P_384, "signer", FOR_CLIENT, VALID);
    place.certificate("other", P_384, "other", FOR_CLIENT, VALID);
    place.certificate("old", P_384, "old", FOR_CLIENT, EXPIRED);
    place.certificate("rsa", RSA, "rsa", FOR_CLIENT, VALID);
    place.shell("openssl pkey -in signer.key -aes256 -passout pass:x -out locked.key");
    for (key, certificate, reason) in [
        ("other.key", "signer.crt", "signer.crt cannot be used with the key other.key: The EIF signature is not valid"),
        ("old.key", "old.crt", "old.crt cannot be used with the key old.key: The signing certificate is expired"),
        ("rsa.key", "rsa.crt", "rsa.key is not a private key in PEM for P-384, P-256 or P-521"),
        ("env", "signer.crt", "env is not a private key in PEM"),
        ("signer.key", "env", "env is not a certificate in PEM"),
        ("locked.key", "signer.crt", "locked.key is protected by a passphrase"),
    ] {
        refused(&place, &["--sign-key", key, "--sign-certificate", certificate], &format!("error: {reason}"));
    }
}

#[test]
fn a_command_line_or_name_that_cannot_work_is_refused() {
    let place = Place::new();
    refused(
        &place,
        &["--command-line", "teemark.target=/run.sh"],
        "teemark.target=/run.sh does not name a program in this image",
    );
    refused(&place, &["--command-line", "a\nb"], "command line: has the character '\\n'");
    refused(&place, &["--name", "../x"], "\"../x\" is not a valid image name");
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let place = Place::new();
    place.write("file", "");
    let output = place.build(&["--name", "x"]);
    succeeds(output);
    let files = "build --kernel bzImage --init init --daemon teemarkd --endpoints list.yaml --environment env";
    let output = place.run(&[&files.split(' ').collect::<Vec<_>>()[..], &["--output", "file"]].concat());
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("error: file cannot be written: File exists"), "{}", stderr(&output));
}
