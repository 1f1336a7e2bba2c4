use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use formats::address::Address;
use serde_json::{Value, json};

use super::port::free_port;
use super::*;

const ENDPOINT: &str = "https://watermark.internal.staging.zing.you:8080";

/// The heredoc of certs/README.md, unchanged.
const HEREDOC: &str = r#"cat > mtls_certs.json <<EOF
{
  "MTLS_CLIENT_CERT_JSON": "{\"client_cert\":\"$(cat client.crt | base64 -w 0)\",\"client_key\":\"$(cat client.key | base64 -w 0)\",\"ca_cert\":\"$(cat ecs-ca.crt | base64 -w 0)\"}",
  "ECS_WATERMARK_ENDPOINT": "https://watermark.internal.staging.zing.you:8080"
}
EOF"#;

const CERTIFICATES: [&str; 7] =
    ["secrets", "--client-cert", "client.crt", "--client-key", "client.key", "--ca", "ecs-ca.crt"];

/// A folder with real certificates.
fn with_certificates() -> Place {
    let place = Place::new();
    let script = repository().join("certs/make-certs.sh");
    succeeds(Command::new("sh").arg(script).arg(place.0.path()).output().unwrap());
    place
}

fn arguments<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&CERTIFICATES[..], more].concat()
}

#[test]
fn the_bundle_has_the_very_bytes_of_the_seeds_command() {
    let place = with_certificates();
    succeeds(Command::new("bash").args(["-euc", HEREDOC]).current_dir(place.0.path()).output().unwrap());
    let bundle = succeeds(place.teemark(&arguments(&["--endpoint", ENDPOINT]))).stdout;
    assert_eq!(String::from_utf8(bundle), String::from_utf8(place.read("mtls_certs.json")));
}

#[test]
fn each_item_is_there_only_where_it_was_given() {
    let place = with_certificates();
    place.keys(&["7", "8+"]);
    let grant_keys = succeeds(place.teemark(&["keygen", "--for", "grants", "--output", "grant.key"])).stdout;
    place.write("grant-keys.json", &grant_keys);
    for (given, expected) in [
        (arguments(&[]), vec!["MTLS_CLIENT_CERT_JSON"]),
        (vec!["secrets", "--endpoint", ENDPOINT], vec!["ECS_WATERMARK_ENDPOINT"]),
        (vec!["secrets", "--keys", "keys.json"], vec!["FILE_KEYS"]),
        (vec!["secrets", "--grant-keys", "grant-keys.json"], vec!["GRANT_KEYS"]),
    ] {
        let bundle: Value = serde_json::from_slice(&succeeds(place.teemark(&given)).stdout).unwrap();
        assert_eq!(bundle.as_object().unwrap().keys().collect::<Vec<_>>(), expected);
        if let Some(keys) = bundle.get("GRANT_KEYS") {
            assert_eq!(*keys, serde_json::from_slice::<Value>(&grant_keys).unwrap());
        }
        if let Some(keys) = bundle.get("FILE_KEYS") {
            assert_eq!((&keys["7"], &keys["8"]["key"]), (&KEY.into(), &KEY.into()));
        }
    }
    assert!(fails(2, &place.teemark(&["secrets"])).contains("nothing to put in the bundle"));
}

#[test]
fn a_written_bundle_is_for_its_owner_only_and_never_overwritten() {
    let place = Place::new();
    place.keys(&["7"]);
    let command = ["secrets", "--keys", "keys.json", "--output", "bundle.json"];
    succeeds(place.teemark(&command));
    assert_eq!(place.mode("bundle.json"), 0o600);
    let before = place.read("bundle.json");
    assert!(fails(2, &place.teemark(&command)).contains("is there already"));
    assert_eq!(place.read("bundle.json"), before);
}

#[test]
fn what_can_be_told_here_is_told_before_anything_is_sent() {
    let place = with_certificates();
    place.write("empty", "");
    let told = |arguments: &[&str], words: &str| {
        let error = fails(2, &place.teemark(arguments));
        assert!(error.contains(words) && !error.contains("MII"), "{words} in {error}");
    };
    let files = |cert, key, ca| ["secrets", "--client-cert", cert, "--client-key", key, "--ca", ca];
    told(&files("none.crt", "client.key", "ca.crt"), "cannot read --client-cert none.crt");
    told(&files("client.key", "client.crt", "ca.crt"), "where certificates belong");
    told(&files("client.crt", "ca.crt", "ca.crt"), "--client-key ca.crt");
    told(&files("client.crt", "client.key", "empty"), "the file is empty");
    told(&files("client.csr", "client.key", "ca.crt"), "CERTIFICATE REQUEST, where certificates belong");
    told(&["secrets", "--client-cert", "client.crt"], "--client-key");
    told(&["secrets", "--endpoint", "http://watermark:8080"], "https://HOST:PORT");
    told(&["secrets", "--endpoint", ENDPOINT, "--send", "vsock:7777"], "vsock:CID:7777");
    told(&["secrets", "--endpoint", ENDPOINT, "--send", "7777"], "unix:PATH");
    told(&["secrets", "--endpoint", ENDPOINT, "--bundle", "-"], "cannot be used with");
    place.write("large", vec![b' '; (1 << 20) + 1]);
    told(&["secrets", "--bundle", "large"], "1 MiB");
}

#[test]
fn grant_keys_that_the_daemon_would_refuse_are_not_sent_and_not_shown() {
    let place = Place::new();
    succeeds(place.teemark(&["keygen", "--for", "grants", "--output", "grant.key"]));
    let jwk = r#"{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    place.write("twice.json", format!(r#"{{"keys":[{jwk},{jwk}]}}"#));
    let secret = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
    place.write("private.json", format!(r#"{{"keys":[{}]}}"#, jwk.replace("\"x\"", &format!(r#""d":"{secret}","x""#))));
    place.write("secret.json", format!("{secret}\n"));
    for (file, words) in [
        ("grant.key", "line 1, column 2: it is not JSON"),
        ("secret.json", "it is not JSON"),
        ("twice.json", "GRANT_KEYS.keys[1]: has the kid of another key"),
        ("private.json", "GRANT_KEYS.keys[0]: holds a private key"),
        ("none.json", "cannot read none.json"),
    ] {
        let error = fails(2, &place.teemark(&["secrets", "--grant-keys", file, "--plain", "--send", "unix:none"]));
        assert!(error.contains(words) && error.contains("--grant-keys") && !error.contains(&secret[..8]), "{error}");
    }
}

/// What a listener does with one sender, after it has read the whole bundle.
pub(crate) enum Meet {
    Answer(&'static str),
    /// Does this with the bundle, then sends this answer.
    Take(Take, &'static str),
    HangUp,
}

type Take = Box<dyn FnOnce(&[u8]) + Send>;

/// A connected socket.
trait Sender: Read + Write {}
impl Sender for TcpStream {}
impl Sender for UnixStream {}

type Accept = Box<dyn Fn() -> Box<dyn Sender> + Send>;

/// Listens on TCP or a Unix socket; returns the address.
fn bind(address: &str) -> (Address, Accept) {
    match address.parse().unwrap() {
        Address::Unix(path) => {
            let listener = UnixListener::bind(&path).unwrap();
            (Address::Unix(path), Box::new(move || Box::new(listener.accept().unwrap().0)))
        }
        Address::Tcp { host, port } => {
            let listener = TcpListener::bind((host.as_str(), port)).unwrap();
            let port = listener.local_addr().unwrap().port();
            (Address::Tcp { host, port }, Box::new(move || Box::new(listener.accept().unwrap().0)))
        }
        Address::Vsock { .. } => panic!("no vsock here"),
    }
}

/// Listens and serves senders in turn; returns the bundles that it got.
pub(crate) fn listener(address: &str, meets: Vec<Meet>) -> (Address, mpsc::Receiver<Vec<u8>>) {
    let (address, accept) = bind(address);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for meet in meets {
            let mut stream = accept();
            let mut bundle = Vec::new();
            stream.read_to_end(&mut bundle).unwrap();
            let line = match meet {
                Meet::Answer(line) => line,
                Meet::Take(take, line) => {
                    take(&bundle);
                    line
                }
                Meet::HangUp => "",
            };
            sender.send(bundle).unwrap();
            stream.write_all(line.as_bytes()).unwrap();
        }
    });
    (address, receiver)
}

pub(crate) const ACCEPTED: &str = concat!(
    r#"{"ok":true,"updated":["ECS_WATERMARK_ENDPOINT"],"ignored":["COLOUR"],"warnings":["another CA"],"missing":["FILE_KEYS"]}"#,
    "\n"
);
pub(crate) const REFUSED: &str =
    concat!(r#"{"ok":false,"field":"MTLS_CLIENT_CERT_JSON.client_key","error":"is of another certificate"}"#, "\n");

#[test]
fn an_accepted_bundle_is_told_with_what_is_still_missing() {
    let place = Place::new();
    for address in ["tcp:127.0.0.1:0".to_owned(), format!("unix:{}", place.path("socket").display())] {
        let (address, bundles) = listener(&address, vec![Meet::Answer(ACCEPTED)]);
        let send = ["secrets", "--endpoint", ENDPOINT, "--plain", "--send", &address.to_string()];
        let output = succeeds(place.teemark(&send));
        assert!(stdout(&output).contains("accepted by ") && stdout(&output).contains("ECS_WATERMARK_ENDPOINT"));
        assert!(stderr(&output).contains("warning: the daemon says: another CA"));
        assert!(stderr(&output).contains("COLOUR") && stderr(&output).contains("needs FILE_KEYS"));
        let bundle: Value = serde_json::from_slice(&bundles.recv().unwrap()).unwrap();
        assert_eq!(bundle["ECS_WATERMARK_ENDPOINT"], ENDPOINT);
    }
}

#[test]
fn a_refusal_names_field_and_reason_and_ends_with_1() {
    let place = Place::new();
    for address in ["tcp:127.0.0.1:0".to_owned(), format!("unix:{}", place.path("socket").display())] {
        let (address, _bundles) = listener(&address, vec![Meet::Answer(REFUSED)]);
        let error =
            fails(1, &place.teemark(&["secrets", "--endpoint", ENDPOINT, "--plain", "--send", &address.to_string()]));
        assert!(error.contains("MTLS_CLIENT_CERT_JSON.client_key: is of another certificate"), "{error}");
    }
}

#[test]
fn a_finished_bundle_is_sent_as_it_is() {
    let place = Place::new();
    let bytes = b"{ not even JSON \xff\n\n";
    place.write("bundle", bytes);
    let (address, bundles) = listener("tcp:127.0.0.1:0", vec![Meet::Answer(REFUSED), Meet::Answer(REFUSED)]);
    fails(1, &place.teemark(&["secrets", "--bundle", "bundle", "--plain", "--send", &address.to_string()]));
    fails(
        1,
        &place.teemark_with_input(&["secrets", "--bundle", "-", "--plain", "--send", &address.to_string()], bytes),
    );
    assert_eq!(bundles.recv().unwrap(), bytes);
    assert_eq!(bundles.recv().unwrap(), bytes);
}

#[test]
fn what_is_not_sealed_is_sent_only_where_that_is_asked_for() {
    let place = Place::new();
    place.write("plain", format!(r#"{{"ECS_WATERMARK_ENDPOINT":"{ENDPOINT}"}}"#));
    place.write("both", format!(r#"{{"sealed_bundle":{{}},"ECS_WATERMARK_ENDPOINT":"{ENDPOINT}"}}"#));
    // Nobody listens, so an attempt to connect would be reported.
    for bundle in [["--endpoint", ENDPOINT], ["--bundle", "plain"], ["--bundle", "both"]] {
        let send = [&["secrets"], &bundle[..], &["--send", "unix:socket", "--wait", "0"]].concat();
        let told = fails(2, &place.teemark(&send));
        for words in ["is not sealed", "--seal seals it to the enclave", "--plain sends it in the clear"] {
            assert!(told.contains(words), "{bundle:?}: {told}");
        }
        let told = fails(3, &place.teemark(&[&send[..], &["--plain"]].concat()));
        assert!(told.contains("there is no such socket"), "{told}");
    }
    for more in [&["--plain"][..], &["--plain", "--seal", "--send", "unix:socket"]] {
        fails(2, &place.teemark(&[&["secrets", "--endpoint", ENDPOINT], more].concat()));
    }
}

#[test]
fn a_bundle_that_was_sealed_before_is_sent_as_it_is() {
    let place = Place::new();
    let sealed = br#"{"sealed_bundle":{"counter":7}}"#;
    place.write("sealed", sealed);
    let (address, bundles) = listener("tcp:127.0.0.1:0", vec![Meet::Answer(ACCEPTED)]);
    succeeds(place.teemark(&["secrets", "--bundle", "sealed", "--send", &address.to_string()]));
    assert_eq!(bundles.recv().unwrap(), sealed);
}

#[test]
fn it_waits_until_the_enclave_listens() {
    let place = Place::new();
    let unix = format!("unix:{}", place.path("socket").display());
    let tcp = format!("tcp:127.0.0.1:{}", free_port());
    for address in [unix, tcp] {
        let late = address.clone();
        let enclave = thread::spawn(move || {
            thread::sleep(Duration::from_millis(700));
            listener(&late, vec![Meet::HangUp, Meet::Answer(ACCEPTED)])
        });
        let output = succeeds(place.teemark(&["secrets", "--endpoint", ENDPOINT, "--plain", "--send", &address]));
        let told = stderr(&output);
        assert!(told.contains("waiting for") && told.contains("without an answer"), "{told}");
        assert_eq!(enclave.join().unwrap().1.iter().count(), 2);
    }
}

#[test]
fn it_does_not_wait_for_ever() {
    let place = Place::new();
    let start = Instant::now();
    let error = fails(
        3,
        &place.teemark(&["secrets", "--endpoint", ENDPOINT, "--plain", "--send", "unix:socket", "--wait", "1"]),
    );
    assert!(error.contains("--wait") && error.contains("is the enclave running"), "{error}");
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[test]
fn what_is_not_the_daemon_is_called_so() {
    let place = Place::new();
    for answer in ["HTTP/1.1 400 Bad Request\r\n\r\n", "{\"ok\":tr", "[]\n"] {
        let (address, _bundles) = listener("tcp:127.0.0.1:0", vec![Meet::Answer(answer)]);
        let error =
            fails(2, &place.teemark(&["secrets", "--endpoint", ENDPOINT, "--plain", "--send", &address.to_string()]));
        assert!(error.contains("not teemarkd"), "{error}");
    }
}

#[test]
fn an_answer_before_the_end_of_the_bundle_counts() {
    let place = Place::new();
    place.write("bundle", vec![b'x'; 1 << 20]);
    let address = format!("unix:{}", place.path("socket").display());
    let accept = bind(&address).1;
    // More than the socket's buffer is never read, so that the sender's write fails.
    let enclave = thread::spawn(move || accept().write_all(REFUSED.as_bytes()).unwrap());
    let error =
        fails(1, &place.teemark(&["secrets", "--bundle", "bundle", "--plain", "--send", &address, "--wait", "0"]));
    assert!(error.contains("another certificate"), "{error}");
    enclave.join().unwrap();
}

/// A certificate that is valid between these days, counted from now.
fn valid(from: i64, until: i64) -> String {
    let mut params = rcgen::CertificateParams::default();
    let now = std::time::SystemTime::now();
    let day = |n: i64| {
        let days = Duration::from_secs(n.unsigned_abs() * 86_400);
        if n < 0 { now - days } else { now + days }
    };
    // One more hour, for a slow machine.
    params.not_before = day(from).into();
    params.not_after = (day(until) + Duration::from_secs(3600)).into();
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

#[test]
fn certificates_that_end_within_30_days_are_warned_of_and_expired_ones_refused() {
    let place = with_certificates();
    let secrets = |cert: &[String], ca: &[String]| {
        place.write("cert.pem", cert.concat());
        place.write("ca.pem", ca.concat());
        place.teemark(&["secrets", "--client-cert", "cert.pem", "--client-key", "client.key", "--ca", "ca.pem"])
    };
    let (long, short, old, early) = (valid(-1, 31), valid(-1, 29), valid(-9, -1), valid(2, 90));
    let [long, short, old, early] = [&[long][..], &[short], &[old], &[early]];
    assert_eq!(stderr(&succeeds(secrets(long, long))), "");
    let told = stderr(&succeeds(secrets(short, long)));
    assert!(
        told.starts_with("warning: --client-cert cert.pem: it expires at 20") && told.contains("in 29 days"),
        "{told}"
    );
    assert_eq!(told.lines().count(), 1);
    let told = stderr(&succeeds(secrets(long, short)));
    assert!(told.starts_with("warning: --ca ca.pem: it expires at") && told.lines().count() == 1, "{told}");

    let told = fails(2, &secrets(old, long));
    assert!(told.contains("--client-cert cert.pem: certificate 1 expired at 20"), "{told}");
    let told = fails(2, &secrets(&[long, old].concat(), long));
    assert!(told.contains("certificate 2 expired at"), "{told}");
    let told = fails(2, &secrets(early, long));
    assert!(told.contains("certificate 1 is not valid before"), "{told}");
    let told = fails(2, &secrets(long, old));
    assert!(told.contains("--ca ca.pem: certificate 1 expired at"), "{told}");
    // A finished bundle is sent unchanged, with the warning.
    for (cert, words) in [(short, "it expires at 20"), (old, "certificate 1 expired at 20")] {
        let parts = json!({"client_cert": STANDARD.encode(cert.concat()), "ca_cert": STANDARD.encode(long.concat())});
        for item in [parts.clone(), parts.to_string().into()] {
            place.write("bundle", json!({"MTLS_CLIENT_CERT_JSON": item}).to_string());
            let output = succeeds(place.teemark(&["secrets", "--bundle", "bundle"]));
            let told = stderr(&output);
            let words = format!("warning: MTLS_CLIENT_CERT_JSON.client_cert: {words}");
            assert!(told.starts_with(&words) && told.lines().count() == 1, "{told}");
            assert_eq!(output.stdout, place.read("bundle"));
        }
    }
    // While a CA is replaced the old one may expire, as in the daemon.
    assert_eq!(stderr(&succeeds(secrets(long, &[old, long].concat()))), "");
}
