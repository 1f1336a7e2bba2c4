//! A web page calls the enclave: in headless Chromium, with WebCrypto and no library.
//!
//! index.html and teemark.js are an example for people, too: open index.html from an origin that TEEMARK_CORS names.

#[path = "../support/mod.rs"]
mod support;

mod browser;

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use browser::Browser;
use support::balancer;
use support::issuer::*;
use support::*;

static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

const FILE: &[u8] = b"All of a text, long enough to be marked. ";

/// Serves the page. It ends with the test program.
fn page_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            let read = std::io::Read::read(&mut stream, &mut head).unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..read]).into_owned();
            let (name, kind) = match head.split(' ').nth(1) {
                Some("/") => ("index.html", "text/html"),
                Some("/teemark.js") => ("teemark.js", "text/javascript"),
                _ => continue,
            };
            let body = fs::read(folder.join(name)).unwrap();
            let length = body.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    address
}

/// Leads each connection to the next of these.
fn round_robin(to: Vec<SocketAddr>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let next = AtomicUsize::new(0);
    thread::spawn(move || {
        for near in listener.incoming() {
            let near = near.unwrap();
            let far = std::net::TcpStream::connect(to[next.fetch_add(1, Ordering::Relaxed) % to.len()]).unwrap();
            for (mut from, mut into) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut into);
                    let _ = into.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    address
}

/// Has Chromium trust the certificate by its key, the SHA-256 of its SubjectPublicKeyInfo.
fn trusted() -> [String; 1] {
    let line = "openssl x509 -in server.crt -noout -pubkey | openssl pkey -pubin -outform DER";
    let key = run(Command::new("sh").args(["-c", line]).current_dir(CERTS.0.path()));
    let hash = ring::digest::digest(&ring::digest::SHA256, &key);
    [format!("--ignore-certificate-errors-spki-list={}", STANDARD.encode(hash))]
}

/// The page in a browser, and two enclaves that it may call.
struct Scene {
    browser: Browser,
    daemons: Vec<Daemon>,
    issuer: Issuer,
    file: Vec<u8>,
    page: String,
    _service: Service,
}

impl Scene {
    /// `cors` is TEEMARK_CORS, given the page's origin.
    fn new(cors: impl Fn(&str) -> String) -> Scene {
        let (service, issuer) = (Service::start(&CERTS, &[]), Issuer::new());
        let page = format!("http://{}", page_server());
        let mut bundle = CERTS.full_bundle(service.port);
        bundle["GRANT_KEYS"] = issuer.jwks();
        let daemons = (0..2).map(|_| {
            let setup = Setup::new(service.port).env("TEEMARK_GRANTS", "required").env("TEEMARK_FLEET", "fleet");
            let daemon = setup.env("TEEMARK_CORS", &cors(&page)).start();
            assert_eq!(daemon.handshake(bundle.to_string().as_bytes())["missing"], json!([]));
            daemon
        });
        let daemons = daemons.collect();
        let browser = Browser::start(&trusted());
        browser.open(&page);
        Scene { browser, daemons, issuer, file: encrypt(&KEY, &FILE.repeat(40)), page, _service: service }
    }

    fn enclaves(&self) -> [SocketAddr; 2] {
        [self.daemons[0].public, self.daemons[1].public]
    }

    /// What the page needs to ask for the file.
    fn asked(&self, endpoint: SocketAddr, jti: &str) -> Value {
        self.asked_at(&format!("http://{endpoint}"), jti)
    }

    /// The same, for an address with its scheme.
    fn asked_at(&self, endpoint: &str, jti: &str) -> Value {
        json!({
            "endpoint": endpoint, "content": STANDARD.encode(&self.file), "fileId": "f",
            "userId": "alice", "grant": self.issuer.token(&claims(jti)),
        })
    }

    /// The answer that the page gets by this function of teemark.js, with the file as a text.
    fn decrypt(&self, route: &str, asked: &Value) -> Value {
        let body = format!(
            "const answer = await teemark.{route}({{...asked, content: teemark.fromBase64(asked.content)}});\
             return {{...answer, file: new TextDecoder().decode(answer.file)}};"
        );
        self.browser.run(&body, asked)
    }
}

#[test]
fn a_page_gets_a_file_by_both_routes_and_checks_who_signed_it() {
    let scene = Scene::new(str::to_owned);
    let daemon = &scene.daemons[0];
    let identity = scene.browser.run("return teemark.attest(asked)", &json!(format!("http://{}", daemon.public)));
    assert_eq!(identity.as_str().map(str::len), Some(64), "{identity}");
    for route in ["decryptRaw", "decryptJson"] {
        let answer = scene.decrypt(route, &scene.asked(daemon.public, route));
        assert_eq!((&answer["identity"], &answer["watermarked"]), (&identity, &json!(true)), "{answer}");
        assert_eq!(extract(answer["file"].as_str().unwrap().as_bytes()), json!({"file_id": "f", "user_id": "alice"}));
    }
}

/// The page asks for a hundred files at this address, and verifies every answer; both enclaves give some.
fn verifies_a_hundred(scene: &Scene, endpoint: &str) {
    let asked: Vec<Value> = (0..100).map(|n| scene.asked_at(endpoint, &format!("of-100-{n}"))).collect();
    // Ten at a time, on connections of their own. An enclave makes ten documents a second; the grant stays good meanwhile.
    let answers = scene.browser.run(
        "const one = async (asked, i) => {
           const route = i % 2 ? teemark.decryptRaw : teemark.decryptJson;
           for (;;) {
             try {
               const { identity } = await route({...asked, content: teemark.fromBase64(asked.content)});
               return identity;
             } catch (error) {
               if (error.status !== 429) throw error;
               await new Promise(resolve => setTimeout(resolve, 1000 * error.retryAfter));
             }
           }
         };
         const identities = [];
         for (let i = 0; i < asked.length; i += 10)
           identities.push(...await Promise.all(asked.slice(i, i + 10).map(one)));
         return identities;",
        &json!(asked),
    );
    let identities: Vec<&str> =
        answers.as_array().unwrap_or_else(|| panic!("{answers}")).iter().map(|i| i.as_str().unwrap()).collect();
    let of = scene.daemons.iter().map(|daemon| {
        let status = daemon.get("/health_check").json();
        let own = status["pk"].as_str().unwrap().to_owned();
        identities.iter().filter(|identity| **identity == own).count()
    });
    let of: Vec<usize> = of.collect();
    assert!(of.iter().sum::<usize>() == 100 && of.iter().all(|n| *n > 0), "{of:?}");
}

#[test]
fn a_page_behind_a_round_robin_verifies_a_hundred_of_a_hundred_answers() {
    let scene = Scene::new(str::to_owned);
    let endpoint = round_robin(scene.enclaves().to_vec());
    verifies_a_hundred(&scene, &format!("http://{endpoint}"));
}

#[test]
fn a_page_behind_nginx_with_tls_verifies_a_hundred_of_a_hundred_answers() {
    let (scene, folder) = (Scene::new(str::to_owned), TempDir::new().unwrap());
    let (_nginx, port) = balancer::documented_nginx(scene.enclaves(), "", &CERTS, folder.path());
    verifies_a_hundred(&scene, &format!("https://localhost:{port}"));
}

#[test]
fn a_page_behind_haproxy_with_tls_verifies_a_hundred_of_a_hundred_answers() {
    let (scene, folder) = (Scene::new(str::to_owned), TempDir::new().unwrap());
    let (_haproxy, port) = balancer::documented_haproxy(scene.enclaves(), balancer::READY, &CERTS, folder.path());
    verifies_a_hundred(&scene, &format!("https://localhost:{port}"));
}

#[test]
fn a_page_reads_why_it_gets_no_file() {
    let scene = Scene::new(str::to_owned);
    let asked = scene.asked(scene.daemons[0].public, "used");
    assert_eq!(scene.decrypt("decryptRaw", &asked)["watermarked"], true);
    let with = |name: &str, value: Value| {
        let mut other = scene.asked(scene.daemons[0].public, &format!("other-{name}"));
        other[name] = value;
        other
    };
    for (asked, status, code) in [
        (asked.clone(), 403, "grant_used"),
        (with("grant", json!("x.y.z")), 401, "grant_invalid"),
        (with("userId", json!("bob")), 403, "grant_for_another_user"),
        (with("content", json!(STANDARD.encode(b"too short"))), 422, "decrypt_failed"),
    ] {
        for route in ["decryptRaw", "decryptJson"] {
            let told = scene.decrypt(route, &asked);
            assert_eq!((&told["status"], &told["code"]), (&json!(status), &json!(code)), "{route}: {told}");
        }
    }
}

#[test]
fn a_page_of_another_origin_reads_nothing() {
    for cors in ["", "http://another.example"] {
        let scene = Scene::new(|_| cors.to_owned());
        let told = scene.decrypt("decryptRaw", &scene.asked(scene.daemons[0].public, "other"));
        assert_eq!(told["thrown"], "TypeError: Failed to fetch", "{told}");
        assert!(told["status"].is_null() && told["identity"].is_null(), "{told}");
    }
}

#[test]
fn a_person_fills_in_the_form_and_sees_the_file() {
    let scene = Scene::new(str::to_owned);
    let (folder, daemon) = (tempfile::tempdir().unwrap(), &scene.daemons[0]);
    let file = folder.path().join("file.enc");
    fs::write(&file, &scene.file).unwrap();
    scene.browser.open(&scene.page);
    for (id, text) in [
        ("endpoint", format!("http://{}", daemon.public)),
        ("file", file.display().to_string()),
        ("file-id", "f".into()),
        ("user-id", "alice".into()),
        ("grant", scene.issuer.token(&claims("form"))),
    ] {
        scene.browser.fill(id, &text);
    }
    scene.browser.click("raw");
    let seen = wait_for("the file in the page", || Some(scene.browser.text("result")).filter(|text| text.len() > 3));
    assert!(seen.starts_with("signed by ") && seen.contains("All of a text"), "{seen}");
    scene.browser.screenshot(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("page.png"));
}
