//! What the sources bring while the keeper runs, and what they do wrong.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::*;

#[test]
fn a_certificate_that_is_renewed_on_disk_comes_into_force_and_no_request_fails() {
    let (scene, _, enclave, _keeper) = ready(&CERTS);
    let serial = || {
        let text = bash(scene.folder.path(), "openssl x509 -noout -serial -in client.crt");
        text.trim().trim_start_matches("serial=").to_ascii_lowercase()
    };
    let before = serial();
    let make = repository().join("certs/make-certs.sh");
    run(Command::new(make).args(["--client-only", "--force"]).arg(scene.folder.path()));
    assert_ne!(serial(), before);
    let shown = |serial: &str| scene.service.process.log().to_ascii_lowercase().contains(serial);
    wait_for("a call with the new certificate", || {
        scene.decrypts(&enclave, "k");
        shown(&serial()).then_some(())
    });
}

#[test]
fn a_pair_of_files_that_do_not_fit_yet_is_not_sent() {
    let (scene, port, enclave, mut keeper) = ready(&CERTS);
    keeper.tells("current", "");
    let sent = keeper.count("sent");
    bash(
        scene.folder.path(),
        "openssl ecparam -name prime256v1 -genkey -noout -out other.key && mv other.key client.key",
    );
    keeper.tells("source_fault", "client_key is not the key of client_cert");
    assert_eq!(keeper.count("sent"), sent);
    // The enclave restarts meanwhile, and gets the last good pair.
    drop(enclave);
    let enclave = scene.enclave(port, PCRS);
    is_ready(&enclave);
    scene.decrypts(&enclave, "k");
}

#[test]
fn a_file_key_that_comes_while_it_runs_is_sent_alone() {
    let (scene, _, enclave, _keeper) = ready(&CERTS);
    for id in ["creator-1", "creator-2"] {
        let new = ["keygen", "--id", id, "--output", "keys.json"];
        succeeds(scene.teemark(&[&new[..], &["--add"]].concat()));
        wait_for("the new key", || enclave.get("/state").text().contains(id).then_some(()));
        scene.decrypts(&enclave, id);
        scene.decrypts(&enclave, "k");
    }
    let log = enclave.process.log();
    assert_eq!(log.matches("handshake accepted: FILE_KEYS_ADD in force").count(), 2, "{log}");
}

#[test]
fn while_32_clients_work_a_key_comes_each_round_and_a_certificate_is_renewed_and_no_request_fails() {
    const CLIENTS: usize = 32;
    const KEYS: usize = 6;
    let (scene, _, enclave, _keeper) = ready(&CERTS);
    scene.decrypts(&enclave, "k");
    let file = fs::read(scene.path("file.enc")).unwrap();
    let (done, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let answer = enclave.post("/files/f/decrypt?user_id=u&key_id=k", &file);
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    served.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        for n in 0..KEYS {
            let id = format!("creator-{n}");
            succeeds(scene.teemark(&["keygen", "--id", &id, "--output", "keys.json", "--add"]));
            if n == KEYS / 2 {
                let make = repository().join("certs/make-certs.sh");
                run(Command::new(make).args(["--client-only", "--force"]).arg(scene.folder.path()));
            }
            let before = served.load(Ordering::Acquire);
            wait_for("the new key", || enclave.get("/state").text().contains(&id).then_some(()));
            wait_for("more files", || (served.load(Ordering::Acquire) > before + CLIENTS).then_some(()));
        }
        done.store(true, Ordering::Release);
    });
    scene.decrypts(&enclave, "creator-0");
}

#[test]
fn a_command_that_hangs_fails_or_prints_too_much_keeps_its_last_output() {
    let (scene, port) = (Scene::new(&CERTS), free_port());
    let cat = format!("exec cat {}", scene.path("keys.json").display());
    let does = |script: &str| {
        // The keeper may be running it.
        scene.write("new", format!("#!/bin/sh\n{script}\n"));
        bash(scene.folder.path(), "chmod 755 new && mv new source.sh");
    };
    does(&cat);
    let source = scene.path("source.sh").display().to_string();
    let exec = format!("{{ exec = ['{source}'], environment = ['PATH'], timeout = 2, every = 1 }}");
    scene.config(&[port], &exec, ["", ""]);
    let mut keeper = scene.keeper();
    is_ready(&scene.enclave(port, PCRS));
    for (script, words) in [
        ("echo a-secret; exit 7", "ended with status 7"),
        ("echo a-secret; sleep 1000", "took longer than 2 s"),
        ("exec cat /dev/zero", "printed more than 16 MiB"),
        ("echo a-secret", "the key file is not what it should be"),
    ] {
        does(script);
        let words = if words.starts_with("the key") { "FILE_KEYS" } else { words };
        keeper.tells("source_fault", words);
        let enclave = scene.enclave(port, PCRS);
        is_ready(&enclave);
        scene.decrypts(&enclave, "k");
    }
    assert!(!fs::read_to_string(&keeper.output).unwrap().contains("a-secret"));
    does(&cat);
    succeeds(scene.teemark(&["keygen", "--id", "again", "--output", "keys.json", "--add"]));
    let enclave = scene.enclave(port, PCRS);
    wait_for("the new key", || enclave.get("/state").text().contains("again").then_some(()));
}

#[test]
fn enclaves_that_a_file_lists_are_watched_while_it_lists_them() {
    let (scene, ports) = (Scene::new(&CERTS), [free_port(), free_port()]);
    scene.config(&ports[..1], "{ file = 'keys.json' }", ["", "file = 'enclaves'"]);
    scene.write("enclaves", "# none yet\n");
    let mut keeper = scene.keeper();
    let [first, second] = ports.map(|port| scene.enclave(port, PCRS));
    is_ready(&first);
    has_nothing(&second);
    scene.write("enclaves", format!("http://127.0.0.1:{}\n", ports[1]));
    is_ready(&second);
    scene.write("enclaves", "");
    keeper.tells("left", &ports[1].to_string());
}

#[test]
fn its_metrics_tell_how_it_stands() {
    let (_scene, port, enclave, mut keeper) = ready(&CERTS);
    keeper.tells("current", "");
    let listen = keeper.tells("started", "")["listen"].as_str().unwrap().parse().unwrap();
    let get =
        |path: &str| request(listen, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), b"");
    assert_eq!(get("/ready").status, 200);
    let current = format!("teemark_keeper_enclave_current{{enclave=\"http://127.0.0.1:{port}\"}} 1\n");
    wait_for("the metric", || get("/metrics").text().contains(&current).then_some(()));
    assert!(get("/metrics").text().contains("teemark_keeper_bundles_total{result=\"confirmed\"} 1\n"));
    drop(enclave);
    wait_for("the metric", || get("/metrics").text().contains(&current.replace("} 1", "} 0")).then_some(()));
}
