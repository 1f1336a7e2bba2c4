//! The two forms in which a file comes and goes.

use std::fs;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::support::{Service, in_base64, in_image, sample};

#[test]
fn in_form_image_pictures_and_text_come_back_marked_as_base64_without_encoding() {
    let service = Service::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let picture = fs::read(sample(folder.path())).unwrap();
    for (file, begins) in [(&picture[..], &b"\x89PNG\r\n\x1a\n"[..]), (b"Two lines,\nboth short.\n", b"")] {
        let (status, answer) = service.post("/api/watermark", &in_image(file));
        assert_eq!((status.as_str(), answer.get("encoding")), ("200", None), "{answer}");
        let marked = BASE64_STANDARD.decode(answer["watermarked_data"].as_str().unwrap()).unwrap();
        assert!(marked != file && marked.starts_with(begins));
        let (_, owner) = service.post("/api/extract", &in_image(&marked));
        assert_eq!(owner, json!({"status": "success", "file_id": "report-7", "user_id": "alice"}));
    }
}

#[test]
fn a_text_that_came_as_base64_goes_back_as_base64() {
    let service = Service::start(&[]);
    let (status, answer) = service.post("/api/watermark", &in_base64(b"Two lines,\nboth short.\n"));
    assert_eq!((status.as_str(), &answer["encoding"]), ("200", &json!("base64")));
    let marked = BASE64_STANDARD.decode(answer["watermarked_data"].as_str().unwrap()).unwrap();
    assert!(String::from_utf8(marked).unwrap().contains("both short."));
}

#[test]
fn a_request_without_a_file_or_with_text_to_embed_is_refused() {
    let service = Service::start(&[]);
    let ids = json!({"file_id": "f", "user_id": "u"});
    let with = |members: &[(&str, &str)]| {
        let mut body = ids.clone();
        members.iter().for_each(|(name, value)| body[*name] = (*value).into());
        body
    };
    let cases = [
        (with(&[]), "400", "neither image nor data"),
        (with(&[("image", "!")]), "400", "image is not base64"),
        (with(&[("image", "dGV4dA=="), ("data", "text")]), "422", "other text to embed"),
    ];
    for (body, expected, reason) in cases {
        let (status, answer) = service.post("/api/watermark", &body);
        assert_eq!(status, expected, "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(reason), "{answer}");
    }
}
