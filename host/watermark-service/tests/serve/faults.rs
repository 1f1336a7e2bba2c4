//! Each fault, as a client meets it.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use serde_json::{Value, json};

use super::support::{Connection, Service, in_base64, in_image, request};

#[test]
fn faults_change_the_answer_as_they_are_named() {
    let answer = |fault: &str| Service::start(&["--fault", fault]).post("/api/watermark", &request("text"));
    assert_eq!(answer("fail=503").0, "503");
    assert_eq!(answer("no-data"), ("200".to_owned(), json!({"status": "success"})));
    assert_eq!(answer("not-json"), ("200".to_owned(), Value::Null));
    let (status, failed) = answer("status-error");
    assert_eq!((status.as_str(), &failed["status"]), ("200", &json!("error")));
    let (_, huge) = answer("huge=3000000");
    assert_eq!(huge["watermarked_data"].as_str().unwrap().len(), 3_000_000);

    let unhealthy = Service::start(&["--fault", "unhealthy"]);
    assert_eq!(unhealthy.curl(&[], "/health").0, "503");
    assert_eq!(unhealthy.post("/api/watermark", &request("text")).0, "200");
}

#[test]
fn a_slow_service_answers_in_its_time_and_logs_also_a_client_that_left() {
    let service = Service::start(&["--fault", "slow=2"]);
    let start = Instant::now();
    assert_eq!(service.post("/api/watermark", &request("text")).0, "200");
    assert!(start.elapsed() >= Duration::from_secs(2));
    let log = service.stop();
    assert_eq!(log.matches("POST /api/watermark 200, ").count(), 1, "{log}");

    let service = Service::start(&["--fault", "slow=600"]);
    let mut connection = Connection::to(&service);
    let body = request("text").to_string();
    connection.begin(body.len());
    connection.send(body.as_bytes());
    connection.leave();
    let log = service.stop();
    assert_eq!(log.matches("POST /api/watermark -, ").count(), 1, "{log}");
    assert!(!log.contains("did not finish in time"), "it noticed only when it was stopped: {log}");
}

#[test]
fn a_cut_connection_ends_without_a_tls_close() {
    let text = request("text").to_string();
    for (fault, received) in [("cut", 1_500_021), ("cut-before", 0)] {
        let huge = ["--fault", "huge=3000000"];
        let options = if fault == "cut" { &huge[..] } else { &[] };
        let service = Service::start(&[options, &["--fault", fault, "--fault", "first=1"]].concat());
        let (status, body, code) = service.curl(&["-d", &text], "/api/watermark");
        assert_ne!(code, 0, "{fault}");
        assert_eq!(status, if received > 0 { "200" } else { "000" });
        assert_eq!(body.len(), received, "{fault}: half of the answer, no more");
        assert_eq!(service.post("/api/watermark", &request("text")).0, "200", "{fault}: only the first");
    }
}

/// A file that is neither a picture nor text.
const BINARY: &[u8] = b"\x00\xff some bytes";

/// The file in an answer to a request with base64, and whether it has the member `encoding`.
fn file(answer: &Value) -> (Vec<u8>, bool) {
    let file = BASE64_STANDARD.decode(answer["watermarked_data"].as_str().unwrap()).unwrap();
    (file, answer.get("encoding").is_some())
}

#[test]
fn a_service_that_does_not_mark_gives_the_file_back_in_its_form() {
    let service = Service::start(&["--fault", "unmarked"]);
    let answer = |body: &Value| service.post("/api/watermark", body).1;
    assert_eq!(answer(&request("text")), json!({"status": "success", "watermarked_data": "text"}));
    assert_eq!(file(&answer(&in_base64(BINARY))), (BINARY.to_vec(), true));
    assert_eq!(file(&answer(&in_image(BINARY))), (BINARY.to_vec(), false));
    assert_eq!(service.post("/api/watermark", &json!({"file_id": "f", "user_id": "u"})).0, "400");
}

#[test]
fn wrong_files_come_in_the_form_of_the_request() {
    let empty = Service::start(&["--fault", "empty"]);
    assert_eq!(empty.post("/api/watermark", &request("text")).1["watermarked_data"], "");
    assert_eq!(file(&empty.post("/api/watermark", &in_base64(BINARY)).1), (Vec::new(), true));
    assert_eq!(file(&empty.post("/api/watermark", &in_image(BINARY)).1), (Vec::new(), false));

    let other = Service::start(&["--fault", "other-kind"]);
    let (pdf, _) = file(&other.post("/api/watermark", &in_base64(BINARY)).1);
    assert!(pdf.starts_with(b"%PDF-"));
    let (zip, encoding) = file(&other.post("/api/watermark", &in_image(&pdf)).1);
    assert!(zip.starts_with(b"PK") && !encoding);

    let not_utf8 = Service::start(&["--fault", "not-utf8"]);
    let (bytes, encoding) = file(&not_utf8.post("/api/watermark", &request("text")).1);
    assert!(String::from_utf8(bytes).is_err() && encoding);
}

#[test]
fn a_service_that_does_not_know_encoding_marks_the_base64_as_text() {
    let service = Service::start(&["--fault", "no-encoding"]);
    let (_, answer) = service.post("/api/watermark", &in_base64(BINARY));
    assert_eq!(answer.get("encoding"), None);
    let text = answer["watermarked_data"].as_str().unwrap();
    let visible: String = text.chars().filter(char::is_ascii).collect();
    assert_eq!(BASE64_STANDARD.decode(visible).unwrap(), BINARY);
    assert!(!text.is_ascii(), "a mark was added");
}

#[test]
fn base64_may_come_in_lines_without_padding() {
    let service = Service::start(&["--fault", "base64-lines", "--fault", "unmarked"]);
    let (_, answer) = service.post("/api/watermark", &in_image(&[0xff; 100]));
    let text = answer["watermarked_data"].as_str().unwrap();
    assert_eq!(text.lines().map(str::len).collect::<Vec<_>>(), [76, 58]);
    assert_eq!(text.matches("\r\n").count(), 2);
    assert_eq!(BASE64_STANDARD_NO_PAD.decode(text.replace("\r\n", "")).unwrap(), [0xff; 100]);
}

#[test]
fn an_early_answer_comes_before_the_body_and_the_connection_is_closed() {
    for (status, members) in [("413", &["status", "message"]), ("200", &["status", "watermarked_data"])] {
        let service = Service::start(&["--fault", &format!("early={status}"), "--fault", "first=1"]);
        let mut connection = Connection::to(&service);
        connection.head(1 << 20);
        connection.send(b"{");
        let (head, body) = connection.answer();
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")) && head.contains("\r\nconnection: close\r\n"),
            "{head}"
        );
        assert!(members.iter().all(|member| body[member].is_string()), "{body}");
        assert!(connection.is_closed());
        assert_eq!(service.post("/api/watermark", &request("text")).0, "200", "only the first");
        let log = service.stop();
        assert!(log.contains(&format!("POST /api/watermark {status}, 0 bytes in")), "{log}");
    }
}

#[test]
fn an_early_answer_can_be_read_where_sending_failed() {
    let service = Service::start(&["--fault", "early=413"]);
    let mut connection = Connection::to(&service);
    connection.head(64 << 20);
    assert!(connection.try_send(&vec![b' '; 64 << 20]).is_err(), "the service does not read");
    assert!(connection.answer().0.starts_with("HTTP/1.1 413 "));
}

#[test]
fn after_an_early_answer_that_keeps_the_connection_it_serves_again() {
    let service = Service::start(&["--fault", "early-keep=503", "--fault", "retry-after=7", "--fault", "first=1"]);
    let mut connection = Connection::to(&service);
    connection.head(1 << 20);
    let (head, _) = connection.answer();
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("\r\nretry-after: 7\r\n"), "{head}");
    connection.send(&vec![b' '; 1 << 20]);
    connection.post(&request("text"));
    assert!(connection.answer().0.starts_with("HTTP/1.1 200 "));
}

#[test]
fn one_request_is_answered_twice() {
    let service = Service::start(&["--fault", "twice", "--fault", "first=1"]);
    let mut connection = Connection::to(&service);
    connection.post(&request("the first"));
    let first = connection.answer();
    assert!(first.1["watermarked_data"].as_str().unwrap().contains("the first"));
    assert_eq!(connection.answer(), first);
    connection.post(&request("the second"));
    assert!(connection.answer().1["watermarked_data"].as_str().unwrap().contains("the second"));

    // An answer that takes more than one write.
    let service = Service::start(&["--fault", "twice"]);
    let mut connection = Connection::to(&service);
    connection.post(&request(&"x".repeat(3 << 20)));
    let first = connection.answer();
    assert!(connection.answer() == first);
}

#[test]
fn heads_are_as_large_as_asked_for() {
    let service = Service::start(&["--fault", "big-head=70000", "--fault", "fields=128"]);
    let mut connection = Connection::to(&service);
    connection.post(&request("text"));
    let (head, _) = connection.answer();
    // Without the status line and the empty line at the end.
    assert_eq!(head.lines().count() - 2, 128);
    assert!(head.contains(&format!("\r\nx-big: {}\r\n", "a".repeat(70_000))));
    let refused = Service::start(&["--fault", "fail=429", "--fault", "retry-after=30", "--fault", "fields=9"]);
    let mut connection = Connection::to(&refused);
    connection.post(&request("text"));
    let (head, _) = connection.answer();
    assert!(head.starts_with("HTTP/1.1 429 ") && head.contains("\r\nretry-after: 30\r\n"), "{head}");
    assert_eq!(head.lines().count() - 2, 9);
}
