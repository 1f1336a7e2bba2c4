//! `teemark top` with real daemons: what it prints, and what it does to a real terminal.

#[path = "../support/mod.rs"]
mod support;
mod terminal;

use std::iter;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;
use support::*;
use tempfile::TempDir;

use terminal::Terminal;

static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

/// Looks once; once more where a daemon on a busy machine was too slow for the time limit of a look.
fn top(arguments: &[&str]) -> Output {
    wait_for("answers in time", || {
        let told = Command::new(program("teemark")).arg("top").args(arguments).output().unwrap();
        (!text(&told.stdout).contains("timeout: ")).then_some(told)
    })
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

/// The line that begins with this.
fn line<'a>(output: &'a Output, begins: &str) -> &'a str {
    let text = text(&output.stdout);
    text.lines().find(|line| line.starts_with(begins)).unwrap_or_else(|| panic!("no line {begins:?} in\n{text}"))
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn fails_once(daemon: &Daemon) {
    assert_eq!(daemon.decrypt(b"not encrypted", "report-7", "alice").status, 422);
}

fn gives(daemon: &Daemon, files: usize) {
    let file = encrypt(&KEY, b"minutes");
    (0..files).for_each(|_| assert_eq!(daemon.decrypt(&file, "report-8", "bob").status, 200));
}

#[test]
fn two_enclaves_are_told_side_by_side_and_one_that_is_killed_with_the_reason() {
    let service = Service::start(&CERTS, &[]);
    let [one, mut two] = [(); 2].map(|()| Daemon::ready(&service, &CERTS));
    gives(&one, 3);
    fails_once(&one);
    let addresses = [one.admin.to_string(), format!("http://{}", two.admin)];
    let both = [addresses[0].as_str(), addresses[1].as_str()];

    // Where standard output is not a terminal, --once goes without saying. An answer does not wait for its record.
    let (told, refusal) = wait_for("the last refusal", || {
        let told = top(&both);
        assert!(told.status.success() && told.stderr.is_empty(), "{told:?}");
        let refusal = text(&told.stdout).lines().find(|line| line.contains(" 422 "))?.to_owned();
        Some((told, refusal))
    });
    let names = ["ENCLAVE", "STATE", "UP", "FILES/S", "ERR/S", "P50", "P99", "BUSY", "MEM", "CERT", "DRIFT", "LOST"];
    assert_eq!(words(line(&told, "ENCLAVE")), names);
    for daemon in [&one, &two] {
        let address = daemon.admin.to_string();
        assert!(words(line(&told, &address)).starts_with(&[&address, "ready"]), "{}", text(&told.stdout));
        assert!(line(&told, "ready  teemarkd ").contains(env!("CARGO_PKG_VERSION")));
    }
    assert!(line(&told, "certificate ").contains("file keys 1"), "{}", text(&told.stdout));
    assert!(line(&told, "clock drift ").contains("collector none"), "{}", text(&told.stdout));
    assert!(words(line(&told, "decrypt_failed")).starts_with(&["decrypt_failed", "1"]));
    assert!(words(line(&told, "decrypt_raw")).starts_with(&["decrypt_raw", "4"]));
    assert!(refusal.contains("Z  decrypt_failed ") && refusal.contains("422 file report-7 user alice"), "{refusal}");

    two.process.child.kill().unwrap();
    two.process.child.wait().unwrap();
    let told = top(&[&both[..], &["--once"]].concat());
    assert_eq!(told.status.code(), Some(3), "{told:?}");
    assert!(words(line(&told, both[0])).starts_with(&[both[0], "ready"]));
    let silent = line(&told, &two.admin.to_string());
    assert!(silent.contains("no answer!!  since ") && silent.contains("Z: Connection refused"), "{silent}");
    assert!(text(&told.stderr).contains("1 of 2 enclaves do not answer"), "{told:?}");

    let told = top(&[&both[..], &["--json"]].concat());
    let object: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!((told.status.code(), &object["code"], &object["exit"]), (Some(3), &"no_answer".into(), &3.into()));
    let [first, second] = [&object["enclaves"][0], &object["enclaves"][1]];
    assert_eq!((&first["answers"], &second["answers"]), (&true.into(), &false.into()));
    assert!(second["error"].as_str().unwrap().contains("refused") && second["figures"].is_null(), "{second}");
    let figures = &first["figures"];
    assert_eq!((&figures["ready"], &figures["since_start"]), (&true.into(), &true.into()), "{figures}");
    for (name, least) in [("files_per_second", 0.0), ("errors_per_second", 0.0), ("over_seconds", 0.0)] {
        assert!(figures[name].as_f64() > Some(least), "{name}: {figures}");
    }
    let [p50, p99] = ["p50", "p99"].map(|name| figures["latency"][name].as_f64().unwrap());
    assert!(0.0 < p50 && p50 <= p99, "{figures}");
    assert_eq!(first["refusals"][0]["code"], "decrypt_failed");
}

#[test]
fn an_address_that_is_not_an_admin_port_is_told_as_that() {
    let daemon = Setup::new(1).start();
    let told = top(&["--once", &daemon.public.to_string()]);
    assert!(line(&told, &daemon.public.to_string()).contains("has no /metrics: name its admin port"), "{told:?}");
}

#[test]
fn a_sealed_log_is_opened_with_its_key_and_a_collector_that_is_missing_is_told() {
    let service = Service::start(&CERTS, &[]);
    let folder = TempDir::new().unwrap();
    let public = |purpose: &str| {
        let key = folder.path().join(format!("{purpose}.key"));
        let made = run(Command::new(program("teemark")).args(["keygen", "--for", purpose, "--output"]).arg(key));
        text(&made).trim().to_owned()
    };
    let to = format!("tcp:127.0.0.1:{}", free_port());
    let setup = Setup::new(service.port).env("TEEMARK_LOG_KEYS", &public("log")).env("TEEMARK_AUDIT", "required");
    let setup =
        setup.env("TEEMARK_AUDIT_KEYS", &public("collector")).env("TEEMARK_LOG_TO", &to).env("RUST_LOG", "info");
    // Its standard error is sealed too, so it does not say where it listens.
    let [admin, secrets] = [(); 2].map(|()| free_port());
    let setup = setup.env("TEEMARK_ADMIN", &format!("tcp:127.0.0.1:{admin}"));
    let setup = setup.env("TEEMARK_SECRETS", &format!("tcp:127.0.0.1:{secrets}"));
    let _daemon = Process::spawn(&mut setup.command(), folder.path().join("stderr"));
    let admin = SocketAddr::from(([127, 0, 0, 1], admin));
    wait_for("the daemon to listen", || TcpStream::connect(admin).ok());
    let bundle = r#"{"FILE_KEYS": {"k": "too short"}}"#;
    let head = format!(
        "POST /admin/update-secrets HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        bundle.len()
    );
    assert_eq!(request(admin, &head, bundle.as_bytes()).status, 400);

    let address = admin.to_string();
    let told = top(&["--once", &address]);
    assert!(words(line(&told, &address)).starts_with(&[&address, "not", "ready!!"]), "{}", text(&told.stdout));
    assert!(text(&told.stdout).contains("no collector has acknowledged a record yet!!"), "{}", text(&told.stdout));
    let collector = text(&told.stdout).lines().find(|line| line.contains("collector does not acknowledge, has 0 of "));
    assert!(collector.is_some_and(|line| line.ends_with(" records!!")), "{}", text(&told.stdout));
    assert!(text(&told.stdout).contains(" records of the log are sealed; --log-key FILE opens them"));
    assert!(!text(&told.stdout).contains("bundle_refused"));
    let key = folder.path().join("log.key");
    let told = wait_for("the record to be in the log", || {
        let told = top(&["--once", &address, "--log-key", key.to_str().unwrap()]);
        text(&told.stdout).contains("bundle_refused").then_some(told)
    });
    assert!(text(&told.stdout).contains("FILE_KEYS") && !text(&told.stdout).contains("are sealed"), "{told:?}");
    let wrong = top(&["--once", &address, "--log-key", folder.path().join("collector.key").to_str().unwrap()]);
    assert_eq!(wrong.status.code(), Some(2), "a key for another use");
}

#[test]
fn the_terminal_is_left_as_it_was_by_each_way_to_end() {
    let daemon = Setup::new(1).start();
    for (end, status, signal) in [
        (&|terminal: &mut Terminal| terminal.types(b"q") as _, Some(0), None),
        (&|terminal: &mut Terminal| terminal.types(b"\x1b"), Some(0), None),
        (&|terminal: &mut Terminal| terminal.types(b"\x03"), None, Some(2)),
        (&|terminal: &mut Terminal| terminal.signal("TERM"), None, Some(15)),
        (&|terminal: &mut Terminal| terminal.signal("HUP"), None, Some(1)),
    ] as [(&dyn Fn(&mut Terminal), Option<i32>, Option<i32>); 5]
    {
        let mut terminal = Terminal::new((80, 24), &["top", &daemon.admin.to_string(), "--interval", "0.2"]);
        terminal.shows("not ready!!");
        assert!(terminal.is_drawn_on(), "the alternate screen, without a cursor, in raw mode");
        end(&mut terminal);
        let (told_status, told_signal) = terminal.ended();
        assert_eq!((told_status, told_signal), (status, signal));
        assert!(terminal.is_as_it_was(), "{:?}", terminal.written());
    }
}

#[test]
fn a_terminal_that_is_closed_ends_it_by_the_signal_and_without_one() {
    let daemon = Setup::new(1).start();
    let address = daemon.admin.to_string();
    for (wrapper, signal) in [(&[][..], Some(1)), (&["env", "--ignore-signal=HUP"], Some(1))] {
        let mut terminal = Terminal::by(wrapper, (80, 24), &["top", &address, "--interval", "0.2"]);
        terminal.shows("not ready!!");
        terminal.hangs_up();
        assert_eq!(terminal.ended(), (None, signal), "{wrapper:?}");
    }
}

#[test]
fn one_that_hangs_holds_up_nobody_and_a_restart_is_told() {
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free_port();
    let start = || Setup::new(1).env("TEEMARK_ADMIN", &format!("tcp:127.0.0.1:{port}")).start();
    let mut daemon = start();
    let addresses = [hanging.local_addr().unwrap(), daemon.admin].map(|address| address.to_string());
    let mut terminal = Terminal::new((40, 10), &["top", &addresses[0], &addresses[1], "--interval", "0.2"]);
    terminal.shows("not ready!!");
    // While one look at the other takes until its time limit, this one is looked at again and again. If they were asked in
    // turn, both would be asked equally often.
    let mut held = vec![];
    hanging.set_nonblocking(true).unwrap();
    wait_for("more looks at the one that answers", || {
        held.extend(iter::from_fn(|| hanging.accept().ok()));
        let looks = daemon.metric_if_any("teemark_requests_total{route=\"log\",code=\"200\"}").unwrap_or_default();
        (looks > as_metric(held.len() + 3)).then_some(())
    });
    // Its time limit ends that.
    terminal.shows("timeout");
    terminal.resizes((100, 30));
    terminal.shows("DRIFT");
    terminal.types(b"\x1b[B");
    terminal.shows("teemarkd");
    daemon.process.child.kill().unwrap();
    daemon.process.child.wait().unwrap();
    terminal.shows("Connection refused");
    let _daemon = start();
    terminal.shows("restarted before");
    terminal.types(b"q");
    assert_eq!(terminal.ended(), (Some(0), None));
    assert!(terminal.is_as_it_was());
}
