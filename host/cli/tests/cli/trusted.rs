//! `teemark decrypt` over an untrusted way to the enclave: grants, sealed answers, signed answers.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use formats::digest::sha256;
use formats::hpke::PrivateKey;
use formats::reply::{self, About, Statement};
use formats::time::now_ms;

use super::enclave::{Enclave, Reply, Request, Signed, TRUST, answer, daemon};
use super::nsm::Nsm;
use super::*;

const ABOUT: About<'static> = About { file_id: "f-1", user_id: "alice" };

/// An enclave's statement, made now, on an unsealed, marked answer to this encrypted file.
fn statement(content: &[u8]) -> Statement<'static> {
    let content_sha256 = sha256(content);
    Statement { about: ABOUT, content_sha256, watermarked: true, sealed: false, timestamp_ms: now_ms() }
}

fn decrypt(place: &Place, endpoint: &str, more: &[&str]) -> Output {
    place.write("file.enc", "encrypted");
    let base = ["decrypt", "file.enc", "--endpoint", endpoint, "--file-id", "f-1", "--user-id", "alice"];
    place.teemark(&[&base[..], more].concat())
}

/// Asks a daemon that sends this one answer.
fn decrypt_answer(place: &Place, reply: Reply, more: &[&str]) -> Output {
    decrypt(place, &daemon(vec![reply]).0, more)
}

/// Asks the enclave, which was attested before; this reply is its answer, or comes in place of its answer.
fn verify(place: &Place, enclave: &Enclave, reply: Reply, more: &[&str]) -> Output {
    let (endpoint, _requests) = daemon(vec![enclave.attests(), reply]);
    decrypt(place, &endpoint, &[&TRUST[..], &["--verify"], more].concat())
}

/// Expects this status and these words, and that no file is there.
#[track_caller]
fn writes_nothing(place: &Place, status: i32, output: &Output, words: &str) {
    let told = fails(status, output);
    assert!(told.contains(words), "{words} in {told}");
    let names = place.names();
    assert!(names.contains(&"file.enc".into()) && !names.contains(&"file".into()), "{names:?}");
    assert!(output.stdout.is_empty());
}

/// A token with these claims; nothing here checks its signature.
fn token(claims: &str) -> String {
    format!("e30.{}.c2lnbmF0dXJl\n", URL_SAFE_NO_PAD.encode(claims))
}

/// A folder with `alice.key`, and its public half.
fn with_reply_key(place: &Place) -> String {
    let made = succeeds(place.teemark(&["keygen", "--for", "reply", "--output", "alice.key"]));
    stdout(&made).trim_end().to_owned()
}

#[test]
fn a_grant_goes_along_as_a_bearer_token() {
    let place = Place::new();
    place.write("grant", token("{}"));
    let (endpoint, requests) = daemon(vec![Reply::After(answer("200 OK", "", "marked"))]);
    succeeds(decrypt(&place, &endpoint, &["--grant", "grant"]));
    assert_eq!(requests.recv().unwrap().field("Authorization"), Some("Bearer e30.e30.c2lnbmF0dXJl"));
    assert_eq!(place.read("file"), b"marked");
}

#[test]
fn a_file_that_holds_no_token_is_refused_before_anything_is_sent() {
    let place = Place::new();
    place.write("grant", "secret");
    for file in ["grant", "none"] {
        let output = decrypt(&place, "http://127.0.0.1:1", &["--grant", file]);
        writes_nothing(&place, 2, &output, &format!("--grant {file}"));
        assert!(!stderr(&output).contains("secret"));
    }
}

#[test]
fn an_answer_sealed_to_a_key_of_this_request_or_of_a_file_is_opened() {
    let (enclave, file) = (Enclave::new(), vec![b'm'; 200_000]);
    let place = enclave.place();
    let public = with_reply_key(&place);
    let gives = || enclave.gives(&file, ABOUT, |_| {});
    let (endpoint, requests) = daemon(vec![gives(), gives(), gives()]);
    let mut asked = Vec::new();
    for more in [&["--seal"][..], &["--seal"], &["--seal", "--reply-key", "alice.key"]] {
        succeeds(decrypt(&place, &endpoint, &[more, &["--force"]].concat()));
        assert_eq!(place.read("file"), file);
        asked.push(requests.recv().unwrap().field("Teemark-Reply-Key").unwrap().to_owned());
    }
    assert!(asked[2] == public && asked[0] != asked[1] && asked[0] != asked[2], "{asked:?}");
}

#[test]
fn an_answer_that_is_not_sealed_though_it_should_be_is_refused() {
    let place = Place::new();
    for headers in ["", "Teemark-Sealed: false\r\n", "Teemark-Sealed: true\r\nTeemark-Sealed: true\r\n"] {
        let output = decrypt_answer(&place, Reply::After(answer("200 OK", headers, "marked")), &["--seal"]);
        writes_nothing(&place, 2, &output, "the answer is not sealed, although");
    }
    let (enclave, options) = (Enclave::new(), ["--seal", "--reply-key", "alice.key"]);
    with_reply_key(&place);
    let reply = enclave.gives(b"marked", ABOUT, |signed| signed.sealed = false);
    writes_nothing(&place, 2, &decrypt_answer(&place, reply, &options), "the answer is not sealed, although");
}

#[test]
fn an_answer_that_says_it_is_sealed_and_is_not_or_was_altered_is_refused() {
    let enclave = Enclave::new();
    let place = enclave.place();
    with_reply_key(&place);
    let another = |signed: &mut Signed| {
        let key = PrivateKey::new(Box::new([1; 32]));
        signed.body = reply::seal(b"marked".to_vec(), ABOUT, &key.public()).unwrap();
    };
    let gives = |alter: fn(&mut Signed)| enclave.gives(b"marked", ABOUT, alter);
    for reply in [
        gives(|signed| signed.body = b"marked, and longer than a key and a tag would be".to_vec()),
        gives(|signed| signed.body = Vec::new()),
        gives(|signed| *signed.body.last_mut().unwrap() ^= 1),
        gives(|signed| signed.body.push(0)),
        gives(another),
        enclave.gives(b"marked", About { file_id: "f-2", ..ABOUT }, |_| {}),
        enclave.gives(b"marked", About { user_id: "bob", ..ABOUT }, |_| {}),
    ] {
        let output = decrypt_answer(&place, reply, &["--seal", "--reply-key", "alice.key"]);
        writes_nothing(&place, 2, &output, "cannot be opened");
    }
}

#[test]
fn where_the_clocks_are_too_far_apart_nothing_is_sent() {
    let nsm = Nsm::new();
    let place = attest::place(&nsm);
    // The document is made now, by a module whose clock is in the year 2025.
    let document = move |request: &Request| attest::with_document(&nsm.document(&request.nonce()));
    let (endpoint, requests) = daemon(vec![Reply::Made(Box::new(document)), Reply::After(answer("200 OK", "", "f"))]);
    let output = decrypt(&place, &endpoint, &[&attest::WITH_ROOT[..], &["--verify"]].concat());
    writes_nothing(&place, 2, &output, "apart, and at most 300 s are allowed; nothing was sent");
    assert!(requests.recv().unwrap().head.starts_with("GET /get_attestation"));
    assert!(requests.try_recv().is_err(), "the file was sent");
}

#[test]
fn an_answer_that_is_larger_than_any_can_be_is_not_written() {
    let enclave = Enclave::new();
    let place = enclave.place();
    let largest = reply::sealed_len(18 * "encrypted".len() + (2 << 20));
    let chunked = |length: usize| {
        let start = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTeemark-Sealed: true\r\n\r\n";
        format!("{start}{length:x}\r\n{}\r\n0\r\n\r\n", "m".repeat(length))
    };
    // It announces or sends one byte too many; a sealed answer of the right length gets as far as being opened.
    let promised = |length: usize| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nTeemark-Sealed: true\r\n\r\n");
        head + &"m".repeat(length)
    };
    for answer in [promised(largest + 1), chunked(largest + 1)] {
        let output = decrypt_answer(&place, Reply::After(answer.clone()), &["--seal"]);
        writes_nothing(&place, 2, &output, &format!("more than {largest} bytes"));
        let plain = answer.replacen("Teemark-Sealed: true\r\n", "", 1);
        let output = decrypt_answer(&place, Reply::After(plain), &[]);
        writes_nothing(&place, 2, &output, &format!("more than {largest} bytes"));
    }
    // To standard output it would go as it arrives.
    let plain = promised(largest + 1).replacen("Teemark-Sealed: true\r\n", "", 1);
    writes_nothing(&place, 2, &decrypt_answer(&place, Reply::After(plain), &["--output", "-"]), "more than");
    for answer in [promised(largest), chunked(largest)] {
        let output = decrypt_answer(&place, Reply::After(answer.clone()), &["--seal"]);
        writes_nothing(&place, 2, &output, "cannot be opened");
        let plain = answer.replacen("Teemark-Sealed: true\r\n", "", 1);
        succeeds(decrypt_answer(&place, Reply::After(plain), &["--force"]));
        assert_eq!(place.read("file").len(), largest);
        fs::remove_file(place.path("file")).unwrap();
    }
}

#[test]
fn what_an_answer_leaves_open_is_said_and_most_where_least_is_asked_for() {
    let enclave = Enclave::new();
    let place = enclave.place();
    let public = with_reply_key(&place);
    place.write("names", token(&format!(r#"{{"reply_key":"{public}"}}"#)));
    place.write("names-none", token("{}"));
    let (relayed, made) = ("the grant names no reply key", "nobody vouches for the answer");
    let readable = "whoever relays the answer, as the parent does, can read the marked file";
    let key = ["--seal", "--reply-key", "alice.key", "--force"];
    let verify = [&TRUST[..], &["--verify"]].concat();
    for (more, warned) in [
        (&["--grant", "names-none"][..], [true, true]),
        (&["--grant", "names"], [false, true]),
        (&[], [false, true]),
        (&[&["--grant", "names-none"], &verify[..]].concat(), [true, false]),
        (&[&["--grant", "names"], &verify[..]].concat(), [false, false]),
    ] {
        let gives = enclave.gives(b"marked", ABOUT, |_| {});
        let replies = if more.contains(&"--verify") { vec![enclave.attests(), gives] } else { vec![gives] };
        let told = stderr(&succeeds(decrypt(&place, &daemon(replies).0, &[&key[..], more].concat())));
        assert_eq!([relayed, made].map(|words| told.contains(words)), warned, "{more:?}: {told}");
        assert!(!told.contains(readable), "{more:?}: {told}");
    }
    for (more, vouched) in [(&["--force"][..], false), (&[&["--force"], &verify[..]].concat(), true)] {
        let gives = enclave.gives(b"marked", ABOUT, |_| {});
        let replies = if vouched { vec![enclave.attests(), gives] } else { vec![gives] };
        let told = stderr(&succeeds(decrypt(&place, &daemon(replies).0, more)));
        assert!(told.contains(readable) && told.contains(made) != vouched, "{more:?}: {told}");
    }
}

#[test]
fn an_answer_that_is_sealed_unasked_is_not_written_and_the_remedy_told() {
    let place = Place::new();
    let reply = Reply::After(answer("200 OK", "Teemark-Sealed: true\r\n", "sealed"));
    writes_nothing(&place, 2, &decrypt_answer(&place, reply, &[]), "--seal --reply-key FILE");
}

#[test]
fn a_grant_that_names_a_reply_key_is_not_spent_on_an_answer_that_cannot_be_opened() {
    let enclave = Enclave::new();
    let place = enclave.place();
    let public = with_reply_key(&place);
    place.write("grant", token(&format!(r#"{{"reply_key":"{public}"}}"#)));
    for more in [&[][..], &["--seal"]] {
        let output = decrypt(&place, "http://127.0.0.1:1", &[&["--grant", "grant"], more].concat());
        writes_nothing(&place, 2, &output, "--seal --reply-key FILE");
    }
    let reply = enclave.gives(b"marked", ABOUT, |_| {});
    let options = ["--grant", "grant", "--seal", "--reply-key", "alice.key"];
    succeeds(decrypt_answer(&place, reply, &options));
    assert_eq!(place.read("file"), b"marked");
}

#[test]
fn an_answer_that_the_attested_enclave_signed_is_written() {
    let enclave = Enclave::new();
    let place = enclave.place();
    for more in [&["--verify"][..], &["--verify", "--seal"]] {
        let (endpoint, requests) = daemon(vec![enclave.attests(), enclave.gives(b"marked", ABOUT, |_| {})]);
        succeeds(decrypt(&place, &endpoint, &[&TRUST[..], more, &["--force"]].concat()));
        assert_eq!(place.read("file"), b"marked");
        assert!(requests.recv().unwrap().head.starts_with("GET /get_attestation?nonce="));
        assert_eq!(requests.recv().unwrap().body, b"encrypted");
    }
}

#[test]
fn an_answer_that_the_attested_enclave_did_not_sign_is_refused() {
    let (enclave, another) = (Enclave::new(), Enclave::new());
    let place = enclave.place();
    let gives = |alter: fn(&mut Signed)| enclave.gives(b"marked", ABOUT, alter);
    for more in [&[][..], &["--seal"]] {
        for reply in [
            gives(|signed| *signed.body.last_mut().unwrap() ^= 1),
            gives(|signed| signed.body.clear()),
            gives(|signed| signed.timestamp = (signed.timestamp.parse::<u64>().unwrap() + 1).to_string()),
            gives(|signed| signed.timestamp = "now".to_owned()),
            gives(|signed| signed.signature = STANDARD.encode([0; 64])),
            gives(|signed| signed.signature.clear()),
            gives(|signed| signed.watermarked = false),
            enclave.gives(b"marked", About { file_id: "f-2", ..ABOUT }, |_| {}),
            enclave.gives(b"marked", About { user_id: "bob", ..ABOUT }, |_| {}),
            another.gives(b"marked", ABOUT, |_| {}),
        ] {
            let output = verify(&place, &enclave, reply, more);
            writes_nothing(&place, 2, &output, "the answer is not signed by the attested enclave: ");
        }
    }
    let output = verify(&place, &enclave, Reply::After(answer("200 OK", "", "marked")), &[]);
    writes_nothing(&place, 2, &output, "Teemark-Timestamp is missing");
}

#[test]
fn the_answer_to_another_request_of_the_same_file_and_user_is_refused() {
    let enclave = Enclave::new();
    let place = enclave.place();
    // Answers that the parent may have kept: for another encrypted file with this id, and a sealed one for an open request.
    for statement in [statement(b"an older file"), Statement { sealed: true, ..statement(b"encrypted") }] {
        let signed = Signed { sealed: false, ..enclave.sign(b"of another request".into(), statement) };
        writes_nothing(&place, 2, &verify(&place, &enclave, signed.reply(), &[]), "another request or another time");
    }
}

#[test]
fn a_file_that_is_not_marked_is_written_with_a_warning() {
    let enclave = Enclave::new();
    let place = enclave.place();
    let signed = enclave.sign(b"plain".into(), Statement { watermarked: false, ..statement(b"encrypted") });
    let told = stderr(&succeeds(verify(&place, &enclave, signed.reply(), &[])));
    assert!(told.contains("the file is not marked"), "{told}");
    assert_eq!(place.read("file"), b"plain");
}

#[test]
fn an_answer_that_was_signed_more_than_five_minutes_from_now_is_refused() {
    let enclave = Enclave::new();
    let place = enclave.place();
    let minutes = |n: i64| now_ms().saturating_add_signed(n * 60_000);
    for (timestamp, words) in [(minutes(-6), "replays an old answer"), (minutes(6), "clock")] {
        let statement = Statement { timestamp_ms: timestamp, ..statement(b"encrypted") };
        let signed = enclave.sign(b"marked".into(), statement);
        writes_nothing(&place, 2, &verify(&place, &enclave, signed.reply(), &[]), words);
    }
}

#[test]
fn an_enclave_that_is_not_attested_is_sent_no_file() {
    let (enclave, another) = (Enclave::new(), Enclave::new());
    let place = enclave.place();
    let (endpoint, requests) = daemon(vec![another.attests()]);
    let output = decrypt(&place, &endpoint, &[&TRUST[..], &["--verify"]].concat());
    writes_nothing(&place, 1, &output, "refused: root: ");
    assert_eq!(requests.iter().count(), 1);
}

#[test]
fn options_that_count_only_with_another_are_refused_without_it() {
    let place = Place::new();
    for (more, words) in [
        (&["--reply-key", "alice.key"][..], "--seal"),
        (&["--verify"], "--pcrs <FILE>"),
        (&["--pcrs", "image.pcrs"], "--verify"),
        (&["--development"], "--verify"),
        (&["--verify", "--root", "root.der"], "--pcrs <FILE>"),
    ] {
        writes_nothing(&place, 2, &decrypt(&place, "http://127.0.0.1:1", more), words);
    }
    succeeds(place.teemark(&["keygen", "--for", "operator", "--output", "operator.key"]));
    let output = decrypt(&place, "http://127.0.0.1:1", &["--seal", "--reply-key", "operator.key"]);
    writes_nothing(
        &place,
        2,
        &output,
        "--reply-key operator.key: the key file operator.key: it is an operator's key (keygen --for operator), but a key for replies",
    );
}
