//! What an operator's Prometheus makes of the metrics: Debian's own reads them, evaluates the alert rules of
//! host/deploy/monitoring and answers the dashboard's queries.

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::thread;

use serde_json::Value;
use support::keeper::{self, Keeper, PCRS};
use support::markdown::code_and_prose;
use support::*;
use teemarkd::metrics::{Live, METRICS};
use tempfile::TempDir;
use yaml_rust2::{Yaml, YamlLoader};

static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A running enclave that a keeper has given its secrets, and a collector of its log.
struct Scene {
    file: Vec<u8>,
    enclave: Daemon,
    /// The keeper's own address.
    keeper: SocketAddr,
    _running: Keeper,
    _collector: Process,
    _set: keeper::Scene,
}

impl Scene {
    fn new() -> Scene {
        let (set, port) = (keeper::Scene::new(&CERTS), free_port());
        set.config_of_files(&[port]);
        let collector = format!("tcp:127.0.0.1:{}", free_port());
        let mut command = Command::new(program("teemark"));
        command.args(["log", "collect", "--listen", &collector, "--into", "records"]).current_dir(set.folder.path());
        let collecting = Process::spawn(command.stdout(Stdio::null()), set.path("collector.log"));
        assert!(collecting.has_logged("keeps records in"), "{}", collecting.log());
        let enclave = set.enclave_with(port, PCRS, &[("TEEMARK_LOG_TO", &collector)]);
        let mut running = set.keeper();
        let keeper = running.tells("started", "")["listen"].as_str().unwrap().parse().unwrap();
        keeper::is_ready(&enclave);
        let file = set.encrypted("k");
        Scene { file, enclave, keeper, _running: running, _collector: collecting, _set: set }
    }

    /// One file that is given, and one that is not.
    fn works(&self) {
        assert_eq!(self.enclave.decrypt(&self.file, "file", "alice").status, 200);
        assert_eq!(self.enclave.decrypt(&self.file[1..], "file", "alice").status, 422);
    }
}

/// Runs promtool, which has to have nothing to say.
fn promtool(arguments: &[&str], input: &str) {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(repository().join("host/deploy/monitoring"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("promtool (host/install-tools.sh installs it): {e}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "promtool {arguments:?}: {}\n{input}", String::from_utf8_lossy(&told));
}

#[test]
fn promtool_finds_nothing_to_say_against_the_metrics() {
    let scene = Scene::new();
    let empty = Setup::new(1).start();
    scene.works();
    // By default a counter is the time in milliseconds, which no other number is close to.
    assert!(scene.enclave.metric("teemark_bundle_in_force") > 1e12);
    METRICS.clock_drift.set(-20);
    for text in [
        scene.enclave.get_admin("/metrics").text(),
        empty.get_admin("/metrics").text(),
        get_from(scene.keeper, "/metrics").text(),
        METRICS.print(&Live::default()),
    ] {
        assert!(text.contains("# TYPE teemark_"), "{text}");
        promtool(&["check", "metrics"], &text);
    }
}

#[test]
fn each_alert_is_silent_and_fires_where_it_has_to() {
    promtool(&["check", "rules", "alerts.yml"], "");
    promtool(&["test", "rules", "alerts.test.yml"], "");
    // That each is among the tests, as one that fires.
    let tests = read("host/deploy/monitoring/alerts.test.yml");
    for name in alerts().iter().map(|alert| &alert.name) {
        assert!(tests.contains(&format!("labels: '{{alertname=\"{name}\"}}'")), "{name} is never tested to fire");
    }
}

struct Alert {
    name: String,
    runbook: String,
}

fn alerts() -> Vec<Alert> {
    let rules = YamlLoader::load_from_str(&read("host/deploy/monitoring/alerts.yml")).unwrap();
    let list = |yaml: &Yaml| yaml.as_vec().unwrap().clone();
    let rules = list(&rules[0]["groups"]).into_iter().flat_map(|group| list(&group["rules"]));
    let text = |yaml: &Yaml| yaml.as_str().unwrap().to_owned();
    let alerts = rules
        .map(|rule| Alert { name: text(&rule["alert"]), runbook: text(&rule["annotations"]["runbook_url"]) })
        .collect::<Vec<_>>();
    assert!(alerts.len() > 20);
    alerts
}

#[test]
fn each_alert_has_its_paragraph_and_leads_to_it() {
    let names: BTreeSet<_> = alerts().into_iter().map(|alert| alert.name).collect();
    for page in ["docs/TROUBLE.md", "docs/TROUBLE.zh.md"] {
        let (_, prose) = code_and_prose(&read(page));
        let paragraphs = prose.split("\n### ").skip(1).map(|rest| rest.split_once("\n\n").unwrap());
        let paragraphs: Vec<_> = paragraphs.filter(|(heading, _)| heading.starts_with("Teemark")).collect();
        let told: BTreeSet<_> = paragraphs.iter().map(|(heading, _)| (*heading).to_owned()).collect();
        assert_eq!(told, names, "{page}");
        assert_eq!(told.len(), paragraphs.len(), "{page} has one twice");
        for (heading, paragraph) in paragraphs {
            let own = paragraph.split("\n## ").next().unwrap().trim();
            assert!(own.len() > 60, "{page}: {heading}: {own:?}");
        }
    }
    for Alert { name, runbook } in alerts() {
        assert_eq!(runbook, format!("docs/TROUBLE.md#{}", name.to_lowercase()));
    }
}

/// Prometheus as host/deploy/README.md has it configured, but with these targets, which it asks each second.
struct Prometheus {
    address: SocketAddr,
    _process: Process,
    _folder: TempDir,
}

impl Prometheus {
    fn start(enclaves: [SocketAddr; 2], keeper: SocketAddr) -> Prometheus {
        let folder = TempDir::new().unwrap();
        let (blocks, _) = code_and_prose(&read("host/deploy/README.md"));
        let config = blocks.iter().find(|block| block.contains("scrape_configs:")).expect("a configuration");
        let (_, config) = config.split_once('\n').unwrap();
        let mut config = format!("global: {{ scrape_interval: 1s }}\n{config}");
        for (from, to) in [
            (
                "/etc/prometheus/teemark/alerts.yml",
                repository().join("host/deploy/monitoring/alerts.yml").display().to_string(),
            ),
            ("\"127.0.0.1:3001\"", enclaves.map(|address| format!("\"{address}\"")).join(", ")),
            ("\"127.0.0.1:9464\"", format!("\"{keeper}\"")),
        ] {
            assert!(config.contains(from), "{from} in {config}");
            config = config.replace(from, &to);
        }
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, config).unwrap();
        promtool(&["check", "config", file.to_str().unwrap()], "");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address={address}")).stdout(Stdio::null());
        let mut process = Process::spawn(&mut command, folder.path().join("log"));
        let listens = |log: &str| log.contains("Server is ready to receive web requests").then_some(());
        let started = process.announced("Prometheus to start", listens);
        assert!(started.is_some(), "Prometheus did not start: {}", process.log());
        Prometheus { address, _process: process, _folder: folder }
    }

    /// What it answers on a path of its API. Long answers come in chunks.
    fn get(&self, path: &str, arguments: &[&str]) -> Value {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail-with-body", "--get"]).args(arguments);
        let answer: Value =
            serde_json::from_slice(&run(curl.arg(format!("http://{}/api/v1/{path}", self.address)))).unwrap();
        assert_eq!(answer["status"], "success", "{path} {arguments:?}: {answer}");
        answer["data"].clone()
    }

    /// What it answers to a query: numbers that are not NaN.
    fn query(&self, query: &str) -> Vec<f64> {
        let data = self.get("query", &["--data-urlencode", &format!("query={query}")]);
        let found = data["result"].as_array().unwrap();
        let numbers = found.iter().map(|series| series["value"][1].as_str().unwrap().parse::<f64>().unwrap());
        numbers.filter(|number| !number.is_nan()).collect()
    }
}

/// Serves the metrics of this very process, as of an enclave that holds its clock against a Nitro Secure Module's: none is
/// here.
fn serve_own_metrics() -> SocketAddr {
    METRICS.clock_drift.set(-20);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut line = String::new();
            while stream.read_line(&mut line).unwrap_or(0) > 2 {
                line.clear();
            }
            let body = METRICS.print(&Live::default());
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n";
            let _ = write!(stream.get_mut(), "{head}Content-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    address
}

#[test]
fn each_query_of_the_dashboard_has_data() {
    let scene = Scene::new();
    let prometheus = Prometheus::start([scene.enclave.admin, serve_own_metrics()], scene.keeper);
    let dashboard: Value = serde_json::from_str(&read("host/deploy/monitoring/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries: Vec<_> = targets.map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(queries.len() > 30, "{queries:?}");
    for query in queries {
        let filled = ["$instance", "$keeper"].iter().fold(query.to_owned(), |query, name| query.replace(name, ".+"));
        let filled = filled.replace("$__rate_interval", "10m");
        assert!(!filled.contains('$'), "{query}");
        wait_for(query, || {
            scene.works();
            (!prometheus.query(&filled).is_empty()).then_some(())
        });
    }
    // The names in its menus.
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let Some(query) = variable["query"]["query"].as_str() else { continue };
        let metric = query.strip_prefix("label_values(").unwrap().split(',').next().unwrap();
        // A scrape that timed out leaves no sample until the next one.
        wait_for(query, || (!prometheus.query(metric).is_empty()).then_some(()));
    }
    // And the alerts: each rule was evaluated without an error.
    wait_for("the rules to be evaluated", || {
        let rules = prometheus.get("rules", &[]);
        let groups = rules["groups"].as_array().unwrap().clone();
        let rules: Vec<_> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
        assert_eq!(rules.len(), alerts().len());
        assert!(rules.iter().all(|rule| rule["health"] != "err"), "{rules:?}");
        rules.iter().all(|rule| rule["health"] == "ok").then_some(())
    });
}

#[test]
fn alerts_and_dashboard_name_metrics_that_there_are() {
    let reference = read("docs/REFERENCE.md");
    let pages =
        ["alerts.yml", "alerts.test.yml", "dashboard.json"].map(|name| read(&format!("host/deploy/monitoring/{name}")));
    let mut named = BTreeSet::new();
    for page in &pages {
        let words = page.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        named.extend(words.filter(|word| word.starts_with("teemark_")));
    }
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let there = [format!("| {base} |"), format!("| {base}{{")].iter().any(|row| reference.contains(row));
        assert!(there, "{name} is not in docs/REFERENCE.md");
    }
}
