//! The two forms of `/api/watermark`: how a file comes in a request, and how a file goes back in the answer.
//!
//! In form `data`, that of the verification checklist, text is in `data` as it is, and any other file in base64 with
//! `"encoding": "base64"`; the answer's `watermarked_data` is made likewise. In form `image`, the reference handler's,
//! every file is in `image` in base64, and `watermarked_data` is base64 without `encoding`. A request that has
//! `image` is in that form. Other members are ignored.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::ApiError;

/// The members of a request that hold the file.
#[derive(Deserialize)]
pub(crate) struct Members {
    data: Option<String>,
    image: Option<String>,
    encoding: Option<String>,
}

/// How a file is written in JSON.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Form {
    /// As text, in `data`.
    Text,
    /// In base64, in `data`, with `encoding`.
    Base64,
    /// In base64, in `image`.
    Image,
}

impl Members {
    /// The form, and the file as the JSON has it.
    ///
    /// # Errors
    /// There is no file, more than one, or an encoding other than base64.
    pub(crate) fn file(self) -> Result<(Form, String), ApiError> {
        let refuse = |status, message: &str| Err(ApiError(status, message.to_owned()));
        match (self.image, self.data, self.encoding.as_deref()) {
            (Some(image), None, _) => Ok((Form::Image, image)),
            (Some(_), Some(_), _) => refuse(
                StatusCode::UNPROCESSABLE_ENTITY,
                "data beside image asks for other text to embed; this service embeds file_id and user_id only",
            ),
            (None, Some(data), None) => Ok((Form::Text, data)),
            (None, Some(data), Some("base64")) => Ok((Form::Base64, data)),
            (None, Some(_), Some(_)) => {
                refuse(StatusCode::BAD_REQUEST, "encoding can only be \"base64\", or left out for text")
            }
            (None, None, _) => refuse(
                StatusCode::BAD_REQUEST,
                "there is neither image nor data: send the file in base64 as image, or as data (text as it is, or \
                 base64 with \"encoding\": \"base64\")",
            ),
        }
    }
}

impl Form {
    /// Decodes the file's bytes from its JSON member.
    ///
    /// # Errors
    /// The file should be in base64 and is not.
    pub(crate) fn decode(self, file: String) -> Result<Vec<u8>, ApiError> {
        let member = match self {
            Form::Text => return Ok(file.into_bytes()),
            Form::Base64 => "data",
            Form::Image => "image",
        };
        let bad = |e| ApiError(StatusCode::BAD_REQUEST, format!("{member} is not base64: {e}"));
        BASE64_STANDARD.decode(file).map_err(bad)
    }

    /// The success answer with this file, in the form that its request had. `lines` breaks base64 into lines and leaves
    /// out the padding.
    pub(crate) fn answer(self, file: Vec<u8>, lines: bool) -> Value {
        let bytes = match String::from_utf8(file) {
            Ok(text) if self == Form::Text => return json!({"status": "success", "watermarked_data": text}),
            Ok(text) => text.into_bytes(),
            Err(e) => e.into_bytes(),
        };
        let base64 = if lines { in_lines(&bytes) } else { BASE64_STANDARD.encode(bytes) };
        let mut answer = json!({"status": "success", "watermarked_data": base64});
        if self != Form::Image {
            answer["encoding"] = "base64".into();
        }
        answer
    }
}

/// Base64 as MIME breaks it (RFC 2045, 6.8), without padding.
fn in_lines(bytes: &[u8]) -> String {
    let base64 = BASE64_STANDARD_NO_PAD.encode(bytes);
    let mut lines = String::with_capacity(base64.len() / 76 * 78 + 78);
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(76));
        lines.push_str(line);
        lines.push_str("\r\n");
        rest = after;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_back_in_the_form_that_it_came_in() {
        for (form, file) in [(Form::Text, "grün"), (Form::Base64, "/wA="), (Form::Image, "/wA=")] {
            let answer = form.answer(form.decode(file.to_owned()).unwrap(), false);
            assert_eq!(answer["watermarked_data"], file);
            assert_eq!(answer.get("encoding").is_some(), form == Form::Base64, "{form:?}");
        }
    }

    #[test]
    fn text_that_came_as_base64_goes_back_as_base64() {
        for form in [Form::Base64, Form::Image] {
            assert_eq!(form.answer(b"text".to_vec(), false)["watermarked_data"], "dGV4dA==", "{form:?}");
        }
    }

    #[test]
    fn lines_have_76_characters_and_no_padding() {
        let whole = Form::Image.answer(vec![0xff; 58], true);
        assert_eq!(whole["watermarked_data"], format!("{}\r\n/w\r\n", "/".repeat(76)));
        assert_eq!(Form::Image.answer(Vec::new(), true)["watermarked_data"], "");
    }
}
