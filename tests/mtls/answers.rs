//! A service that is trusted but gives no usable answer.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use crate::scripted::{Scripted, Step};
use crate::*;

#[test]
fn every_answer_that_cannot_be_used_gives_502_and_the_next_call_works() {
    for fault in
        ["cut", "cut-before", "not-json", "status-error", "fail=500", "fail=504", "fail=404", "fail=302", "fail=307"]
    {
        let service = Service::start(&CERTS, &["--fault", fault, "--fault", "first=1"]);
        let daemon = Daemon::ready(&service, &CERTS);
        let message = assert_fails(&daemon);
        if let Some(status) = fault.strip_prefix("fail=") {
            assert!(message.contains(status), "{message}");
        }
        assert_eq!(service.count("POST /api/watermark"), 1, "{fault}: it is not asked again");
        assert_eq!(service.count("/health"), 0, "{fault}: no redirect is followed");
        assert_works(&daemon);
        assert_eq!(service.count("POST /api/watermark"), 2, "{fault}");
        assert_eq!(daemon.metric("teemark_watermark_retries_total"), 0.0, "{fault}");
    }
}

#[test]
fn an_answer_that_is_too_large_gives_502_and_takes_no_memory() {
    let service = Service::start(&CERTS, &["--fault", "huge=200000000", "--fault", "first=1"]);
    let daemon = Daemon::ready(&service, &CERTS);
    let message = assert_fails(&daemon);
    assert!(message.contains("over"), "{message}");
    let peak = daemon.process.memory("VmHWM");
    assert!(peak < 64 << 10, "{peak} KiB");
    assert_works(&daemon);
}

#[test]
fn an_answer_without_a_length_is_bounded_too() {
    let service = Scripted::start(|connection, _| if connection == 0 { Step::Endless } else { Step::Answer });
    let daemon = daemon_for(&[service.port]);
    let message = assert_fails(&daemon);
    assert!(message.contains("over"), "{message}");
    assert!(daemon.process.memory("VmHWM") < 64 << 10);
    assert_eq!(call(&daemon).text(), scripted::MARKED);
}

/// As Python's json.dumps writes it: six bytes for each letter that has two in the file.
#[test]
fn a_text_that_comes_back_in_ascii_only_is_read() {
    const LETTERS: usize = 1 << 20;
    let answer = format!("{{\"status\":\"success\",\"watermarked_data\":\"!{}\"}}", "\\u0434".repeat(LETTERS));
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
    let service = Scripted::start(move |_, _| Step::Bytes([head.as_bytes(), answer.as_bytes()].concat()));
    let daemon = daemon_for(&[service.port]);
    let text = "д".repeat(LETTERS);
    let marked = daemon.decrypt(&encrypt(&KEY, text.as_bytes()), "f", "u");
    assert_eq!(marked.status, 200, "{}", daemon.process.log());
    assert!(marked.body == format!("!{text}").as_bytes());
}

#[test]
fn what_the_service_quotes_of_the_file_is_not_passed_on() {
    for (status, told, code) in [
        ("500 Zebra", 502, "watermark_failed"),
        ("415 the zebra crosses at dawn", 422, "watermark_unsupported"),
        ("413 zebra", 413, "file_too_large"),
        ("503 zebra", 503, "watermark_busy"),
        ("200 OK", 502, "watermark_failed"),
    ] {
        let service = Scripted::start(move |_, _| Step::Echo(status));
        let daemon = daemon_for(&[service.port]);
        assert_refused(&daemon, &call(&daemon), told, code);
    }
    // When the quotation breaks HTTP, the library's own message would contain it.
    for bytes in [
        &b"the zebra crosses at dawn\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nthe zebra crosses at dawn\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: zebra at dawn\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzebra\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: https://zebra.at.dawn:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 48\r\n\r\n{\"status\":\"zebra\",\"watermarked_data\":\"at dawn\"}  ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 29\r\n\r\n{\"status\":7,\"zebra\":\"at dawn\"}",
    ] {
        let service = Scripted::start(move |_, _| Step::Bytes(bytes.to_vec()));
        let daemon = daemon_for(&[service.port]);
        assert_fails(&daemon);
    }
}

#[test]
fn a_port_that_speaks_plain_http_gives_502() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut hello = [0; 5];
            let _ = stream.read_exact(&mut hello);
            // A TLS record, not the request.
            assert_eq!(hello[0], 0x16);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let good = Service::start(&CERTS, &[]);
    let daemon = daemon_for(&[port, good.port]);
    assert_fails(&daemon);
    turn_to(&daemon, good.port);
    assert_works(&daemon);
}

#[test]
fn a_service_that_cannot_be_reached_gives_502() {
    let good = Service::start(&CERTS, &[]);
    let daemon = daemon_for(&[free_port(), good.port]);
    let message = assert_fails(&daemon);
    assert!(message.contains("refused"), "{message}");
    turn_to(&daemon, good.port);
    assert_works(&daemon);
}

/// A user's mistake must not raise the operator's alarm, as 502 does.
#[test]
fn a_refusal_of_the_service_is_reported_as_the_users_mistake_or_as_a_fault() {
    for (status, more, told, code, retry_after) in [
        ("413 Payload Too Large", "", 413, "file_too_large", None),
        ("415 Unsupported Media Type", "", 422, "watermark_unsupported", None),
        ("422 Unprocessable Content", "", 422, "watermark_unsupported", None),
        ("429 Too Many Requests", "Retry-After: 7\r\n", 503, "watermark_busy", Some("7")),
        ("503 Service Unavailable", "Retry-After: 3600\r\n", 503, "watermark_busy", Some("60")),
        ("503 Service Unavailable", "Retry-After: 0\r\n", 503, "watermark_busy", Some("1")),
        ("503 Service Unavailable", "retry-after: Fri, 31 Dec 1999 23:59:59 GMT\r\n", 503, "watermark_busy", Some("5")),
        ("403 Forbidden", "", 502, "watermark_failed", None),
    ] {
        let answered = format!("HTTP/1.1 {status}\r\n{more}Content-Length: 0\r\n\r\n").into_bytes();
        let service = Scripted::start(move |_, _| Step::Bytes(answered.clone()));
        let daemon = daemon_for(&[service.port]);
        let answer = call(&daemon);
        assert_refused(&daemon, &answer, told, code);
        assert_eq!(answer.field("Retry-After"), retry_after, "{status}, {more:?}");
        assert!(answer.text().contains("watermark service"), "{answer:?}");
    }
}

#[test]
fn an_answers_head_may_have_64_kib_and_128_fields() {
    let with = |fields: usize, bytes: usize| {
        let body = format!("{{\"status\":\"success\",\"watermarked_data\":\"{}\"}}", scripted::MARKED);
        let field = format!("X: {}\r\n", "a".repeat(bytes));
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{}\r\n{body}", body.len(), field.repeat(fields - 1))
            .into_bytes()
    };
    for (answer, good) in
        [(with(2, 60 << 10), true), (with(128, 8), true), (with(2, 65 << 10), false), (with(129, 8), false)]
    {
        let service = Scripted::start(move |_, _| Step::Bytes(answer.clone()));
        let daemon = daemon_for(&[service.port]);
        match good {
            true => assert_eq!(call(&daemon).text(), scripted::MARKED),
            false => {
                let message = assert_fails(&daemon);
                assert!(message.contains("over 64 KiB or 128 header fields"), "{message}");
            }
        }
    }
}
