//! What the curl command sends.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::support::*;
use crate::*;

/// Runs curl in `folder` and returns what --write-out prints. The arguments say where the body goes.
fn curl(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    // -q comes first, so that nobody's .curlrc counts.
    command.current_dir(folder).args(["-q", "-sS", "--noproxy", "*", "--max-time", "60"]).args(arguments);
    String::from_utf8(run(&mut command)).unwrap()
}

struct Bench {
    _service: Service,
    daemon: Daemon,
    folder: TempDir,
    plain: Vec<u8>,
}

impl Bench {
    /// A daemon, and a folder with `file`, encrypted, of this many bytes.
    fn new(size: usize) -> Bench {
        let (service, daemon) = pair(&[]);
        let folder = TempDir::new().unwrap();
        let plain: Vec<u8> = b"a line of text\n".iter().copied().cycle().take(size).collect();
        fs::write(folder.path().join("file"), encrypt(&KEY, &plain)).unwrap();
        Bench { _service: service, daemon, folder, plain }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.daemon.public)
    }

    fn raw_url(&self) -> String {
        self.url("/files/f/decrypt?user_id=u")
    }

    fn curl(&self, arguments: &[&str]) -> String {
        curl(self.folder.path(), arguments)
    }

    /// What curl wrote to `out` is the marked file.
    fn assert_marked(&self) {
        let out = self.folder.path().join("out");
        let marked = fs::read(&out).unwrap();
        assert_eq!(extract(&marked), json!({"file_id": "f", "user_id": "u"}));
        assert!(without_marks(&marked).as_bytes() == self.plain, "the file is not whole");
        fs::remove_file(out).unwrap();
    }
}

#[test]
fn curl_sends_a_file_with_its_length() {
    let bench = Bench::new(300_000);
    assert_eq!(bench.curl(&["--data-binary", "@file", "-o", "out", "-w", "%{http_code}", &bench.raw_url()]), "200");
    bench.assert_marked();
}

#[test]
fn curl_that_waits_for_100_continue_is_told_to_go_on_at_once() {
    let bench = Bench::new(3 << 20);
    let url = bench.raw_url();
    // Without the interim answer curl would begin to send after 50 s.
    let told = bench.curl(&[
        "-H",
        "Expect: 100-continue",
        "--expect100-timeout",
        "50",
        "--data-binary",
        "@file",
        "-o",
        "out",
        "-w",
        "%{http_code} %{time_total}",
        &url,
    ]);
    let (status, time) = told.split_once(' ').unwrap();
    assert_eq!(status, "200");
    assert!(time.parse::<f64>().unwrap() < 50.0, "{told}");
    bench.assert_marked();
}

#[test]
fn curl_that_waits_for_100_continue_does_not_send_a_file_that_is_refused() {
    let bench = Bench::new(3 << 20);
    let url = bench.url("/files/f/decrypt");
    let arguments = ["-H", "Expect: 100-continue", "--expect100-timeout", "20", "--data-binary", "@file"];
    let told = bench.curl(&[&arguments[..], &["-o", "out", "-w", "%{http_code} %{size_upload}", &url]].concat());
    assert_eq!(told, "400 0", "user_id is missing, and that is known before the body");
}

#[test]
fn curl_sends_chunks() {
    let bench = Bench::new(300_000);
    let url = bench.raw_url();
    let chunked = ["-H", "Transfer-Encoding: chunked", "--data-binary", "@file", "-o", "out", "-w", "%{http_code}"];
    assert_eq!(bench.curl(&[&chunked[..], &[&url]].concat()), "200");
    bench.assert_marked();

    // From a pipe curl cannot know the length.
    let mut command = Command::new("curl");
    command.current_dir(&bench.folder).args(["-q", "-sS", "--noproxy", "*", "-X", "POST", "-T", "-", "-o", "out"]);
    command
        .args(["-w", "%{http_code}", &url])
        .stdin(Stdio::from(fs::File::open(bench.folder.path().join("file")).unwrap()));
    assert_eq!(run(&mut command), b"200");
    bench.assert_marked();
}

#[test]
fn curl_sends_json() {
    let bench = Bench::new(30_000);
    let content = STANDARD.encode(fs::read(bench.folder.path().join("file")).unwrap());
    let body = json!({"file_id": "f", "user_id": "u", "encrypted_content": content});
    fs::write(bench.folder.path().join("body.json"), body.to_string()).unwrap();
    let url = bench.url("/files/decrypt");
    assert_eq!(bench.curl(&["--json", "@body.json", "-o", "answer", "-w", "%{http_code}", &url]), "200");
    let answer: Value = serde_json::from_slice(&fs::read(bench.folder.path().join("answer")).unwrap()).unwrap();
    let marked = STANDARD.decode(answer["decrypted_data"].as_str().unwrap()).unwrap();
    fs::write(bench.folder.path().join("out"), marked).unwrap();
    bench.assert_marked();
}

#[test]
fn curl_uses_its_connection_again() {
    let bench = Bench::new(300_000);
    let (file, health) = (bench.raw_url(), bench.url("/health"));
    let told = bench.curl(&[
        "--data-binary",
        "@file",
        "-o",
        "out",
        "-o",
        "out",
        "-o",
        "out",
        "-w",
        "%{http_code} %{num_connects}\n",
        &file,
        &file,
        &file,
    ]);
    assert_eq!(told, "200 1\n200 0\n200 0\n");
    bench.assert_marked();
    let told = bench.curl(&["-o", "a", "-o", "b", "-w", "%{num_connects} ", &health, &bench.url("/nothing")]);
    assert_eq!(told, "1 0 ", "an error answer does not end the connection");
    // After chunks too, the next request is found where they end.
    let chunks = ["-H", "Transfer-Encoding: chunked", "--data-binary", "@file", "-o", "out", "-o", "out"];
    let told = bench.curl(&[&chunks[..], &["-w", "%{http_code} %{num_connects}\n", &file, &file]].concat());
    assert_eq!(told, "200 1\n200 0\n");
    bench.assert_marked();
}

#[test]
fn curl_may_speak_http_1_0() {
    let bench = Bench::new(300_000);
    assert_eq!(
        bench.curl(&["-0", "--data-binary", "@file", "-o", "out", "-w", "%{http_code}", &bench.raw_url()]),
        "200"
    );
    bench.assert_marked();
    assert_eq!(bench.curl(&["-0", &bench.url("/")]), "Pong!");
}

#[test]
fn curl_asks_for_the_head_only() {
    let bench = Bench::new(10);
    let head = bench.curl(&["-I", &bench.url("/health")]);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let length = bench.curl(&[&bench.url("/health")]).len();
    assert!(head.lines().any(|l| l.eq_ignore_ascii_case(&format!("content-length: {length}"))), "{head}");
    let told = bench.curl(&[
        "-I",
        "-o",
        "a",
        "-o",
        "b",
        "-w",
        "%{http_code} %{num_connects}\n",
        &bench.url("/"),
        &bench.url("/"),
    ]);
    assert_eq!(told, "200 1\n200 0\n");
}
