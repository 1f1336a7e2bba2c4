//! Several files in one command.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::enclave::{Enclave, Reply, TRUST, answer, daemon};
use super::*;

fn object(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", stdout(output)))
}

fn refusal(status: &str, code: &str) -> Reply {
    Reply::After(answer(status, "", &format!(r#"{{"error":"no","code":"{code}"}}"#)))
}

fn marked() -> Reply {
    Reply::After(answer("200 OK", "", "marked"))
}

/// Asks for three files, with these answers.
fn three(place: &Place, replies: Vec<Reply>, more: &[&str]) -> (Output, Vec<super::enclave::Request>) {
    for name in ["a.enc", "b.enc", "c.enc"] {
        place.write(name, name);
    }
    let (endpoint, requests) = daemon(replies);
    let base = ["decrypt", "a.enc", "b.enc", "c.enc", "--endpoint", &endpoint, "--user-id", "alice", "--retries", "0"];
    let output = place.teemark(&[&base[..], more].concat());
    (output, requests.try_iter().collect())
}

#[test]
fn each_file_is_encrypted_under_its_name_beside_it_or_in_a_folder() {
    let place = Place::new();
    place.keys(&["1+"]);
    fs::create_dir(place.path("out")).unwrap();
    for name in ["a.txt", "b.txt"] {
        place.write(name, name);
    }
    succeeds(place.teemark(&["encrypt", "a.txt", "b.txt", "--keys", "keys.json"]));
    let to_folder = ["encrypt", "a.txt", "b.txt", "--keys", "keys.json", "--output-dir", "out", "--json"];
    let told = object(&succeeds(place.teemark(&to_folder)));
    let file = |name: &str| {
        let output = format!("out/{name}.enc");
        json!({"input": name, "output": output, "key_id": "1", "file_id": name, "bytes": 12 + 5 + 16})
    };
    assert_eq!(told, json!({"files": [file("a.txt"), file("b.txt")]}));
    for name in ["a.txt.enc", "b.txt.enc", "out/a.txt.enc", "out/b.txt.enc"] {
        assert_eq!(place.read(name).len(), 33, "{name}");
    }
}

#[test]
fn each_file_is_asked_for_with_its_own_grant_and_nonce_and_warnings_come_once() {
    let enclave = Enclave::new();
    let place = enclave.place();
    fs::create_dir(place.path("grants")).unwrap();
    for id in ["a", "b", "c"] {
        let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"file_id":"{id}"}}"#));
        place.write(&format!("grants/{id}.grant"), format!("e30.{claims}.c2ln\n"));
    }
    let gives = |file_id| enclave.gives(b"marked", formats::reply::About { file_id, user_id: "alice" }, |_| {});
    let replies = vec![gives("a"), gives("b"), gives("c")];
    let (output, requests) =
        three(&place, replies, &[&["--grants", "grants", "--verify", "--seal"][..], &TRUST].concat());
    assert_eq!(stderr(&succeeds(output)).matches("runs in debug mode").count(), 1);
    for (request, id) in requests.iter().zip(["a", "b", "c"]) {
        assert!(request.line().contains(&format!("/files/{id}/decrypt")), "{}", request.line());
        let grant = String::from_utf8(place.read(&format!("grants/{id}.grant"))).unwrap();
        assert_eq!(request.field("Authorization"), Some(format!("Bearer {}", grant.trim_end()).as_str()));
        assert_eq!((place.read(id), place.mode(id)), (b"marked".to_vec(), 0o600));
    }
    let nonces: HashSet<_> = requests.iter().map(|request| request.attest().unwrap()).collect();
    assert_eq!((requests.len(), nonces.len()), (3, 3));
}

#[test]
fn one_that_fails_does_not_hold_up_the_others_and_the_worst_counts() {
    for (replies, status, words) in [
        (vec![marked(), refusal("503 X", "overloaded"), marked()], 3, "b.enc: try again: no (overloaded"),
        (
            vec![refusal("403 X", "grant_used"), refusal("503 X", "overloaded"), marked()],
            1,
            "a.enc: refused: no (grant",
        ),
        (vec![refusal("503 X", "overloaded"), refusal("502 X", "watermark_failed"), marked()], 2, "b.enc: error: no"),
    ] {
        let place = Place::new();
        let (output, _) = three(&place, replies, &["--json"]);
        let told = fails(status, &output);
        assert!(told.contains(words) && told.contains("of 3 files failed"), "{told}");
        assert_eq!(place.read("c"), b"marked");
        let object = object(&output);
        assert_eq!((&object["exit"], &object["code"]), (&json!(status), &json!("files_failed")));
        for (file, input) in object["files"].as_array().unwrap().iter().zip(["a.enc", "b.enc", "c.enc"]) {
            assert_eq!(file["input"], input);
            let name = input.trim_end_matches(".enc").to_owned();
            assert_eq!(file["error"].is_null(), place.names().contains(&name), "{file}");
        }
    }
}

#[test]
fn what_does_not_fit_several_files_is_told_before_anything_is_done() {
    let place = Place::new();
    place.keys(&["1+"]);
    fs::create_dir(place.path("x")).unwrap();
    for name in ["a", "b", "x/a", "a.enc", "b.enc"] {
        place.write(name, "text");
    }
    let before = place.names();
    let encrypt = ["encrypt", "--keys", "keys.json"];
    let decrypt = ["decrypt", "--endpoint", "http://127.0.0.1:1", "--user-id", "u"];
    for (command, more, words) in [
        (&encrypt[..], &["a", "b", "--output", "o"][..], "--output is for one file"),
        (&encrypt, &["a", "b", "--file-id", "f"], "--file-id is for one file"),
        (&encrypt, &["a", "-"], "standard input"),
        (&encrypt, &["-", "--output-dir", "x"], "standard input has no name"),
        (&encrypt, &["a", "x/a", "--output-dir", ".", "--force"], "would be written to ./a.enc"),
        (&encrypt, &["x/a", "x/a", "--force"], "would be written to x/a.enc"),
        (&encrypt, &["x/a", "none"], "cannot read none"),
        (&encrypt, &["x/a", "b"], "b.enc is there already"),
        (&encrypt, &["a", "b", "--output-dir", "none"], "cannot write in the folder none"),
        (&decrypt, &["a.enc", "b.enc", "--grant", "g", "--force"], "--grants names a folder"),
        (&decrypt, &["a.enc", "b.enc", "--grants", "x", "--force"], "--grants x/a.grant"),
        (&decrypt, &["a.enc", "--file-id", "../a", "--grants", "x", "--force"], "give the grant with --grant"),
        (&decrypt, &["a.enc", "b.enc"], "a is there already"),
    ] {
        let told = fails(2, &place.teemark(&[command, more].concat()));
        assert!(told.contains(words), "{more:?}: {told}");
        assert_eq!(place.names(), before);
        assert_eq!(fs::read_dir(place.path("x")).unwrap().count(), 1);
    }
}

#[test]
fn a_terminal_shows_one_bar_over_all_files() {
    let place = Place::new();
    place.keys(&["1"]);
    for name in ["a", "b"] {
        place.write(name, vec![0; 6 << 20]);
    }
    // script gives it a terminal for standard error (util-linux).
    let command = format!("{} encrypt a b --keys keys.json", env!("CARGO_BIN_EXE_teemark"));
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).current_dir(place.0.path()).stdin(Stdio::null());
    let Ok(output) = script.output() else {
        eprintln!("not run: there is no script of util-linux here");
        return;
    };
    let shown = stdout(&succeeds(output));
    assert!(shown.contains("2 of 2") && shown.contains("/12.00 MiB"), "{shown:?}");
    assert!(!shown.contains("writing") && !shown.contains("/6.00 MiB"), "{shown:?}");
}
