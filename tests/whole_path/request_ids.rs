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
