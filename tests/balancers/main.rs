//! nginx and HAProxy in front of two daemons, with the configurations of docs/OPERATOR.md.

#[path = "../support/mod.rs"]
mod support;

mod haproxy;
mod nginx;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::json;
use support::issuer::{Issuer, claims};
use support::*;

/// One set of certificates for all of these tests.
static CERTS: LazyLock<Certs> = LazyLock::new(Certs::make);

/// A service, and two daemons that have had their handshakes with it.
fn fleet() -> (Service, [Daemon; 2]) {
    let service = Service::start(&CERTS, &[]);
    let daemons = [(), ()].map(|()| Daemon::ready(&service, &CERTS));
    (service, daemons)
}

/// A balancer that runs, with TLS on `port`.
struct Balancer {
    _process: Process,
    port: u16,
}

impl Balancer {
    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    /// curl over TLS that is checked.
    fn curl(&self) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "120", "--cacert"]).arg(CERTS.path("ca.crt"));
        curl
    }

    /// Sends a file, and returns the status and the answer's body.
    fn decrypt(&self, file: &Path) -> (String, Vec<u8>) {
        self.decrypt_for("u", &[], file)
    }

    /// The same for this user, with more arguments for curl.
    fn decrypt_for(&self, user: &str, more: &[&str], file: &Path) -> (String, Vec<u8>) {
        let answer = file.with_extension(format!("{:?}", thread::current().id()));
        let mut curl = self.curl();
        curl.args(more).arg("--data-binary").arg(format!("@{}", file.display())).arg("--output").arg(&answer);
        let url = self.url(&format!("/files/f/decrypt?user_id={user}"));
        let output = curl.args(["--write-out", "%{http_code}", &url]).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), fs::read(&answer).unwrap_or_default())
    }
}

/// A file of this many bytes, encrypted.
fn encrypted(folder: &Path, length: usize) -> PathBuf {
    let file = folder.join("file");
    fs::write(&file, encrypt(&KEY, &b"a text. ".repeat(length / 8))).unwrap();
    file
}

/// Files of 5 MB go through TLS and come back marked, and the balancer keeps its connections to the daemons.
fn files_come_back_over_kept_connections(balancer: &Balancer, daemons: &[Daemon; 2], folder: &Path) {
    // Each check of the balancer is a connection of its own.
    let opened = || {
        let metric = |daemon: &Daemon, name| daemon.metric_if_any(name).unwrap_or(0.0);
        let checks = |daemon| metric(daemon, "teemark_requests_total{route=\"ready\",code=\"200\"}");
        daemons.iter().map(|daemon| metric(daemon, "teemark_connections_total") - checks(daemon)).sum::<f64>()
    };
    let before = opened();
    let file = encrypted(folder, 5 << 20);
    let mut curl = balancer.curl();
    curl.arg("--fail").arg("--data-binary").arg(format!("@{}", file.display()));
    for i in 0..6 {
        let url = balancer.url("/files/f/decrypt?user_id=u");
        curl.arg("--output").arg(folder.join(i.to_string())).arg(url);
    }
    run(&mut curl);
    for i in 0..6 {
        assert_eq!(extract(&fs::read(folder.join(i.to_string())).unwrap()), json!({"file_id": "f", "user_id": "u"}));
    }
    let gets: Vec<String> = (0..20).map(|_| balancer.url("/ready")).collect();
    run(balancer.curl().arg("--fail").args(gets));
    // Four ask for the metrics, and a check may be under way; the requests would be 26.
    let opened = opened() - before + 20.0;
    assert!(opened <= 4.0 + 2.0 + 8.0, "{opened} connections for 26 requests");
}

/// A client that resets its connection in the middle of an upload costs the daemons nothing afterwards.
fn resets_cost_nothing(balancer: &Balancer, daemons: &[Daemon; 2], folder: &Path) {
    let left = || daemons.each_ref().map(|daemon| daemon.metric("teemark_memory_left_bytes"));
    let before = left();
    let address =
        format!("OPENSSL:localhost:{},pf=ip4,linger=0,cafile={}", balancer.port, CERTS.path("ca.crt").display());
    for _ in 0..4 {
        let mut socat =
            Command::new("socat").args(["-", &address]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut upload = socat.stdin.take().unwrap();
        let head = "POST /files/f/decrypt?user_id=u HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n\r\n";
        upload.write_all(head.as_bytes()).and_then(|()| upload.write_all(&[0; 1 << 20])).unwrap();
        wait_for("the upload to reach a daemon", || (left() != before).then_some(()));
        // With that linger time, the system sends a reset.
        socat.kill().unwrap();
        socat.wait().unwrap();
        wait_for("its memory", || (left() == before).then_some(()));
    }
    let (status, marked) = balancer.decrypt(&encrypted(folder, 100));
    assert_eq!((&*status, extract(&marked)), ("200", json!({"file_id": "f", "user_id": "u"})));
}

/// While four clients send files, one of the daemons is drained by the parent's script and ended. Every file comes back.
fn draining_one_loses_no_request(balancer: &Balancer, [mut first, second]: [Daemon; 2], folder: &Path) {
    let file = encrypted(folder, 1000);
    let (ended, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let given = |daemon: &Daemon| daemon.metric("teemark_requests_total{route=\"decrypt_raw\",code=\"200\"}");
    thread::scope(|scope| {
        let clients = [(); 4].map(|()| {
            scope.spawn(|| {
                // At least 100 in all, and some after the end.
                let mut last = 5;
                while last > 0 {
                    if ended.load(Ordering::Acquire) && sent.load(Ordering::Acquire) >= 100 {
                        last -= 1;
                    }
                    let (status, marked) = balancer.decrypt(&file);
                    let n = sent.fetch_add(1, Ordering::AcqRel);
                    assert_eq!(status, "200", "request {n}: {}", String::from_utf8_lossy(&marked));
                }
            })
        });
        wait_for("both to serve", || (sent.load(Ordering::Acquire) >= 20).then_some(()));
        assert!(given(&first) > 0.0 && given(&second) > 0.0);
        let mut drain = Command::new(repository().join("host/deploy/drain.sh"));
        run(drain.env("EXPOSE_ADMIN", first.admin.to_string()));
        first.process.signal("TERM");
        wait_for("its end", || first.process.child.try_wait().unwrap());
        ended.store(true, Ordering::Release);
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    assert!(sent.load(Ordering::Acquire) >= 100);
}

/// Two daemons that require grants, behind a balancer, and a service that leaves its first call without an answer.
struct Granted {
    _service: Service,
    daemons: [Daemon; 2],
    issuer: Issuer,
}

impl Granted {
    fn new() -> Granted {
        let (service, issuer) =
            (Service::start(&CERTS, &["--fault", "slow=3600", "--fault", "first=1"]), Issuer::new());
        let mut bundle = CERTS.full_bundle(service.port);
        bundle["GRANT_KEYS"] = issuer.jwks();
        let daemons = [(), ()].map(|()| {
            let setup = Setup::new(service.port).env("TEEMARK_GRANTS", "required").env("TEEMARK_FLEET", "fleet");
            let daemon = setup.env("TEEMARK_TIMEOUT", "3600s").start();
            assert_eq!(daemon.handshake(bundle.to_string().as_bytes())["missing"], json!([]));
            daemon
        });
        Granted { _service: service, daemons, issuer }
    }

    /// Sends a file with this grant.
    fn decrypt(&self, balancer: &Balancer, jti: &str, file: &Path) -> (String, Vec<u8>) {
        let grant = format!("Authorization: Bearer {}", self.issuer.token(&claims(jti)));
        balancer.decrypt_for("alice", &["--header", &grant], file)
    }

    /// One of the daemons is killed while four clients send small files, and while it has a file of this length at the
    /// service. Returns the status that that request gets. All others are answered, before the balancer has `noticed`, then
    /// and after. Whatever that request got, its grant is still good, or was used for its file.
    fn killing_one(self, balancer: &Balancer, folder: &Path, length: usize, noticed: impl FnOnce()) -> String {
        let of = |length: usize| {
            let within = folder.join(length.to_string());
            fs::create_dir(&within).unwrap();
            encrypted(&within, length)
        };
        let (small, file) = (of(900), of(length));
        let (was_noticed, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
        let holds = |daemon: &&Daemon| {
            daemon.metric("teemark_memory_left_bytes") != daemon.metric("teemark_memory_limit_bytes")
        };
        let (this, file) = (&self, &file);
        let (jti, status) = thread::scope(|scope| {
            // Of two at once, the service answers one.
            let mut two =
                Vec::from(["one", "other"].map(|jti| (jti, scope.spawn(move || this.decrypt(balancer, jti, file)))));
            let (answered, held) = wait_for("one of two to be answered", || {
                let answered = two.iter().position(|(_, request)| request.is_finished())?;
                let held: Vec<&Daemon> = this.daemons.iter().filter(holds).collect();
                (held.len() == 1).then(|| (answered, held[0]))
            });
            assert_eq!(two.remove(answered).1.join().unwrap().0, "200");
            let clients: Vec<_> = (0..4)
                .map(|client| {
                    let (small, sent, was_noticed) = (&small, &sent, &was_noticed);
                    scope.spawn(move || {
                        let mut last = 5;
                        for n in 0.. {
                            if was_noticed.load(Ordering::Acquire) {
                                last -= 1;
                            }
                            let (status, told) = this.decrypt(balancer, &format!("{client}-{n}"), small);
                            sent.fetch_add(1, Ordering::AcqRel);
                            assert_eq!(status, "200", "{client}-{n}: {}", String::from_utf8_lossy(&told));
                            if last == 0 {
                                break;
                            }
                        }
                    })
                })
                .collect();
            wait_for("all to be served", || (sent.load(Ordering::Acquire) >= 20).then_some(()));
            held.process.signal("KILL");
            noticed();
            was_noticed.store(true, Ordering::Release);
            clients.into_iter().for_each(|client| client.join().unwrap());
            let (jti, request) = two.remove(0);
            (jti, request.join().unwrap().0)
        });
        let again = if status == "200" { "403" } else { "200" };
        assert_eq!(self.decrypt(balancer, jti, file).0, again, "after {status}");
        status
    }
}
