//! Malformed requests, and bodies that do not come.

use super::shares::Granted;
use super::*;

#[test]
fn a_body_that_stops_half_way_is_cut_after_ten_seconds_with_408_and_one_that_ends_is_dropped() {
    let scene = Scene::new(&[], &[]);
    scene.during(|| {
        let send = || {
            let mut stream = connect(scene.public());
            stream.write_all(format!("{}half", raw_head(1000)).as_bytes()).unwrap();
            stream
        };
        let mut stalled: Vec<TcpStream> = (0..50).map(|_| send()).collect();
        for i in 0..50 {
            let mut stream = send();
            if i % 2 == 0 {
                stream.shutdown(Shutdown::Write).unwrap();
                let said = until_closed(&mut stream);
                assert!(!said.starts_with("HTTP/1.1 200"), "{said}");
            }
        }
        for stream in &mut stalled {
            assert_eq!(read_answer(stream).expect("an answer").status, 408);
        }
    });
    scene.ends_as_it_began();
}

/// Sends all of this before it reads the answer, which a reset in between would destroy. `None` if that took longer than
/// the daemon reads on after a refusal.
fn sent_whole(what: &str, to: SocketAddr, bytes: &[u8]) -> Option<(TcpStream, Answer)> {
    let mut stream = connect(to);
    let start = Instant::now();
    let sent = stream.write_all(bytes);
    let answer = sent.is_ok().then(|| read_answer(&mut stream)).flatten();
    let is_slow = start.elapsed() >= LINGER;
    assert!(answer.is_some() || is_slow, "{what}: no answer: {sent:?}");
    Some((stream, answer?))
}

#[test]
fn every_malformed_request_gets_its_refusal() {
    let scene = Scene::new(&[("TEEMARK_MAX_FILE", "1MiB")], &[]);
    let post = |path: &str, fields: &str, body: &[u8]| {
        [format!("POST {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n").as_bytes(), body].concat()
    };
    let json = |body: &[u8]| post("/files/decrypt", &format!("Content-Length: {}\r\n", body.len()), body);
    let chunked = |body: &[u8]| post("/files/decrypt", "Transfer-Encoding: chunked\r\n", body);
    let raw = "/files/f/decrypt?user_id=u";
    let deep = format!("{{\"file_id\":{}", "[".repeat(500_000));
    let cases: Vec<(&str, u16, Vec<u8>)> = vec![
        ("100,000 fields", 431, format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(100_000)).into()),
        ("a field of 1 MiB", 431, format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(MIB)).into()),
        ("a path of 1 MiB", 431, format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(MIB)).into()),
        ("bad UTF-8 in JSON", 400, json(b"{\"file_id\":\"\xff\xfe\"}")),
        ("bad UTF-8 in the path", 400, b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("bad UTF-8, percent-encoded", 400, post("/files/%ff/decrypt?user_id=u", "Content-Length: 0\r\n", b"")),
        ("deep JSON", 400, json(deep.as_bytes())),
        ("two equal lengths", 400, post(raw, "Content-Length: 3\r\nContent-Length: 3\r\n", b"abc")),
        ("two lengths", 400, post(raw, "Content-Length: 3\r\nContent-Length: 30\r\n", b"abc")),
        ("a negative length", 400, post(raw, "Content-Length: -3\r\n", b"abc")),
        ("a length past 64 bits", 413, post(raw, "Content-Length: 18446744073709551617\r\n", b"abc")),
        ("a huge length", 413, post(raw, "Content-Length: 18446744073709551615\r\n", b"abc")),
        ("a length and chunks", 400, post(raw, "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
        ("no length", 411, post(raw, "", b"")),
        ("an invalid chunk size", 400, chunked(b"zz\r\nabc\r\n0\r\n\r\n")),
        ("a negative chunk size", 400, chunked(b"-3\r\nabc\r\n0\r\n\r\n")),
        ("a chunk longer than its size", 400, chunked(b"1\r\nabc\r\n0\r\n\r\n")),
        ("a huge chunk", 413, chunked(b"ffffffffffffffff\r\nabc")),
        ("an endless chunk line", 400, chunked(&b"1".repeat(MIB))),
        ("a chunk size followed by a blank", 400, chunked(b"3 \r\nabc\r\n0\r\n\r\n")),
        ("an invalid extension", 400, chunked(b"3;\r\nabc\r\n0\r\n\r\n")),
        ("a trailer that is not a field", 400, chunked(b"3\r\nabc\r\n0\r\nGET /ready HTTP/1.1\r\n\r\n")),
        ("lines that end with a line feed alone", 400, b"GET / HTTP/1.1\nHost: x\n\n".to_vec()),
        ("no Host", 400, b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("two Hosts", 400, b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n".to_vec()),
        ("an endless trailer", 400, chunked(&[b"0\r\nA: ", &b"x".repeat(MIB)[..]].concat())),
        ("the start of a TLS handshake", 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("HTTP/2", 400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("nonsense", 400, b"\0\0\0\0\r\n\r\n".to_vec()),
        ("5 MiB, refused by its head", 413, post(raw, "Content-Length: 5242880\r\n", &vec![b'x'; 5 * MIB])),
        ("3 MiB, refused while it comes", 413, post(raw, "Content-Length: 3145728\r\n", &vec![b'x'; 3 * MIB])),
    ];
    scene.during(|| {
        for (what, status, bytes) in cases {
            let answer = unspoilt(what, || sent_whole(what, scene.public(), &bytes)).1;
            assert_eq!(answer.status, status, "{what}: {answer:?}");
            assert!(!answer.code().is_empty(), "{what}: {answer:?}");
        }
    });
    scene.ends_as_it_began();
}

#[test]
fn requests_in_one_write_are_answered_in_their_order() {
    let scene = Scene::new(&[], &[]);
    let mut stream = connect(scene.public());
    let pair = "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(pair.repeat(50).as_bytes()).unwrap();
    for n in 0..50 {
        assert_eq!(read_answer(&mut stream).unwrap_or_else(|| panic!("no answer {n}")).body, b"Pong!");
        assert_eq!(read_answer(&mut stream).unwrap().json()["status"], "alive");
    }
    scene.ends_as_it_began();
}

/// A proxy in front that lost a body's framing sends it all the same, and what it holds must not become a request.
#[test]
fn what_follows_a_request_whose_body_is_not_announced_is_never_taken_for_a_request() {
    let scene = Scene::new(&[], &[]);
    scene.during(|| {
        for (head, status) in [
            ("POST /files/f/decrypt?user_id=u", 411),
            ("POST /files/decrypt", 411),
            ("POST /sealed-bundle", 411),
            ("POST /health", 405),
            ("PUT /files/decrypt", 405),
            ("PATCH /nothing", 404),
        ] {
            let head = format!("{head} HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n");
            let hidden = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n".repeat(3);
            for pause in [false, true] {
                let mut stream = connect(scene.public());
                stream.write_all(head.as_bytes()).unwrap();
                if pause {
                    // The answer is under way before the rest comes, as it would be for a proxy that streams.
                    wait_for_answer(&stream);
                }
                let _ = stream.write_all(hidden.as_bytes());
                let answer = read_answer(&mut stream).expect("one answer");
                assert_eq!((answer.status, answer.field("Connection")), (status, Some("close")), "{head}");
                let _ = stream.write_all(hidden.as_bytes());
                let _ = stream.shutdown(Shutdown::Write);
                assert_eq!(until_closed(&mut stream), "", "{head}");
            }
        }
    });
    scene.ends_as_it_began();
}

#[test]
fn a_body_longer_than_announced_does_not_cost_the_request_its_answer() {
    let scene = Scene::new(&[], &[]);
    scene.during(|| {
        for excess in [&b"\0\0\0\0 more than was announced\r\n\r\n"[..], b"GET /%ff HTTP/1.1\r\n\r\n"] {
            let mut stream = connect(scene.public());
            stream.write_all(&[raw_head(scene.file.len()).as_bytes(), &scene.file, excess].concat()).unwrap();
            assert_eq!(read_answer(&mut stream).expect("the answer of the request before").status, 200);
            assert_eq!(read_answer(&mut stream).expect("the refusal of what came after it").status, 400);
        }
    });
    scene.ends_as_it_began();
}

#[test]
fn a_refusal_from_the_head_alone_reaches_a_client_that_is_still_sending_or_waits_to_be_asked() {
    let granted = Granted::new(&[], &[], 100);
    let public = granted.daemon.public;
    let whole = [raw_head(5 * MIB).as_bytes(), &vec![b'x'; 5 * MIB]].concat();
    let (_sending, answer) = unspoilt("all of it to be sent", || sent_whole("5 MiB", public, &whole));
    assert_eq!(answer.status, 401);
    let mut waits = connect(public);
    let head = raw_head(5 * MIB).replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    waits.write_all(head.as_bytes()).unwrap();
    let answer = read_answer(&mut waits).expect("the answer");
    assert_eq!((answer.status, answer.field("Connection")), (401, Some("close")), "and not 100");
    waits.shutdown(Shutdown::Write).unwrap();
    assert_eq!(until_closed(&mut waits), "");
}

#[test]
fn a_chunk_that_ends_where_a_buffer_does_is_read_like_any_other() {
    let scene = Scene::new(&[], &[]);
    for length in [65_534, 65_535, 65_536, 65_537, 131_071] {
        let file = encrypt(&KEY, &vec![b'x'; length - 28]);
        let head = "POST /files/f/decrypt?user_id=u HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut stream = connect(scene.public());
        stream.write_all(head.as_bytes()).unwrap();
        // The last byte is in a chunk of its own, and each piece arrives by itself.
        for (chunk, end) in [(&file[..length - 1], ""), (&file[length - 1..], "0\r\n\r\n")] {
            let size = format!("{:x}\r\n", chunk.len());
            for piece in [size.as_bytes(), chunk, b"\r\n", end.as_bytes()] {
                stream.write_all(piece).unwrap();
            }
        }
        assert_eq!(read_answer(&mut stream).expect("an answer").status, 200, "{length} bytes");
    }
    scene.ends_as_it_began();
}

#[test]
fn framing_around_the_content_buys_no_time() {
    let scene = Scene::new(&[], &[]);
    let mut stream = connect(scene.public());
    let head = "POST /files/f/decrypt?user_id=u HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("1;{}\r\nx\r\n", "e".repeat(240));
    let sent = (0..2000).take_while(|_| stream.write_all(chunk.as_bytes()).is_ok()).count();
    let answer = read_answer(&mut stream);
    assert!(answer.is_none_or(|answer| answer.status == 400), "{sent} chunks were taken");
    scene.ends_as_it_began();
}
