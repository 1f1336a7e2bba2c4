//! A service that answers before it has the whole file: with a refusal, or with a success that cannot be true.

use crate::scripted::{MARKED, Scripted, Step};
use crate::*;

/// Larger than what the sockets between the two buffer, so that it cannot all have been sent when the answer comes.
fn large_file() -> Vec<u8> {
    encrypt(&KEY, &CONTENT.as_bytes().repeat(500_000))
}

/// A daemon whose first call meets this step, and whose later calls are answered.
fn pair(step: impl Fn() -> Step + Send + Sync + 'static) -> (Scripted, Daemon) {
    let service = Scripted::start(move |connection, _| if connection == 0 { step() } else { Step::Answer });
    let daemon = daemon_for(&[service.port]);
    (service, daemon)
}

const TOO_LARGE: &str = "HTTP/1.1 413 Payload Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 9\r\nContent-Length: 0\r\n\r\n";
const SUCCESS: &str =
    "HTTP/1.1 200 OK\r\nContent-Length: 52\r\n\r\n{\"status\":\"success\",\"watermarked_data\":\"too early\"}  ";

#[test]
fn a_refusal_that_comes_while_the_file_is_being_sent_is_told_and_the_file_goes_out_once() {
    for (step, status, code) in [
        ((|| Step::EarlyClose(TOO_LARGE)) as fn() -> Step, 413, "file_too_large"),
        // The service stops reading, so that nothing more can be written.
        (|| Step::EarlyHold(TOO_LARGE), 413, "file_too_large"),
        (|| Step::EarlyHold(BUSY), 503, "watermark_busy"),
        (|| Step::EarlyHold("HTTP/1.1 415 What\r\n\r\n"), 422, "watermark_unsupported"),
        (|| Step::EarlyClose("HTTP/1.1 500 Oh\r\n\r\n"), 502, "watermark_failed"),
    ] {
        let (service, daemon) = pair(step);
        let answer = daemon.decrypt(&large_file(), "f", "u");
        assert_refused(&daemon, &answer, status, code);
        assert_eq!(answer.field("Retry-After"), (status == 503).then_some("9"));
        assert_eq!((service.requests(), service.connections()), (1, 1), "{code}");
        // The connection is not reused, since the rest of an answer may follow on it.
        assert_eq!(call(&daemon).text(), MARKED);
        assert_eq!(service.connections(), 2, "{code}");
    }
}

#[test]
fn a_success_that_comes_before_the_whole_file_was_sent_is_refused() {
    for answer in [SUCCESS, "HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"] {
        let (service, daemon) = pair(move || Step::EarlyHold(answer));
        let refused = daemon.decrypt(&large_file(), "f", "u");
        assert_refused(&daemon, &refused, 502, "watermark_failed");
        assert!(refused.text().contains("before it had the whole file"), "{refused:?}");
        assert_eq!(call(&daemon).text(), MARKED);
        assert_eq!(service.connections(), 2);
    }
}

#[test]
fn interim_answers_are_passed_over() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let (service, daemon) = pair(move || Step::EarlyThenAnswer(interim));
    let answer = daemon.decrypt(&large_file(), "f", "u");
    assert_eq!((answer.status, answer.text().as_str()), (200, MARKED), "{}", daemon.process.log());
    assert_eq!(service.requests(), 1);
}

#[test]
fn an_answer_that_is_not_http_or_ends_in_its_head_is_reported_as_such() {
    for (bytes, words) in [
        ("SSH-2.0-x\r\n", "does not speak HTTP/1.1"),
        ("HTTP/1.1 413 Payl", "closed the connection before it had answered"),
    ] {
        let (_service, daemon) = pair(move || Step::EarlyClose(bytes));
        let answer = daemon.decrypt(&large_file(), "f", "u");
        assert_refused(&daemon, &answer, 502, "watermark_failed");
        assert!(answer.text().contains(words), "{answer:?}");
    }
}
