//! No secret leaves the daemon through its log, answers or metrics, and none stays in its memory.

#[path = "support/needles.rs"]
mod needles;
mod support;

use std::fs;
use std::process::Command;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use needles::{Needles, integers_of_rsa_key};
use support::*;

static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);
static OTHER_CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

/// A file key that does not resemble any table of digits.
const SECRET_KEY: [u8; 32] = [
    0x9d, 0x1e, 0x8b, 0x53, 0xf7, 0x2c, 0xa0, 0x66, 0x38, 0xe1, 0x05, 0xba, 0x7f, 0xd4, 0x91, 0x2a, 0xc8, 0x5d, 0x13,
    0xee, 0x47, 0xb9, 0x60, 0xf2, 0x0c, 0x85, 0xda, 0x39, 0x76, 0xab, 0x1f, 0xe4,
];

/// Lines that occur nowhere else.
const PLAIN: &str =
    "Quarterly figures nobody has seen yet: 8143-7756-2290\nand the second line, just as secret: gnat-57\n";

fn bundle(certs: &Certs, port: u16) -> Value {
    let mut bundle = certs.bundle(port);
    bundle["FILE_KEYS"] = json!({"k": STANDARD.encode(SECRET_KEY)});
    bundle
}

/// The file key and the client's private key, in every form in which they might be written.
fn keys_of(certs: &[&Certs]) -> Needles {
    let mut needles = Needles::default();
    needles.add_all_forms("file key", &SECRET_KEY);
    for certs in certs {
        let pem = fs::read_to_string(certs.path("client.key")).unwrap();
        // What comes first is the algorithm and the public modulus, which the certificate contains too.
        const PUBLIC_LINES: usize = 7;
        for line in pem.lines().filter(|line| !line.starts_with("-----")).skip(PUBLIC_LINES) {
            needles.add("a line of client.key", line.as_bytes());
        }
        let public = pem.lines().take(1 + PUBLIC_LINES).map(|line| line.len() + 1).sum::<usize>();
        needles.add("client.key in base64", &STANDARD.encode(&pem).as_bytes()[public.div_ceil(3) * 4..]);
        for (name, integer) in integers_of_rsa_key(&certs.path("client.key")) {
            needles.add_all_forms(&format!("client.key, {name}"), &integer);
        }
    }
    needles
}

/// What the daemon said, besides its log.
#[derive(Default)]
struct Said {
    /// Everything.
    all: Vec<u8>,
    /// Everything but marked files, which the user may have.
    but_files: Vec<u8>,
}

impl Said {
    fn hear(&mut self, answer: &Answer) {
        let file = answer.head.contains("Teemark-Watermarked") || answer.body.starts_with(b"{\"file_id\"");
        let marked = answer.status == 200 && file;
        for heard in [Some(&mut self.all), (!marked).then_some(&mut self.but_files)].into_iter().flatten() {
            heard.extend_from_slice(answer.head.as_bytes());
            heard.extend_from_slice(&answer.body);
        }
    }

    fn hear_json(&mut self, answer: &Value) {
        for heard in [&mut self.all, &mut self.but_files] {
            heard.extend_from_slice(answer.to_string().as_bytes());
        }
    }
}

/// Bundles with an error in each, and with real secrets.
fn bad_bundles(port: u16) -> Vec<Vec<u8>> {
    let good = bundle(&CERTS, port);
    let text = good.to_string();
    let parts: Value = serde_json::from_str(good["MTLS_CLIENT_CERT_JSON"].as_str().unwrap()).unwrap();
    let with = |name: &str, value: Value| {
        let mut bad = good.clone();
        bad[name] = value;
        bad
    };
    let with_part = |name: &str, value: Value| {
        let mut bad = parts.clone();
        bad[name] = value;
        with("MTLS_CLIENT_CERT_JSON", bad)
    };
    let key = parts["client_key"].as_str().unwrap();
    let pem = fs::read_to_string(CERTS.path("client.key")).unwrap();
    let file_key = STANDARD.encode(SECRET_KEY);
    let mut bad: Vec<Vec<u8>> = vec![
        with_part("client_key", json!(&key[..key.len() / 2])),
        with_part("client_key", json!(&pem[..pem.len() / 2])),
        with_part("client_key", json!(pem.replace("BEGIN PRIVATE KEY", "BEGIN SECRET"))),
        with_part("client_key", json!([key])),
        with_part("client_cert", json!(key)),
        with_part("client_cert", json!(pem)),
        with_part("ca_cert", json!(pem)),
        with_part("client_cert", json!(STANDARD.encode(fs::read(OTHER_CERTS.path("client.crt")).unwrap()))),
        with("MTLS_CLIENT_CERT_JSON", json!(pem)),
        with("MTLS_CLIENT_CERT_JSON", json!([parts])),
        with("MTLS_CLIENT_CERT_JSON", json!(&good["MTLS_CLIENT_CERT_JSON"].as_str().unwrap()[..2000])),
        with("ECS_WATERMARK_ENDPOINT", json!(format!("https://{file_key}@localhost:{port}"))),
        with("ECS_WATERMARK_ENDPOINT", json!(pem)),
        with("ECS_WATERMARK_ENDPOINT", json!(format!("https://localhost:{port}/?key={file_key}"))),
        with("FILE_KEYS", json!(file_key)),
        with("FILE_KEYS", json!([file_key])),
        with("FILE_KEYS", json!({"k": SECRET_KEY})),
        with("FILE_KEYS", json!({"k": format!("{file_key}!")})),
        with("FILE_KEYS", json!({"k": STANDARD.encode([SECRET_KEY, SECRET_KEY].concat())})),
        with("FILE_KEYS", json!({"k": {"key": file_key, "aad": file_key}})),
        with("FILE_KEYS", json!({"k": {"kay": file_key}})),
        json!([good]),
        json!(file_key),
    ]
    .into_iter()
    .map(|bundle| bundle.to_string().into_bytes())
    .collect();
    bad.extend((1..20).map(|n| text.as_bytes()[..text.len() * n / 20].to_vec()));
    bad.push(text.replace(':', "=").into_bytes());
    bad.push([text.as_bytes(), file_key.as_bytes()].concat());
    bad.push([b"\xff", text.as_bytes()].concat());
    bad
}

fn post_admin(daemon: &Daemon, body: &[u8]) -> Answer {
    let length = body.len();
    let head = format!(
        "POST /admin/update-secrets HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    request(daemon.admin, &head, body)
}

/// Requests files that open and files that do not, by both routes.
fn ask_for_files(daemon: &Daemon, said: &mut Said) {
    let good = encrypt(&SECRET_KEY, PLAIN.as_bytes());
    let mut flipped = good.clone();
    flipped[20] ^= 1;
    for file in [&good, &encrypt(&SECRET_KEY, &[PLAIN.as_bytes(), b"\xff"].concat()), &encrypt(&KEY, b"x"), &flipped] {
        said.hear(&daemon.decrypt(file, "file-1", "user-1"));
        let content = STANDARD.encode(file);
        for body in [
            json!({"file_id": "f", "user_id": "u", "encrypted_content": content}),
            json!({"file_id": "f", "user_id": "u", "key_id": "none", "encrypted_content": content}),
            json!({"file_id": [content], "user_id": "u", "encrypted_content": content}),
            json!({"file_id": "f", "user_id": "u", "encrypted_content": {"k": PLAIN}}),
            json!({"file_id": "f", "user_id": "u", "encrypted_content": format!("{PLAIN}?")}),
        ] {
            said.hear(&daemon.post("/files/decrypt", body.to_string().as_bytes()));
        }
    }
    said.hear(&daemon.post("/files/f/decrypt?user_id=u&key_id=none", &good));
    said.hear(&daemon.post("/files/f/decrypt", &good));
    said.hear(&daemon.post("/files/%ff/decrypt?user_id=u", &good));
}

fn ask_around(daemon: &Daemon, said: &mut Said) {
    for path in ["/", "/health", "/ready", "/health_check", "/nothing"] {
        said.hear(&daemon.get(path));
    }
    for path in ["/ping", "/metrics", "/admin/status", "/admin/nothing"] {
        said.hear(&daemon.get_admin(path));
    }
}

fn stop(daemon: &mut Daemon) -> String {
    daemon.process.signal("TERM");
    assert!(daemon.process.child.wait().unwrap().success());
    daemon.process.log()
}

#[test]
fn neither_log_nor_answers_nor_metrics_hold_a_key_or_a_file() {
    let faults = ["fail=500", "cut", "cut-before", "no-data", "not-json", "status-error", "huge=9999999", "unhealthy"];
    let mut services: Vec<Service> = vec![Service::start(&CERTS, &[])];
    services.extend(faults.iter().map(|fault| Service::start(&CERTS, &["--fault", fault])));
    // One whose CA the client does not know, and which does not know the client's.
    services.push(Service::start(&OTHER_CERTS, &[]));
    let mut setup = Setup::new(free_port());
    services.iter().for_each(|service| setup.allowed += &format!("  - localhost:{}\n", service.port));
    let mut daemon = setup.start();
    let mut said = Said::default();
    ask_for_files(&daemon, &mut said);
    for bad in bad_bundles(services[0].port) {
        let answer = daemon.handshake(&bad);
        assert_eq!(answer["ok"], false, "{answer}");
        said.hear_json(&answer);
        let answer = post_admin(&daemon, &bad);
        assert_eq!(answer.status, 400);
        said.hear(&answer);
    }
    for service in &services {
        let mut good = bundle(&CERTS, service.port);
        good["UNKNOWN"] = good["FILE_KEYS"].clone();
        let answer = daemon.handshake(good.to_string().as_bytes());
        assert_eq!(answer["ok"], true, "{answer}");
        said.hear_json(&answer);
        said.hear(&post_admin(&daemon, good.to_string().as_bytes()));
        ask_for_files(&daemon, &mut said);
        ask_around(&daemon, &mut said);
    }
    let log = stop(&mut daemon);
    for line in ["DEBUG", "handshake accepted", "handshake refused", "watermark service localhost", "stopped"] {
        assert!(log.contains(line), "the log is not what this test is about, {line:?} is missing:\n{log}");
    }
    let keys = keys_of(&[&CERTS]);
    keys.must_not_be_in("the log", log.as_bytes());
    keys.must_not_be_in("an answer", &said.all);
    let mut file = Needles::default();
    file.add_all_forms("the file", PLAIN.as_bytes());
    PLAIN.lines().for_each(|line| file.add_all_forms("a line of the file", line.as_bytes()));
    file.must_not_be_in("the log", log.as_bytes());
    file.must_not_be_in("an answer without a file", &said.but_files);
    assert!(file.find(&said.all).is_some(), "the marked files were given out, so the search has to find them");
}

#[test]
fn secrets_from_the_environment_stay_out_of_the_log_too() {
    let service = Service::start(&CERTS, &[]);
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut logs = String::new();
    let bad = bad_bundles(service.port);
    let bundles = [bundle(&CERTS, service.port)].into_iter();
    let bundles = bundles.chain(bad.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()));
    for (n, bundle) in bundles.filter(Value::is_object).enumerate() {
        let setup = bundle
            .as_object()
            .unwrap()
            .iter()
            .fold(Setup::new(service.port), |setup, (name, value)| setup.env(name, &text(value)));
        let written = setup.command().arg("write-certificates").output().unwrap();
        logs += &String::from_utf8_lossy(&written.stdout);
        logs += &String::from_utf8_lossy(&written.stderr);
        let mut daemon = setup.start();
        if n == 0 {
            assert_eq!(daemon.decrypt(&encrypt(&SECRET_KEY, PLAIN.as_bytes()), "f", "u").status, 200);
        }
        logs += &stop(&mut daemon);
    }
    for line in ["environment not used", "teemarkd cannot go on", "mTLS client certificates written"] {
        assert!(logs.contains(line), "{line:?} is missing:\n{logs}");
    }
    keys_of(&[&CERTS]).must_not_be_in("a log", logs.as_bytes());
}

#[test]
fn the_search_finds_a_secret_in_every_form_wherever_it_stands() {
    let mut needles = Needles::default();
    needles.add_all_forms("key", &SECRET_KEY);
    let hex: String = SECRET_KEY.iter().map(|byte| format!("{byte:02x}")).collect();
    for (form, text) in [
        ("bytes", SECRET_KEY.to_vec()),
        ("base64", STANDARD.encode(SECRET_KEY).into_bytes()),
        ("base64, one byte later", STANDARD.encode([b"x", &SECRET_KEY[..]].concat()).into_bytes()),
        ("base64, two bytes later", STANDARD.encode([b"xy", &SECRET_KEY[..]].concat()).into_bytes()),
        ("hex", hex.to_uppercase().into_bytes()),
        ("Debug", format!("{SECRET_KEY:?}").into_bytes()),
        ("JSON", json!(SECRET_KEY).to_string().into_bytes()),
    ] {
        for shift in 0..17 {
            let hay = [&vec![b'.'; shift][..], &text, b"..."].concat();
            assert!(needles.find(&hay).is_some(), "{form} at {shift}");
        }
    }
    assert!(needles.find(&[0; 4096]).is_none());
    let keys = keys_of(&[&CERTS]);
    assert!(keys.find(&fs::read(CERTS.path("client.key")).unwrap()).is_some());
    assert!(keys.find(CERTS.bundle(1).to_string().as_bytes()).is_some());
    assert!(keys.find(&fs::read(CERTS.path("client.crt")).unwrap()).is_none());
}

#[test]
fn there_are_no_core_dumps_and_no_other_process_of_the_user_may_look_in() {
    use std::os::unix::fs::{MetadataExt, chown};
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    // A file in /proc/PID belongs to root once the process is not dumpable (proc(5)). That makes no difference for root
    // itself, so root runs the processes as another user.
    let folder = tempfile::TempDir::new().unwrap();
    let as_root = fs::metadata(folder.path()).unwrap().uid() == 0;
    let setup = Setup::new(free_port());
    let program = folder.path().join("teemarkd");
    // Copied by another process: a process that a test beside this one starts meanwhile would inherit the open copy,
    // and a file that is open for writing cannot be run.
    run(Command::new("cp").arg(env!("CARGO_BIN_EXE_teemarkd")).arg(&program));
    let template = setup.command();
    let mut command = Command::new(&program);
    command.envs(template.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut control = Command::new("sleep");
    control.arg("60");
    if as_root {
        for path in [folder.path(), setup.folder.path(), &setup.folder.path().join("allowed_endpoints.yaml"), &program]
        {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        command.uid(NOBODY).gid(NOBODY);
        control.uid(NOBODY).gid(NOBODY);
    }
    let log = folder.path().join("log");
    let daemon = Process::spawn(&mut command, log);
    wait_for("the daemon", || daemon.log().contains("not ready: waiting for the handshake").then_some(()));
    let control = Process::spawn(&mut control, folder.path().join("control"));
    let owner = |process: &Process| fs::metadata(format!("/proc/{}/environ", process.child.id())).unwrap().uid();
    wait_for("the other process", || (owner(&control) != 0).then_some(()));
    assert_eq!(owner(&daemon), 0, "the daemon is dumpable");
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.child.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
}
