//! X-Request-Id, in answers and in the log.

use crate::support::*;
use crate::*;

/// An answer's id, and the log lines of that request; each line has the same number.
fn lines(daemon: &Daemon, answer: &Answer) -> (String, Vec<String>) {
    let id = field(answer, "X-Request-Id").unwrap_or_else(|| panic!("no id in {answer:?}")).to_owned();
    let ends = format!(" {id}] ");
    assert!(daemon.process.has_logged(&ends), "{id} is not in the log");
    let log = daemon.process.log();
    let lines: Vec<String> = log.lines().filter(|line| line.contains(&ends)).map(str::to_owned).collect();
    let numbers: Vec<&str> =
        lines.iter().map(|line| line.split_once(&ends).unwrap().0.rsplit_once('[').unwrap().1).collect();
    assert!(numbers.iter().all(|number| number.parse::<u64>().is_ok() && *number == numbers[0]), "{lines:?}");
    (id, lines)
}

#[test]
fn each_answer_has_the_requests_id_and_so_has_each_line_of_its_log() {
    let (_service, daemon) = pair(&[]);
    let ask = |to, line: &str, fields: &str, body: &[u8]| {
        let length = body.len();
        let head = format!(
            "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{fields}\r\n"
        );
        request(to, &head, body)
    };
    let file = encrypt(&KEY, b"a text");
    let answer = ask(daemon.public, "POST /files/f/decrypt?user_id=u", "X-Request-Id: balancer.4711_a-B\r\n", &file);
    // The line of its end is written after the answer.
    assert!(daemon.process.has_logged(" balancer.4711_a-B] decrypt_raw 200"));
    let (id, logged) = lines(&daemon, &answer);
    assert_eq!((answer.status, &*id), (200, "balancer.4711_a-B"));
    let has = |text: &str| logged.iter().any(|line| line.contains(text));
    assert!(has("decrypt_raw 200") && has("mTLS connection to"), "{logged:?}");

    // An id that comes again is told apart by the daemon's number.
    ask(daemon.public, "POST /files/f/decrypt?user_id=u", "X-Request-Id: again\r\n", &file);
    ask(daemon.public, "POST /files/f/decrypt?user_id=u", "X-Request-Id: again\r\n", &file);
    wait_for("both lines", || (daemon.process.log().matches(" again] decrypt_raw 200").count() == 2).then_some(()));
    let log = daemon.process.log();
    let mut numbered =
        log.lines().filter_map(|line| Some(line.split_once(" again] decrypt_raw 200")?.0.rsplit_once('[')?.1));
    assert_ne!(numbered.next().unwrap(), numbered.next().unwrap());

    let mut made = Vec::new();
    for (to, line, fields, status) in [
        (daemon.public, "GET /ready", "", 200),
        (daemon.public, "GET /ready", "X-Request-Id: a b\r\n", 200),
        (daemon.public, "GET /ready", "X-Request-Id: a\r\nX-Request-Id: b\r\n", 200),
        (daemon.public, "OPTIONS /ready", "", 204),
        (daemon.public, "GET /nothing", "", 404),
        (daemon.public, "GET /", "Expect: wonders\r\n", 417),
        (daemon.admin, "GET /admin/status", "", 200),
        (daemon.admin, "GET /admin/status", "Origin: null\r\n", 403),
    ] {
        let answer = ask(to, line, fields, b"");
        assert_eq!(answer.status, status, "{line} {fields}");
        made.push(lines(&daemon, &answer).0);
    }
    let count = made.len();
    made.sort_unstable();
    made.dedup();
    assert_eq!(made.len(), count, "each is another");

    // The ingress refuses this one.
    let answer = ask(daemon.public, "GET /", "X-Request-Id: refused-7\r\nExpect: wonders\r\n", b"");
    let (id, logged) = lines(&daemon, &answer);
    assert_eq!((answer.status, &*id), (417, "refused-7"));
    assert!(logged.iter().any(|line| line.contains("refused 417")), "{logged:?}");
}

/// Whatever is logged while requests are served belongs to one of them, whichever thread logs it.
#[test]
fn no_line_is_written_without_an_id_while_requests_are_served() {
    let (service, daemon) = pair(&["--fault", "fail=500", "--fault", "first=1"]);
    let file = encrypt(&KEY, b"a text");
    let ask = |to, id: &str, line: &str, body: &[u8]| {
        let length = body.len();
        let head = format!(
            "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\nX-Request-Id: {id}\r\n\r\n"
        );
        request(to, &head, body)
    };
    let written = |id: &str| assert!(daemon.process.has_logged(format!(" {id}] ")), "{id}");
    // The lines of the start and of the handshake are before this one's.
    ask(daemon.public, "the-first", "GET /health", b"");
    written("the-first");
    let before = daemon.process.log().len();

    let json = serde_json::to_vec(&json!({"file_id": "f", "user_id": "u", "encrypted_content": "AAAA"})).unwrap();
    let bundle = CERTS.full_bundle(service.port).to_string().into_bytes();
    let raw = "POST /files/f/decrypt?user_id=u";
    let mut ids = vec![];
    for (to, line, body, status, end) in [
        // The first, so that its probe of the service makes a connection, in a thread of its own.
        (daemon.public, "GET /health_check", &b""[..], 200, "health_check 200"),
        (daemon.public, raw, &file, 502, "decrypt_raw 502"),
        (daemon.public, raw, &file, 200, "decrypt_raw 200"),
        (daemon.public, "POST /files/decrypt", &json, 422, "decrypt 422"),
        (daemon.public, "GET /get_attestation", b"", 200, "get_attestation 200"),
        (daemon.public, "POST /sealed-bundle", b"{}\n", 400, "sealed_bundle 400"),
        (daemon.public, "GET /metrics", b"", 404, "unknown 404"),
        (daemon.admin, "POST /admin/update-secrets", &bundle, 200, "update_secrets 200"),
        (daemon.admin, "POST /admin/update-secrets", b"{}", 400, "update_secrets 400"),
        (daemon.admin, "POST /admin/drain?seconds=1", b"", 200, "drain 200"),
        (daemon.admin, "DELETE /admin/drain", b"", 200, "drain 200"),
    ] {
        let id = format!("request-{}", ids.len());
        let answer = ask(to, &id, line, body);
        assert_eq!(answer.status, status, "{line}: {answer:?}");
        let end = format!(" {id}] {end}");
        assert!(daemon.process.has_logged(&end), "{end}");
        ids.push(format!(" {id}] "));
    }
    // Should the probe have come too late for its answer, its lines still have the id of the request that began it.
    assert!(daemon.process.has_logged(" request-0] mTLS connection to localhost"));
    let log = daemon.process.log();
    let without: Vec<&str> = log[before..].lines().filter(|line| !ids.iter().any(|id| line.contains(id))).collect();
    assert!(without.is_empty(), "{without:#?}");
}
