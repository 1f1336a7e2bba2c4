//! `teemark doctor` with a whole deployment: the daemon, the service, expose, the log's relay and collector are real. Only
//! nitro-cli and AWS' vsock-proxy, which do not exist here, are stand-ins, and a folder stands for the parent's `/`.

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use formats::time::Utc;
use serde_json::{Value, json};
use tempfile::TempDir;

use support::openssl::{FOR_CLIENT, P_256};
use support::*;

/// How a deployment is set up.
struct Plan {
    /// Days until the client certificate expires.
    days: u64,
    /// Arguments of the watermark service.
    service: &'static [&'static str],
    /// Seconds by which the module's clock is ahead.
    clock: &'static str,
    /// The CID to which expose leads, if it runs.
    expose: Option<&'static str>,
    /// Which entry of the allow list the proxy of each port leads to.
    proxies: &'static [(u16, usize)],
    relay: bool,
    collector: bool,
    /// The image's TEEMARK_LOG_TO, if not where the relay listens.
    log_to: Option<&'static str>,
}

const WELL: Plan = Plan {
    days: 100,
    service: &[],
    clock: "0",
    expose: Some("16"),
    proxies: &[(8101, 0), (8102, 1)],
    relay: true,
    collector: true,
    log_to: None,
};

/// A parent instance, its enclave with CID 16, and all that belongs to them.
struct Deployment {
    root: TempDir,
    public: u16,
    admin: u16,
    collector: u16,
    daemon: Daemon,
    programs: Vec<Process>,
    _service: Service,
    _other: TcpListener,
    _certs: Certs,
}

impl Deployment {
    fn new(plan: &Plan) -> Deployment {
        let certs = Certs::with_root();
        let moment = |at: u64| Utc(at).to_string().replace(['-', ':', 'T'], "");
        let (now, end) = (Utc::now().0, plan.days * 86_400 + 3600);
        certs.issue("client", P_256, "ca", FOR_CLIENT, (&moment(now - 3600), &moment(now + end)));
        let service = Service::start(&certs, plan.service);
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let [relay, collector, public, admin] = [(); 4].map(|()| free_port());

        let mut setup = Setup::new(service.port)
            .env("TEEMARKD_TEST_PCRS", "0=a0,1=a1,2=a2")
            .env("TEEMARKD_TEST_CLOCK", plan.clock)
            .env("TEEMARK_LOG_TO", plan.log_to.unwrap_or(&format!("tcp:127.0.0.1:{relay}")));
        let entries =
            [format!("localhost:{}", service.port), format!("localhost:{}", other.local_addr().unwrap().port())];
        setup.allowed = format!("endpoints:\n  - {}\n  - {}\n", entries[0], entries[1]);
        let allowed = setup.allowed.clone();
        let daemon = Daemon::ready_with(setup, service.port, &certs);

        let root = tempfile::tempdir().unwrap();
        let mut deployment = Deployment {
            root,
            public,
            admin,
            collector,
            daemon,
            programs: vec![],
            _service: service,
            _other: other,
            _certs: certs,
        };
        for (name, text) in [
            ("dev/nitro_enclaves", ""),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "256\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0\n"),
            ("sys/module/nitro_enclaves/parameters/ne_cpus", "1,3\n"),
            ("usr/local/lib/teemark/teemark.eif", "its measurements are nitro-cli's"),
            ("allowed_endpoints.yaml", allowed.as_str()),
            // It lives until its standard input ends.
            ("usr/bin/vsock-proxy", "read -r _\n"),
        ] {
            deployment.write(name, text);
        }
        deployment.write("image.pcrs", &pcrs(&["a0", "a1", "a2"]));
        deployment.measures(&"a0".repeat(48));
        deployment.runs(json!([{"EnclaveName": "teemark", "EnclaveCID": 16, "State": "RUNNING", "Flags": "NONE"}]));
        fs::write(deployment.path("root.der"), deployment.daemon.test_root()).unwrap();
        fs::create_dir_all(deployment.path("proc")).unwrap();
        symlink("/proc/net", deployment.path("proc/net")).unwrap();
        fs::create_dir_all(deployment.path("bin")).unwrap();
        symlink(repository().join("host/cli/tests/deploy/nitro-cli"), deployment.path("bin/nitro-cli")).unwrap();
        // Whatever this machine's own has is not this parent's.
        deployment.write("bin/journalctl", "#!/bin/sh\ncat \"$STAND_IN/journal\" 2>/dev/null\n");
        fs::set_permissions(deployment.path("bin/journalctl"), fs::Permissions::from_mode(0o755)).unwrap();

        if plan.collector {
            deployment.start(
                "collect",
                "keeps records in",
                &format!("log collect --listen tcp:127.0.0.1:{collector} --into files --key collector.key"),
            );
        }
        if plan.relay {
            let to = format!("log relay --listen tcp:127.0.0.1:{relay} --to tcp:127.0.0.1:{collector}");
            deployment.start("relay", "leads to", &to);
        }
        if plan.relay && plan.collector && plan.log_to.is_none() {
            wait_for("the log to arrive", || {
                let status = deployment.daemon.get_admin("/admin/status").json();
                status["log"]["acknowledged"].as_u64().filter(|acknowledged| *acknowledged > 0)
            });
        }
        if let Some(cid) = plan.expose {
            let Daemon { public: to, admin: admin_to, .. } = deployment.daemon;
            let line = format!(
                "expose --enclave {cid} --public 127.0.0.1:{public} --public-target tcp:{to} --admin 127.0.0.1:{admin} \
                 --admin-target tcp:{admin_to}"
            );
            deployment.start("expose", "admin: http", &line);
        }
        for (port, entry) in plan.proxies {
            let (host, remote) = entries[*entry].split_once(':').unwrap();
            let mut proxy = Command::new("sh");
            proxy.arg(deployment.path("usr/bin/vsock-proxy")).args(["--config", "x.yaml", "--num_workers", "256"]);
            proxy.args([&port.to_string(), host, remote]).stdin(Stdio::piped());
            deployment.add(&mut proxy, &format!("proxy-{port}"));
        }
        deployment
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// What nitro-cli describe-enclaves prints.
    fn runs(&self, enclaves: Value) {
        self.write("enclaves", &enclaves.to_string());
    }

    /// What nitro-cli describe-eif measures: this PCR0.
    fn measures(&self, pcr0: &str) {
        let [pcr1, pcr2] = ["a1", "a2"].map(|byte| byte.repeat(48));
        let measured = json!({"Measurements": {"HashAlgorithm": "Sha384", "PCR0": pcr0, "PCR1": pcr1, "PCR2": pcr2}});
        self.write("eif", &measured.to_string());
    }

    /// A process of this parent.
    fn add(&mut self, command: &mut Command, name: &str) -> &Process {
        let process = Process::spawn(command.stdout(Stdio::null()), self.path(&format!("{name}.log")));
        let number = process.child.id().to_string();
        symlink(format!("/proc/{number}"), self.path("proc").join(&number)).unwrap();
        self.programs.push(process);
        self.programs.last().unwrap()
    }

    /// `teemark` with these arguments, once it has said this.
    fn start(&mut self, name: &str, words: &str, arguments: &str) {
        if name == "collect" {
            let keygen = ["keygen", "--for", "collector", "--output", "collector.key"];
            succeeds(teemark(self.root.path(), &keygen));
        }
        let mut command = Command::new(program("teemark"));
        command.args(arguments.split_whitespace()).current_dir(self.root.path());
        let process = self.add(&mut command, name);
        assert!(process.has_logged(words), "{}", process.log());
    }

    /// What the doctor says. The enclave's health check gives up after 2.8 s; if this machine was too slow for that, the
    /// doctor is asked again once the next check is due.
    fn doctor(&self, more: &[&str]) -> Output {
        const LATE: [&str; 3] = ["did not answer in time", "not answered within", "the enclave does not reach"];
        wait_for("a health check in time", || {
            let output = self.doctor_once(more);
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            (!LATE.iter().any(|words| said.contains(words))).then_some(output)
        })
    }

    fn doctor_once(&self, more: &[&str]) -> Output {
        let [public, admin] = [self.public, self.admin].map(|port| format!("127.0.0.1:{port}"));
        let mut command = Command::new(program("teemark"));
        command.args(["doctor", "--parent-root", ".", "--root", "root.der"]);
        if !more.contains(&"--pcrs") {
            command.args(["--pcrs", "image.pcrs"]);
        }
        command.args(["--public", &public, "--admin", &admin]).args(more).current_dir(self.root.path());
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        command.env("PATH", path).env("STAND_IN", self.root.path());
        for name in ["ENCLAVE_EIF", "ENCLAVE_NAME", "ENCLAVE_CID", "ENCLAVE_MEMORY", "ENCLAVE_CPUS"] {
            command.env_remove(name);
        }
        command.output().unwrap()
    }

    /// The lines that are not ok, which are of these checks; they and the exit status.
    #[track_caller]
    fn names(&self, more: &[&str], expected: &[(&str, &str)]) -> (Vec<Value>, i32) {
        let output = self.doctor(&[more, &["--json"]].concat());
        let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        let lines = told["checks"].as_array().unwrap_or_else(|| panic!("{told}"));
        let lines: Vec<Value> = lines.iter().filter(|line| line["verdict"] != "ok").cloned().collect();
        let found: Vec<_> =
            lines.iter().map(|line| [&line["check"], &line["verdict"]].map(|w| w.as_str().unwrap())).collect();
        assert_eq!(found, expected.iter().map(|(check, verdict)| [*check, *verdict]).collect::<Vec<_>>(), "{lines:#?}");
        assert!(lines.iter().all(|line| !line["do"].as_str().unwrap().is_empty()), "{lines:#?}");
        (lines, output.status.code().unwrap())
    }

    /// Expects this one line to be wrong, with these words.
    #[track_caller]
    fn has_wrong(&self, more: &[&str], check: &str, words: &str) {
        let (lines, status) = self.names(more, &[(check, "wrong")]);
        assert!(lines[0]["found"].as_str().unwrap().contains(words), "{words:?}: {}", lines[0]);
        assert_eq!(status, 1);
    }
}

#[test]
fn a_deployment_that_is_well_is_told_so_line_by_line() {
    let deployment = Deployment::new(&WELL);
    let (_, status) = deployment.names(&[], &[]);
    assert_eq!(status, 0);
    let output = deployment.doctor(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.lines().count() == 16 && text.ends_with(": 15 lines, 0 warnings, 0 wrong\n"), "{text}");
    for line in [
        "ok       device       /dev/nitro_enclaves is there",
        "ok       allocator    512 MiB and 2 CPUs are set aside",
        "ok       enclave      teemark runs, CID 16",
        "ok       proxies      2 in the order of the allow list",
        "ok       service      the watermark service is healthy",
        "ok       log          a collector has acknowledged record ",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    // From outside, with what the public address shows.
    let endpoint = format!("http://{}", deployment.daemon.public);
    let outside = deployment.doctor(&["--endpoint", &endpoint, "--json"]);
    let told: Value = serde_json::from_slice(&outside.stdout).unwrap();
    let names: Vec<_> = told["checks"].as_array().unwrap().iter().map(|line| line["check"].as_str().unwrap()).collect();
    assert_eq!(names, ["ready", "attestation", "allow list", "endpoints", "service", "clock"], "{told}");
    assert_eq!((&told["wrong"], &told["warnings"]), (&json!(0), &json!(0)), "{told}");
}

#[test]
fn without_memory_of_the_allocator_the_doctor_says_so() {
    let deployment = Deployment::new(&WELL);
    deployment.write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0\n");
    deployment.has_wrong(&[], "allocator", "no memory is set aside for enclaves");
    deployment.write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "128\n");
    deployment.has_wrong(&[], "allocator", "256 MiB are set aside for enclaves, and ENCLAVE_MEMORY is 512 (E27)");
}

#[test]
fn without_the_device_the_doctor_says_so() {
    let deployment = Deployment::new(&WELL);
    deployment.remove("dev/nitro_enclaves");
    deployment.has_wrong(&[], "device", "/dev/nitro_enclaves is not there");
}

#[test]
fn an_image_and_a_pcrs_file_of_different_builds_are_named() {
    let deployment = Deployment::new(&WELL);
    deployment.measures(&"b0".repeat(48));
    deployment.has_wrong(&[], "image", "teemark.eif is not the image of --pcrs: PCR0: it is b0b0");
    // The other way round, what runs is not that image either.
    deployment.measures(&"a0".repeat(48));
    deployment.write("image.pcrs", &pcrs(&["c0"; 3]));
    let (lines, status) = deployment.names(&[], &[("image", "wrong"), ("attestation", "wrong")]);
    assert!(lines[1]["found"].as_str().unwrap().contains("PCR0"), "{lines:?}");
    assert_eq!(status, 1);
}

#[test]
fn allow_lists_that_differ_are_named() {
    let deployment = Deployment::new(&WELL);
    let own = fs::read_to_string(deployment.path("allowed_endpoints.yaml")).unwrap();
    deployment.write("allowed_endpoints.yaml", &format!("{own}  - a.example:443\n"));
    deployment.has_wrong(&[], "allow list", "a.example:443, and the enclave has localhost:");
    // The same entries, and other bytes: only the attested hash tells.
    deployment.write("allowed_endpoints.yaml", &format!("{own}# ours\n"));
    deployment.has_wrong(&[], "allow list", "its SHA-256 is");
}

#[test]
fn a_proxy_that_is_down_is_named() {
    let deployment = Deployment::new(&Plan { proxies: &[(8101, 0)], ..WELL });
    deployment.has_wrong(&[], "proxies", "nothing runs for vsock port 8102");
}

#[test]
fn proxies_in_another_order_are_named() {
    let deployment = Deployment::new(&Plan { proxies: &[(8101, 1), (8102, 0)], ..WELL });
    deployment.has_wrong(&[], "proxies", "in another order than the allow list: vsock port 8101 leads to localhost:");
}

#[test]
fn a_port_that_another_program_has_taken_is_named_with_the_program() {
    let mut deployment = Deployment::new(&Plan { expose: None, ..WELL });
    let port = deployment.public;
    let mut socat = Command::new("socat");
    socat.args(["-d", "-d", &format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr"), "SYSTEM:true"]);
    let process = deployment.add(&mut socat, "other");
    assert!(process.has_logged("listening on"), "{}", process.log());
    let number = process.child.id();
    let output = deployment.doctor(&["--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let line =
        |name: &str| told["checks"].as_array().unwrap().iter().find(|line| line["check"] == name).unwrap().clone();
    let found = line("public port")["found"].as_str().unwrap().to_owned();
    assert!(found.contains(&format!("127.0.0.1:{port} is taken by socat (process {number})")), "{found}");
    // Nobody has the other.
    assert!(line("admin port")["found"].as_str().unwrap().starts_with("nobody listens on 127.0.0.1:"), "{told}");
    assert_eq!((output.status.code(), &told["exit"], &told["code"]), (Some(1), &json!(1), &json!("doctor")), "{told}");
}

#[test]
fn a_wrong_cid_is_named_whether_expose_or_the_operator_has_it() {
    let deployment = Deployment::new(&Plan { expose: Some("17"), ..WELL });
    let (lines, status) = deployment.names(&[], &[("public port", "wrong"), ("admin port", "wrong")]);
    assert!(lines[0]["found"].as_str().unwrap().contains("leads to CID 17, and the enclave has CID 16"), "{lines:?}");
    assert_eq!(status, 1);
    deployment.has_wrong(&["--enclave", "17"], "enclave", "no enclave has CID 17; running: teemark (CID 16)");
}

#[test]
fn a_clock_that_is_off_by_a_minute_is_named() {
    let deployment = Deployment::new(&Plan { clock: "60", ..WELL });
    deployment.has_wrong(&[], "clock", "s behind the enclave's module; grants that are made here fail");
}

#[test]
fn a_certificate_of_five_days_is_named() {
    let deployment = Deployment::new(&Plan { days: 5, ..WELL });
    deployment.has_wrong(&[], "certificate", "the client certificate expires in 5 days, at 2");
}

#[test]
fn a_service_that_answers_503_is_named() {
    let deployment = Deployment::new(&Plan { service: &["--fault", "unhealthy"], ..WELL });
    deployment.has_wrong(&[], "service", "answers /health with an error, such as 503");
}

#[test]
fn a_log_that_nobody_collects_is_named() {
    let none = "no collector has acknowledged any of the log's ";
    let deployment = Deployment::new(&Plan { collector: false, ..WELL });
    deployment.has_wrong(&[], "log", none);
    deployment.has_wrong(&[], "log", ": the relay leads to tcp:127.0.0.1:");
    let deployment = Deployment::new(&Plan { relay: false, collector: false, ..WELL });
    deployment.has_wrong(&[], "log", none);
    deployment.has_wrong(&[], "log", ": teemark log relay does not run");
}

#[test]
fn a_relay_that_listens_where_the_image_does_not_send_is_named_though_it_reaches_a_collector() {
    let mut deployment = Deployment::new(&Plan { relay: false, ..WELL });
    let (listen, to) = (free_port(), deployment.collector);
    let relay = format!("log relay --listen tcp:127.0.0.1:{listen} --to tcp:127.0.0.1:{to}");
    deployment.start("relay", "leads to", &relay);
    deployment.has_wrong(&[], "log", &format!(", and the relay listens on tcp:127.0.0.1:{listen}"));
}

#[test]
fn a_relay_beside_an_image_that_sends_no_log_is_named() {
    let deployment = Deployment::new(&Plan { log_to: Some("off"), ..WELL });
    let (lines, status) = deployment.names(&[], &[("log", "warning")]);
    assert!(lines[0]["found"].as_str().unwrap().starts_with("the image sends no log: "), "{lines:?}");
    assert_eq!(status, 0);
    let deployment = Deployment::new(&Plan { log_to: Some("off"), relay: false, collector: false, ..WELL });
    deployment.names(&[], &[]);
}

#[test]
fn a_pcrs_file_that_cannot_be_read_is_wrong_usage_and_nothing_is_judged() {
    let deployment = Deployment::new(&WELL);
    deployment.write("damaged.pcrs", "PCR0: none\n");
    for (file, words) in [("missing.pcrs", "missing.pcrs"), ("damaged.pcrs", "damaged.pcrs")] {
        let output = deployment.doctor(&["--pcrs", file, "--json"]);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        assert_eq!((output.status.code(), &told["exit"]), (Some(2), &json!(2)), "{told}");
        assert!(told["error"].as_str().unwrap().contains(words) && told["checks"].is_null(), "{told}");
    }
}

#[test]
fn where_no_enclave_runs_the_last_words_explain_nitro_clis_errors() {
    let deployment = Deployment::new(&WELL);
    deployment.runs(json!([]));
    deployment.write("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "256\n");
    for (words, explained) in [
        (
            "[ E36 ] Enclave boot failure.\n[ E39 ] Enclave process connection failure.\n",
            "E36: no heartbeat within 180 s",
        ),
        ("[ E39 ] Enclave process connection failure.\n", "E39: comes with every failed start"),
        ("[ E29 ] Ioctl failure.\n[ E39 ] Enclave process connection failure.\n", "E29: right after another enclave"),
    ] {
        deployment.write("var/log/nitro_enclaves/nitro_enclaves.log", words);
        deployment.has_wrong(&[], "enclave", &format!("no enclave is running; nitro-cli's {explained}"));
    }
    // A fresh start in the journal counts, and not the old one in nitro-cli's log.
    let stale = "[nitro-cli:7][ERROR][2026-01-02T03:04:05.678Z][src/main.rs:7] [ E29 ] Ioctl failure.\n";
    deployment.write("var/log/nitro_enclaves/nitro_enclaves.log", stale);
    let journal = |ago: u64, words: &str| {
        let entry = json!({"__REALTIME_TIMESTAMP": format!("{}000000", Utc::now().0 - ago), "MESSAGE": words});
        format!("{entry}\n")
    };
    let start = "Starting teemark-enclave.service - teemark enclave...";
    deployment.write("journal", &(journal(600, start) + &journal(400, "[ E36 ] Enclave boot failure.")));
    deployment.has_wrong(&[], "enclave", "no enclave is running; nitro-cli's E36: no heartbeat");
}

#[test]
fn what_a_daemon_that_could_not_start_told_the_collector_is_its_last_words() {
    let mut deployment = Deployment::new(&WELL);
    deployment.runs(json!([]));
    deployment.write("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "256\n");
    let port = free_port();
    let collect = format!("log collect --listen tcp:127.0.0.1:{port} --into logs");
    deployment.start("failed", "keeps records in", &collect);
    let mut setup = Setup::new(1).env("TEEMARK_LOG_TO", &format!("tcp:127.0.0.1:{port}"));
    setup.allowed = "endpoints:\n  - not a host\n".into();
    let (lines, _) = unspoilt("its last words at the collector", || {
        let since = Instant::now();
        let ended = Process::spawn(&mut setup.command(), deployment.path("daemon.log")).end(since);
        ended.leaves("its last words at the collector", || {
            let told = deployment.names(&["--logs", "logs"], &[("enclave", "wrong")]);
            told.0[0]["found"].as_str().unwrap().contains("last words").then_some(told)
        })
    });
    let found = lines[0]["found"].as_str().unwrap();
    assert!(found.contains("teemarkd cannot go on: allow list: ") && found.contains(":2: "), "{found}");
}

#[test]
fn one_that_waits_for_its_secrets_is_told_which() {
    let deployment = Deployment::new(&WELL);
    let waiting = Setup::new(1).start();
    let endpoint = format!("http://{}", waiting.public);
    // No host listens at its endpoint.
    let output = deployment.doctor_once(&["--endpoint", &endpoint]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("wrong    ready        secrets are missing: MTLS_CLIENT_CERT_JSON"), "{text}");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("refused: "), "{text}");
    let output = deployment.doctor(&["--endpoint", "http://127.0.0.1:1", "--keeper", "http://127.0.0.1:1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("wrong    ready        http://127.0.0.1:1/ready gives no answer"), "{text}");
    assert!(text.contains("wrong    keeper       http://127.0.0.1:1/metrics gives no answer"), "{text}");
}
