//! Headless Chromium, driven by its own WebDriver server (W3C WebDriver).

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Process, run};

/// An element's reference in WebDriver's JSON (W3C WebDriver, 12).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

pub(crate) struct Browser {
    driver: Process,
    address: SocketAddr,
    session: String,
    folder: TempDir,
}

impl Browser {
    /// Starts it. One at a time, and once more where that fails: on a busy machine a Chromium may take longer to start than
    /// its server waits.
    pub(crate) fn start(more: &[String]) -> Browser {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let browser = Browser::try_start(more).or_else(|failed| {
            eprintln!("started again, since {failed}");
            Browser::try_start(more)
        });
        browser.unwrap_or_else(|failed| panic!("{failed}"))
    }

    fn try_start(more: &[String]) -> Result<Browser, String> {
        let folder = tempfile::tempdir().unwrap();
        let (driver, port) = start_driver(folder.path());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--window-size=900,900",
        ];
        let profile = format!("--user-data-dir={}", folder.path().join("profile").display());
        let arguments: Vec<&str> =
            arguments.into_iter().chain([profile.as_str()]).chain(more.iter().map(String::as_str)).collect();
        let options = json!({"args": arguments, "binary": "/usr/bin/chromium"});
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut browser = Browser { driver, address, session: String::new(), folder };
        let asked = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}});
        let session = browser.try_ask("POST", "", &asked)?;
        browser.session = format!("/{}", session["sessionId"].as_str().expect("a session"));
        browser.ask("POST", "/timeouts", &json!({"script": 120_000, "pageLoad": 120_000}));
        Ok(browser)
    }

    /// A command of WebDriver, and its value.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_ask(method, path, body).unwrap_or_else(|failed| panic!("{failed}"))
    }

    /// The same, or what was wrong.
    fn try_ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let url = format!("http://{}/session{}{path}", self.address, self.session);
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--request", method, "--header", "Content-Type: application/json"]);
        if method == "POST" {
            // In a file: it may be longer than an argument.
            let file = self.folder.path().join("body");
            fs::write(&file, body.to_string()).unwrap();
            curl.arg("--data-binary").arg(format!("@{}", file.display()));
        }
        let answer: Value = serde_json::from_slice(&run(curl.arg(url))).expect("JSON");
        let value = answer["value"].clone();
        match value["error"].is_null() {
            true => Ok(value),
            false => Err(format!("{method} {path}: {value}\n{}", self.driver.log())),
        }
    }

    pub(crate) fn open(&self, url: &str) {
        self.ask("POST", "/url", &json!({"url": url}));
    }

    /// What the body of an async function gives in the page, with these arguments.
    pub(crate) fn run(&self, body: &str, arguments: &Value) -> Value {
        let script = format!(
            "const done = arguments[arguments.length - 1];\
             (async (asked) => {{ {body} }})(arguments[0]).then(done, error => done({{thrown: String(error), ...error}}));"
        );
        self.ask("POST", "/execute/async", &json!({"script": script, "args": [arguments]}))
    }

    fn element(&self, id: &str) -> String {
        let found = self.ask("POST", "/element", &json!({"using": "css selector", "value": format!("#{id}")}));
        found[ELEMENT].as_str().expect("an element").to_owned()
    }

    /// Types into the field with this id; into a file's, its path.
    pub(crate) fn fill(&self, id: &str, text: &str) {
        self.ask("POST", &format!("/element/{}/value", self.element(id)), &json!({"text": text}));
    }

    pub(crate) fn click(&self, id: &str) {
        self.ask("POST", &format!("/element/{}/click", self.element(id)), &json!({}));
    }

    pub(crate) fn text(&self, id: &str) -> String {
        let path = format!("/element/{}/text", self.element(id));
        self.ask("GET", &path, &json!({})).as_str().expect("a text").to_owned()
    }

    /// A picture of what is to be seen.
    pub(crate) fn screenshot(&self, file: &Path) {
        use base64::Engine;
        let picture = self.ask("GET", "/screenshot", &json!({}));
        let picture = base64::engine::general_purpose::STANDARD.decode(picture.as_str().expect("base64"));
        fs::write(file, picture.unwrap()).unwrap();
    }
}

/// The WebDriver server, and its port. It listens on IPv4 and IPv6, and ends where the port that the system chose for the
/// one is taken for the other.
fn start_driver(folder: &Path) -> (Process, u16) {
    let log = folder.join("log");
    for _ in 0..10 {
        let mut command = Command::new("chromedriver");
        let to_log = File::create(&log).unwrap();
        command.arg("--port=0").stdin(Stdio::null()).stdout(to_log.try_clone().unwrap()).stderr(to_log);
        let mut driver = Process::of(command.spawn().expect("chromedriver, by host/install-tools.sh"), log.clone());
        let port = driver.announced("chromedriver", |said| {
            let (_, rest) = said.split_once("started successfully on port ")?;
            rest.split_once('.')?.0.parse().ok()
        });
        if let Some(port) = port {
            return (driver, port);
        }
    }
    panic!("chromedriver does not start: {}", fs::read_to_string(&log).unwrap());
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends Chromium too, which is not this process's child.
        if !self.session.is_empty() && !std::thread::panicking() {
            self.ask("DELETE", "", &json!({}));
        }
    }
}
