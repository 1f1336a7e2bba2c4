//! Marked or not at all: what the watermark service returns is checked before it is signed as marked.

use crate::support::*;
use crate::*;

/// A service with this fault, if any, and a daemon that calls it in this form.
fn pair_in(form: &str, fault: Option<&str>, more: &[(&str, &str)]) -> (Service, Daemon) {
    let arguments: Vec<&str> = fault.iter().flat_map(|fault| ["--fault", *fault]).collect();
    let service = Service::start(&CERTS, &arguments);
    let setup = Setup::new(service.port).env("TEEMARK_WATERMARK_API", form);
    let setup = setup.envs(more);
    let daemon = Daemon::ready_with(setup, service.port, &CERTS);
    (service, daemon)
}

const TEXT: &[u8] = b"the zebra crosses at dawn\n";
const FORMS: [&str; 2] = ["data", "image"];

/// The refusals of a file by both routes, which say the same and reveal nothing of the file.
fn refused(daemon: &Daemon, file: &[u8], code: &str) -> String {
    let sealed = encrypt(&KEY, file);
    let answers = [daemon.decrypt(&sealed, "f", "u"), decrypt_json(daemon, &sealed)];
    for answer in &answers {
        assert_error(answer, 502, code);
        assert!(!answer.text().contains("zebra") && answer.field("Teemark-Signature").is_none(), "{answer:?}");
    }
    assert_eq!(answers[0].json(), answers[1].json());
    answers[0].json()["error"].as_str().unwrap().to_owned()
}

#[test]
fn in_both_forms_text_and_pictures_come_back_marked() {
    for form in FORMS {
        let (_service, daemon) = pair_in(form, None, &[]);
        for file in [TEXT.to_vec(), sample_png()] {
            let answer = daemon.decrypt(&encrypt(&KEY, &file), "f", "u");
            assert_eq!(answer.status, 200, "{form}: {answer:?}");
            assert_eq!(answer.field("Teemark-Watermarked"), Some("true"));
            assert_eq!(extract(&answer.body), json!({"file_id": "f", "user_id": "u"}), "{form}");
        }
    }
}

#[test]
fn base64_in_lines_and_without_padding_is_read() {
    for form in FORMS {
        let (_service, daemon) = pair_in(form, Some("base64-lines"), &[]);
        let answer = daemon.decrypt(&encrypt(&KEY, &sample_png()), "f", "u");
        assert_eq!(answer.status, 200, "{form}: {answer:?}");
        assert_eq!(extract(&answer.body), json!({"file_id": "f", "user_id": "u"}), "{form}");
    }
}

#[test]
fn a_file_that_comes_back_as_it_was_is_not_given_out() {
    for form in FORMS {
        let (_service, daemon) = pair_in(form, Some("unmarked"), &[]);
        for file in [TEXT.to_vec(), sample_png()] {
            let message = refused(&daemon, &file, "watermark_missing");
            assert!(message.contains("gave back the file as it was"), "{message}");
        }
    }
}

#[test]
fn a_picture_that_was_marked_as_if_its_base64_were_text_is_not_given_out() {
    let (_service, daemon) = pair_in("data", Some("no-encoding"), &[]);
    let message = refused(&daemon, &sample_png(), "watermark_failed");
    assert!(message.contains("TEEMARK_WATERMARK_API"), "{message}");
}

#[test]
fn what_cannot_be_the_marked_file_is_not_given_out_whatever_is_allowed() {
    let allowed = [("TEEMARK_ALLOW_UNWATERMARKED", "on")];
    for more in [&[][..], &allowed] {
        for (form, fault, file, words) in [
            ("data", "empty", TEXT.to_vec(), "empty"),
            ("image", "empty", TEXT.to_vec(), "empty"),
            ("data", "not-utf8", TEXT.to_vec(), "not UTF-8"),
            ("data", "other-kind", sample_png(), "PNG and gave back one of PDF"),
            ("image", "other-kind", sample_png(), "PNG and gave back one of PDF"),
        ] {
            let (_service, daemon) = pair_in(form, Some(fault), more);
            let message = refused(&daemon, &file, "watermark_missing");
            assert!(message.contains(words), "{form}, {fault}: {message}");
        }
    }
}

#[test]
fn where_unmarked_files_are_allowed_one_that_came_back_as_it_was_is_given_out_as_unmarked() {
    for form in FORMS {
        let (_service, daemon) = pair_in(form, Some("unmarked"), &[("TEEMARK_ALLOW_UNWATERMARKED", "on")]);
        let answer = daemon.decrypt(&encrypt(&KEY, TEXT), "f", "u");
        assert_eq!((answer.status, &answer.body[..]), (200, TEXT), "{answer:?}");
        assert_eq!(answer.field("Teemark-Watermarked"), Some("false"), "{form}");
    }
}
