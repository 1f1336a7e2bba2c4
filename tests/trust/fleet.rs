//! Two enclaves behind one address: a round robin of connections, nginx, and HAProxy with TLS. The documents of the
//! stand-in for the module are a little larger than real ones, and both proxies have their default buffers, with the
//! configurations of docs/OPERATOR.md too.

use std::collections::HashMap;
use std::io::copy;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use super::support::balancer;
use super::*;

/// Two daemons with the same secrets.
struct Fleet {
    scene: Scene,
    second: Daemon,
}

/// How many answers are asked for by each way.
const REQUESTS: usize = 100;

impl Fleet {
    fn new() -> Fleet {
        let scene = Scene::ready();
        let operator = line(scene.teemark(&["keygen", "--for", "operator", "--public", "operator.key"]));
        let settings = Setup::new(scene.service.port).env("TEEMARK_HANDSHAKE", "sealed");
        let settings = settings.env("TEEMARK_GRANTS", "required").env("TEEMARK_FLEET", "test");
        let second = settings.env("TEEMARK_OPERATOR_KEYS", &operator).start();
        let fleet = Fleet { scene, second };
        let secrets = format!("unix:{}", fleet.second.secrets.display());
        succeeds(fleet.seal(&format!("http://{}", fleet.second.public), &secrets));
        assert_eq!(fleet.second.get("/ready").status, 200);
        fleet
    }

    /// The whole bundle, sealed to the enclave at this address.
    fn seal(&self, attested: &str, secrets: &str) -> Output {
        let seal = ["--seal", "--attested", attested, "--operator-key", "operator.key", "--development"];
        self.scene.bundle(&[&seal[..], &["--send", secrets]].concat())
    }

    fn enclaves(&self) -> [SocketAddr; 2] {
        [self.scene.daemon.public, self.second.public]
    }

    /// Has the file decrypted once, and returns what `teemark` told.
    fn decrypt(&self, endpoint: &str, more: &[&str]) -> serde_json::Value {
        self.scene.grant("grant.key", &["--reply-key", &self.scene.alice]);
        let options = ["--grant", "grant", "--seal", "--reply-key", "alice.key", "--verify", "--development", "--json"];
        let told = line(self.scene.decrypt(endpoint, &[&options, more].concat()));
        self.scene.has_the_marked_file();
        serde_json::from_str(&told).unwrap()
    }

    /// Every answer is verified, whichever enclave gives it, and both give some.
    fn verifies_all(&self, endpoint: &str, more: &[&str]) {
        let mut signers: HashMap<String, usize> = HashMap::new();
        for _ in 0..REQUESTS {
            let told = self.decrypt(endpoint, more);
            assert_eq!(told["verified"], true, "{told}");
            *signers.entry(told["identity"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        assert_eq!(signers.len(), 2, "{signers:?}");
        assert!(signers.values().all(|n| *n >= REQUESTS / 4), "{signers:?}");
    }
}

/// Passes connections on to the two in turn; returns its address.
fn round_robin(to: [SocketAddr; 2]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for (client, to) in listener.incoming().zip(to.into_iter().cycle()) {
            let (client, server) = (client.unwrap(), TcpStream::connect(to).unwrap());
            for (mut from, mut to) in [(&client, &server), (&server, &client)]
                .map(|(from, to)| (from.try_clone().unwrap(), to.try_clone().unwrap()))
            {
                thread::spawn(move || {
                    let _ = copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    endpoint
}

/// nginx in front of the two, by plain HTTP.
fn nginx([first, second]: [SocketAddr; 2], folder: &TempDir) -> (Process, String) {
    let port = free_port();
    let servers = format!(
        "upstream fleet {{ server {first}; server {second}; }}\n\
         server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://fleet; }} }}\n"
    );
    (balancer::nginx(&servers, port, folder.path()), format!("http://127.0.0.1:{port}"))
}

/// HAProxy in front of the two, by TLS.
fn haproxy([first, second]: [SocketAddr; 2], folder: &TempDir) -> (Process, String) {
    let (port, pem) = (free_port(), folder.path().join("server.pem"));
    let part = |name| fs::read(CERTS.path(name)).unwrap();
    fs::write(&pem, [part("server.crt"), part("server.key")].concat()).unwrap();
    let config = format!(
        "defaults\nmode http\ntimeout connect 30s\ntimeout client 120s\ntimeout server 120s\n\
         frontend users\nbind 127.0.0.1:{port} ssl crt {}\ndefault_backend fleet\n\
         backend fleet\nbalance roundrobin\nserver first {first}\nserver second {second}\n",
        pem.display()
    );
    (balancer::haproxy(&config, port, folder.path()), format!("https://localhost:{port}"))
}

#[test]
fn each_of_100_answers_of_two_enclaves_behind_a_round_robin_is_verified() {
    let fleet = Fleet::new();
    fleet.verifies_all(&round_robin(fleet.enclaves()), &[]);
}

#[test]
fn each_of_100_answers_through_nginx_with_its_default_buffers_is_verified() {
    let (fleet, folder) = (Fleet::new(), TempDir::new().unwrap());
    let (_nginx, endpoint) = nginx(fleet.enclaves(), &folder);
    fleet.verifies_all(&endpoint, &[]);
}

#[test]
fn each_of_100_answers_through_nginx_with_tls_as_documented_is_verified() {
    let (fleet, folder) = (Fleet::new(), TempDir::new().unwrap());
    let (_nginx, port) = balancer::documented_nginx(fleet.enclaves(), "", &CERTS, folder.path());
    let ca = CERTS.path("ca.crt").display().to_string();
    fleet.verifies_all(&format!("https://localhost:{port}"), &["--cacert", &ca]);
}

/// SSL_CERT_FILE says where the system has them, in place of the paths that OpenSSL was built with.
#[test]
fn https_without_cacert_is_trusted_by_the_systems_cas_and_by_no_others() {
    let (scene, folder) = (Scene::ready(), TempDir::new().unwrap());
    let (_haproxy, endpoint) = haproxy([scene.daemon.public; 2], &folder);
    let attest = |system: &std::path::Path| {
        let mut attest = std::process::Command::new(program("teemark"));
        attest.args(["attest", "--endpoint", &endpoint, "--development"]).env_remove("SSL_CERT_DIR");
        attest.env("SSL_CERT_FILE", system).output().unwrap()
    };
    let other = Certs::make();
    let both = folder.path().join("both.crt");
    fs::write(&both, [&other, &CERTS].map(|certs| fs::read(certs.path("ca.crt")).unwrap()).concat()).unwrap();
    succeeds(attest(&CERTS.path("ca.crt")));
    succeeds(attest(&both));
    fails(2, &attest(&other.path("ca.crt")), "--cacert FILE names the CA that issued it");
    let empty = folder.path().join("empty.crt");
    fs::write(&empty, "").unwrap();
    for none in [empty, folder.path().join("missing.crt")] {
        fails(2, &attest(&none), "the system has no CA certificates");
    }
}

#[test]
fn each_of_100_answers_through_haproxy_with_tls_is_verified() {
    let (fleet, folder) = (Fleet::new(), TempDir::new().unwrap());
    let (_haproxy, endpoint) = haproxy(fleet.enclaves(), &folder);
    let ca = CERTS.path("ca.crt").display().to_string();
    fleet.verifies_all(&endpoint, &["--cacert", &ca]);

    // The system does not know this CA, and no request is sent to whom nobody vouches for.
    fleet.scene.grant("grant.key", &[]);
    let told = fleet.scene.decrypt(&endpoint, &["--grant", "grant"]);
    fleet.scene.has_nothing(2, &told, "--cacert FILE names the CA that issued it");
    succeeds(fleet.scene.decrypt(&endpoint, &["--grant", "grant", "--cacert", &ca]));
    let attest = ["attest", "--endpoint", &endpoint, "--development"];
    fails(2, &fleet.scene.teemark(&attest), "is not trusted");
    succeeds(fleet.scene.teemark(&[&attest[..], &["--cacert", &ca]].concat()));
}

#[test]
fn documents_that_were_made_before_serve_for_whichever_enclave_answers() {
    let fleet = Fleet::new();
    let endpoint = round_robin(fleet.enclaves());
    let mut signers: HashMap<String, usize> = HashMap::new();
    for n in 0..10 {
        // However many connections one run makes, the next begins at either.
        if n % 2 == 1 {
            TcpStream::connect(endpoint.strip_prefix("http://").unwrap()).unwrap();
        }
        let told = fleet.decrypt(&endpoint, &["--max-age", "600"]);
        *signers.entry(told["identity"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(signers.len(), 2, "{signers:?}");
    // A saved one serves for its own enclave only.
    let [first, second] = fleet.enclaves().map(|enclave| format!("http://{enclave}"));
    let saved = ["attest", "--endpoint", &first, "--development", "--output", "document"];
    succeeds(fleet.scene.teemark(&saved));
    let options = ["--attested", "document", "--max-age", "600"];
    fleet.decrypt(&first, &options);
    fleet.scene.grant("grant.key", &[]);
    let options = [&options[..], &["--grant", "grant", "--verify", "--development"]].concat();
    fleet.scene.has_nothing(2, &fleet.scene.decrypt(&second, &options), "the address leads to several enclaves");
}

#[test]
fn secrets_are_not_sealed_by_an_address_that_leads_to_two_enclaves() {
    let fleet = Fleet::new();
    let before = fleet.enclaves().map(|enclave| counter(&fleet, enclave));
    let told = fleet.seal(&round_robin(fleet.enclaves()), &fleet.scene.secrets());
    fails(1, &told, "leads to several enclaves");
    assert_eq!(fleet.enclaves().map(|enclave| counter(&fleet, enclave)), before);
}

/// The counter of the bundle in force.
fn counter(fleet: &Fleet, enclave: SocketAddr) -> u64 {
    let endpoint = format!("http://{enclave}");
    let told = line(fleet.scene.teemark(&["attest", "--endpoint", &endpoint, "--development", "--json"]));
    serde_json::from_str::<serde_json::Value>(&told).unwrap()["counter"].as_u64().unwrap()
}
