use std::os::unix::fs::PermissionsExt;

use super::*;

/// The console of the enclave with CID 19, which a daemon stands for: it says one line and stays open until the end.
fn console(parent: &Parent, line: &str) -> Running {
    parent.write("line", format!("{line}\n"));
    let path = |name: &str| parent.path(name).display().to_string();
    let mut socat = Command::new(installed("socat"));
    socat.args(["-u", &format!("OPEN:{},ignoreeof", path("line")), &format!("UNIX-LISTEN:{}", path("0.10019"))]);
    let console = Running::start(&mut socat, parent.path("console"));
    wait_for("the console's socket", || parent.path("0.10019").exists().then_some(()));
    console
}

fn first_boot(parent: &Parent) -> Command {
    let mut script = parent.script("first-boot.sh");
    fs::create_dir_all(parent.path("tmp")).unwrap();
    script.arg(parent.path("report")).env("ENCLAVE_CID", "19").env("TMPDIR", parent.path("tmp"));
    script
}

/// What the script has read of the console so far, if anything.
fn heard(parent: &Parent) -> Option<String> {
    let mut folders = fs::read_dir(parent.path("tmp")).unwrap().map(|folder| folder.unwrap().path());
    folders.find_map(|folder| fs::read_to_string(folder.join("console")).ok()).filter(|text| !text.is_empty())
}

#[test]
fn the_report_of_a_first_start_has_what_somebody_elsewhere_needs() {
    for shell in SHELLS {
        let parent = Parent::new(shell);
        let _enclave = enclave(&parent, 19);
        let _console = console(&parent, "[INIT] on the console of i-05f6ed443ae428c95");
        let output = succeeds(&mut first_boot(&parent));
        let report = parent.read("report");
        for check in
            ["enclaves are enabled", "the image is whole", "the heartbeat", "the daemon answers", "it attests itself"]
        {
            assert!(stdout(&output).contains(&format!("ok      {check}:")), "{}", stdout(&output));
            assert!(report.contains(&format!("ok      {check}:")), "{report}");
        }
        for words in [
            "Nitro CLI 1.5.2",
            "\"PCR2\": \"9f\"",
            "Started enclave with enclave-cid: 19",
            "> GET /health_check at vsock:19:3000\nHTTP/1.1 200 ",
            "> GET /get_attestation at vsock:19:3000\nHTTP/1.1 200 ",
            "> GET /ready at vsock:19:3000\nHTTP/1.1 503 ",
            "teemark_requests_total",
            "[INIT] on the console of i-…",
        ] {
            assert!(report.contains(words), "{words}: {report}");
        }
        assert!(!report.contains("i-05f6ed443ae428c95"), "an instance's ID: {report}");
        assert!(fs::metadata(parent.path("report")).unwrap().permissions().mode() & 0o077 == 0);
        let calls = parent.read("calls");
        let run = "run-enclave --enclave-name teemark-first-boot --enclave-cid 19 --eif-path ";
        assert!(calls.contains(run) && calls.contains("--debug-mode --memory 512 --cpu-count 2\n"), "{calls}");
        assert!(calls.ends_with("terminate-enclave --enclave-name teemark-first-boot\n"), "{calls}");
    }
}

#[test]
fn a_start_that_fails_is_reported_with_nitro_clis_words_and_the_console() {
    for shell in SHELLS {
        let parent = Parent::new(shell);
        let _console = console(&parent, "Kernel panic - not syncing");
        // Nothing is heard of the enclave but its console.
        let stand_in = format!(
            "#!/bin/sh\n[ \"$1\" = run-enclave ] || exec '{}' \"$@\"\n\
             until [ -e '{}' ]; do sleep 0.1; done\necho '[ E36 ] Enclave boot failure.' >&2\nexit 36\n",
            fs::canonicalize(parent.path("bin/nitro-cli")).unwrap().display(),
            parent.path("heard").display()
        );
        parent.lacks("nitro-cli");
        parent.write_script("bin/nitro-cli", &stand_in);
        let mut script = Running::start(&mut first_boot(&parent), parent.path("words"));
        wait_for("the console's line", || heard(&parent));
        parent.write("heard", "");
        assert_eq!(script.ends(), Some(1));
        let report = parent.read("report");
        for words in ["FAILED  the heartbeat:", "[ E36 ]", "(status 36)", "Kernel panic - not syncing"] {
            assert!(report.contains(words), "{words}: {report}");
        }
        assert!(!report.contains("GET /"), "nothing answers: {report}");
    }
}

#[test]
fn a_running_enclave_is_not_disturbed() {
    for shell in SHELLS {
        let parent = Parent::new(shell);
        parent.running(&[("other", 19, "RUNNING")]);
        let said = fails(&mut first_boot(&parent));
        assert!(said.contains("clash with a running enclave: other, CID 19"), "{said}");
        assert_eq!(parent.read("calls"), "describe-enclaves\n");
    }
}
