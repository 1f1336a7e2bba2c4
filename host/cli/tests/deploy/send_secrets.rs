use std::io::Write;
use std::os::unix::net::UnixListener;
use std::sync::LazyLock;
use std::thread;

use super::*;

/// The commands of certs/README.md.
const HEREDOC: &str = r#"cat > mtls_certs.json <<EOF
{
  "MTLS_CLIENT_CERT_JSON": "{\"client_cert\":\"$(cat client.crt | base64 -w 0)\",\"client_key\":\"$(cat client.key | base64 -w 0)\",\"ca_cert\":\"$(cat ecs-ca.crt | base64 -w 0)\"}",
  "ECS_WATERMARK_ENDPOINT": "https://watermark.internal.staging.zing.you:8080"
}
EOF"#;

/// The bundle that they make of real certificates.
static BUNDLE: LazyLock<String> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    succeeds(Command::new("sh").arg(repository().join("certs/make-certs.sh")).arg(folder.path()));
    succeeds(Command::new("bash").args(["-euc", HEREDOC]).current_dir(folder.path()));
    fs::read_to_string(folder.path().join("mtls_certs.json")).unwrap()
});

fn with_bundle(shell: Shell) -> Parent {
    let parent = Parent::new(shell);
    parent.write("mtls_certs.json", &*BUNDLE);
    parent.running(&[("teemark", 16, "RUNNING")]);
    parent
}

fn send(parent: &Parent, file: &str) -> Command {
    let mut script = parent.script("send-secrets.sh");
    script.arg(parent.path(file)).env("WAIT", "20");
    script
}

/// Listens on the enclave's port 7777 and serves senders in turn: reads all that one sends, then does this.
fn meets(parent: &Parent, answers: Vec<(Duration, &'static str)>) -> thread::JoinHandle<Vec<Vec<u8>>> {
    let listener = UnixListener::bind(parent.path("16.7777")).unwrap();
    thread::spawn(move || {
        let meet = |(pause, answer): (Duration, &str)| {
            let mut stream = listener.accept().unwrap().0;
            let mut sent = Vec::new();
            stream.read_to_end(&mut sent).unwrap();
            thread::sleep(pause);
            let _ = stream.write_all(answer.as_bytes());
            sent
        };
        answers.into_iter().map(meet).collect()
    })
}

const ACCEPTED: &str = "{\"ok\":true,\"updated\":[],\"ignored\":[],\"missing\":[]}\n";

#[test]
fn the_daemon_takes_the_seeds_bundle_and_what_is_still_missing_is_told() {
    for shell in SHELLS {
        let parent = with_bundle(shell);
        let _enclave = enclave(&parent, 16);
        let output = succeeds(&mut send(&parent, "mtls_certs.json"));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["ok"], true);
        assert!(stderr(&output).contains("still needs FILE_KEYS"), "{}", stderr(&output));
        assert!(parent.path("certs/client.key").exists());
    }
}

#[test]
fn a_refusal_is_shown_with_field_and_reason_and_ends_with_1() {
    for shell in SHELLS {
        let parent = with_bundle(shell);
        let _enclave = enclave(&parent, 16);
        parent.write("bundle", r#"{"ECS_WATERMARK_ENDPOINT": "https://elsewhere.example:8080"}"#);
        let output = send(&parent, "bundle").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&answer["ok"], &answer["field"]), (&json!(false), &json!("ECS_WATERMARK_ENDPOINT")));
        assert!(stderr(&output).ends_with("send-secrets.sh: refused\n"), "{}", stderr(&output));
    }
}

#[test]
fn a_refusal_that_an_answer_lost_before_may_have_caused_says_so() {
    const REFUSED: &str = "{\"ok\":false,\"field\":\"sealed_bundle.counter\",\"error\":\"is not above 7\"}\n";
    for shell in SHELLS {
        let parent = with_bundle(shell);
        let enclave = meets(&parent, vec![(Duration::ZERO, ""), (Duration::ZERO, REFUSED)]);
        assert!(fails(&mut send(&parent, "mtls_certs.json")).contains("it may be in force already"));
        assert_eq!(enclave.join().unwrap().len(), 2);
    }
}

#[test]
fn it_waits_until_the_enclave_listens_and_answers_and_sends_all_of_it_each_time() {
    for shell in SHELLS {
        let parent = with_bundle(shell);
        let mut sending = Running::start(&mut send(&parent, "mtls_certs.json"), parent.path("words"));
        sending.wait_until_it_says("waiting until the enclave listens on vsock:16:7777");
        let enclave = meets(&parent, vec![(Duration::ZERO, ""), (Duration::ZERO, ACCEPTED)]);
        assert_eq!(sending.ends(), Some(0), "{}", sending.said());
        assert_eq!(enclave.join().unwrap(), [BUNDLE.as_bytes(), BUNDLE.as_bytes()]);
        assert_eq!(sending.said().matches("waiting").count(), 1);
    }
}

#[test]
fn an_answer_that_takes_its_time_is_waited_for() {
    for shell in SHELLS {
        let parent = with_bundle(shell);
        // socat alone would end after half a second.
        let _enclave = meets(&parent, vec![(Duration::from_secs(3), ACCEPTED)]);
        assert!(stdout(&succeeds(&mut send(&parent, "mtls_certs.json"))).contains("\"ok\":true"));
    }
}

#[test]
fn it_does_not_wait_for_ever() {
    for shell in SHELLS {
        let parent = with_bundle(shell);
        let said = fails(send(&parent, "mtls_certs.json").env("WAIT", "1"));
        assert!(said.contains("CID 16 did not answer on port 7777 within 1 s: ") && said.contains("socat["), "{said}");
    }
}

#[test]
fn a_signal_while_it_waits_leaves_no_file_behind() {
    for shell in SHELLS {
        for (signal, status) in [("HUP", 129), ("INT", 130), ("TERM", 143)] {
            let parent = with_bundle(shell);
            fs::create_dir(parent.path("tmp")).unwrap();
            let files = || fs::read_dir(parent.path("tmp")).unwrap().count();
            let mut sending = Running::start(
                send(&parent, "mtls_certs.json").env("TMPDIR", parent.path("tmp")),
                parent.path("words"),
            );
            sending.wait_until_it_says("waiting until the enclave listens");
            assert_eq!(files(), 1);
            let number = sending.child.id().to_string();
            assert!(Command::new("kill").args(["-s", signal, &number]).status().unwrap().success());
            assert_eq!((sending.ends(), files()), (Some(status), 0), "{signal}");
        }
    }
}

#[test]
fn a_bundle_can_come_by_a_pipe() {
    for shell in SHELLS {
        let parent = with_bundle(shell);
        let enclave = meets(&parent, vec![(Duration::ZERO, ""), (Duration::ZERO, ACCEPTED)]);
        let mut script = parent.script("send-secrets.sh");
        script.arg("-").stdin(fs::File::open(parent.path("mtls_certs.json")).unwrap());
        succeeds(&mut script);
        assert_eq!(enclave.join().unwrap()[1], BUNDLE.as_bytes());
    }
}

#[test]
fn a_sealed_bundle_of_version_2_is_sent_as_it_is_from_a_file_and_by_a_pipe() {
    let sealed = [&b"{\"sealed_bundle_v2\":{}}\n{}"[..], &[0, 0xff, b'\n', 0, b'\n', b'\n']].concat();
    for shell in SHELLS {
        for by_pipe in [false, true] {
            let parent = with_bundle(shell);
            let enclave = meets(&parent, vec![(Duration::ZERO, ""), (Duration::ZERO, ACCEPTED)]);
            fs::write(parent.path("sealed"), &sealed).unwrap();
            let mut script = parent.script("send-secrets.sh");
            if by_pipe {
                script.arg("-").stdin(fs::File::open(parent.path("sealed")).unwrap());
            } else {
                script.arg(parent.path("sealed"));
            }
            succeeds(&mut script);
            assert_eq!(enclave.join().unwrap(), [&*sealed, &sealed]);
        }
    }
}

#[test]
fn what_is_no_bundle_is_told_before_anything_is_sent_and_never_shown() {
    for shell in SHELLS {
        let parent = with_bundle(shell);
        for text in ["", "SECRET", "[\"SECRET\"]", "{\"SECRET\": 1", "{}{\"SECRET\": 1} x"] {
            parent.write("bundle", text);
            let said = fails(&mut send(&parent, "bundle"));
            assert!(said.contains("is not one JSON object") && !said.contains("SECRET"), "{said}");
        }
        assert!(fails(&mut send(&parent, "none")).contains("none cannot be read"));
        assert_eq!(parent.script("send-secrets.sh").status().unwrap().code(), Some(2));
        assert_eq!(parent.read("socat-calls"), "");
    }
}

#[test]
fn what_is_not_the_daemon_is_called_so() {
    for shell in SHELLS {
        let parent = with_bundle(shell);
        for answer in ["HTTP/1.1 400 Bad Request\r\n\r\n", "{}\n", "[]\n", "{\"ok\":\"true\"}\n"] {
            let _ = fs::remove_file(parent.path("16.7777"));
            let _enclave = meets(&parent, vec![(Duration::ZERO, answer)]);
            assert!(fails(&mut send(&parent, "mtls_certs.json")).contains("is not teemarkd"), "{answer}");
        }
    }
}

#[test]
fn no_part_of_a_bundle_shows_in_the_list_of_processes_or_the_output() {
    for shell in SHELLS {
        let parent = with_bundle(shell);
        let _enclave = enclave(&parent, 16);
        let output = succeeds(&mut send(&parent, "mtls_certs.json"));
        let arguments = parent.read("socat-calls") + &parent.read("calls");
        assert_eq!(arguments, "-t 15 - VSOCK-CONNECT:16:7777\ndescribe-enclaves\n");
        assert!(!(stdout(&output) + &stderr(&output)).contains("LS0tLS1"), "base64 of a PEM line");
    }
}
