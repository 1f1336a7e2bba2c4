//! The service's success answer: docs/FORMATS.md, "The watermark service".

use formats::base64;
use formats::json::{self, LargeText, Text};
use serde::Deserialize;

use super::fingerprint::Fingerprint;
use super::kind::Kind;
use super::request::Sent;
use super::{Unmarked, WatermarkError, failed};
use crate::settings::WatermarkApi;

/// Bytes at the beginning of a file whose base64 is recognized; a multiple of three.
const RECOGNIZED: usize = 48;
/// Largest file that is kept until its marked file is there, in bytes. Of a larger one only the fingerprint is kept, so
/// that the two never take memory together.
pub const KEPT: usize = 1 << 20;

/// What is known of a file once it has been sent: enough to check that what comes back can be its marked file.
pub(crate) struct Original {
    length: usize,
    kind: Option<Kind>,
    /// Base64 of its first bytes, without padding.
    beginning: String,
    sent: Sent,
    content: Content,
}

enum Content {
    Whole(Vec<u8>),
    Fingerprint(Box<Fingerprint>),
}

impl Original {
    /// Lets go of the file, unless it is small or to be kept.
    ///
    /// # Errors
    /// There are no random numbers.
    pub(crate) fn of(mut file: Vec<u8>, sent: Sent, keep: bool) -> Result<Original, WatermarkError> {
        let beginning = base64::encode(&file[..file.len().min(RECOGNIZED)]);
        let beginning = beginning.trim_end_matches('=').to_owned();
        let (length, kind) = (file.len(), Kind::of(&file));
        let content = if keep || length <= KEPT {
            if keep {
                // By the JSON route it was decoded in the buffer of its base64, a third larger.
                file.shrink_to_fit();
            }
            Content::Whole(file)
        } else {
            Content::Fingerprint(Fingerprint::of(&file).map_err(|_| failed("the system has no random numbers"))?)
        };
        Ok(Original { length, kind, beginning, sent, content })
    }

    /// Bytes of memory that it holds.
    pub(crate) fn held(&self) -> usize {
        match &self.content {
            Content::Whole(file) => file.capacity(),
            Content::Fingerprint(_) => 0,
        }
    }

    /// The file, if it was kept.
    pub(crate) fn into_file(self) -> Option<Vec<u8>> {
        match self.content {
            Content::Whole(file) => Some(file),
            Content::Fingerprint(_) => None,
        }
    }

    fn is(&self, marked: &[u8]) -> bool {
        match &self.content {
            Content::Whole(file) => file == marked,
            Content::Fingerprint(fingerprint) => fingerprint.is_of(marked),
        }
    }

    /// Checks that what came back can be the marked file of what was sent. This guards against mistakes, not against a
    /// service that lies.
    fn check(&self, marked: &[u8]) -> Result<(), WatermarkError> {
        let missing = |reason: String| Err(WatermarkError::Missing(reason));
        if marked.is_empty() {
            return missing("the watermark service gave back an empty file".into());
        }
        if self.sent == Sent::Text {
            return match std::str::from_utf8(marked) {
                Ok(_) => Ok(()),
                Err(_) => missing("the watermark service was sent text and gave back bytes that are not UTF-8".into()),
            };
        }
        // Base64 that was marked as text, and then encoded again, contains the whole file.
        if self.length >= RECOGNIZED / 4 && marked.starts_with(self.beginning.as_bytes()) {
            return missing("the watermark service marked base64 as if it were text".into());
        }
        let (Some(of_file), of_marked) = (self.kind, Kind::of(marked)) else { return Ok(()) };
        if of_marked.is_some_and(|kind| of_file.can_become(kind)) {
            return Ok(());
        }
        let came = of_marked.map_or("an unknown kind", Kind::name);
        missing(format!(
            "the watermark service was sent a file of the kind {} and gave back one of {came}",
            of_file.name()
        ))
    }
}

#[derive(Deserialize)]
struct WireAnswer<'a> {
    #[serde(borrow)]
    status: Text<'a>,
    #[serde(borrow)]
    watermarked_data: Option<LargeText<'a>>,
    #[serde(borrow)]
    encoding: Option<Text<'a>>,
}

/// The marked file in an answer, in the answer's own buffer, once it was checked that it can be this file's.
///
/// # Errors
/// The answer cannot be used, or its content cannot be the marked file.
pub(crate) fn marked(
    form: WatermarkApi,
    original: &Original,
    answer: Vec<u8>,
) -> Result<Result<Vec<u8>, Unmarked>, WatermarkError> {
    let unexpected = || failed("the watermark service's answer is not the expected JSON");
    let read: WireAnswer = json::object(&answer).map_err(|_| unexpected())?;
    if &*read.status != "success" {
        return Err(failed("the watermark service reports that it could not mark the file"));
    }
    let Some(text) = read.watermarked_data else { return Ok(Err(Unmarked::LeftOut)) };
    let is_base64 = match (read.encoding.as_deref(), form, original.sent) {
        (Some("base64"), _, _) | (None, WatermarkApi::Image, _) => true,
        (None, WatermarkApi::Data, Sent::Text) => false,
        (None, WatermarkApi::Data, Sent::Base64) => {
            return Err(failed(
                "the watermark service marked base64 as if it were text: its answer lacks \"encoding\": \"base64\", which \
                 TEEMARK_WATERMARK_API=data asks for where a file is not text (docs/FORMATS.md)",
            ));
        }
        (Some(_), _, _) => return Err(failed("the watermark service's answer has an encoding other than base64")),
    };
    let place = text.place(&answer);
    let marked = match is_base64 {
        true => json::into_bytes(answer, place).ok_or_else(|| failed(not_base64(form)))?,
        false => json::into_text(answer, place).ok_or_else(unexpected)?,
    };
    if original.is(&marked) {
        return Ok(Err(Unmarked::Unchanged));
    }
    original.check(&marked).map(|()| Ok(marked))
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

#[cfg(test)]
mod tests {
    use super::*;
    use WatermarkApi::{Data, Image};
    use serde_json::{Value, json};

    /// What comes of an answer to this file: the same whether the file was kept or only its fingerprint.
    fn answer(form: WatermarkApi, sent: Sent, file: &[u8], answer: Value) -> Result<Result<Vec<u8>, Unmarked>, String> {
        let kept = || Original::of(file.to_vec(), sent, true).unwrap();
        let hashed = Original { content: Content::Fingerprint(Fingerprint::of(file).unwrap()), ..kept() };
        let [of_kept, of_hashed] = [kept(), hashed]
            .map(|original| marked(form, &original, answer.to_string().into_bytes()).map_err(|e| format!("{e:?}")));
        assert_eq!(of_kept, of_hashed);
        of_kept
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
