use super::enclave::{Reply, answer, daemon};
use super::*;

fn error(status: &str, headers: &str, code: &str) -> String {
    answer(status, headers, &format!(r#"{{"error":"what went wrong","code":"{code}"}}"#))
}

fn ask<'a>(endpoint: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let base = ["decrypt", "file.enc", "--endpoint", endpoint, "--file-id", "f-1", "--user-id", "alice"];
    [&base[..], more].concat()
}

#[test]
fn the_file_goes_out_raw_and_comes_back_marked() {
    let place = Place::new();
    for size in [0, 5, 70_000, 6 << 20] {
        let sealed: Vec<u8> = (0..253).cycle().take(size).collect();
        place.write("file.enc", &sealed);
        let marked = "m".repeat(size);
        let (endpoint, requests) = daemon(vec![Reply::After(answer("200 OK", "", &marked))]);
        let output = succeeds(place.teemark(&ask(&endpoint, &["--force"])));
        assert_eq!(stderr(&output).lines().count(), 2, "two warnings, and no bar where stderr is no terminal");
        assert_eq!(place.read("file"), marked.as_bytes());
        assert_eq!(place.mode("file"), 0o600);
        let request = requests.recv().unwrap();
        assert!(request.head.starts_with("POST /files/f-1/decrypt?user_id=alice HTTP/1.1\r\n"), "{}", request.head);
        assert!(request.head.to_lowercase().contains("content-type: application/octet-stream"));
        assert_eq!(request.body, sealed);
    }
}

#[test]
fn ids_are_percent_encoded() {
    let place = Place::new();
    let (endpoint, requests) = daemon(vec![Reply::After(answer("200 OK", "", "x"))]);
    let base = format!("{endpoint}/");
    let command = [
        "decrypt",
        "-",
        "--endpoint",
        &base,
        "--file-id",
        "a/b?c#d %é",
        "--user-id",
        "x&key_id=+y~",
        "--key-id",
        "k=1",
    ];
    assert_eq!(stdout(&succeeds(place.teemark_with_input(&command, b"sealed"))), "x");
    let head = requests.recv().unwrap().head;
    let expected = "POST /files/a%2Fb%3Fc%23d%20%25%C3%A9/decrypt?user_id=x%26key_id%3D%2By~&key_id=k%3D1 HTTP/1.1\r\n";
    assert!(head.starts_with(expected), "{head}");
}

#[test]
fn a_refusal_is_printed_with_its_code_and_ends_with_1() {
    let place = Place::new();
    place.write("file.enc", "sealed");
    let (endpoint, _requests) = daemon(vec![Reply::After(error("422 Unprocessable Entity", "", "decrypt_failed"))]);
    let told = fails(1, &place.teemark(&ask(&endpoint, &[])));
    assert!(told.contains("what went wrong") && told.contains("decrypt_failed") && told.contains("422"), "{told}");
    assert_eq!(place.names(), ["file.enc"]);
}

#[test]
fn a_large_file_that_is_refused_by_its_head_is_told_so() {
    let place = Place::new();
    place.write("file.enc", vec![0; 8 << 20]);
    let (endpoint, _requests) = daemon(vec![Reply::AtOnce(error("413 Content Too Large", "", "file_too_large"))]);
    let told = fails(1, &place.teemark(&ask(&endpoint, &[])));
    assert!(told.contains("file_too_large"), "{told}");
}

#[test]
fn a_daemon_without_room_is_asked_again_when_it_says() {
    let place = Place::new();
    place.write("file.enc", "sealed");
    let full = || Reply::After(error("503 Service Unavailable", "Retry-After: 0\r\n", "overloaded"));
    let (endpoint, requests) = daemon(vec![full(), full(), Reply::After(answer("200 OK", "", "marked"))]);
    let output = succeeds(place.teemark(&ask(&endpoint, &[])));
    assert!(stderr(&output).contains("(2 of 3)"), "{}", stderr(&output));
    assert_eq!(place.read("file"), b"marked");
    assert!(requests.iter().all(|request| request.body == b"sealed"));

    let (endpoint, requests) = daemon(vec![full(), full()]);
    let told = fails(3, &place.teemark(&ask(&endpoint, &["--retries", "1", "--force"])));
    assert!(told.contains("overloaded"), "{told}");
    assert_eq!(requests.iter().count(), 2);
}

#[test]
fn a_503_without_retry_after_is_not_asked_again_here_but_may_be_later() {
    let place = Place::new();
    place.write("file.enc", "sealed");
    let (endpoint, requests) = daemon(vec![Reply::After(error("503 Service Unavailable", "", "not_ready"))]);
    assert!(fails(3, &place.teemark(&ask(&endpoint, &[]))).contains("try again: what went wrong (not_ready"));
    assert_eq!(requests.iter().count(), 1);
}

#[test]
fn a_file_that_arrives_in_part_is_not_written() {
    let place = Place::new();
    place.write("file.enc", "sealed");
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this".to_owned();
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n9\r\nhal".to_owned();
    let between = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n".to_owned();
    for text in [cut, chunked, between] {
        let (endpoint, _requests) = daemon(vec![Reply::After(text)]);
        let told = fails(3, &place.teemark(&ask(&endpoint, &[])));
        assert!(told.contains("did not arrive whole"), "{told}");
        assert_eq!(place.names(), ["file.enc"]);
    }
}

#[test]
fn what_is_not_the_daemon_is_called_so_and_not_followed() {
    let place = Place::new();
    place.write("file.enc", "sealed");
    for text in [
        answer("404 Not Found", "Content-Type: text/html\r\n", "<h1>Not Found</h1>"),
        answer("302 Found", "Location: http://127.0.0.1:1/\r\n", ""),
    ] {
        let (endpoint, _requests) = daemon(vec![Reply::After(text)]);
        let told = fails(2, &place.teemark(&ask(&endpoint, &[])));
        assert!(told.contains("not as teemarkd does"), "{told}");
    }
    let told = fails(3, &place.teemark(&ask("http://127.0.0.1:1", &[])));
    assert!(told.contains("http://127.0.0.1:1 gave no answer"), "{told}");
}

#[test]
fn nothing_is_overwritten_without_force_and_then_nothing_is_asked() {
    let place = Place::new();
    place.write("file.enc", "sealed");
    place.write("file", "precious");
    let told = fails(2, &place.teemark(&ask("http://127.0.0.1:1", &[])));
    assert!(told.contains("file is there already") && told.contains("--force"), "{told}");
    assert_eq!(place.read("file"), b"precious");
}
