//! Web pages: what their browsers are told, by TEEMARK_CORS and without it.

use crate::support::*;
use crate::*;

const PAGE: &str = "https://app.example";

/// A ready daemon with this TEEMARK_CORS.
fn with_cors(value: &str) -> (Service, Daemon) {
    let service = Service::start(&CERTS, &[]);
    let setup = Setup::new(service.port).env("TEEMARK_CORS", value);
    let daemon = Daemon::ready_with(setup, service.port, &CERTS);
    (service, daemon)
}

/// One request of the page at `origin`.
fn ask(daemon: &Daemon, line: &str, origin: &str, fields: &str, body: &[u8]) -> Answer {
    let length = body.len();
    let head = format!(
        "{line} HTTP/1.1\r\nHost: x\r\nOrigin: {origin}\r\nConnection: close\r\nContent-Length: {length}\r\n{fields}\r\n"
    );
    request(daemon.public, &head, body)
}

fn cors_fields(answer: &Answer) -> Vec<&str> {
    answer.head.lines().filter(|line| line.starts_with("Access-Control-")).collect()
}

const PREFLIGHT: &str =
    "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization,teemark-reply-key\r\n";

#[test]
fn a_preflight_of_a_page_that_may_call_is_answered_on_every_route() {
    let (_service, daemon) = with_cors("https://other.example, https://app.example");
    for (path, allow) in [
        ("/", "GET, HEAD, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
        ("/ready", "GET, HEAD, OPTIONS"),
        ("/health_check", "GET, HEAD, OPTIONS"),
        ("/get_attestation?nonce=00", "GET, HEAD, OPTIONS"),
        ("/files/decrypt", "POST, OPTIONS"),
        ("/files/f/decrypt?user_id=u", "POST, OPTIONS"),
    ] {
        let answer = ask(&daemon, &format!("OPTIONS {path}"), PAGE, PREFLIGHT, b"");
        assert_eq!((answer.status, field(&answer, "Allow")), (204, Some(allow)), "{path}");
        assert_eq!(field(&answer, "Access-Control-Allow-Origin"), Some(PAGE));
        assert_eq!(field(&answer, "Access-Control-Allow-Methods"), Some("GET, HEAD, POST"));
        let fields = field(&answer, "Access-Control-Allow-Headers").unwrap();
        for name in ["Authorization", "Content-Type", "Teemark-Reply-Key", "Teemark-Attest", "X-Request-Id"] {
            assert!(fields.split(", ").any(|field| field == name), "{name} is not in {fields}");
        }
        assert_eq!(field(&answer, "Access-Control-Max-Age"), Some("7200"));
        assert_eq!(field(&answer, "Vary"), Some("Origin"));
        assert_eq!(field(&answer, "Access-Control-Allow-Credentials"), None);
    }
    assert_error(&ask(&daemon, "OPTIONS /nothing", PAGE, PREFLIGHT, b""), 404, "not_found");
}

#[test]
fn a_page_reads_every_answer_with_its_header_fields_and_no_other_page_reads_any() {
    let (_service, daemon) = with_cors(PAGE);
    let file = encrypt(&KEY, b"a text");
    for (line, fields, body, status) in [
        ("POST /files/f/decrypt?user_id=u", "", &file[..], 200),
        ("GET /ready", "", b"", 200),
        ("GET /nothing", "", b"", 404),
        ("PUT /ready", "", b"", 405),
        ("POST /files/f/decrypt", "", &file, 400),
        // These are refused by the ingress, before there is a request.
        ("POST /files/f/decrypt", "Expect: wonders\r\n", b"", 417),
        ("GET /", "A : b\r\n", b"", 400),
    ] {
        let answer = ask(&daemon, line, PAGE, fields, body);
        assert_eq!((answer.status, field(&answer, "Access-Control-Allow-Origin")), (status, Some(PAGE)), "{line}");
        assert_eq!(field(&answer, "Vary"), Some("Origin"), "{line}");
        let exposed = field(&answer, "Access-Control-Expose-Headers").unwrap();
        let names = answer.head.lines().filter_map(|line| Some(line.split_once(": ")?.0));
        let own = names.filter(|name| name.starts_with("Teemark-") || ["Retry-After", "X-Request-Id"].contains(name));
        let ahead = ["Teemark-Identity", "Teemark-Attestation-Length", "Retry-After", "X-Request-Id"];
        for name in own.chain(ahead) {
            assert!(exposed.split(", ").any(|field| field == name), "{name} is not in {exposed}");
        }
        for other in ["https://app.example.net", "http://app.example", "null", "https://APP.example", ""] {
            let answer = ask(&daemon, line, other, fields, body);
            assert_eq!((cors_fields(&answer), field(&answer, "Vary")), (vec![], Some("Origin")), "{other}");
        }
    }
    let head =
        format!("POST /files/f/decrypt HTTP/1.1\r\nHost: x\r\nOrigin: {PAGE}\r\nContent-Length: 9999999999999\r\n\r\n");
    let answer = request(daemon.public, &head, b"");
    assert_eq!((answer.status, field(&answer, "Access-Control-Allow-Origin")), (413, Some(PAGE)));
}

#[test]
fn an_answer_503_can_be_read_by_a_page_too() {
    let daemon = Setup::new(1).env("TEEMARK_CORS", PAGE).start();
    let answer = ask(&daemon, "POST /files/f/decrypt?user_id=u", PAGE, "", b"x");
    assert_eq!((answer.status, field(&answer, "Access-Control-Allow-Origin")), (503, Some(PAGE)));
}

#[test]
fn where_grants_are_required_every_page_may_be_let_in_and_otherwise_none_is_without_being_named() {
    let daemon = Setup::new(1).env("TEEMARK_CORS", "*").env("TEEMARK_GRANTS", "required").start();
    let answer = ask(&daemon, "OPTIONS /files/f/decrypt", "https://any.example", PREFLIGHT, b"");
    assert_eq!((answer.status, field(&answer, "Access-Control-Allow-Origin")), (204, Some("*")));
    assert_eq!(field(&answer, "Access-Control-Allow-Credentials"), None);

    let setup = Setup::new(1).env("TEEMARK_CORS", "*");
    let output = setup.command().output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && log.contains("TEEMARK_CORS: \"*\" is accepted only where"), "{log}");
}

#[test]
fn without_the_setting_options_is_answered_and_no_page_is_let_in() {
    let (_service, daemon) = pair(&[]);
    for (path, status) in [("/", 204), ("/ready", 204), ("/files/decrypt", 204), ("/nothing", 404)] {
        let answer = ask(&daemon, &format!("OPTIONS {path}"), PAGE, PREFLIGHT, b"");
        assert_eq!((answer.status, cors_fields(&answer), field(&answer, "Vary")), (status, vec![], None), "{path}");
        assert_eq!(field(&answer, "Allow").is_some(), status == 204);
    }
    // HAProxy's default check.
    assert_eq!(request(daemon.public, "OPTIONS / HTTP/1.0\r\n\r\n", b"").status, 204);
    let file = encrypt(&KEY, b"a text");
    let answer = ask(&daemon, "POST /files/f/decrypt?user_id=u", PAGE, "", &file);
    assert_eq!((answer.status, cors_fields(&answer)), (200, vec![]));
}

#[test]
fn the_admin_listener_takes_no_request_that_a_page_may_have_made() {
    let service = Service::start(&CERTS, &[]);
    let daemon = Setup::new(service.port).env("TEEMARK_CORS", PAGE).start();
    let bundle = CERTS.full_bundle(service.port).to_string();
    let ask = |line: &str, fields: &str, body: &str| {
        let length = body.len();
        let head = format!("{line} HTTP/1.1\r\n{fields}Connection: close\r\nContent-Length: {length}\r\n\r\n");
        request(daemon.admin, &head, body.as_bytes())
    };
    let local = format!("Host: {}\r\n", daemon.admin);
    for page in [
        format!("{local}Origin: {PAGE}\r\n"),
        format!("{local}Origin: null\r\n"),
        format!("{local}Origin: http://{}\r\n", daemon.admin),
        // The page's own host name now leads here.
        "Host: attacker.example:3001\r\n".into(),
        "Host: \r\n".into(),
    ] {
        for (line, body) in [
            ("POST /admin/update-secrets", &*bundle),
            ("GET /admin/status", ""),
            ("GET /admin/nothing", ""),
            ("OPTIONS /admin/update-secrets", ""),
            ("POST /ping", ""),
            ("POST /nothing", ""),
        ] {
            let answer = ask(line, &page, body);
            assert_eq!((answer.status, cors_fields(&answer)), (403, vec![]), "{line} {page}");
            assert_eq!(answer.code(), "from_page", "{line} {page}: {answer:?}");
        }
        // Reading them changes nothing, and Prometheus asks by any name. No page reads the answer of another origin.
        for line in ["GET /ping", "GET /metrics"] {
            let answer = ask(line, &page, "");
            assert_eq!((answer.status, cors_fields(&answer)), (200, vec![]), "{line} {page}");
        }
    }
    // The target's own host counts, whatever the field says (RFC 9112, 3.2.2).
    for target in
        ["http://attacker.example", "https://attacker.example:3001", "http://127.0.0.1@attacker.example", "http://"]
    {
        for (line, body) in [("POST", &*bundle), ("GET", "")] {
            let answer = ask(&format!("{line} {target}/admin/update-secrets"), &local, body);
            assert_eq!(answer.code(), "from_page", "{line} {target}");
        }
    }
    let ours = format!("GET http://{}/admin/status", daemon.admin);
    assert_eq!(ask(&ours, "Host: attacker.example\r\n", "").status, 200);
    let missing = daemon.get("/ready").json()["missing"].clone();
    assert_eq!(missing.as_array().unwrap().len(), 3, "nothing was changed");
    for host in [local, "Host: localhost:3001\r\n".into(), "Host: [::1]\r\n".into()] {
        assert_eq!(ask("GET /admin/status", &host, "").status, 200, "{host}");
        assert_eq!(ask("POST /admin/update-secrets", &host, &bundle).status, 200, "{host}");
    }
}
