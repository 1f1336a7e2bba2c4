//! `teemark decrypt` over an untrusted way to the enclave: grants, sealed answers, signed answers.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use formats::digest::sha256;
use formats::hpke::PrivateKey;
use formats::reply::{self, About, Statement};
use formats::time::now_ms;

use super::enclave::{Enclave, Reply, Signed, TRUST, answer, daemon};
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

/// Has the one answer verified.
fn verify(place: &Place, reply: Reply, more: &[&str]) -> Output {
    let (endpoint, _requests) = daemon(vec![reply]);
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
fn a_saved_document_that_is_too_old_from_the_future_or_not_the_images_sends_nothing() {
    let (enclave, another) = (Enclave::new(), Enclave::new());
    let place = enclave.place();
    let by = |document: Vec<u8>| {
        place.write("document", document);
        let options = ["--verify", "--attested", "document", "--max-age", "60"];
        decrypt(&place, "http://127.0.0.1:1", &[&TRUST[..], &options].concat())
    };
    for (document, words) in [
        (enclave.document_at(Some(b"any"), now_ms() - 61_000), "and --max-age allows 60 s"),
        (enclave.document_at(None, now_ms() + 3_600_000), "s in the future"),
        (another.document(None), "refused: root: "),
        (Vec::new(), "refused: structure: "),
    ] {
        writes_nothing(&place, 1, &by(document), words);
    }
    // A good one gets as far as a daemon that is not there.
    writes_nothing(&place, 3, &by(enclave.document(None)), "gave no answer");
    fs::remove_file(place.path("document")).unwrap();
    let options = ["--verify", "--attested", "document", "--max-age", "60"];
    let output = decrypt(&place, "http://127.0.0.1:1", &[&TRUST[..], &options].concat());
    writes_nothing(&place, 2, &output, "teemark attest --output writes it");
}

#[test]
fn by_a_saved_document_several_answers_are_verified_without_another() {
    let enclave = Enclave::new();
    let place = enclave.place();
    let (endpoint, _requests) = daemon(vec![enclave.attests()]);
    let saved = [&["attest", "--endpoint", &endpoint, "--output", "document"], &TRUST[..]].concat();
    succeeds(place.teemark(&saved));
    let gives = || enclave.gives(b"marked", ABOUT, |_| {});
    let (endpoint, requests) = daemon(vec![gives(), gives(), enclave.beside().gives(b"marked", ABOUT, |_| {})]);
    let options = [&TRUST[..], &["--verify", "--attested", "document", "--max-age", "600", "--force"]].concat();
    for _ in 0..2 {
        succeeds(decrypt(&place, &endpoint, &options));
        assert_eq!(place.read("file"), b"marked");
        fs::remove_file(place.path("file")).unwrap();
        assert_eq!(requests.recv().unwrap().attest(), None);
    }
    writes_nothing(&place, 2, &decrypt(&place, &endpoint, &options), "the address leads to several enclaves");
}

#[test]
fn by_the_document_without_a_nonce_an_answer_of_any_enclave_behind_the_address_is_verified() {
    let (enclave, another) = (Enclave::new(), Enclave::new());
    let (first, second) = (enclave.beside(), enclave.beside());
    let place = enclave.place();
    let options = [&TRUST[..], &["--verify", "--max-age", "60", "--force"]].concat();
    let ask = |replies: Vec<Reply>| {
        let _ = fs::remove_file(place.path("file"));
        let (endpoint, requests) = daemon(replies);
        (decrypt(&place, &endpoint, &options), requests)
    };
    let gives = || second.gives(b"marked", ABOUT, |_| {});
    succeeds(ask(vec![second.stands(30_000), gives()]).0);
    assert_eq!(place.read("file"), b"marked");
    // The enclave that answers is not the one whose document came first.
    succeeds(ask(vec![first.stands(0), gives(), first.stands(0), enclave.stands(0), second.stands(0)]).0);
    assert_eq!(place.read("file"), b"marked");
    for (document, words) in [(second.stands(61_000), "and --max-age allows 60 s"), (another.stands(0), "root: ")] {
        let (output, requests) = ask(vec![document, gives()]);
        writes_nothing(&place, 1, &output, words);
        assert!(requests.try_iter().all(|request| request.line().starts_with("GET ")), "the file was sent");
    }
    // Nobody proves who signed it.
    let forged = enclave.gives(b"marked", ABOUT, |signed| signed.identity = "11".repeat(32));
    let documents = (0..16).map(|_| enclave.stands(0));
    let replies = [enclave.stands(0), enclave.gives(b"marked", ABOUT, |signed| signed.body[0] ^= 1)];
    writes_nothing(&place, 2, &ask(replies.into()).0, "its signature is by another key");
    let (output, requests) = ask([enclave.stands(0), forged].into_iter().chain(documents).collect());
    succeeds(output);
    assert_eq!(requests.try_iter().count(), 18, "it looks for that enclave's document a bounded number of times");
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
        let told = stderr(&succeeds(decrypt(&place, &daemon(vec![gives]).0, &[&key[..], more].concat())));
        assert_eq!([relayed, made].map(|words| told.contains(words)), warned, "{more:?}: {told}");
        assert!(!told.contains(readable), "{more:?}: {told}");
    }
    for (more, vouched) in [(&["--force"][..], false), (&[&["--force"], &verify[..]].concat(), true)] {
        let gives = enclave.gives(b"marked", ABOUT, |_| {});
        let told = stderr(&succeeds(decrypt(&place, &daemon(vec![gives]).0, more)));
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
fn an_answer_that_its_own_document_proves_is_written_after_one_request_with_a_nonce_of_its_own() {
    let enclave = Enclave::new();
    let place = enclave.place();
    let mut nonces = HashSet::new();
    for more in [&["--verify"][..], &["--verify", "--seal"]] {
        let (endpoint, requests) = daemon(vec![enclave.gives(b"marked", ABOUT, |_| {})]);
        let output = succeeds(decrypt(&place, &endpoint, &[&TRUST[..], more, &["--force", "--json"]].concat()));
        assert_eq!(place.read("file"), b"marked");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&told["identity"], &told["bytes"]), (&enclave.identity().into(), &6.into()));
        let request = requests.recv().unwrap();
        assert_eq!(request.body, b"encrypted");
        assert!(request.attest().is_some_and(|nonce| nonce.len() == 32 && nonces.insert(nonce)));
    }
}

#[test]
fn a_document_that_nobody_asked_for_is_not_taken_for_the_file() {
    let enclave = Enclave::new();
    let place = enclave.place();
    // Somebody on the way added the field to the request.
    let document = String::from_utf8(vec![b'd'; 300]).unwrap();
    let plain = answer("200 OK", "Teemark-Attestation-Length: 300\r\n", &(document + "marked"));
    let output = succeeds(decrypt_answer(&place, Reply::After(plain.clone()), &["--json"]));
    assert_eq!(place.read("file"), b"marked");
    assert!(stdout(&output).contains("\"bytes\":6,"), "{}", stdout(&output));
    fs::remove_file(place.path("file")).unwrap();
    let cut = answer("200 OK", "Teemark-Attestation-Length: 307\r\n", &"d".repeat(300));
    writes_nothing(&place, 2, &decrypt_answer(&place, Reply::After(cut), &[]), "Teemark-Attestation-Length");
}

#[test]
fn this_machines_clock_does_not_count_where_the_document_is_fresh() {
    let enclave = Enclave::new();
    let place = enclave.place();
    for made_ms in [now_ms() - 86_400_000, now_ms() + 86_400_000] {
        let mut signed = enclave.sign(b"marked".into(), Statement { timestamp_ms: made_ms, ..statement(b"encrypted") });
        signed.made_ms = made_ms;
        succeeds(verify(&place, signed.reply(), &["--force"]));
    }
}

#[test]
fn an_old_answer_beside_a_fresh_document_is_refused() {
    let enclave = Enclave::new();
    let place = enclave.place();
    let old = Statement { timestamp_ms: now_ms() - 11_000, ..statement(b"encrypted") };
    let signed = enclave.sign(b"marked".into(), old);
    writes_nothing(&place, 2, &verify(&place, signed.reply(), &[]), "replays an old answer beside a fresh document");
}

#[test]
fn a_document_of_another_request_or_of_another_enclave_proves_nothing() {
    let (enclave, another) = (Enclave::new(), Enclave::new());
    let place = enclave.place();
    let gives = |alter: fn(&mut Signed)| enclave.gives(b"marked", ABOUT, alter);
    let replayed = gives(|signed| signed.nonce = Some(vec![7; 32]));
    writes_nothing(&place, 1, &verify(&place, replayed, &[]), "refused: file was not written: nonce: ");
    let without = gives(|signed| signed.attester = None);
    writes_nothing(&place, 2, &verify(&place, without, &[]), "it came without the attestation document");
    let forged = gives(|signed| signed.attester = Some(Enclave::new()));
    writes_nothing(&place, 1, &verify(&place, forged, &[]), "refused: file was not written: root: ");
    writes_nothing(
        &place,
        1,
        &verify(&place, another.gives(b"marked", ABOUT, |_| {}), &[]),
        "refused: file was not written: root: ",
    );
}

#[test]
fn an_answer_that_the_attested_enclave_did_not_sign_is_refused() {
    let enclave = Enclave::new();
    let (place, another) = (enclave.place(), enclave.beside());
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
            {
                let attester = enclave.clone();
                another.gives(b"marked", ABOUT, |signed| signed.attester = Some(attester))
            },
        ] {
            let output = verify(&place, reply, more);
            writes_nothing(&place, 2, &output, "the answer is not signed by the attested enclave: ");
        }
    }
    let output = verify(&place, Reply::After(answer("200 OK", "", "marked")), &[]);
    writes_nothing(&place, 2, &output, "it came without the attestation document");
}

#[test]
fn the_answer_to_another_request_of_the_same_file_and_user_is_refused() {
    let enclave = Enclave::new();
    let place = enclave.place();
    // Answers that the parent may have kept: for another encrypted file with this id, and a sealed one for an open request.
    for statement in [statement(b"an older file"), Statement { sealed: true, ..statement(b"encrypted") }] {
        let signed = Signed { sealed: false, ..enclave.sign(b"of another request".into(), statement) };
        writes_nothing(&place, 2, &verify(&place, signed.reply(), &[]), "another request or another time");
    }
}

#[test]
fn a_file_that_is_not_marked_is_written_with_a_warning() {
    let enclave = Enclave::new();
    let place = enclave.place();
    let signed = enclave.sign(b"plain".into(), Statement { watermarked: false, ..statement(b"encrypted") });
    let told = stderr(&succeeds(verify(&place, signed.reply(), &[])));
    assert!(told.contains("the file is not marked"), "{told}");
    assert_eq!(place.read("file"), b"plain");
}

#[test]
fn by_an_older_document_an_answer_that_was_signed_more_than_five_minutes_from_now_is_refused() {
    let enclave = Enclave::new();
    let place = enclave.place();
    place.write("document", enclave.document(None));
    let reused = ["--attested", "document", "--max-age", "3600"];
    let minutes = |n: i64| now_ms().saturating_add_signed(n * 60_000);
    for (timestamp, words) in [(minutes(-6), "replays an old answer"), (minutes(6), "clock")] {
        let statement = Statement { timestamp_ms: timestamp, ..statement(b"encrypted") };
        let signed = enclave.sign(b"marked".into(), statement);
        writes_nothing(&place, 2, &verify(&place, signed.reply(), &reused), words);
    }
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
        (&["--max-age", "60"], "--verify"),
        (&["--verify", "--development", "--attested", "document"], "--max-age"),
        (&["--cacert", "ca.crt"], "--cacert is for https"),
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
