use super::*;

#[test]
fn the_image_is_started_and_its_cid_and_the_next_steps_are_told() {
    for shell in SHELLS {
        let parent = Parent::new(shell);
        parent.running(&[("other", 16, "RUNNING"), ("teemark", 17, "TERMINATING")]);
        let output = succeeds(&mut parent.script("run-enclave.sh"));
        let run = format!(
            "run-enclave --enclave-name teemark --eif-path {} --memory 512 --cpu-count 2\n",
            parent.path("image.eif").display()
        );
        assert_eq!(parent.read("calls"), format!("describe-enclaves\n{run}"));
        let told = stdout(&output);
        assert!(told.starts_with("enclave teemark runs: CID 19, 512 MiB, CPUs [1,3]\n"), "{told}");
        for step in ["send-secrets.sh", "expose.sh", "/ready"] {
            assert!(told.contains(step), "{told}");
        }
        assert!(!told.contains("console"), "there is none without debug mode");
        assert!(stderr(&output).contains("Started enclave with enclave-cid: 19"));
    }
}

#[test]
fn name_memory_cpus_and_debug_mode_come_from_the_environment() {
    for shell in SHELLS {
        let parent = Parent::new(shell);
        let mut script = parent.script("run-enclave.sh");
        script.env("ENCLAVE_NAME", "a b").env("ENCLAVE_MEMORY", "1024").env("ENCLAVE_CPUS", "4");
        let told = stdout(&succeeds(script.env("ENCLAVE_DEBUG", "1")));
        let call = parent.read("calls");
        assert!(call.contains("--enclave-name a b ") && call.ends_with("--memory 1024 --cpu-count 4 --debug-mode\n"));
        assert!(told.contains("nitro-cli console --enclave-name a b"), "{told}");
    }
}

#[test]
fn an_enclave_that_runs_already_is_named_rather_than_doubled() {
    for shell in SHELLS {
        let parent = Parent::new(shell);
        parent.running(&[("other", 16, "RUNNING"), ("teemark", 17, "RUNNING")]);
        let said = fails(&mut parent.script("run-enclave.sh"));
        for words in ["runs already: teemark, CID 17, i-0f5a-enc17", "terminate-enclave --enclave-name teemark"] {
            assert!(said.contains(words), "{said}");
        }
        assert_eq!(parent.read("calls"), "describe-enclaves\n");
    }
}

#[test]
fn without_the_device_or_the_image_nothing_is_started() {
    for shell in SHELLS {
        let parent = Parent::new(shell);
        let said = fails(parent.script("run-enclave.sh").env("ENCLAVE_EIF", "none.eif"));
        assert!(said.contains("none.eif cannot be read") && said.contains("make image"), "{said}");
        let said = fails(parent.script("run-enclave.sh").env("NITRO_DEVICE", "/dev/none"));
        assert!(said.contains("/dev/none is not there") && said.contains("make run-vm"), "{said}");
        assert!(!parent.read("calls").contains("run-enclave"));
    }
}

#[test]
fn what_nitro_cli_says_of_a_failure_stands_beside_where_it_is_explained() {
    for shell in SHELLS {
        let parent = Parent::new(shell);
        // Only the second call fails.
        let stand_in = format!(
            "#!/bin/sh\n[ \"$1\" = run-enclave ] || exec '{}' \"$@\"\necho '[ E36 ] Enclave boot failure.' >&2\nexit 36\n",
            fs::canonicalize(parent.path("bin/nitro-cli")).unwrap().display()
        );
        parent.lacks("nitro-cli");
        parent.write_script("bin/nitro-cli", &stand_in);
        let said = fails(&mut parent.script("run-enclave.sh"));
        assert!(said.contains("[ E36 ]") && said.contains("README.md"), "{said}");
    }
}

#[test]
fn a_word_too_many_is_no_reason_to_start_one() {
    let parent = Parent::new(Shell::System);
    assert_eq!(parent.script("run-enclave.sh").arg("--debug").status().unwrap().code(), Some(2));
    assert!(stdout(&succeeds(parent.script("run-enclave.sh").arg("--help"))).contains("ENCLAVE_MEMORY"));
    assert_eq!(parent.read("calls"), "");
}
