//! The two forms of a call of the service: docs/FORMATS.md, "The watermark service".

use ::base64::display::Base64Display;
use ::base64::engine::general_purpose::STANDARD;
use formats::base64::{self, decode};
use formats::json::{self, Text};
use serde::{Deserialize, Serialize, Serializer};

use super::kind::Kind;
use super::{Unmarked, WatermarkError, WatermarkRequest, failed};
use crate::memory::Reservation;
use crate::settings::WatermarkApi;

/// How a file was sent, which decides how its marked file must come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Text,
    Base64,
}

/// Bytes at the beginning of a file whose base64 is recognized; a multiple of three.
const RECOGNIZED: usize = 48;

/// A request to be sent.
pub(crate) struct WireRequest {
    pub json: Vec<u8>,
    pub sent: Sent,
}

#[derive(Serialize)]
struct Members<'a> {
    file_id: &'a str,
    user_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Content<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<Content<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
}

enum Content<'a> {
    Text(&'a str),
    Base64(&'a [u8]),
}

impl Serialize for Content<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Content::Text(text) => serializer.serialize_str(text),
            Content::Base64(bytes) => serializer.collect_str(&Base64Display::new(bytes, &STANDARD)),
        }
    }
}

impl Content<'_> {
    /// Its length in JSON.
    fn len(&self) -> usize {
        match self {
            Content::Text(text) => escaped_len(text.as_bytes()),
            Content::Base64(bytes) => bytes.len().div_ceil(3) * 4,
        }
    }
}

impl WireRequest {
    /// The request as JSON, in a buffer that is allocated once and large enough; `memory` grows to cover what it takes.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(crate) fn new(
        form: WatermarkApi,
        request: WatermarkRequest<'_>,
        memory: &mut Reservation,
    ) -> Result<WireRequest, WatermarkError> {
        let WatermarkRequest { file_id, user_id, data: file } = request;
        let (content, sent) = match std::str::from_utf8(file) {
            Ok(text) if form == WatermarkApi::Data => (Content::Text(text), Sent::Text),
            _ => (Content::Base64(file), Sent::Base64),
        };
        let length = escaped_len(file_id.as_bytes()) + escaped_len(user_id.as_bytes()) + content.len() + 128;
        memory.cover(file.len().saturating_add(length))?;
        let encoding = (form == WatermarkApi::Data && sent == Sent::Base64).then_some("base64");
        let (data, image) = match form {
            WatermarkApi::Data => (Some(content), None),
            WatermarkApi::Image => (None, Some(content)),
        };
        let mut json = Vec::with_capacity(length);
        serde_json::to_writer(&mut json, &Members { file_id, user_id, data, image, encoding })
            .map_err(|_| failed("the file cannot be put into JSON"))?;
        Ok(WireRequest { json, sent })
    }
}

/// Length of a string in JSON, as serde_json escapes it.
fn escaped_len(text: &[u8]) -> usize {
    let one = |b: &u8| match b {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.iter().map(one).sum()
}

#[derive(Deserialize)]
struct WireAnswer<'a> {
    #[serde(borrow)]
    status: Text<'a>,
    #[serde(borrow)]
    watermarked_data: Option<Text<'a>>,
    #[serde(borrow)]
    encoding: Option<Text<'a>>,
}

/// The marked file in an answer, once it was checked that it can be this file's.
///
/// # Errors
/// The answer cannot be used, or its content cannot be the marked file.
pub(crate) fn marked(
    form: WatermarkApi,
    sent: Sent,
    file: &[u8],
    answer: &[u8],
) -> Result<Result<Vec<u8>, Unmarked>, WatermarkError> {
    let answer: WireAnswer =
        json::object(answer).map_err(|_| failed("the watermark service's answer is not the expected JSON"))?;
    if &*answer.status != "success" {
        return Err(failed("the watermark service reports that it could not mark the file"));
    }
    let Some(text) = answer.watermarked_data else { return Ok(Err(Unmarked::LeftOut)) };
    let marked = match (answer.encoding.as_deref(), form, sent) {
        (Some("base64"), _, _) | (None, WatermarkApi::Image, _) => {
            decode(&text).ok_or_else(|| failed(not_base64(form)))?
        }
        (None, WatermarkApi::Data, Sent::Text) => text.0.into_owned().into_bytes(),
        (None, WatermarkApi::Data, Sent::Base64) => {
            return Err(failed(
                "the watermark service marked base64 as if it were text: its answer lacks \"encoding\": \"base64\", which \
                 TEEMARK_WATERMARK_API=data asks for where a file is not text (docs/FORMATS.md)",
            ));
        }
        (Some(_), _, _) => return Err(failed("the watermark service's answer has an encoding other than base64")),
    };
    if marked == file {
        return Ok(Err(Unmarked::Unchanged));
    }
    check(sent, file, &marked).map(|()| Ok(marked))
}

fn not_base64(form: WatermarkApi) -> &'static str {
    match form {
        WatermarkApi::Data => {
            "watermarked_data in the watermark service's answer is not base64, though \"encoding\" says so"
        }
        WatermarkApi::Image => {
            "watermarked_data in the watermark service's answer is not base64, which TEEMARK_WATERMARK_API=image asks for \
             (docs/FORMATS.md)"
        }
    }
}

/// Checks that what came back can be the marked file of what was sent. This guards against mistakes, not against a
/// service that lies.
fn check(sent: Sent, file: &[u8], marked: &[u8]) -> Result<(), WatermarkError> {
    let missing = |reason: String| Err(WatermarkError::Missing(reason));
    if marked.is_empty() {
        return missing("the watermark service gave back an empty file".into());
    }
    if sent == Sent::Text {
        return match std::str::from_utf8(marked) {
            Ok(_) => Ok(()),
            Err(_) => missing("the watermark service was sent text and gave back bytes that are not UTF-8".into()),
        };
    }
    // Base64 that was marked as text, and then encoded again, contains the whole file.
    let beginning = base64::encode(&file[..file.len().min(RECOGNIZED)]);
    if file.len() >= RECOGNIZED / 4 && marked.starts_with(beginning.trim_end_matches('=').as_bytes()) {
        return missing("the watermark service marked base64 as if it were text".into());
    }
    let (Some(of_file), of_marked) = (Kind::of(file), Kind::of(marked)) else { return Ok(()) };
    if of_marked.is_some_and(|kind| of_file.can_become(kind)) {
        return Ok(());
    }
    let came = of_marked.map_or("an unknown kind", Kind::name);
    missing(format!("the watermark service was sent a file of the kind {} and gave back one of {came}", of_file.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Budget;
    use WatermarkApi::{Data, Image};
    use serde_json::{Value, json};

    fn request(form: WatermarkApi, data: &[u8]) -> WireRequest {
        let mut memory = Budget::new(1 << 20, 1).open();
        WireRequest::new(form, WatermarkRequest { file_id: "f\"", user_id: "u\n", data }, &mut memory).unwrap()
    }

    #[test]
    fn a_request_fits_the_buffer_made_for_it() {
        for form in [Data, Image] {
            for data in
                [&b""[..], b"text", b"\x01\"\\\n\x7f", "\u{e4}\u{2028}".as_bytes(), b"\xff\xfe", b"\xff\xfe\xfd\xfc"]
            {
                let json = request(form, data).json;
                assert!(json.len() <= json.capacity() && json.capacity() < json.len() + 128, "{data:?}");
            }
        }
    }

    #[test]
    fn in_form_data_text_goes_as_text_and_the_rest_as_base64_and_in_form_image_all_as_base64() {
        let sent = |form, data: &[u8]| {
            let request = request(form, data);
            (serde_json::from_slice::<Value>(&request.json).unwrap(), request.sent)
        };
        let ids = json!({"file_id": "f\"", "user_id": "u\n"});
        let with = |more: Value| {
            let mut all = ids.clone();
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        assert_eq!(sent(Data, "grün".as_bytes()), (with(json!({"data": "grün"})), Sent::Text));
        assert_eq!(sent(Data, b"\xff\0"), (with(json!({"data": "/wA=", "encoding": "base64"})), Sent::Base64));
        assert_eq!(sent(Image, b"\xff\0"), (with(json!({"image": "/wA="})), Sent::Base64));
        assert_eq!(sent(Image, b"text"), (with(json!({"image": "dGV4dA=="})), Sent::Base64));
    }

    fn answer(form: WatermarkApi, sent: Sent, file: &[u8], answer: Value) -> Result<Result<Vec<u8>, Unmarked>, String> {
        marked(form, sent, file, answer.to_string().as_bytes()).map_err(|e| format!("{e:?}"))
    }

    #[test]
    fn what_was_sent_as_base64_has_to_come_back_so() {
        let bare = json!({"status": "success", "watermarked_data": "TUFSS0VE"});
        let base64 = json!({"status": "success", "watermarked_data": "TUFSS0VE", "encoding": "base64"});
        let told = answer(Data, Sent::Base64, b"\xff", bare.clone()).unwrap_err();
        assert!(told.starts_with("Failed") && told.contains("TEEMARK_WATERMARK_API=data"), "{told}");
        let text = json!({"status": "success", "watermarked_data": "a text?"});
        let told = answer(Image, Sent::Base64, b"\xff", text).unwrap_err();
        assert!(told.starts_with("Failed") && told.contains("TEEMARK_WATERMARK_API=image"), "{told}");
        assert_eq!(answer(Data, Sent::Base64, b"\xff", base64.clone()), Ok(Ok(b"MARKED".to_vec())));
        assert_eq!(answer(Data, Sent::Text, b"a", base64.clone()), Ok(Ok(b"MARKED".to_vec())));
        assert_eq!(answer(Data, Sent::Text, b"a", bare.clone()), Ok(Ok(b"TUFSS0VE".to_vec())));
        assert_eq!(answer(Image, Sent::Base64, b"\xff", bare), Ok(Ok(b"MARKED".to_vec())));
        assert_eq!(answer(Image, Sent::Base64, b"\xff", base64), Ok(Ok(b"MARKED".to_vec())));
        let lines = json!({"status": "success", "watermarked_data": "TUFS\r\nS0VEIQ", "encoding": "base64"});
        assert_eq!(answer(Data, Sent::Base64, b"\xff", lines), Ok(Ok(b"MARKED!".to_vec())), "in lines, unpadded");
        for (form, data, encoding) in [(Data, "a?", Some("base64")), (Data, "TUFS", Some("hex")), (Image, "a?", None)] {
            let answered = json!({"status": "success", "watermarked_data": data, "encoding": encoding});
            assert!(answer(form, Sent::Base64, b"\xff", answered).unwrap_err().starts_with("Failed"), "{data}");
        }
    }

    #[test]
    fn an_answer_is_an_object_and_says_success() {
        for bad in
            [json!(["success", "MARKED"]), json!({"status": "error"}), json!({"watermarked_data": "M"}), json!(7)]
        {
            assert!(answer(Data, Sent::Text, b"a", bad.clone()).unwrap_err().starts_with("Failed"), "{bad}");
        }
    }

    #[test]
    fn a_file_that_comes_back_as_it_was_is_not_marked() {
        let left_out = json!({"status": "success"});
        let null = json!({"status": "success", "watermarked_data": null});
        let same = json!({"status": "success", "watermarked_data": "text"});
        assert_eq!(answer(Data, Sent::Text, b"text", left_out), Ok(Err(Unmarked::LeftOut)));
        assert_eq!(answer(Data, Sent::Text, b"text", null), Ok(Err(Unmarked::LeftOut)));
        assert_eq!(answer(Data, Sent::Text, b"text", same), Ok(Err(Unmarked::Unchanged)));
        let same = json!({"status": "success", "watermarked_data": "/wA", "encoding": "base64"});
        assert_eq!(answer(Data, Sent::Base64, b"\xff\0", same), Ok(Err(Unmarked::Unchanged)));
        let empty = json!({"status": "success", "watermarked_data": ""});
        assert_eq!(answer(Data, Sent::Text, b"", empty), Ok(Err(Unmarked::Unchanged)));
    }

    #[test]
    fn what_cannot_be_the_marked_file_is_refused() {
        let png = b"\x89PNG\r\n\x1a\n";
        let base64_of_300 = formats::base64::encode([0xff; 300]) + "[marked for u]";
        let base64 = |bytes: &[u8]| json!({"status": "success", "watermarked_data": formats::base64::encode(bytes), "encoding": "base64"});
        for (sent, file, came, words) in [
            (Sent::Text, &b"text"[..], &b""[..], "an empty file"),
            (Sent::Base64, b"\xff", b"", "an empty file"),
            (Sent::Text, b"text", b"\xff", "not UTF-8"),
            (Sent::Base64, png, b"some text", "PNG and gave back one of an unknown kind"),
            (Sent::Base64, png, b"%PDF-1.7", "PNG and gave back one of PDF"),
            (Sent::Base64, &[0xff; 300], base64_of_300.as_bytes(), "as if it were text"),
            (Sent::Base64, b"\xffa short file\xff", b"/2Egc2hvcnQgZmlsZf8=[mark]", "as if it were text"),
            (Sent::Base64, b"%PDF-1.7\xff", b"PK\x03\x04", "PDF and gave back one of ZIP"),
        ] {
            let told = answer(Data, sent, file, base64(came)).unwrap_err();
            assert!(told.starts_with("Missing") && told.contains(words), "{told}");
        }
        let jpeg = b"\xff\xd8\xff\xe0";
        assert_eq!(answer(Data, Sent::Base64, png, base64(jpeg)), Ok(Ok(jpeg.to_vec())), "another picture");
        assert_eq!(answer(Data, Sent::Base64, b"\xff\xfe", base64(b"any")), Ok(Ok(b"any".to_vec())), "no kind told");
    }
}
