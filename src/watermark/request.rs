//! A request to the service, written piece by piece while it is sent: docs/FORMATS.md, "The watermark service".

use std::io::{self, Read};

use formats::base64;
use formats::json::{self, ESCAPE_LEN};
use serde::Serialize;

use super::WatermarkRequest;
use crate::settings::WatermarkApi;

/// How a file was sent, which decides how its marked file must come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Text,
    Base64,
}

/// A request's JSON. Only what surrounds the file is there as text; the file is turned into text as it is read.
pub(crate) struct WireRequest<'a> {
    before: Vec<u8>,
    file: &'a [u8],
    pub sent: Sent,
    after: &'static [u8],
}

#[derive(Serialize)]
struct Ids<'a> {
    file_id: &'a str,
    user_id: &'a str,
}

impl<'a> WireRequest<'a> {
    pub(crate) fn new(form: WatermarkApi, request: &'a WatermarkRequest<'_>) -> WireRequest<'a> {
        let WatermarkRequest { file_id, user_id, data: file } = request;
        let sent = match form {
            WatermarkApi::Data if std::str::from_utf8(file).is_ok() => Sent::Text,
            _ => Sent::Base64,
        };
        let (member, after): (&[u8], &[u8]) = match (form, sent) {
            (WatermarkApi::Data, Sent::Text) => (b",\"data\":\"", b"\"}"),
            (WatermarkApi::Data, Sent::Base64) => (b",\"data\":\"", b"\",\"encoding\":\"base64\"}"),
            (WatermarkApi::Image, _) => (b",\"image\":\"", b"\"}"),
        };
        let mut before = serde_json::to_vec(&Ids { file_id, user_id }).expect("texts are JSON");
        before.pop(); // the closing brace
        before.extend_from_slice(member);
        WireRequest { before, file, sent, after }
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        let file = match self.sent {
            Sent::Text => json::escaped_len(self.file),
            Sent::Base64 => base64::encoded_len(self.file.len()),
        };
        self.before.len() + file + self.after.len()
    }

    /// Its bytes, from the first on.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { before: &self.before, file: self.file, sent: self.sent, after: self.after, small: Vec::new() }
    }
}

/// What is still to be read of a request.
pub(crate) struct Reader<'a> {
    before: &'a [u8],
    file: &'a [u8],
    sent: Sent,
    after: &'a [u8],
    /// Bytes for a reader that takes fewer at once than a piece of the file has.
    small: Vec<u8>,
}

/// The least that a piece of the file takes: an escape, or four characters of base64.
const PIECE: usize = ESCAPE_LEN;

impl Reader<'_> {
    /// Fills a buffer of at least [`PIECE`] bytes, but for a few bytes at its end.
    fn fill(&mut self, buf: &mut [u8]) -> usize {
        let mut n = take(&mut self.before, buf);
        while !self.file.is_empty() && buf.len() - n >= PIECE {
            let room = &mut buf[n..];
            let (read, written) = match self.sent {
                Sent::Text => json::escape(self.file, room),
                Sent::Base64 => {
                    // A multiple of three, but for the end: padding belongs there.
                    let read = self.file.len().min(room.len() / 4 * 3);
                    (read, base64::encode_into(&self.file[..read], room))
                }
            };
            self.file = &self.file[read..];
            n += written;
        }
        if self.file.is_empty() { n + take(&mut self.after, &mut buf[n..]) } else { n }
    }
}

/// Moves what fits.
fn take(from: &mut &[u8], to: &mut [u8]) -> usize {
    let n = from.len().min(to.len());
    to[..n].copy_from_slice(&from[..n]);
    *from = &from[n..];
    n
}

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.small.is_empty() && buf.len() >= PIECE {
            return Ok(self.fill(buf));
        }
        if self.small.is_empty() {
            let mut piece = [0; PIECE];
            let n = self.fill(&mut piece);
            self.small.extend_from_slice(&piece[..n]);
        }
        let n = take(&mut &self.small[..], buf);
        self.small.drain(..n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use WatermarkApi::{Data, Image};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn sent(form: WatermarkApi, data: &[u8], at_once: usize) -> (Value, Sent) {
        let request = WatermarkRequest { file_id: "f\"", user_id: "u\n", data: data.to_vec() };
        let request = WireRequest::new(form, &request);
        let (mut reader, mut json) = (request.reader(), Vec::new());
        loop {
            let mut piece = vec![0; at_once];
            match reader.read(&mut piece).unwrap() {
                0 => break,
                n => json.extend_from_slice(&piece[..n]),
            }
        }
        assert_eq!(json.len(), request.len());
        (serde_json::from_slice(&json).unwrap(), request.sent)
    }

    #[test]
    fn in_form_data_text_goes_as_text_and_the_rest_as_base64_and_in_form_image_all_as_base64() {
        let with = |more: Value| {
            let mut all = json!({"file_id": "f\"", "user_id": "u\n"});
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        let sent = |form, data| sent(form, data, 4096);
        assert_eq!(sent(Data, "grün".as_bytes()), (with(json!({"data": "grün"})), Sent::Text));
        assert_eq!(sent(Data, b""), (with(json!({"data": ""})), Sent::Text));
        assert_eq!(sent(Data, b"\xff\0"), (with(json!({"data": "/wA=", "encoding": "base64"})), Sent::Base64));
        assert_eq!(sent(Image, b"\xff\0"), (with(json!({"image": "/wA="})), Sent::Base64));
        assert_eq!(sent(Image, b"text"), (with(json!({"image": "dGV4dA=="})), Sent::Base64));
    }

    proptest! {
        #[test]
        fn however_it_is_read_the_request_is_the_same(
            text in "\\PC*|[\"\\\\\\x00-\\x1f]*", bytes in prop::collection::vec(any::<u8>(), 0..200), at_once in 1_usize..70
        ) {
            for data in [text.as_bytes(), &bytes] {
                for form in [Data, Image] {
                    let (read, how) = sent(form, data, at_once);
                    let content = read.get("data").or(read.get("image")).unwrap().as_str().unwrap();
                    let came = match how {
                        Sent::Text => content.as_bytes().to_vec(),
                        Sent::Base64 => base64::decode(content).unwrap(),
                    };
                    prop_assert_eq!(&came, data);
                }
            }
        }
    }
}
