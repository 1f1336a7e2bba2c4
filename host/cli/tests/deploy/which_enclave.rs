//! Which enclave a script uses, and what it says if that is not clear.

use super::*;

/// The scripts, each with arguments that make it do something.
fn scripts(parent: &Parent) -> [Command; 2] {
    parent.write("bundle", "{}");
    let mut send = parent.script("send-secrets.sh");
    send.arg(parent.path("bundle")).env("WAIT", "0");
    [send, parent.script("expose.sh")]
}

#[track_caller]
fn each_says(parent: &Parent, words: &[&str]) {
    for mut script in scripts(parent) {
        let said = fails(&mut script);
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
    assert_eq!(parent.read("socat-calls"), "", "something was connected to");
}

#[test]
fn away_from_the_parent_the_missing_program_and_its_package_are_named() {
    for shell in SHELLS {
        let parent = Parent::new(shell);
        parent.lacks("nitro-cli");
        each_says(&parent, &["nitro-cli is not here", "parent EC2 instance", "aws-nitro-enclaves-cli"]);
        let said = fails(&mut parent.script("run-enclave.sh"));
        assert!(said.contains("nitro-cli is not here") && said.contains("parent EC2 instance"), "{said}");
    }
    let parent = Parent::new(Shell::Busybox);
    parent.lacks("jq");
    each_says(&parent, &["jq is not here", "dnf install jq"]);
}

#[test]
fn where_no_enclave_runs_it_is_told_how_to_start_one() {
    for shell in SHELLS {
        let parent = Parent::new(shell);
        for enclaves in [&[][..], &[("teemark", 16, "TERMINATING")]] {
            parent.running(enclaves);
            each_says(&parent, &["no enclave is running", "systemctl start teemark-enclave", "make run-enclave"]);
        }
    }
}

#[test]
fn another_enclave_is_not_taken_for_ours() {
    for shell in SHELLS {
        let parent = Parent::new(shell);
        parent.running(&[("other", 17, "RUNNING"), ("third one", 18, "RUNNING")]);
        each_says(&parent, &["no enclave named teemark", "other (CID 17), third one (CID 18)", "ENCLAVE_NAME"]);
    }
}

#[test]
fn among_several_of_the_name_the_operator_chooses() {
    for shell in SHELLS {
        let parent = Parent::new(shell);
        parent.running(&[("teemark", 16, "RUNNING"), ("other", 17, "RUNNING"), ("teemark", 18, "RUNNING")]);
        each_says(&parent, &["several enclaves are named teemark", "ENCLAVE_CID to one of 16, 18"]);
    }
}

#[test]
fn the_enclave_of_the_name_is_taken_or_the_one_that_is_named_or_the_cid() {
    for shell in SHELLS {
        for (name, value, cid) in
            [("IGNORED", "", "16"), ("ENCLAVE_NAME", "it's \"another\"", "17"), ("ENCLAVE_CID", "99", "99")]
        {
            let parent = Parent::new(shell);
            parent.running(&[("it's \"another\"", 17, "RUNNING"), ("teemark", 16, "RUNNING")]);
            let [mut send, mut expose] = scripts(&parent);
            let said = fails(send.env(name, value));
            assert!(said.contains(&format!("CID {cid} did not answer")), "{said}");
            assert!(parent.read("socat-calls").ends_with(&format!(" VSOCK-CONNECT:{cid}:7777\n")));

            expose.env(name, value).env("EXPOSE_PUBLIC", "127.0.0.1:0").env("EXPOSE_ADMIN", "");
            let expose = Running::start(&mut expose, parent.path("words"));
            expose.wait_until_it_says(&format!("leads to {}", parent.vsock(cid.parse().unwrap(), 3000)));
            assert_eq!(parent.read("calls").is_empty(), name == "ENCLAVE_CID");
        }
        let parent = Parent::new(shell);
        let [mut send, _] = scripts(&parent);
        assert!(fails(send.env("ENCLAVE_CID", "16:7777,x")).contains("is not a number"));
    }
}

#[test]
fn an_answer_of_nitro_cli_that_is_none_is_not_gone_on_with() {
    for shell in SHELLS {
        let parent = Parent::new(shell);
        parent.write("enclaves", "no JSON");
        each_says(&parent, &["did not print a list"]);
        parent.write("failure", "[ E07 ] Read from disk failure.\n");
        each_says(&parent, &["[ E07 ]", "group ne"]);
    }
}
